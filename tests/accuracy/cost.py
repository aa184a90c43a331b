"""`python -m tests.accuracy.cost [--profile] [--rates 250,500,1000,2000]`: what settlement costs of one core.

Streams of 50 tokens per second that last half a second, on a simulated clock: at 1,000 requests per second 500 are in
flight. The real Group and Settlement get what the relay, the sampler, the scraper and the step log would give them,
when they would; only the time of their own calls counts (time.process_time), not that of whoever makes the events.

The bar: below 10 % of one core at 1,000 requests per second, and in proportion to the requests.
"""

import argparse
import cProfile
import gc
import io
import pstats
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

from rich.console import Console
from rich.table import Table

from proxy.accounting.bill import Bill
from proxy.accounting.flight import Flight
from proxy.accounting.postings import Posting
from proxy.accounting.samples import Sample
from proxy.accounting.steps import Computed, EngineStep
from proxy.accounting.units import MILLISECOND, SECOND, Microjoules, Nanoseconds
from proxy.accounting.unseen import EngineCounters
from proxy.accounting.weights import LLAMA_8B, roofline_prior
from proxy.app import collector
from proxy.settlement import PERIOD_S, Settlement
from tests.accuracy.prompts import Message, Part, asked
from tests.accuracy.view import fresh_group

RATES = (250, 500, 1_000, 2_000)
TOKENS = 25
STEP = Nanoseconds(20 * MILLISECOND)
PROMPT = 300
POLL = Nanoseconds(50 * MILLISECOND)
COUNTER = Nanoseconds(100 * MILLISECOND)
POWER_W = 600
WARM_S, SECONDS = 3.0, 10.0
BAR = 0.10
PARTS = ("open", "sampled", "scraped", "stepped", "settle", "quote", "ticks", "prompt")
"""What is timed. quote: the provisional figure at the end of each stream; ticks: the relay's own noting of tokens;
prompt: its naming of a prompt's pieces."""
SETTLEMENT = PARTS[:-3]
"""What the bar is about."""
Event = tuple[int, int, str, Callable[[], object]]


@dataclass(slots=True)
class Stream:
    """One request: its bill, and the engine steps that hold it, first and last included."""

    bill: Bill
    name: str
    begins: int

    @property
    def ends(self) -> int:
        """The step that makes the last token."""
        return self.begins + TOKENS - 1


@dataclass(slots=True)
class Cost:
    """CPU seconds by part over `seconds` simulated seconds."""

    rate: int
    log: bool
    seconds: float
    cpu_s: dict[str, float]

    def core(self, parts: Iterable[str]) -> float:
        """Fraction of one core."""
        return sum(self.cpu_s[part] for part in parts) / self.seconds


class Nowhere:
    """A store that takes everything: writing is another thread's work."""

    def post(self, posting: Posting) -> None:
        """Takes it."""


