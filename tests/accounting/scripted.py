"""A scripted engine: each step is written down, and told both ways: by the step log and by the tokens' arrival.

So one script shows what a rule does with the step log (grade A) and without it (grade B).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from proxy.accounting.attribution import Policy
from proxy.accounting.bill import Bill
from proxy.accounting.flight import Flight
from proxy.accounting.group import Group
from proxy.accounting.patience import Patience
from proxy.accounting.samples import Sample
from proxy.accounting.step_book import StepBook
from proxy.accounting.steps import Computed, EngineStep
from proxy.accounting.units import Microjoules
from proxy.accounting.unseen import EngineCounters
from proxy.accounting.weights import Weights
from tests.accounting.flights import WEIGHTS, ms

PATIENCE = Patience(prefill=ms(10_000), silent=ms(500), scrape=ms(0), gap=ms(30_000))
WATTS = 100.0


def request_id_of(name: str) -> tuple[str, ...]:
    """The scripted engine's names: the request id, and behind a slash which of its sequences or attempts it is."""
    return (name.partition("/")[0],)


def step(number: int, start_ms: float, end_ms: float, *held: Computed, engine: int = 0, boot: int = 1) -> EngineStep:
    """One step of the log, in milliseconds."""
    return EngineStep(engine, boot, number, ms(start_ms), ms(end_ms), held)


def book_of(steps: Sequence[EngineStep], flights: Sequence[Flight] = ()) -> StepBook:
    """A book that knows the flights and has taken in the steps."""
    book = StepBook(request_id_of)
    for flight in flights:
        book.opened(flight)
    for one in steps:
        book.take(one)
    return book


def group(
    *meters: str, weights: Weights = WEIGHTS, patience: Patience = PATIENCE, policy: Policy = "weighted"
) -> Group:
    """A group with one meter or those named."""
    return Group("b", meters or ("m",), weights=weights, patience=patience, policy=policy, request_ids=request_id_of)


def opened(target: Group, flight: Flight, *, tenant: str = "t", model: str = "m") -> Bill:
    """A bill for the flight, sent to the group."""
    bill = Bill(flight, tenant, model, "b", "chat", not flight.silent, "weighted", 0)
    target.open(bill)
    return bill


def read(target: Group, until_ms: int, *, watts: float = WATTS, since_ms: int = 0, meter: str | None = None) -> None:
    """Readings of a constant power every 100 ms, of one meter or of all."""
    for name in target.meters if meter is None else [meter]:
        for at in range(since_ms, until_ms + 1, 100):
            target.sampled(name, Sample(ms(at), Microjoules(round(at * watts * 1000))))


@dataclass
class Engine:
    """Steps one after the other, from `at` on; number and boot as in the log. Times in milliseconds."""

    at: float = 0.0
    step_ms: float = 10.0
    rank: int = 0
    boot: int = 1
    steps: list[EngineStep] = field(default_factory=list)
    flights: dict[str, Flight] = field(default_factory=dict)
    reached: dict[str, int] = field(default_factory=dict)

    def send(
        self,
        row: str,
        *,
        prompt: int = 100,
        cached: int = 0,
        request_id: str | None = None,
        sequences: int = 1,
        prompts: int = 1,
        silent: bool = False,
        decodes: bool = True,
    ) -> Flight:
        """A request sent now; its id is the row's name unless another is given."""
        flight = Flight(
            row,
            request_id or row,
            ms(self.at),
            sequences,
            prompts,
            prompt_tokens=prompt,
            cached_tokens=cached,
            silent=silent,
            decodes=decodes,
        )
        self.flights[row] = flight
        return flight

    def run(self, *held: Computed, times: int = 1, ms_each: float | None = None) -> None:
        """Steps that hold these sequences. `before` is counted on from where the sequence got to."""
        for _ in range(times):
            start, self.at = self.at, self.at + (self.step_ms if ms_each is None else ms_each)
            placed = []
            for one in held:
                before = self.reached.get(one.name, one.before)
                self.reached[one.name] = before + one.prefill + one.decode
                placed.append(one._replace(before=before))
            self.steps.append(
                EngineStep(self.rank, self.boot, len(self.steps) + 1, ms(start), ms(self.at), tuple(placed))
            )

    def token(self, *rows: str, each: int = 1) -> None:
        """The step just made gave every sequence of these requests so many tokens."""
        for row in rows:
            flight = self.flights[row]
            flight.tick(ms(self.at), (flight.completion_tokens or 0) + each * flight.sequences)

    def prefill(self, row: str, tokens: int, *beside: str, steps: int = 1, name: str | None = None) -> None:
        """A prefill in equal chunks, beside requests that decode; its last step gives the first token."""
        flight = self.flights[row]
        held = [Computed(name or flight.request_id, flight.cached, tokens // steps, 0)]
        held += [Computed(self.flights[other].request_id, self.flights[other].prompt, 0, 1) for other in beside]
        for _ in range(steps):
            self.run(*held)
            self.token(*beside)
        self.token(row)

    def decode(self, *rows: str, times: int = 1) -> None:
        """Steps in which each of these requests decodes one position and gains one token."""
        for _ in range(times):
            self.run(*(Computed(self.flights[row].request_id, self.flights[row].prompt, 0, 1) for row in rows))
            self.token(*rows)

    def end(self, *rows: str, outcome: str = "ok") -> None:
        """These requests are over, now."""
        for row in rows:
            self.flights[row].end(ms(self.at), outcome)  # type: ignore[arg-type]

    def rest(self, pause_ms: float) -> None:
        """Nothing runs."""
        self.at += pause_ms


def decoding(streams: int) -> Engine:
    """An engine in which so many, d0 and on, have decoded since 10 ms, a step every ten milliseconds, until 210 ms."""
    engine = Engine()
    rows = [f"d{number}" for number in range(streams)]
    for row in rows:
        engine.send(row)
    engine.run(*(Computed(row, 0, 100, 0) for row in rows))
    engine.token(*rows)
    engine.decode(*rows, times=20)
    return engine


@dataclass
class Outcome:
    """A script that has been paid for: the group, and the bills by row."""

    group: Group
    bills: dict[str, Bill]

    def uj(self, row: str) -> int:
        """Energy of a request."""
        return self.bills[row].energy_uj


def paid(
    *engines: Engine,
    logged: bool,
    meters: Sequence[str] = ("m",),
    weights: Weights = WEIGHTS,
    policy: Policy = "weighted",
    scrapes: Sequence[EngineCounters] = (),
    models: Sequence[str] = (),
) -> Outcome:
    """Plays scripts of one backend through a group and settles all of it; readings of a constant power.

    logged: the step log is there. models: of the requests, in the order they were sent; all alike without it.
    """
    target = group(*meters, weights=weights, policy=policy)
    flights = [flight for engine in engines for flight in engine.flights.values()]
    names = models or ["m"] * len(flights)
    bills = {f.row: opened(target, f, model=model) for f, model in zip(flights, names, strict=True)}
    if logged:
        for one in sorted((one for engine in engines for one in engine.steps), key=lambda one: one.end):
            target.stepped(one)
    for counters in scrapes:
        target.scraped(counters, counters.at)
    until = max(engine.at for engine in engines)
    read(target, int(until // 100 + 5) * 100)
    target.settle(ms(until + 60_000), force=True)
    accounts = [state.accounts for state in target.meters.values()]
    assert all(account.imbalance == 0 for account in accounts)
    assert sum(account.requests for account in accounts) == sum(bill.energy_uj for bill in bills.values())
    return Outcome(target, bills)
