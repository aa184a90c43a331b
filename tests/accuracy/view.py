"""What the proxy would have seen of a run, in the order and at the time it would have seen it.

A stream's tokens arrive some milliseconds after their step, its prompt count with the first of them, its cached
count only with its last chunk, its queue time never (unless the engine is asked for per-request metrics). For an
ablation one fact at a time can be given as it truly was.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from proxy.accounting.attribution import Policy
from proxy.accounting.bill import Bill
from proxy.accounting.flight import Flight
from proxy.accounting.group import Group, Patience
from proxy.accounting.samples import Sample
from proxy.accounting.units import SECOND, Nanoseconds
from proxy.accounting.unseen import EngineCounters
from proxy.accounting.weights import Weights
from tests.accuracy.engine import Job, Run

PATIENCE = Patience(
    prefill=Nanoseconds(30 * SECOND),
    silent=Nanoseconds(SECOND // 2),
    scrape=Nanoseconds(2 * SECOND),
    gap=Nanoseconds(30 * SECOND),
)
"""The service's defaults."""
COUNTED_LATE_S = 0.003
"""The engine's page shows a step this long after its end."""
SCRAPE_S = 1.0


@dataclass(frozen=True, slots=True)
class Told:
    """What the flights are told beyond what a relay knows, and how late and unevenly tokens arrive (seconds)."""

    lag_s: float = 0.012
    jitter_s: float = 0.006
    queue_at_first: bool = False
    queue_at_end: bool = False
    cached_at_first: bool = False
    prompt_at_once: bool = False


PLAIN = Told()
Event = tuple[Nanoseconds, int, Callable[[Group], None]]


def ns(seconds: float) -> Nanoseconds:
    """Simulated seconds as the accounting's clock."""
    return Nanoseconds(round(seconds * 1e9))


class View:
    """Bills and events of one run; made anew for every policy, because flights are filled as time goes by."""

    def __init__(self, run: Run, readings: list[Sample], told: Told, policy: Policy, seed: int) -> None:
        self._rng = random.Random(f"view {seed}")
        self._run = run
        self._told = told
        self._readings = readings
        self.bills = {job.row: self._bill(job, policy) for job in run.jobs if job.seen}

    def _bill(self, job: Job, policy: Policy) -> Bill:
        guess = job.prompt if self._told.prompt_at_once else round(job.prompt * self._rng.lognormvariate(0, 0.25))
        flight = Flight(job.row, job.row, ns(job.sent), prompt_estimate=guess, silent=job.silent)
        return Bill(flight, job.tenant, "m", "b", "chat", not job.silent, policy, 0)

    def play(self, group: Group, period_s: float = 0.1) -> None:
        """Runs the group through the whole run, settling every `period_s`, as the service does."""
        events = [*self._requests(), *self._meter(), *self._scrapes()]
        ticks = int((self._run.end + 3.0) / period_s) + 1
        events += [(ns(number * period_s), 9, _settle(ns(number * period_s))) for number in range(ticks)]
        events.sort(key=lambda event: event[:2])
        for _, _, act in events:
            act(group)

    def _meter(self) -> Iterator[Event]:
        for sample in self._readings:
            yield sample.at, 1, lambda group, sample=sample: group.sampled("gpu", sample)

    def _requests(self) -> Iterator[Event]:
        steps_of: dict[str, list[float]] = defaultdict(list)
        for step in self._run.steps:
            for job in step.emitted:
                steps_of[job.row].append(step.end)
        for job in self._run.jobs:
            if job.seen:
                yield from self._stream(job, self.bills[job.row], steps_of[job.row])

    def _stream(self, job: Job, bill: Bill, ends: list[float]) -> Iterator[Event]:
        flight, told = bill.flight, self._told
        yield flight.sent, 0, lambda group: group.open(bill)
        at = flight.sent
        for tokens, end in enumerate(ends, 1):
            late = told.lag_s + max(-told.lag_s * 0.8, self._rng.gauss(0, told.jitter_s)) if told.lag_s else 0.0
            at = max(ns(end + late), Nanoseconds(at + 1000))
            if not job.silent:
                yield at, 2, self._tick(job, flight, at, tokens)
        yield at, 3, self._end(job, flight, at, len(ends))

    def _tick(self, job: Job, flight: Flight, at: Nanoseconds, tokens: int) -> Callable[[Group], None]:
        def act(_: Group) -> None:
            flight.prompt_tokens = job.prompt
            if tokens == 1 and self._told.cached_at_first:
                flight.cached_tokens = job.cached
            if tokens == 1 and self._told.queue_at_first:
                flight.scheduled = ns(job.scheduled)
            flight.tick(at, tokens)

        return act

    def _end(self, job: Job, flight: Flight, at: Nanoseconds, tokens: int) -> Callable[[Group], None]:
        def act(_: Group) -> None:
            flight.prompt_tokens, flight.cached_tokens = job.prompt, job.cached
            flight.completion_tokens = tokens
            if self._told.queue_at_end and flight.scheduled is None:
                flight.scheduled = ns(job.scheduled)
            flight.end(at, "ok")

        return act

    def _scrapes(self) -> Iterator[Event]:
        history = [(0.0, 0, 0, 0), *self._run.counters()]
        at, step = 0.5, 0
        while at < self._run.end:
            while step + 1 < len(history) and history[step + 1][0] <= at - COUNTED_LATE_S:
                step += 1
            held = [job for job in self._run.jobs if job.sent <= at < job.ended]
            running = sum(1 for job in held if job.scheduled <= at)
            counts = (float(count) for count in history[step][1:])
            found = EngineCounters(ns(at), float(running), float(len(held) - running), *counts)
            yield found.at, 4, lambda group, found=found: group.scraped(found, found.at)
            at += SCRAPE_S


def _settle(now: Nanoseconds) -> Callable[[Group], None]:
    def act(group: Group) -> None:
        group.settle(now)
        group.close_finished(now)

    return act


def fresh_group(weights: Weights, policy: Policy) -> Group:
    """A group with one meter, as the service makes it."""
    return Group("b", ["gpu"], weights=weights, patience=PATIENCE, policy=policy)
