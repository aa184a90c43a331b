"""What the proxy would have seen of a run, in the order and at the time it would have seen it.

A stream's tokens arrive some milliseconds after their step, its prompt count with the first of them, its cached
count only with its last chunk, its queue time never (unless the engine is asked for per-request metrics); an answer
in one piece tells all at its end; who leaves is never told. The engine's page is read every second, its step log
comes a millisecond after each step, if at all. For an ablation one fact at a time can be given as it truly was.
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
from proxy.accounting.steps import Computed, EngineStep
from proxy.accounting.units import MILLISECOND, SECOND, Nanoseconds
from proxy.accounting.weights import Weights
from proxy.settlement import PERIOD_S
from proxy.wire.engine_names import likely_ids
from tests.accuracy.engine import Job, Load, Run, Strand
from tests.accuracy.page import pages
from tests.accuracy.prompts import asked

PATIENCE = Patience(
    prefill=Nanoseconds(10 * SECOND),
    silent=Nanoseconds(SECOND // 2),
    scrape=Nanoseconds(2 * SECOND),
    gap=Nanoseconds(30 * SECOND),
)
"""The service's defaults."""
COUNTED_LATE_S = 0.003
"""The engine's page shows a step this long after its end."""
SCRAPE_S = 1.0
LOGGED_LATE = MILLISECOND
LONGEST_WAIT_S = 15.0
"""The group goes on so long after the run: whatever is not settled then is lost."""
LOSS_IN_A_ROW = 10
"""Steps that a full buffer loses at a time, in the mean."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the flights are told beyond what a relay knows, and how late and unevenly tokens arrive (seconds).

    log: the engine's step log is heard, but for the fraction `lost` of the steps.
    """

    lag_s: float = 0.012
    jitter_s: float = 0.006
    queue_at_first: bool = False
    queue_at_end: bool = False
    cached_at_first: bool = False
    prompt_at_once: bool = False
    log: bool = False
    lost: float = 0.0


PLAIN = Told()
Event = tuple[Nanoseconds, int, Callable[[Group], None]]


def ns(seconds: float) -> Nanoseconds:
    """Simulated seconds as the accounting's clock."""
    return Nanoseconds(round(seconds * 1e9))


