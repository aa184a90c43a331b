"""
No joule is lost and none invented: under load, in everything that shows energy, and over kills in mid-work.
"""

import asyncio
import contextlib
import hashlib
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.answers import Script
from tests.engine.simulated import SimulatedEngine
from tests.live import LiveProxy, assert_law

TENANTS = ("acme", "globex", "initech")
SETTINGS = {"sample_period_ms": "20", "max_tenant_labels": "2", "silent_wait_s": "0.2"}
KILLS = 4
IDLE_W = 20
"""What the modelled meter counts at least, whatever runs."""
SHORTEST_START_S = 0.2
"""No machine starts the proxy faster; so long at least nobody watches the meter."""


def ask(source: random.Random) -> tuple[str, dict[str, Any], int | None]:
    """A request of one of many kinds: path, body, and after how many pieces the client leaves (None: never)."""
    words = " ".join("word" for _ in range(source.randrange(1, 200)))
    chat = {"model": "tiny", "messages": [{"role": "user", "content": words}], "max_tokens": source.randrange(1, 40)}
    streamed = chat | {"stream": True, "ignore_eos": True}
    kinds: list[tuple[str, dict[str, Any], int | None]] = [
        ("/v1/chat/completions", streamed, None),
        ("/v1/chat/completions", streamed | {"stream_options": {"include_usage": True}, "n": 2}, None),
        ("/v1/chat/completions", streamed | {"max_tokens": 400}, source.randrange(1, 10)),
        ("/v1/chat/completions", chat, None),
        ("/v1/completions", {"model": "tiny", "prompt": [words, "short"], "max_tokens": 9, "stream": True}, None),
        ("/v1/responses", {"model": "tiny", "input": words, "max_output_tokens": 5, "stream": True}, None),
        ("/v1/chat/completions", chat | {"model": f"none-{source.random()}"}, None),
        ("/tokenize", {"model": "tiny", "prompt": words}, None),
    ]
    return source.choice(kinds)


class Load:
    """Clients of three tenants in a thread of their own; keeps the ids of what was answered to the end."""

    def __init__(self, url: str, *, clients: int, requests: int | None = None, seed: int = 1) -> None:
        self.answered: list[str] = []
        self.statuses: Counter[int] = Counter()
        self._url, self._clients, self._left = url, clients, requests
        self._random = random.Random(seed)
        self._stopping = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.thread.join()

    def finish(self) -> None:
        """Waits until all requests have been sent and answered."""
        self.thread.join()

    async def _run(self) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=20, verify=False, trust_env=False) as http:
            await asyncio.gather(*(self._client(http, TENANTS[n % len(TENANTS)]) for n in range(self._clients)))

    async def _client(self, http: httpx.AsyncClient, tenant: str) -> None:
        while not self._stopping.is_set() and self._left != 0:
            if self._left is not None:
                self._left -= 1
            path, body, pieces = ask(self._random)
            # a proxy that was killed breaks off every answer
            with contextlib.suppress(httpx.TransportError):
                key = {"authorization": f"Bearer {tenant}-key"}
                async with http.stream("POST", path, json=body, headers=key) as answer:
                    await self._read(answer, pieces)
            await asyncio.sleep(0.002)

    async def _read(self, answer: httpx.Response, pieces: int | None) -> None:
        self.statuses[answer.status_code] += 1
        got = 0
        async for _ in answer.aiter_raw():
            got += 1
            if got == pieces:
                return
        self.answered.append(answer.headers["x-request-id"])


@dataclass(frozen=True)
class Kept:
    """The ledger's file as it lies on the disk: sums over its tables, in microjoules."""

    meter_uj: int
    requests_uj: int
    unattributed_uj: int
    counter_uj: int
    states: Counter[tuple[str, str]]

    @property
    def origin_uj(self) -> int:
        """Where the meter's counter stood when the books began: the same for ever, or energy was lost or invented."""
        return self.counter_uj - self.meter_uj


