"""
Closed windows meet their requests, the ledger gets postings that add up, and finished requests are announced.
"""

import asyncio

import pytest

from proxy.accounting.bill import Bill
from proxy.accounting.flight import Flight
from proxy.accounting.group import Group
from proxy.accounting.meter_state import MeterState
from proxy.accounting.patience import Patience
from proxy.accounting.postings import Posting
from proxy.accounting.samples import Sample, Timeline
from proxy.accounting.units import MILLISECOND, SECOND, Microjoules, Nanoseconds
from proxy.accounting.weights import LLAMA_8B, roofline_prior
from proxy.settlement import PERIOD_S, POST_EVERY, UNMEASURED, Settlement, doubt_of, gain_of
from tests.world import StillMeter, World


@pytest.fixture
def world() -> World:
    made = World()
    made.later(0, 5_000_000)
    return made


def test_a_finished_request_is_announced_and_posted_with_its_energy(world: World) -> None:
    """Its row is settled and has exactly what the account `requests` got."""
    world.run_request()

    world.settlement.step(force=True)

    (posting,) = world.postings
    assert [(row.request_id, row.state, row.outcome) for row in posting.requests] == [("r", "settled", "ok")]
    assert sum(row.energy_uj for row in posting.requests) == world.posted("requests_uj") > 0
    assert world.posted("meter_uj") == 2_000_000
    assert [bill.flight.request_id for bill in world.finished] == ["r"]


def test_postings_are_increments(world: World) -> None:
    """However often it posts, the sums are those of the meter, and a posting without news is not made."""
    for _ in range(4):
        world.run_request()
        world.later(300)
        world.settlement.step()
    made = len(world.postings)
    world.later(300)
    world.settlement.step()

    assert len(world.postings) == made == 4
    assert world.posted("meter_uj") == 8_000_000
    assert world.postings[-1].balances[0].last_counter_uj == 5_000_000 + 8_000_000


