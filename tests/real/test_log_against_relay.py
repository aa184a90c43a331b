"""The engine's own step log (grade A) against token times alone (grade B), on the real vLLM, for the same requests.

One proxy keeps two sets of books over the same meter: one hears the step log, its shadow does not. So whatever the
meter says, a difference between the two is the error of the reconstruction. `pytest -rP` shows the figures.
"""

import asyncio
import os
import random
import socket
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest

from proxy.accounting.bill import Bill
from proxy.accounting.divider import Divider
from proxy.accounting.flight import Flight
from proxy.accounting.group import Group
from proxy.accounting.samples import Sample
from proxy.accounting.steps import EngineStep
from proxy.accounting.weights import Weights
from proxy.app import Service, assembly
from proxy.commands.listener import make_server
from proxy.meters.modelled import busy_ticks
from proxy.settings import Backend, Settings, Tenant, key_digest
from tests.engine.real import RealEngine, free_port

pytestmark = pytest.mark.real


@dataclass(frozen=True)
class Other:
    """How the second set of books differs: whether it hears the step log too; who pays for whom there."""

    hears: bool = False
    payers: Mapping[str, str] = field(default_factory=dict)


class Shadowed(Group):
    """A group that hears the step log, and a shadow that sees all the same but for the log, or for who pays."""

    def __init__(self, *given: Any, other: "Other", **named: Any) -> None:
        super().__init__(*given, **named)
        self.shadow = Group(*given, **named)
        self.other = other
        self.readings: list[Sample] = []
        self.settled: dict[str, tuple[Bill, Bill]] = {}
        self.computed: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._mine: dict[str, Bill] = {}
        self._other: dict[str, Bill] = {}

    def weigh(self, prior: Weights) -> None:
        super().weigh(prior)
        self.shadow.weigh(prior)

    def open(self, bill: Bill) -> None:
        prefix, payer = bill.flight.prefix, self.other.payers.get(bill.tenant, bill.tenant)
        super().open(bill)
        # Whoever opens a flight uses this up.
        bill.flight.prefix = prefix
        self.shadow.open(Bill(bill.flight, payer, bill.model, bill.backend, bill.endpoint, bill.stream, bill.policy, 0))

    def sampled(self, *given: Any, **named: Any) -> None:
        self.readings.append(given[1])
        super().sampled(*given, **named)
        self.shadow.sampled(*given, **named)

    def scraped(self, *given: Any) -> None:
        super().scraped(*given)
        self.shadow.scraped(*given)

    def stepped(self, step: EngineStep) -> None:
        super().stepped(step)
        if self.other.hears:
            self.shadow.stepped(step)
        for sequence in step.sequences:
            seen = self.computed[sequence.name]
            seen[0] += sequence.prefill - sequence.recomputed
            seen[1] += sequence.decode

    def settle(self, *given: Any, **named: Any) -> Any:
        self.shadow.settle(*given, **named)
        return super().settle(*given, **named)

    def close_finished(self, *given: Any, **named: Any) -> list[Bill]:
        for bill in self.shadow.close_finished(*given, **named):
            self._other[bill.flight.row] = bill
        closed = super().close_finished(*given, **named)
        for bill in closed:
            self._mine[bill.flight.row] = bill
        for row in self._mine.keys() & self._other.keys():
            self.settled[row] = (self._mine.pop(row), self._other.pop(row))
        return closed


class Books:
    """The proxy with its two sets of books, in a thread of this process."""

    def __init__(self, engine: RealEngine, folder: Path, step_log: Path, tenants: Mapping[str, str]) -> None:
        self.url = ""
        backend = Backend(url=engine.url, step_log=step_log)
        self._settings = Settings(
            backends=(backend,),
            meter="modelled",
            ledger=f"sqlite:///{folder / 'ledger.db'}",
            scrape_period_s=0.5,
            tenants=tuple(Tenant(name=name, key_sha256=(key_digest(key),)) for name, key in tenants.items()),
        )
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        listener = socket.socket()
        listener.bind(("127.0.0.1", free_port()))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.service = Service(self._settings, on_failure=lambda error: self._ready.set_exception(error))
        (self.group,) = self.service.groups.values()
        server = make_server(self.service.traffic(), "warning")
        await self.service.start()
        serving = asyncio.ensure_future(server.serve([listener]))
        self._ready.set_result(None)
        await self._stop.wait()
        server.should_exit = True
        await serving
        listener.close()
        await self.service.stop()

    def kept_by_tenant(self, requests: int) -> dict[str, int]:
        """Microjoules in the ledger, once so many requests are settled there."""
        for _ in range(100):
            rows = self.service.store.requests(None, requests)
            if len(rows) == requests and {"settled"} == {row.state for row in rows}:
                break
            threading.Event().wait(0.1)
        return {total.keys[0]: total.energy_uj for total in self.service.store.summary("tenant")}

    def __enter__(self) -> "Books":
        self._thread.start()
        self._ready.result(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)


@pytest.fixture(scope="module")
def step_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steps") / "steps.sock"