def kept(path: Path) -> Kept:
    """Reads the file; the law must hold in every single row of it."""
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as ledger:
        ledger.execute("begin")
        sums = "requests_uj + idle_uj + unattributed_uj + unmeasured_uj"
        assert ledger.execute(f"select count(*) from accounts where {sums} != meter_uj").fetchone() == (0,)
        requests_uj, unattributed_uj, meter_uj = ledger.execute(
            "select sum(requests_uj), sum(unattributed_uj), sum(meter_uj) from accounts"
        ).fetchone()
        (rows_uj,) = ledger.execute("select sum(energy_uj) from requests").fetchone()
        assert rows_uj == requests_uj
        (counter_uj,) = ledger.execute("select last_counter_uj from meters").fetchone()
        states = Counter((s, o) for s, o in ledger.execute("select state, outcome from requests"))
    return Kept(meter_uj, requests_uj, unattributed_uj, counter_uj, states)


class Scrape:
    """One page of /metrics, in whole microjoules."""

    def __init__(self, page: str) -> None:
        self.samples = [s for family in text_string_to_metric_families(page) for s in family.samples]

    def total_uj(self, name: str, **labels: str) -> int:
        """Sum of a series over the labels not given."""
        wanted = labels.items()
        return sum(round(s.value * 1e6) for s in self.samples if s.name == name and wanted <= s.labels.items())

    def assert_law(self) -> int:
        """The accounts add up to the meter, and phases and tenants to the requests; gives the meter's total."""
        accounts = [self.total_uj("jouleproxy_energy_joules_total", account=a) for a in ACCOUNTS]
        meter = self.total_uj("jouleproxy_gpu_energy_joules_total")
        assert sum(accounts) == meter
        assert self.total_uj("jouleproxy_request_energy_joules_total") == accounts[0]
        assert self.total_uj("jouleproxy_tenant_energy_joules_total") == accounts[0]
        assert self.total_uj("jouleproxy_imbalance_joules") == 0
        return meter


ACCOUNTS = ("requests", "idle", "unattributed", "unmeasured")


@pytest.fixture
def engine() -> Iterator[SimulatedEngine]:
    with SimulatedEngine(step_s=0.003, prefill_s_per_token=0.00002, max_num_seqs=16) as running:
        yield running


def live(engine: SimulatedEngine, folder: Path) -> LiveProxy:
    """A proxy for three tenants, not started."""
    config = [f'[[backends]]\nurl = "{engine.url}"']
    for tenant in TENANTS:
        digest = hashlib.sha256(f"{tenant}-key".encode()).hexdigest()
        config.append(f'[[tenants]]\nname = "{tenant}"\nkey_sha256 = ["{digest}"]')
    return LiveProxy(backends=[], ledger=folder / "ledger.db", config="\n".join(config), settings=SETTINGS)


def listed(proxy: LiveProxy) -> list[dict[str, Any]]:
    """All records of the ledger."""
    found: list[dict[str, Any]] = get(proxy, "/energy/requests", limit=100_000)["requests"]
    return found


