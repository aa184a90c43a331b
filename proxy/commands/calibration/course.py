"""The course of a calibration: idle, probe, warm-up, every kind of work several times, idle again."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from proxy.accounting.calibration import Stretch
from proxy.accounting.step_book import StepBook
from proxy.accounting.units import Nanoseconds, seconds
from proxy.accounting.weights import Weights
from proxy.commands.calibration.energy import EnergyLog
from proxy.commands.calibration.load import Load
from proxy.commands.calibration.measuring import Measured, Measuring
from proxy.commands.calibration.server import Card, Server
from proxy.commands.calibration.timetable import BATCHES, SHORT, TINY, Kind, Room, Timetable, kinds, order, timetable
from proxy.commands.progress import Stage
from proxy.errors import ConfigurationError
from proxy.ports import Clock, Meter
from proxy.upstream.step_log import StepLog
from proxy.wire.engine_names import likely_ids

PACE_S = 0.7
"""Watched of a meter before its pace is asked for; a slow one is given longer."""
SLOWEST_S = 5.0
SETTLE_S = 1.0
"""After work, before power counts as idle."""
TELL_S = 0.25


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of it. idle_w: mean power without work, before and after, in watts."""

    stretches: tuple[Stretch, ...]
    idle_w: float
    requests: int
    seconds: float
    timetable: Timetable

    @property
    def busy_w(self) -> float:
        """Mean power with work, in watts."""
        return sum(one.energy_j for one in self.stretches) / sum(one.busy_s for one in self.stretches)


@dataclass(slots=True)
class _Remaining:
    """What is still to come. now: what runs; until: when that should be over; after_s: what follows it."""

    now: str
    until: Nanoseconds
    after_s: float


