"""One stretch of one kind of work: runs it, and says what was computed in it and what energy that took."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise

from proxy.accounting.activity import Activity, Span, Work
from proxy.accounting.reconstruction import reconstruct
from proxy.accounting.step_book import StepBook
from proxy.accounting.step_clock import ONE_BY_ONE
from proxy.accounting.units import Nanoseconds, seconds
from proxy.accounting.unseen import pace_between
from proxy.accounting.weights import Weights
from proxy.commands.calibration.energy import FEWEST_UPDATES, EnergyLog, Seen
from proxy.commands.calibration.load import Load, Slot
from proxy.commands.calibration.server import CalibrationFailed, Look, Server, Strangers
from proxy.commands.calibration.timetable import Kind
from proxy.ports import Clock

LOOK_S = 0.25
FULL_LOOKS = 10
"""Running requests and waiting ones seen so often before the server is taken to be full."""
BEGIN_S, DRAIN_S = 120.0, 30.0
"""How long first tokens are waited for, and the end of everything."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One stretch. work: of all. energy_j: all that the meters counted in it. busy_s: time in which something ran."""

    work: Work
    seen: Seen
    busy_s: float

    def active_j(self, idle_w: float) -> float:
        """Without what the time took in which nothing ran."""
        return self.seen.energy_j - idle_w * max(0.0, seconds(self.seen.span.length) - self.busy_s)


class Measuring:
    """Runs kinds of work on one server. book: the step log's, where there is one.

    most_at_once: sequences the server ran when more waited; None as long as none had to.
    """

    def __init__(
        self, server: Server, load: Load, energy: EnergyLog, prior: Weights, clock: Clock, book: StepBook | None
    ) -> None:
        self.most_at_once: int | None = None
        self._server = server
        self._load = load
        self._energy = energy
        self._prior = prior
        self._clock = clock
        self._book = book
        self._strangers = Strangers(server, load.own)

    async def idle_w(self, for_s: float) -> float:
        """Mean power over some seconds in which nothing may run. Raises OtherTraffic or CalibrationFailed."""
        start = self._clock()
        before = await self._server.look()
        await asyncio.sleep(for_s)
        seen = self._seen(start, self._clock())
        Strangers.compare(before, await self._server.look(), 0)
        return seen.power_w

    async def run(self, kind: Kind, *, ramp_s: float, window_s: float) -> Measured:
        """One stretch. Raises CalibrationFailed, ConfigurationError or RequestError; nothing runs afterwards."""
        span, looks = await self._stretch(kind, ramp_s, window_s)
        measured = self._measured(self._seen(span.start, span.end), looks)
        self._forget()
        return measured

    async def warm(self, kind: Kind, *, ramp_s: float, window_s: float) -> None:
        """A stretch that counts for nothing, but finds out how much the server runs at once. Raises as `run` does."""
        await self._stretch(kind, ramp_s, window_s)
        self._forget()

    async def _stretch(self, kind: Kind, ramp_s: float, window_s: float) -> tuple[Span, list[Look]]:
        before = await self._server.look()
        async with self._running(kind):
            await asyncio.sleep(ramp_s)
            looks, start = [await self._strangers.look()], self._clock()
            end = Nanoseconds(start + round(window_s * 1e9))
            while (left_s := seconds(end - self._clock())) > 0:
                await asyncio.sleep(min(LOOK_S, left_s))
                looks.append(await self._strangers.look())
            looks.append(await self._strangers.look())
        after = await self._server.drained(DRAIN_S)
        Strangers.compare(before, after, sum(flight.prompt_estimate for flight in self._load.flights))
        return Span(start, end), looks

    def _forget(self) -> None:
        if self._book is not None:
            for flight in self._load.flights:
                self._book.closed(flight)
            self._book.forget_before(self._clock())
        self._load.forget()

    def _seen(self, start: Nanoseconds, end: Nanoseconds) -> Seen:
        if self._energy.failure is not None:
            raise CalibrationFailed(self._energy.failure)
        seen = self._energy.between(start, end)
        if seen is None or seen.updates < FEWEST_UPDATES // 2:
            raise CalibrationFailed("the meter's counter moved too seldom: choose more --minutes")
        return seen

    @asynccontextmanager
    async def _running(self, kind: Kind) -> AsyncIterator[None]:
        """The load of a kind, from the first token of every slot on; all requests are over at the end."""
        stopping = asyncio.Event()
        slots = [slot for part in kind.parts for slot in self._load.slots(part)]
        tasks = [asyncio.ensure_future(self._load.fill(slot, stopping)) for slot in slots]
        try:
            await self._begun(slots, tasks)
            yield
            _raise_first(tasks)
            stopping.set()
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _begun(self, slots: Sequence[Slot], tasks: Sequence["asyncio.Task[None]"]) -> None:
        deadline = self._clock() + round(BEGIN_S * 1e9)
        waited = 0
        while not all(slot.begun.is_set() for slot in slots):
            await asyncio.sleep(0.05)
            _raise_first(tasks)
            now = await self._strangers.look()
            # All that run have begun and others wait: there is no more room, and these would wait for ever.
            full = 0 < now.counters.running <= sum(slot.begun.is_set() for slot in slots)
            waited = waited + 1 if full and now.counters.waiting > 0 else 0
            if waited >= FULL_LOOKS and any(slot.part.tokens > 1 for slot in slots):
                self.most_at_once = int(now.counters.running)
                return
            if self._clock() > deadline:
                raise CalibrationFailed(f"the server gave no first token within {BEGIN_S:.0f} s")

    def _measured(self, seen: Seen, looks: Sequence[Look]) -> Measured:
        span, flights = seen.span, self._load.flights
        if self._book is not None:
            if not self._book.covers(span, flights):
                raise CalibrationFailed("the step log has holes: it lost steps of the engine, or broke off")
            logged = self._book.activity(span, flights, self._prior)
            if logged.strangers:
                raise CalibrationFailed("other traffic: the step log tells of requests that were not sent from here")
            return Measured(logged.total(), seen, seconds(logged.covered_ns))
        pace = pace_between(looks[0].counters, looks[-1].counters) or ONE_BY_ONE
        inferred = reconstruct(span, flights, weights=self._prior, pace=pace)
        return Measured(_with_steps(inferred, _steps(looks, span), self._prior), seen, seconds(inferred.covered_ns))


def _raise_first(tasks: Sequence["asyncio.Task[None]"]) -> None:
    for task in tasks:
        if task.done():
            task.result()


def _steps(looks: Sequence[Look], span: Span) -> float | None:
    """Steps within the span by the engine's own count, with straight lines between the looks."""

    def at(instant: Nanoseconds) -> float | None:
        for before, after in pairwise(looks):
            if before.at <= instant <= after.at and before.steps is not None and after.steps is not None:
                part = (instant - before.at) / max(1, after.at - before.at)
                return before.steps + part * (after.steps - before.steps)
        return None

    start, end = at(span.start), at(span.end)
    return None if start is None or end is None else end - start


def _with_steps(activity: Activity, steps: float | None, prior: Weights) -> Work:
    """The whole work, with the engine's count of steps where it tells: queued prefills hide how they were batched."""
    work = activity.total()
    if steps:
        work.steps = steps
    if prior.experts and work.steps:
        each = (work.prefill + work.decode) / work.steps
        work.experts = work.steps * prior.touched_by(each)
    return work