class View:
    """Bills and events of one run; made anew for every policy, because flights are filled as time goes by.

    settled_after_s: by row, how long after its end a request's last window was divided.
    """

    def __init__(self, run: Run, readings: list[Sample], told: Told, policy: Policy, seed: int) -> None:
        self._rng = random.Random(f"view {seed}")
        self._run = run
        self._told = told
        self._readings = readings
        self.settled_after_s: dict[str, float] = {}
        self.bills = {job.row: self._bill(job, policy) for job in run.jobs if job.seen}

    def _bill(self, job: Job, policy: Policy) -> Bill:
        """As the relay opens it."""
        pooling = not job.output
        if job.ask is None:
            job.ask = asked(job.text, stream=not job.silent, answers=job.answers, embedding=pooling)
        ask = job.ask
        flight = Flight(
            row=job.row,
            request_id=job.row,
            sent=ns(job.sent),
            sequences=ask.sequences,
            prompts=ask.prompts,
            prompt_estimate=job.prompt if self._told.prompt_at_once else ask.prompt_estimate,
            silent=job.silent,
            decodes=not pooling,
            prefix=ask.prefix,
        )
        return Bill(flight, job.tenant, "m", "b", ask.endpoint, not job.silent, policy, 0)

    def play(self, group: Group) -> None:
        """Runs the group through the whole run, settling as often as the service does."""
        events = [*self._requests(), *self._meter(), *self._scrapes()]
        events += self._logged() if self._told.log else ()
        ticks = int((self._run.end + LONGEST_WAIT_S) / PERIOD_S) + 1
        events += [(ns(number * PERIOD_S), 9, self._settle(ns(number * PERIOD_S))) for number in range(ticks)]
        events.sort(key=lambda event: event[:2])
        for _, _, act in events:
            act(group)

    def _settle(self, now: Nanoseconds) -> Callable[[Group], None]:
        def act(group: Group) -> None:
            group.settle(now)
            for bill in group.close_finished(now):
                self.settled_after_s[bill.flight.row] = (now - (bill.flight.ended or now)) / SECOND

        return act

    def _meter(self) -> Iterator[Event]:
        for sample in self._readings:
            yield sample.at, 1, lambda group, sample=sample: group.sampled("gpu", sample)

    def _scrapes(self) -> Iterator[Event]:
        for found in pages(self._run, SCRAPE_S, COUNTED_LATE_S):
            yield found.at, 4, lambda group, found=found: group.scraped(found, found.at)

    def _logged(self) -> Iterator[Event]:
        names: dict[Strand, str] = {}
        dropped = left = 0
        for number, step in enumerate(self._run.steps):
            if not left and self._rng.random() < self._told.lost / LOSS_IN_A_ROW:
                left = 1 + int(self._rng.expovariate(1 / (LOSS_IN_A_ROW - 0.5)))
            if left:
                left, dropped = left - 1, dropped + 1
                continue
            parts = tuple(self._computed(load, names) for load in step.loads)
            found = EngineStep(0, 1, number, ns(step.start), ns(step.end), parts, dropped)
            at = Nanoseconds(found.end + LOGGED_LATE)
            yield at, 0, lambda group, found=found: group.stepped(found)

    def _computed(self, load: Load, names: dict[Strand, str]) -> Computed:
        strand, job = load.strand, load.job
        if strand not in names:
            kind = "chatcmpl-" + job.row if job.output else f"embd-{job.row}-0"
            # What does not come through here has names of its own.
            kind = kind if job.seen else f"chatcmpl-{self._rng.getrandbits(128):032x}"
            child = f"{strand.index}_" if job.answers > 1 else ""
            names[strand] = f"{child}{kind}-{self._rng.getrandbits(32):08x}"
        prefill = max(0, min(load.before + load.p, job.prompt) - load.before)
        return Computed(names[strand], load.before, prefill, load.p - prefill + load.d, load.again)

    def _requests(self) -> Iterator[Event]:
        made: dict[Job, list[tuple[float, int]]] = defaultdict(list)
        for step in self._run.steps:
            for one in step.made:
                made[one.strand.job].append((step.end, one.tokens))
        for job in self._run.jobs:
            if job.seen:
                yield from self._request(job, self.bills[job.row], made[job])

    def _request(self, job: Job, bill: Bill, made: list[tuple[float, int]]) -> Iterator[Event]:
        flight, told = bill.flight, self._told
        yield flight.sent, 0, lambda group: group.open(bill)
        left = None if job.left is None else ns(job.left)
        at, tokens = flight.sent, 0
        for end, new in made:
            late = told.lag_s + max(-told.lag_s * 0.8, self._rng.gauss(0, told.jitter_s)) if told.lag_s else 0.0
            at, tokens = max(ns(end + late), Nanoseconds(at + 1000)), tokens + new
            if left is not None and at >= left:
                break
            if not job.silent:
                yield at, 2, self._tick(job, flight, at, tokens)
        if left is not None:
            yield left, 3, lambda group: flight.end(left, "aborted")
        else:
            yield at, 3, self._end(job, flight, at, tokens)

    def _tick(self, job: Job, flight: Flight, at: Nanoseconds, tokens: int) -> Callable[[Group], None]:
        def act(_: Group) -> None:
            flight.prompt_tokens = job.prompt
            if flight.first is None and self._told.cached_at_first:
                flight.cached_tokens = job.told
            if flight.first is None and self._told.queue_at_first:
                flight.scheduled = ns(job.scheduled)
            flight.tick(at, tokens)

        return act

    def _end(self, job: Job, flight: Flight, at: Nanoseconds, tokens: int) -> Callable[[Group], None]:
        def act(_: Group) -> None:
            flight.prompt_tokens, flight.cached_tokens = job.prompt, job.told
            flight.completion_tokens = tokens
            if self._told.queue_at_end and flight.scheduled is None:
                flight.scheduled = ns(job.scheduled)
            flight.end(at, "ok")

        return act


def fresh_group(weights: Weights, policy: Policy, grade: str) -> Group:
    """A group with one meter, as the service makes it."""
    return Group("b", ["gpu"], weights=weights, patience=PATIENCE, policy=policy, grade=grade, request_ids=likely_ids)