@pytest.fixture(scope="module")
def logging_engine(tmp_path_factory: pytest.TempPathFactory, step_log: Path) -> Iterator[RealEngine]:
    """A real vLLM that tells its steps."""
    told = {"JOULEPROXY_STEP_LOG": str(step_log)}
    with RealEngine(tmp_path_factory.mktemp("vllm-logging") / "server.log", environment=told) as engine:
        yield engine


@pytest.fixture
def books(
    logging_engine: RealEngine,
    step_log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Books]:
    """Two sets of books, fresh for each test. param: keys by tenant, and how the second set differs."""
    tenants, other = getattr(request, "param", ({}, Other()))
    build = assembly.group_of

    def shadowed(*given: Any) -> Group:
        group = build(*given)
        return Shadowed(
            group.backend,
            list(group.meters),
            weights=group.divider.fit.prior,
            patience=group._patience,
            request_ids=group.steps.names._request_ids,
            other=other,
        )

    monkeypatch.setattr(assembly, "group_of", shadowed)
    # Both sets of books read the same flights; what one has settled the other may still need.
    monkeypatch.setattr(Flight, "forget_before", lambda flight, instant: None)
    with Books(logging_engine, tmp_path, step_log, tenants) as running:
        yield running


def ids(count: int, seed: object) -> list[int]:
    """A prompt as token ids."""
    rng = random.Random(str(seed))
    return [rng.randrange(100, 1900) for _ in range(count)]


def ask(url: str, prompt: list[int], tokens: int, key: str | None = None) -> str:
    """A streamed completion of exactly so many tokens; its request id."""
    request_id = uuid.uuid4().hex
    headers = {"x-request-id": request_id} | ({"authorization": f"Bearer {key}"} if key else {})
    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }
    with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=120) as answer:
        assert 200 == answer.status_code, answer.read()
        for _ in answer.iter_raw():
            pass
    return request_id


def settled(books: Books, wanted: int) -> list[tuple[Bill, Bill]]:
    """The pairs of bills, once so many are settled in both sets of books."""
    done = threading.Event()
    for _ in range(600):
        pairs = list(books.group.settled.values())
        if len(pairs) >= wanted:
            return pairs
        done.wait(0.05)
    raise AssertionError(f"{len(books.group.settled)} of {wanted} requests were settled in both books")


def mixed_load(url: str, seed: int, keys: Sequence[str | None] = (None,)) -> list[str]:
    """Chat, long prompts, and turns of agents whose beginnings are in the cache; six clients at a time.

    keys: whose the requests are, in turn.
    """
    rng = random.Random(seed)
    agent = ids(900, f"agent {seed}")
    asked: list[tuple[list[int], int]] = []
    for number in range(48):
        kind = rng.choice(("chat", "chat", "long", "agent"))
        if kind == "chat":
            asked.append((ids(rng.randint(30, 300), (seed, number)), rng.randint(40, 160)))
        elif kind == "long":
            asked.append((ids(rng.randint(700, 1500), (seed, number)), rng.randint(8, 30)))
        else:
            asked.append((agent + ids(rng.randint(40, 120), (seed, number)), rng.randint(20, 80)))
    with ThreadPoolExecutor(6) as clients:
        return list(clients.map(lambda one, key: ask(url, *one, key=key), asked, cycle(keys)))


BAR = 0.05
"""Sum of what the two grades differ by, of the whole energy: the project's bar for real vLLM."""
CALM_ROUNDS, ROUNDS = 5, 8
"""This engine's steps last 1 to 2 ms. Where others want the processor, tokens wait longer than that on their way here,
and token times say little of such steps: so many calm rounds are wanted, of so many that are played at most."""
CALM = 0.15
"""Processors that others may use in a calm round."""


