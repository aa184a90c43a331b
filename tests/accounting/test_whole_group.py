"""A group under anything that may happen to it, in any order: at every moment its books say the same sum.

Requests of all kinds, an engine that logs its steps or loses some or starts anew, strangers, looks at its counters
that fail, meters that jump, stick and are reset, and settlement at any time.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.accounting.attribution import POLICIES
from proxy.accounting.bill import Bill
from proxy.accounting.flight import Flight, Outcome
from proxy.accounting.group import Group
from proxy.accounting.patience import Patience
from proxy.accounting.samples import Sample
from proxy.accounting.steps import Computed, EngineStep
from proxy.accounting.units import Microjoules
from proxy.accounting.unseen import Drafts, EngineCounters
from tests.accounting.flights import ms
from tests.accounting.scripted import group

END_MS = 2500


class Request(NamedTuple):
    """What happens to one request, in milliseconds; it may end in the middle of it."""

    sent: int
    prefill: int
    step: int
    tokens: int
    prompt: int
    cached: int
    sequences: int
    prompts: int
    silent: bool
    work: bool
    outcome: Outcome
    namesake: bool
    told: bool
    lag: int


class Script(NamedTuple):
    """All that happens. readings: by meter (later by ms, counter moves by J, tells power)."""

    requests: list[Request]
    readings: dict[str, list[tuple[int, int, bool]]]
    scrapes: list[tuple[int, int, int, int, bool]]
    settles: list[int]
    logged_from: int
    logged_until: int
    reboot: int
    engines: int
    lost: set[int]
    strange: set[int]
    policy: str


requests_drawn = st.builds(
    Request,
    sent=st.integers(0, 2000),
    prefill=st.integers(1, 500),
    step=st.integers(5, 80),
    tokens=st.integers(0, 25),
    prompt=st.sampled_from([0, 1, 17, 300, 3000, 40_000]),
    cached=st.sampled_from([0, 0, 16, 290]),
    sequences=st.integers(1, 3),
    prompts=st.just(1) | st.integers(1, 2),
    silent=st.booleans(),
    work=st.integers(0, 9).map(bool),
    outcome=st.sampled_from(["ok", "ok", "ok", "error", "aborted", "partial"]),
    namesake=st.booleans(),
    told=st.booleans(),
    lag=st.sampled_from([0, 0, 15, 200]),
)
reading_drawn = st.tuples(
    st.sampled_from([20, *[100] * 12, 300, 3100]), st.sampled_from([-4, 0, 0, 1, 5, *[10] * 12, 60]), st.booleans()
)
scripts_drawn = st.builds(
    Script,
    requests=st.lists(requests_drawn, min_size=1, max_size=6),
    readings=st.fixed_dictionaries(
        {"g0": st.lists(reading_drawn, min_size=12, max_size=30)},
        optional={"g1": st.lists(reading_drawn, min_size=12, max_size=30)},
    ),
    scrapes=st.lists(
        st.tuples(*[st.integers(0, END_MS)], *[st.integers(0, 6)] * 2, st.integers(-500, 900), st.booleans()),
        max_size=5,
    ),
    settles=st.lists(st.integers(0, END_MS + 2000), max_size=8),
    logged_from=st.sampled_from([0, 700, 10_000]),
    logged_until=st.sampled_from([10_000, 10_000, 1500]),
    reboot=st.sampled_from([10_000, 1100]),
    engines=st.integers(1, 2),
    lost=st.sets(st.integers(0, 150), max_size=4),
    strange=st.sets(st.integers(0, 150), max_size=9),
    policy=st.sampled_from(["weighted", "weighted", *POLICIES]),
)

Event = tuple[int, int, Callable[[], None]]


class Play:
    """One script, played event by event in the order of time."""

    def __init__(self, script: Script, tenant_of: Callable[[int], str]) -> None:
        patience = Patience(prefill=ms(800), silent=ms(200), scrape=ms(600), gap=ms(3000))
        self.script = script
        self.group: Group = group(*script.readings, patience=patience, policy=script.policy)  # type: ignore[arg-type]
        self.bills: list[Bill] = []
        self.closed: list[Bill] = []
        self.read_uj = 0
        self._order = count()
        for number, request in enumerate(script.requests):
            self.bills.append(self._bill(number, request, tenant_of(number)))

    def _bill(self, number: int, request: Request, tenant: str) -> Bill:
        flight = Flight(
            f"row{number}",
            "twin" if request.namesake and request.work else f"id{number}",
            ms(request.sent),
            request.sequences * request.prompts,
            request.prompts,
            prompt_estimate=request.prompt // 2,
            silent=request.silent,
            metered_work=request.work,
        )
        return Bill(flight, tenant, f"model{number % 2}", "b", "chat", not request.silent, "weighted", 0)

    def _at(self, time: int, act: Callable[[], None]) -> Event:
        return time, next(self._order), act

    def _life(self, number: int, request: Request) -> Iterator[Event]:
        bill = self.bills[number]
        flight = bill.flight

        def send() -> None:
            self.group.open(bill)
            flight.lag = ms(request.lag)

        def end() -> None:
            if request.told:
                flight.prompt_tokens, flight.cached_tokens = request.prompt, min(request.cached, request.prompt)
            if request.silent and request.outcome == "ok":
                flight.completion_tokens = request.tokens * flight.sequences
            flight.end(ms(last), request.outcome)

        def tick(at: int, made: int) -> None:
            flight.tick(ms(at), made * flight.sequences)

        yield self._at(request.sent, send)
        last = first = request.sent + request.prefill
        if request.outcome != "error":
            last += request.tokens * request.step
            shown = 0 if request.silent else request.tokens
            times = [first + number * request.step for number in range(shown)]
            yield from (self._at(at, partial(tick, at, made)) for made, at in enumerate(times, 1))
        yield self._at(last, end)

    def _steps(self, engine: int) -> Iterator[Event]:
        boot, number = 1, 0
        for index, start in enumerate(range(0, END_MS, 20)):
            if start >= self.script.reboot and boot == 1:
                boot, number = 2, 0
            held = [*self._held(start, engine)]
            if index in self.script.strange:
                held.append(Computed(f"stranger{index % 3}", 100, 0, 1))
            if not held:
                continue
            number += 1
            if index in self.script.lost or not self.script.logged_from <= start < self.script.logged_until:
                continue
            step = EngineStep(engine, boot, number, ms(start), ms(start + 20), tuple(held))
            yield self._at(start + 20, partial(self.group.stepped, step))

    def _held(self, start: int, engine: int) -> Iterator[Computed]:
        for number, request in enumerate(self.script.requests):
            flight = self.bills[number].flight
            length = request.prefill + request.tokens * request.step
            here = request.work and number % self.script.engines == engine
            if here and request.sent < start < request.sent + length + 60:
                prefill = request.prompt // 10 if start < request.sent + request.prefill else 0
                decode = 0 if prefill else 1
                for child in range(flight.sequences):
                    yield Computed(f"{flight.request_id}/{number}.{child}", request.cached, prefill, decode)

    def _readings(self, meter: str) -> Iterator[Event]:
        at, counter = 0, 50_000_000
        yield self._at(at, partial(self._read, meter, at, counter, None))
        for later, moved, tells in [*self.script.readings[meter], *[(100, 10, False)] * 12]:
            at, counter = at + later, max(0, counter + moved * 1_000_000)
            power_w = 80.0 if tells else None
            yield self._at(at, partial(self._read, meter, at, counter, power_w))

    def _read(self, meter: str, at: int, counter: int, power_w: float | None) -> None:
        state = self.group.meters[meter]
        before = state.timeline.total_uj
        self.group.sampled(meter, Sample(ms(at), Microjoules(counter), power_w))
        self.read_uj += state.timeline.total_uj - before

    def _scrapes(self) -> Iterator[Event]:
        made = 1000
        for at, running, waiting, moved, failed in sorted(self.script.scrapes):
            made = max(0, made + moved)
            counters = EngineCounters(ms(at), running, waiting, made, made, made / 3, 1e6, Drafts(made, made, made / 2))
            yield self._at(at, partial(self.group.scraped, None if failed else counters, ms(at)))

    def run(self) -> None:
        """All of it, with the books looked at after every pass; then shutdown."""
        events = [event for number, request in enumerate(self.script.requests) for event in self._life(number, request)]
        events += [event for engine in range(self.script.engines) for event in self._steps(engine)]
        events += [event for meter in self.script.readings for event in self._readings(meter)]
        events += [*self._scrapes(), *(self._at(at, partial(self._settle, at)) for at in self.script.settles)]
        for _, _, act in sorted(events, key=lambda event: event[:2]):
            act()
        self._settle(100_000, force=True)

    def _settle(self, at: int, *, force: bool = False) -> None:
        for split in self.group.settle(ms(at), force=force):
            assert split.imbalance == 0
            assert min(split.idle, split.unattributed, split.unmeasured, *(s.energy for s in split.shares), 0) == 0
        for bill in list(self.group.bills.values()):
            said = self.group.provisional(bill, ms(at))
            assert said is None or bill.energy_uj <= said.energy
        self.closed += self.group.close_finished(ms(at), force=force)
        self.check()

    def check(self) -> None:
        """The law, and that every book tells the same sum."""
        for state in self.group.meters.values():
            assert 0 == state.imbalance == state.accounts.imbalance
            accounts = state.accounts
            assert min(accounts.requests, accounts.idle, accounts.unattributed, accounts.unmeasured) >= 0
        requests = sum(state.accounts.requests for state in self.group.meters.values())
        by_tenant = Counter[str]()
        for bill in self.bills:
            assert bill.energy_uj == bill.prefill_uj + bill.decode_uj + bill.shared_uj
            assert min(bill.prefill_uj, bill.decode_uj, bill.shared_uj, bill.token_share_uj, bill.metered_uj) >= 0
            assert bill.flight.metered_work or not bill.energy_uj
            assert bill.energy_uj <= bill.metered_uj
            by_tenant[bill.tenant] += bill.energy_uj
        tallies = self.group.tallies
        assert requests == sum(by_tenant.values())
        assert +by_tenant == +tallies.energy_by_tenant
        assert requests == sum(tallies.energy_by_model_phase.values())


@settings(max_examples=300)
@given(scripts_drawn)
def test_every_book_tells_the_same_sum_at_every_moment(script: Script) -> None:
    """Meter == requests + idle + unattributed + unmeasured, to the microjoule, and so do bills, tenants and models."""
    play = Play(script, lambda number: f"tenant{number % 3}")
    play.run()

    accounts = [state.accounts for state in play.group.meters.values()]
    assert play.read_uj == sum(one.booked for one in accounts) == sum(one.meter for one in accounts)
    assert not any(state.waiting for state in play.group.meters.values())
    assert {} == play.group.bills
    assert sorted(bill.flight.row for bill in play.closed) == sorted(bill.flight.row for bill in play.bills)
    for bill in play.closed:
        row = bill.row("settled", grade=play.group.grade_of(bill), estimated=False, now=ms(100_000))
        assert (row.energy_uj, row.row) == (bill.energy_uj, bill.flight.row)


@settings(max_examples=50)
@given(scripts_drawn)
def test_two_names_for_one_tenant_change_nothing(script: Script) -> None:
    """The same traffic under one name and under two: each request pays the same, and the two make up the one."""
    one, two = Play(script, lambda number: "all"), Play(script, lambda number: f"half{number % 2}")
    one.run()
    two.run()

    assert energies(one.bills) == energies(two.bills)
    assert one.group.tallies.energy_by_tenant.total() == two.group.tallies.energy_by_tenant.total()


def energies(bills: Sequence[Bill]) -> list[int]:
    return [bill.energy_uj for bill in bills]