class Bench:
    """One rate, with or without a step log."""

    def __init__(self, rate: int, *, log: bool, seconds: float) -> None:
        self.now = Nanoseconds(0)
        self.rate, self.log, self.until = rate, log, round((WARM_S + seconds) * SECOND)
        self.group = fresh_group(roofline_prior(LLAMA_8B), "weighted", "B")
        meter = SimpleNamespace(name="gpu", gpu="GPU-1", kind="nvml", epoch="e", estimated=False, description="")
        self.settlement = Settlement(
            {"b": self.group},
            {"gpu": meter},
            Nowhere(),
            clock=lambda: self.now,
            known={},
            on_finished=lambda bill: None,
        )
        self._meter = meter
        self._rng = random.Random(f"cost {rate}")
        self._streams = [self._stream(number) for number in range(int(rate * self.until / SECOND))]
        self._holding: dict[int, list[Stream]] = defaultdict(list)
        for stream in self._streams:
            for step in range(stream.begins, stream.ends + 1):
                self._holding[step].append(stream)

    def _stream(self, number: int) -> Stream:
        at = Nanoseconds(round((number + self._rng.random()) * SECOND / self.rate))
        row = f"{number:032x}"
        flight = Flight(row, row, at)
        bill = Bill(flight, f"tenant-{number % 20}", "m", "b", "chat", True, "weighted", at)
        return Stream(bill, f"chatcmpl-{row}-{self._rng.getrandbits(32):08x}", at // STEP + 1)

    def run(self, profiler: cProfile.Profile | None = None) -> Cost:
        """All events in the order of their times; the first seconds do not count."""
        spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        events = sorted(self._events(), key=lambda event: event[:2])
        # As the service has it; what the collector would do about all of these is not settlement's cost.
        usual = gc.get_threshold()
        collector.calm()
        for at, _, part, act in events:
            self.now = Nanoseconds(at)
            profiled = profiler if part in SETTLEMENT and at >= WARM_S * SECOND else None
            if profiled:
                profiled.enable()
            before = time.process_time()
            act()
            took = time.process_time() - before
            if profiled:
                profiled.disable()
            spent[part] += took if at >= WARM_S * SECOND else 0.0
        gc.unfreeze()
        gc.set_threshold(*usual)
        if self.group.meters["gpu"].imbalance:
            raise AssertionError("the books do not balance")
        return Cost(self.rate, self.log, (self.until - WARM_S * SECOND) / SECOND, spent)

    def _events(self) -> Iterator[Event]:
        for number, stream in enumerate(self._streams):
            bill = stream.bill
            yield bill.flight.sent, -1, "prompt", lambda flight=bill.flight, number=number: _read(flight, number)
            yield bill.flight.sent, 0, "open", lambda bill=bill: self.group.open(bill)
        for number in range(self.until // STEP):
            yield from self._step(number)
        for at in range(0, self.until, POLL):
            yield at + 1, 5, "sampled", lambda at=at: self._sampled(at)
        for at in range(0, self.until, round(PERIOD_S * SECOND)):
            yield at + 2, 6, "settle", self.settlement.step
        for at in range(SECOND // 2, self.until, SECOND):
            counters = self._counters(at)
            yield at + 3, 4, "scraped", lambda counters=counters: self.group.scraped(counters, counters.at)

    def _step(self, number: int) -> Iterator[Event]:
        held, end = self._holding[number], (number + 1) * STEP
        if self.log and held:
            step = self._logged(number, held)
            yield end + MILLISECOND, 1, "stepped", lambda: self.group.stepped(step)
        late = end + 2 * MILLISECOND
        yield late, 2, "ticks", lambda: self._ticked(number, held, late)
        for stream in held:
            if stream.ends == number:
                at = late + 2 * MILLISECOND
                yield at, 3, "quote", lambda bill=stream.bill, at=at: self._ended(bill, Nanoseconds(at))

    def _logged(self, number: int, held: list[Stream]) -> EngineStep:
        parts = tuple(
            Computed(stream.name, 0, PROMPT, 0)
            if stream.begins == number
            else Computed(stream.name, PROMPT + number - stream.begins - 1, 0, 1)
            for stream in held
        )
        start = Nanoseconds(number * STEP)
        return EngineStep(0, 1, number, start, Nanoseconds(start + STEP), parts)

    def _ticked(self, number: int, held: list[Stream], at: int) -> None:
        for place, stream in enumerate(held):
            flight = stream.bill.flight
            flight.prompt_tokens = PROMPT
            flight.tick(Nanoseconds(at + place), number - stream.begins + 1)

    def _ended(self, bill: Bill, at: Nanoseconds) -> None:
        bill.flight.cached_tokens = 0
        bill.flight.end(at, "ok")
        self.group.provisional(bill, at)

    def _sampled(self, at: int) -> None:
        counter = Microjoules(at // COUNTER * (COUNTER // 1000) * POWER_W)
        self.settlement.sampled(self._meter, Sample(Nanoseconds(at), counter, POWER_W), Nanoseconds(1000))

    def _counters(self, at: int) -> EngineCounters:
        # The streams that a step holds are those that make a token in it; a sum over all steps would be the same.
        done = at // STEP
        made = sum(max(0, min(TOKENS, done - stream.begins)) for stream in self._streams)
        read = sum(PROMPT for stream in self._streams if stream.begins < done)
        return EngineCounters(Nanoseconds(at), float(len(self._holding[done])), 0.0, float(made), float(read), 0.0)


def _read(flight: Flight, number: int) -> None:
    ask = asked((Message("user", (Part(number, PROMPT),)),), stream=True, answers=1, embedding=False)
    flight.prompt_estimate, flight.prefix = ask.prompt_estimate, ask.prefix


def measured(rate: int, *, log: bool, seconds: float = SECONDS, profiler: cProfile.Profile | None = None) -> Cost:
    """Runs one rate."""
    return Bench(rate, log=log, seconds=seconds).run(profiler)


def table(costs: list[Cost]) -> Table:
    """One line per rate."""
    shown = Table(title="Percent of one core by call; the bar is for `settlement`, the sum of the first five")
    for name in ("requests/s", "in flight", "step log", "settlement", "per request", *PARTS):
        shown.add_column(name, justify="right")
    for cost in costs:
        core = cost.core(SETTLEMENT)
        flying = f"{cost.rate * TOKENS * STEP / SECOND:.0f}"
        parts = (f"{100 * cost.core([part]):.2f}" for part in PARTS)
        log = "yes" if cost.log else "no"
        shown.add_row(str(cost.rate), flying, log, f"{100 * core:.2f}", f"{core / cost.rate * 1e6:.0f} µs", *parts)
    return shown


def profile(rate: int, *, log: bool, seconds: float) -> str:
    """Where settlement's time goes, by own time; a profile slows small functions more than large ones."""
    profiler = cProfile.Profile()
    measured(rate, log=log, seconds=seconds, profiler=profiler)
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(15)
    return text.getvalue()


def main(arguments: Iterable[str] | None = None) -> int:
    """0 when the bar is held at 1,000 requests per second, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy.cost", description=__doc__)
    parser.add_argument("--rates", default=",".join(map(str, RATES)), help="requests per second, comma separated")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="simulated seconds that are measured")
    parser.add_argument("--profile", action="store_true", help="the fifteen dearest functions at 1,000 requests/s, too")
    given = parser.parse_args(None if arguments is None else list(arguments))
    console = Console(width=None if sys.stdout.isatty() else 160)
    logs = (False, True)
    costs = [measured(int(rate), log=log, seconds=given.seconds) for log in logs for rate in given.rates.split(",")]
    console.print(table(costs))
    if given.profile:
        for log in logs:
            console.print(f"step log: {log}", profile(1_000, log=log, seconds=given.seconds), markup=False)
    over = [cost for cost in costs if cost.rate == 1_000 and cost.core(SETTLEMENT) > BAR]
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