def test_the_relay_alone_comes_near_to_the_step_log(
    logging_engine: RealEngine, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Token counts are equal in every round; energies come as near as the bar in the median of the calm ones.

    On a machine that others keep busy there is no calm round; then the best of all must reach the bar.
    """
    # Readings are evened out below a threshold of error, near which one set of books may do so and the other not; then
    # they differ by that. Divided one by one they show best whether the work of each moment is known.
    monkeypatch.setattr(Divider, "evens_out", property(lambda _: False))
    errors: list[float] = []
    calm: list[float] = []
    while len(errors) < ROUNDS and len(calm) < CALM_ROUNDS:
        others = Others(logging_engine)
        wanted = mixed_load(books.url, 7 + len(errors))
        busy = others.processors()
        pairs = [pair for pair in settled(books, 48 * (len(errors) + 1)) if pair[0].flight.request_id in wanted]
        assert len(wanted) == len(pairs)
        assert {("A", "B")} == {(logged.grade, inferred.grade) for logged, inferred in pairs}
        for logged, _ in pairs:
            assert_counts_are_equal(logged.flight, books.group.computed)
        print(f"others used {busy:.2f} processors")
        errors.append(difference(pairs))
        calm += errors[-1:] if busy <= CALM else []
    print("weighted errors of the rounds: " + ", ".join(f"{100 * error:.2f} %" for error in errors))
    judged = median(calm) if len(calm) >= CALM_ROUNDS else min(errors)
    print(f"{len(calm)} of them calm; {100 * judged:.2f} % counts, at most {100 * BAR:g} % wanted")
    assert judged <= BAR


class Others:
    """What all other programs of this machine want of its processors, from now on."""

    def __init__(self, engine: RealEngine) -> None:
        self._engine = engine
        self._began, self._before = time.monotonic(), self._seconds()

    def processors(self) -> float:
        """In the mean."""
        return (self._seconds() - self._before) / (time.monotonic() - self._began)

    def _seconds(self) -> float:
        return busy_ticks(Path("/proc/stat")) / TICKS_PER_S - time.process_time() - self._engine.cpu_s()


TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def assert_counts_are_equal(flight: Flight, computed: Mapping[str, list[int]]) -> None:
    """What the steps held is what the answer's usage says."""
    names = [name for name in computed if flight.request_id in name]
    prefill, decode = (sum(computed[name][column] for name in names) for column in (0, 1))
    assert prefill == flight.computed, flight
    assert decode == (flight.completion_tokens or 0) - flight.sequences, flight


def difference(pairs: list[tuple[Bill, Bill]]) -> float:
    """Sum of the differences in energy between the two sets of books, relative to the energy."""
    total = sum(logged.energy_uj for logged, _ in pairs)
    error = sum(abs(logged.energy_uj - inferred.energy_uj) for logged, inferred in pairs) / total
    shares = [inferred.energy_uj / logged.energy_uj - 1 for logged, inferred in pairs if logged.energy_uj]
    print(f"{len(pairs)} requests, {total / 1e6:.1f} J; B against A: weighted error {100 * error:.2f} %")
    print("single requests: " + " ".join(f"{100 * share:+.1f}" for share in sorted(shares)) + " %")
    return error


def test_twins_cost_alike(books: Books) -> None:
    """
    The same prompt and length at the same time: the same energy, in both sets of books.
    """
    with ThreadPoolExecutor(2) as clients:
        list(clients.map(lambda side: ask(books.url, ids(200, side), 300), ("left", "right")))
    (left, right) = settled(books, 2)
    for one, other in zip(left, right, strict=True):
        print(f"grade {one.grade}: {one.energy_uj / 1e6:.3f} J and {other.energy_uj / 1e6:.3f} J")
        assert one.energy_uj == pytest.approx(other.energy_uj, rel=0.05)


QUIET_S = 3.0
"""What idle power is learnt from."""


def test_alone_it_gets_all_that_the_meter_moved_but_for_idle(books: Books) -> None:
    """
    From the reading before it was sent to the one after its end, less idle power for the time it did not run.
    """
    threading.Event().wait(QUIET_S)
    (state,) = books.group.meters.values()
    idle_w = state.idle_w
    assert idle_w is not None
    ask(books.url, ids(300, "solo"), 1500)
    ((logged, inferred),) = settled(books, 1)
    flight = logged.flight
    assert flight.ended is not None
    before = max((one for one in books.group.readings if one.at <= flight.sent), key=lambda one: one.at)
    after = min((one for one in books.group.readings if one.at >= flight.ended), key=lambda one: one.at)
    idle_ns = (after.at - before.at) - (flight.ended - flight.sent)
    moved_j, idle_j = (after.counter - before.counter) / 1e6, idle_w * idle_ns / 1e9

    print(f"the meter moved {moved_j:.3f} J, idle {idle_w:.1f} W makes {idle_j:.3f} J of it")
    for bill in (logged, inferred):
        print(f"grade {bill.grade}: {bill.energy_uj / 1e6:.3f} J of {moved_j - idle_j:.3f} J")
        assert bill.energy_uj / 1e6 == pytest.approx(moved_j - idle_j, rel=0.03)


KEYS = {"north": "key-of-north", "south": "key-of-south", "other": "key-of-other"}


@pytest.mark.parametrize(
    "books", [(KEYS, Other(hears=True, payers=dict.fromkeys(("north", "south"), "both")))], indirect=True
)
def test_a_tenant_under_two_names_pays_the_same_sum(books: Books) -> None:
    """
    North and south are one tenant in the second set of books: who pays how much does not depend on names.
    """
    mixed_load(books.url, 11, list(KEYS.values()))
    pairs = settled(books, 48)
    apart, together = books.group.tallies.energy_by_tenant, books.group.shadow.tallies.energy_by_tenant
    print(f"apart {dict(apart)}, together {dict(together)}")

    assert set(apart) == {"north", "south", "other"}
    assert set(together) == {"both", "other"}
    # Not to the last digit: what arrives between the two divisions of a window only the second one knows.
    assert apart["north"] + apart["south"] == pytest.approx(together["both"], rel=0.02)
    assert apart["other"] == pytest.approx(together["other"], rel=0.02)
    assert difference(pairs) < BAR
    assert books.kept_by_tenant(48) == dict(apart)