def test_posts_at_most_every_quarter_second(world: World) -> None:
    """Many passes make one posting; nothing is forgotten between them."""
    for _ in range(3):
        world.run_request()
        world.now = Nanoseconds(world.now - 100 * MILLISECOND)
        world.settlement.step()
        world.now = Nanoseconds(world.now + 100 * MILLISECOND)
    world.later(POST_EVERY // MILLISECOND)
    world.settlement.step()

    assert world.posted("meter_uj") == 6_000_000
    settled = {row.row for p in world.postings for row in p.requests if row.state == "settled"}
    assert settled == {"r"}
    assert len(world.postings) < 4


def test_a_running_request_is_posted_as_open(world: World) -> None:
    """Conservation holds at every commit: what it was charged is in the same posting as the account."""
    bill = world.bill()
    world.later(100, 6_000_000)
    bill.flight.tick(world.now, 1)
    world.later(1_100, 7_000_000)
    bill.flight.tick(world.now, 2)

    world.settlement.step()

    (posting,) = world.postings
    assert [row.state for row in posting.requests] == ["open"]
    assert posting.requests[0].energy_uj == world.posted("requests_uj") > 0


def test_continues_where_the_ledger_left_the_counter() -> None:
    """What the meter counted while nobody watched is real, and nobody's: unattributed."""
    world = World(known={"gpu": Microjoules(4_000_000)})

    world.later(0, 5_000_000)
    world.later(300)
    world.settlement.step()

    assert (world.posted("unattributed_uj"), world.posted("meter_uj")) == (1_000_000, 1_000_000)


def test_a_counter_that_fell_meanwhile_is_not_subtracted() -> None:
    """It was reset while nobody watched: the two readings say nothing together."""
    world = World(known={"gpu": Microjoules(6_000_000)})

    world.later(0, 5_000_000)
    world.later(300)
    world.settlement.step()

    assert world.postings == []


def test_a_meter_that_stops_leaves_the_request_unmeasured(world: World) -> None:
    """After the longest gap its request is closed and marked; its grade says that energy is missing."""
    bill = world.bill()
    world.later(100)
    bill.flight.end(world.now, "ok")

    world.later(5_001)
    world.settlement.step()

    assert [row.grade for p in world.postings for row in p.requests] == [UNMEASURED]


def test_the_end_closes_what_is_over_without_waiting(world: World) -> None:
    """At shutdown no window waits for anything."""
    world.bill("open")
    world.run_request("over")

    world.settlement.step(force=True)

    assert {row.request_id: row.state for row in world.postings[0].requests} == {"open": "open", "over": "settled"}


def test_finds_running_requests_by_tenant(world: World) -> None:
    """The newest of that name; another tenant's does not exist."""
    world.bill(tenant="acme", row="one")
    world.bill(tenant="acme", row="two")

    found = world.settlement.find("r", "acme")

    assert found is not None
    assert found[0].flight.row == "two"
    assert world.settlement.find("r", "globex") is None
    assert world.settlement.find("r", None) is not None
    assert world.settlement.find("other", None) is None


def test_what_is_found_stands_still(world: World) -> None:
    """A reader on another thread sees one moment, though tokens go on coming."""
    bill = world.bill()
    bill.flight.tick(world.now, 1)
    found = world.settlement.find("r", None)
    assert found is not None

    for tokens in range(2, 50):
        bill.flight.tick(world.now, tokens)

    assert (len(found[0].flight.ticks), found[0].flight.completion_tokens) == (1, 1)


def test_closed_requests_are_found_before_the_ledger_has_them(world: World) -> None:
    """Between closing and committing nothing is missing."""
    world.run_request(tenant="acme")
    world.settlement.step(force=True)

    assert world.settlement.just_finished("r", None) is not None
    assert world.settlement.just_finished("r", "acme") is not None
    assert world.settlement.just_finished("r", "globex") is None


def test_health_of_meters(world: World) -> None:
    """When a meter was last read, how long that took, and how often it failed."""
    world.settlement.failed(world.meter)

    health = world.settlement.health["gpu"]
    assert (health.last_read, health.call_ns, health.failures) == (world.now, 7, 1)


def test_runs_until_cancelled(world: World) -> None:
    """Each pass is followed by a pause; the pause is the test's."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        world.later(100)
        if len(pauses) == 5:
            raise asyncio.CancelledError

    world.run_request()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(world.settlement.run(pause))

    assert pauses == [PERIOD_S] * 5
    assert world.posted("meter_uj") == 2_000_000


class TwoServers:
    """Two backends on one meter, a clock to turn and a store that keeps what it gets."""

    def __init__(self, known: int | None = None) -> None:
        self.now = Nanoseconds(1_000 * SECOND)
        self.postings: list[Posting] = []
        self.meter = StillMeter()
        patience = Patience(prefill=SECOND, silent=SECOND, scrape=Nanoseconds(0), gap=Nanoseconds(5 * SECOND))
        weights = roofline_prior(LLAMA_8B)
        self.groups = {name: Group(name, ["gpu"], weights=weights, patience=patience) for name in ("left", "right")}
        self.settlement = Settlement(
            self.groups,
            {"gpu": self.meter},
            self,
            clock=lambda: self.now,
            known={} if known is None else {"gpu": Microjoules(known)},
            on_finished=lambda _: None,
        )

    def post(self, posting: Posting) -> None:
        self.postings.append(posting)

    def read(self, ms: int, counter_uj: int) -> None:
        """The clock goes on and the meter is read, once."""
        self.now = Nanoseconds(self.now + ms * MILLISECOND)
        self.settlement.sampled(self.meter, Sample(self.now, Microjoules(counter_uj)), Nanoseconds(7))

    def run(self, backend: str) -> Bill:
        """A request that has the backend work until the next reading, and is over then."""
        flight = Flight(row=f"{backend}{self.now}", request_id="r", sent=self.now, prompt_tokens=10)
        bill = Bill(flight, "acme", "m", backend, "chat", True, "weighted", started_at_unix_ns=0)
        self.groups[backend].open(bill)
        end = Nanoseconds(self.now + 100 * MILLISECOND)
        flight.tick(Nanoseconds(self.now + MILLISECOND), 1)
        flight.tick(end, 2)
        flight.end(end, "ok")
        return bill

    def settle(self) -> None:
        self.now = Nanoseconds(self.now + 300 * MILLISECOND)
        self.settlement.step()

    def posted(self, account: str, backend: str) -> int:
        """Sum of an account over all postings so far."""
        return sum(getattr(b, account) for p in self.postings for b in p.balances if b.backend == backend)


def test_a_meter_of_two_backends_is_posted_in_parts() -> None:
    """The parts add up to what it counted, and both rows of the ledger reach to the same counter."""
    two = TwoServers()
    two.read(0, 5_000_000)
    left = two.run("left")
    two.read(100, 8_000_000)
    two.settle()

    (posting,) = two.postings
    assert [(b.backend, b.meter, b.last_counter_uj) for b in posting.balances] == [
        ("left", "gpu", 8_000_000),
        ("right", "gpu", 8_000_000),
    ]
    assert two.posted("requests_uj", "left") == left.energy_uj == 3_000_000
    assert two.posted("meter_uj", "right") == 0
    assert [row.grade for row in posting.requests] == ["D"]


def test_two_backends_divide_every_window_of_their_meter() -> None:
    """Both busy, one busy, none: the sum is the counter's, and nothing without news is posted."""
    two = TwoServers()
    counter = 5_000_000
    two.read(0, counter)
    for names in (["left", "right"], ["right"], [], ["left"], ["left", "right"]):
        for name in names:
            two.run(name)
        counter += 3_000_001
        two.read(100, counter)
        two.settle()
    made = len(two.postings)
    two.settle()

    assert len(two.postings) == made == 5
    parts = [two.posted("meter_uj", name) for name in ("left", "right")]
    assert sum(parts) == counter - 5_000_000
    assert parts[0] == pytest.approx(parts[1], abs=10)
    for name in ("left", "right"):
        assert two.posted("requests_uj", name) + two.posted("idle_uj", name) == two.posted("meter_uj", name)


def test_a_shared_meter_that_ran_on_unwatched_is_booked_once() -> None:
    """The ledger knew it at 4 J; that it counted 1 J more is known once, not once for each backend."""
    two = TwoServers(known=4_000_000)
    two.read(0, 5_000_000)
    two.settle()

    assert [two.posted("unattributed_uj", name) for name in ("left", "right")] == [500_000, 500_000]
    assert {b.last_counter_uj for p in two.postings for b in p.balances} == {5_000_000}


def test_a_part_is_less_certain_than_its_meter() -> None:
    """What nobody measured has the meter's own doubt and the model's."""
    meter = NvmlMeter()
    state = MeterState("gpu", Timeline("gpu"))
    assert doubt_of(meter, state) == gain_of(meter) == 0.05

    state.part_doubt = 0.12
    assert doubt_of(meter, state) == pytest.approx(0.13)
    assert doubt_of(StillMeter(), state) is None


class NvmlMeter(StillMeter):
    """As sure as a board's counter."""

    kind = "nvml"