def get(proxy: LiveProxy, path: str, **params: Any) -> dict[str, Any]:
    answer = httpx.get(proxy.admin + path, params=params, timeout=20)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_every_surface_adds_up_while_requests_come_and_go(engine: SimulatedEngine, tmp_path: Path) -> None:
    """Ninety requests of all kinds, some left and some broken off: balance, metrics, rows and file agree, always."""
    faults = [Script(drop_after=3), Script(status=503), Script(die_after=2), Script(drop_after=0)]
    with live(engine, tmp_path) as proxy:
        with Load(proxy.url, clients=30, requests=90) as load:
            engine.script(*faults, *faults)
            meter_uj = 0
            while load.thread.is_alive():
                assert_law(get(proxy, "/energy/balance"))
                reached = Scrape(proxy.metrics()).assert_law()
                assert reached >= meter_uj
                meter_uj = reached
            load.finish()
        for request_id in load.answered[-5:]:
            proxy.settled(request_id)
        _wait_until_all_are_settled(proxy, 90)
        assert load.statuses.keys() >= {200, 404}

        balance = get(proxy, "/energy/balance")
        records = listed(proxy)
        assert_law(balance)
        requests_uj = balance["total"]["accounts"]["requests"]
        assert requests_uj > 0
        assert sum(record["energy_microjoules"] for record in records) == requests_uj
        assert {r["outcome"] for r in records} == {"ok", "error", "aborted", "partial"}
        for by in ("model", "tenant", "backend"):
            rows = get(proxy, "/energy/summary", by=by)["rows"]
            assert sum(row["energy_microjoules"] for row in rows) == requests_uj, by
            assert sum(row["requests"] for row in rows) == len(records) == 90
        scrape = Scrape(proxy.metrics())
        scrape.assert_law()
        assert scrape.total_uj("jouleproxy_energy_joules_total", account="requests") == requests_uj
        closed = [s for s in scrape.samples if s.name == "jouleproxy_requests_total"]
        assert sum(s.value for s in closed) == 90
        assert {s.labels["model"] for s in closed} == {"tiny", "unknown"}
        tenants = {s.labels["tenant"] for s in scrape.samples if "tenant" in s.labels}
        assert "other" in tenants
        assert len(tenants) == 3
    # after a clean end everything that was metered is in the file
    assert kept(tmp_path / "ledger.db").states.total() == 90
    assert {state for state, _ in kept(tmp_path / "ledger.db").states} == {"settled"}


def _wait_until_all_are_settled(proxy: LiveProxy, requests: int) -> None:
    deadline = time.monotonic() + 10
    while len([r for r in listed(proxy) if r["status"] == "settled"]) < requests:
        assert time.monotonic() < deadline, Counter(r["status"] for r in listed(proxy))
        time.sleep(0.05)


def test_kill_under_load_loses_and_invents_nothing(engine: SimulatedEngine, tmp_path: Path) -> None:
    """SIGKILL again and again: the file balances at once, what was settled stays, what was open is interrupted."""
    path = tmp_path / "ledger.db"
    proxy = live(engine, tmp_path)
    settled: dict[str, int] = {}
    origins: set[int] = set()
    opened = 0
    try:
        proxy.start()
        for seed in range(KILLS):
            with Load(proxy.url, clients=20, seed=seed) as load:
                settled |= _settled_while_working(proxy, load)
                proxy.kill()
            before = kept(path)
            origins.add(before.origin_uj)
            proxy.start()
            assert_law(get(proxy, "/energy/balance"))
            _assert_still_there(listed(proxy), settled)
            after = _after_first_reading(path, before)
            origins.add(after.origin_uj)
            assert after.unattributed_uj - before.unattributed_uj > IDLE_W * 1e6 * SHORTEST_START_S
            opened += sum(count for (state, _), count in before.states.items() if state == "open")
            assert after.states["settled", "interrupted"] == opened
        assert proxy.stop() == 0
    finally:
        proxy.kill()
    origins.add(kept(path).origin_uj)
    assert len(origins) == 1
    assert opened > 0
    assert len(settled) >= 5 * KILLS


def _settled_while_working(proxy: LiveProxy, load: Load) -> dict[str, int]:
    """Lets the clients work until some answers were called settled; their ids and energies."""
    deadline = time.monotonic() + 10
    found: dict[str, int] = {}
    while len(found) < 5:
        assert time.monotonic() < deadline, "nothing was settled"
        for request_id in list(load.answered):
            record = get(proxy, f"/energy/requests/{request_id}")
            if record["status"] == "settled":
                found[request_id] = record["energy_microjoules"]
    return found


def _assert_still_there(records: list[dict[str, Any]], settled: dict[str, int]) -> None:
    energies = {record["request_id"]: record["energy_microjoules"] for record in records}
    assert {request_id: energies.get(request_id) for request_id in settled} == settled


def _after_first_reading(path: Path, before: Kept) -> Kept:
    """The file as soon as the restarted proxy has posted."""
    deadline = time.monotonic() + 5
    while (found := kept(path)).counter_uj == before.counter_uj:
        assert time.monotonic() < deadline, "the restarted proxy posted nothing"
        time.sleep(0.02)
    return found