class Course:
    """One calibration of one server.

    step_log: a socket to bind, where the engine reports its steps. step_log_mode: its permissions. source: of prompts
    and of the order.
    """

    def __init__(
        self,
        prior: Weights,
        meters: Sequence[Meter],
        step_log: Path | None,
        step_log_mode: int,
        minutes: float,
        source: random.Random,
        clock: Clock,
        console: Console,
    ) -> None:
        self._prior = prior
        self._clock = clock
        self._minutes = minutes
        self._source = source
        self._stage = Stage(console)
        self._energy = EnergyLog(meters, clock)
        self._book = self._step_log = None
        if step_log is not None:
            self._book = StepBook(likely_ids)
            self._step_log = StepLog(step_log, self._book.take, mode=step_log_mode)
        self._remaining = _Remaining("", clock(), 60 * minutes)

    async def run(self, server: Server, card: Card) -> Ran:
        """Runs it. Raises CalibrationFailed, ConfigurationError or RequestError."""
        began = self._clock()
        load = Load(server.engine, card.model, self._clock, self._source, self._book.opened if self._book else _nothing)
        measuring = Measuring(server, load, self._energy, self._prior, self._clock, self._book)
        if self._step_log is not None:
            self._step_log.open()
        self._energy.start()
        try:
            with self._stage.run("designed load", self._minutes * 60):
                async with self._telling():
                    stretches, idle_w, table = await self._all(server, card, load, measuring)
        finally:
            await self._energy.stop()
            if self._step_log is not None:
                self._step_log.close()
        return Ran(stretches, idle_w, load.requests, seconds(self._clock() - began), table)

    async def _all(
        self, server: Server, card: Card, load: Load, measuring: Measuring
    ) -> tuple[tuple[Stretch, ...], float, Timetable]:
        self._next("meter and speed", 3.0, self._minutes * 60 - 3.0)
        period_s = await self._period_s()
        room, step_s = await self._probed(server, card, load)
        found = kinds(room)
        table = timetable(self._minutes, len(found), period_s=period_s, step_s=step_s)
        runs_s = table.repeats * len(found) * table.stretch_s
        warm_s = len(found) * (table.stretch_s - table.window_s + table.warm_s)
        self._next("idle power", table.idle_s, warm_s + runs_s + table.idle_s)
        before_w = await measuring.idle_w(table.idle_s)
        found = await self._warmed(found, room, table, measuring, runs_s + table.idle_s)
        runs = order(found, table.repeats, self._source)
        measured: list[tuple[int, Kind, Measured]] = []
        for place, (repeat, kind) in enumerate(runs):
            left_s = (len(runs) - place - 1) * table.stretch_s + table.idle_s + SETTLE_S
            self._next(f"round {repeat + 1} of {table.repeats}   {kind.name}", table.stretch_s, left_s)
            measured.append((repeat, kind, await measuring.run(kind, ramp_s=table.ramp_s, window_s=table.window_s)))
        self._next("idle power", table.idle_s + SETTLE_S, 0.0)
        await asyncio.sleep(min(SETTLE_S, table.idle_s))
        idle_w = (before_w + await measuring.idle_w(table.idle_s)) / 2
        stretches = tuple(
            Stretch(kind.name, repeat, one.work, one.active_j(idle_w), one.busy_s) for repeat, kind, one in measured
        )
        return stretches, idle_w, table

    async def _period_s(self) -> float:
        """Of the slowest counter. Raises ConfigurationError where one does not move."""
        for waited_s in (PACE_S, SLOWEST_S):
            await asyncio.sleep(waited_s)
            if self._energy.failure is not None:
                raise ConfigurationError(self._energy.failure)
            period_s = self._energy.period_s()
            if period_s is not None:
                return period_s
        raise ConfigurationError("a meter's counter did not move twice in 5 s: nothing can be learnt from it")

    async def _probed(self, server: Server, card: Card, load: Load) -> tuple[Room, float]:
        """What the server allows, and seconds of a step with one sequence; first requests are slow and do not count."""
        long, short = min(4 * SHORT, card.max_model_len // 2), min(TINY, card.max_model_len // 8)
        for prompt, tokens in ((short, 4), (long, 1), (short, 16)):
            flight = await load.ask(load.prompt(max(2, prompt)), max(2, tokens), asyncio.Event())
        step_s = seconds(flight.tpot_ns or 0) or self._prior.step_s
        flight = await load.ask(load.prompt(long), 1, asyncio.Event())
        prompt_token_s = max(seconds(flight.ttft_ns or 0) - step_s, step_s / 100) / long
        now = await server.drained(10.0)
        load.forget()
        if self._book is not None and not self._book.heard:
            raise ConfigurationError(
                "nothing came from the step log: install deploy/steplog next to vLLM and start it with "
                "JOULEPROXY_STEP_LOG set to this socket"
            )
        return Room(
            max_model_len=card.max_model_len,
            cache_tokens=now.counters.cache_capacity_tokens or None,
            sequences=max(BATCHES),
            prompt_token_s=prompt_token_s,
            logged=self._book is not None,
        ), step_s

    async def _warmed(
        self, found: tuple[Kind, ...], room: Room, table: Timetable, measuring: Measuring, after_s: float
    ) -> tuple[Kind, ...]:
        """Runs each kind once for nothing, and gives those for which the server has room."""
        each_s = table.stretch_s - table.window_s + table.warm_s
        for place, kind in enumerate(found):
            self._next(f"warm-up   {kind.name}", each_s, (len(found) - place - 1) * each_s + after_s)
            await measuring.warm(kind, ramp_s=table.ramp_s, window_s=table.warm_s)
            if measuring.most_at_once is not None:
                room = replace(room, sequences=max(1, min(room.sequences, measuring.most_at_once)))
        return kinds(room)

    def _next(self, what: str, takes_s: float, after_s: float) -> None:
        self._remaining = _Remaining(what, Nanoseconds(self._clock() + round(takes_s * 1e9)), after_s)

    @asynccontextmanager
    async def _telling(self) -> AsyncIterator[None]:
        """Says every moment what runs and how long the rest will take."""

        async def tell() -> None:
            while True:
                remaining = self._remaining
                left_s = max(0.0, seconds(remaining.until - self._clock())) + remaining.after_s
                self._stage.tell(max(0.0, self._minutes * 60 - left_s), f"{left_s:.0f} s left   {remaining.now}")
                await asyncio.sleep(TELL_S)

        telling = asyncio.ensure_future(tell())
        try:
            yield
        finally:
            telling.cancel()
            with suppress(asyncio.CancelledError):
                await telling


def _nothing(_: object) -> None:
    return None
