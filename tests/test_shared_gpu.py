"""
Two servers on one GPU, through the real process: read once, divided between them, to the microjoule, and never hidden.
"""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from proxy.accounting.samples import Sample
from proxy.app.sharing import SharedMeter, distinct
from proxy.errors import ConfigurationError
from proxy.ports import Meter
from tests.engine.simulated import SimulatedEngine
from tests.live import LiveProxy, ProxyFailed, assert_law
from tests.test_conservation import Scrape, get
from tests.world import StillMeter

SERVERS = ("left", "right")
BOARD_W = 300
ROWS, ROW_MS = 3_000, 20
SHARED = "shared by left, right: modelled split"


class Opened(StillMeter):
    """A meter that counts how often it is read and closed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.reads = self.closed = 0

    def read(self) -> Sample:
        self.reads += 1
        raise NotImplementedError

    def close(self) -> None:
        self.closed += 1


def test_a_meter_of_two_backends_is_kept_once() -> None:
    """The second handle of the same device is given back; what stays says of itself that it is shared."""
    first, again, own = Opened("nvml:GPU-1"), Opened("nvml:GPU-1"), Opened("nvml:GPU-2")
    opened: Mapping[str, Sequence[Meter]] = {"left": [first], "right": [own, again]}

    found = distinct(opened, share=True)

    (kept,) = found["left"]
    assert found["right"] == [own, kept]
    assert isinstance(kept, SharedMeter)
    assert (kept.name, kept.gpu, kept.kind, kept.epoch, kept.estimated) == (
        *(first.name, first.gpu, first.kind, first.epoch),
        False,
    )
    assert (kept.description, own.description) == (f"a test; {SHARED}", "a test")
    assert (first.closed, again.closed, own.closed) == (0, 1, 0)
    with pytest.raises(NotImplementedError):
        kept.read()
    kept.close()
    assert (first.reads, first.closed) == (1, 1)


def test_sharing_must_be_asked_for() -> None:
    """Else energy would count twice; the message names both backends and the setting."""
    opened: Mapping[str, Sequence[Meter]] = {"left": [Opened("m")], "right": [Opened("m")]}

    with pytest.raises(ConfigurationError, match=r"m would be counted for left and for right.*share_gpus = true"):
        distinct(opened, share=False)

    assert distinct({"left": opened["left"]}, share=False) == {"left": opened["left"]}


@pytest.fixture
def engines() -> Iterator[tuple[SimulatedEngine, SimulatedEngine]]:
    """Two servers with a model each; the right one's steps are longer."""
    with (
        SimulatedEngine(model="left", step_s=0.004, prefill_s_per_token=0.00002) as left,
        SimulatedEngine(model="right", step_s=0.008, prefill_s_per_token=0.00002) as right,
    ):
        yield left, right


def config(engines: Sequence[SimulatedEngine], *, share: bool = True) -> str:
    """Both servers on whatever the meter finds."""
    backends = [
        f'[[backends]]\nurl = "{engine.url}"\nname = "{name}"\nmeter = "%s"\n'
        for engine, name in zip(engines, SERVERS, strict=True)
    ]
    return "\n".join([f"share_gpus = {str(share).lower()}", *backends])


def live(engines: Sequence[SimulatedEngine], folder: Path, meter: str, *, share: bool = True) -> LiveProxy:
    """A proxy in front of both, not started."""
    text = config(engines, share=share).replace("%s", meter)
    settings = {"sample_period_ms": "20", "silent_wait_s": "0.2"}
    return LiveProxy(backends=[], ledger=folder / "ledger.db", config=text, settings=settings)


def recording(folder: Path) -> str:
    """A board that draws 300 W for a minute."""
    path = folder / "board.csv"
    rows = [f"{row * ROW_MS / 1000:.3f},{1_000 + row * ROW_MS * BOARD_W / 1000:.3f}" for row in range(ROWS)]
    path.write_text("\n".join(["seconds,joules", *rows, ""]))
    return f"recorded:{path}"


class Clients:
    """Two clients for each server, who ask until they are told to stop."""

    def __init__(self, proxy: LiveProxy) -> None:
        self._proxy = proxy
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(name,), name=name) for name in SERVERS * 2]
        self.answered: dict[str, list[str]] = {name: [] for name in SERVERS}

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, model: str) -> None:
        words = cycle(("a short one", "word " * 300))
        with httpx.Client(base_url=self._proxy.url, timeout=20, trust_env=False) as http:
            while not self._stopping.is_set():
                body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": next(words)}]}
                body |= {"max_tokens": 30, "stream": True, "ignore_eos": True}
                # a proxy that was killed breaks off every answer
                with contextlib.suppress(httpx.TransportError):
                    answer = http.post("/v1/chat/completions", json=body)
                    assert answer.status_code == 200, answer.text
                    self.answered[model].append(answer.headers["x-request-id"])

    def wait(self, each: int) -> None:
        """Until each server has answered so often again."""
        wanted = {name: len(ids) + each for name, ids in self.answered.items()}
        deadline = time.monotonic() + 20
        while any(len(self.answered[name]) < number for name, number in wanted.items()):
            assert time.monotonic() < deadline, {name: len(ids) for name, ids in self.answered.items()}
            time.sleep(0.01)


@dataclass(frozen=True)
class Kept:
    """The ledger's file: sums by backend in microjoules, and where the board's counter stands in each one's row."""

    meter_uj: dict[str, int]
    unattributed_uj: int
    counters_uj: set[int]

    @property
    def origin_uj(self) -> int:
        """Where the counter stood when the books began: the same for ever, or energy was lost or counted twice."""
        (counter_uj,) = self.counters_uj
        return counter_uj - sum(self.meter_uj.values())


def kept(path: Path) -> Kept:
    """Reads the file; the law must hold in every row of it."""
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as ledger:
        ledger.execute("begin")
        sums = "requests_uj + idle_uj + unattributed_uj + unmeasured_uj"
        assert ledger.execute(f"select count(*) from accounts where {sums} != meter_uj").fetchone() == (0,)
        asked = "select backend, sum(meter_uj), sum(requests_uj) from accounts group by backend"
        accounts = {backend: (meter, requests) for backend, meter, requests in ledger.execute(asked)}
        rows = dict(ledger.execute("select backend, sum(energy_uj) from requests group by backend"))
        assert rows == {backend: requests for backend, (_, requests) in accounts.items() if backend in rows}
        (unattributed,) = ledger.execute("select sum(unattributed_uj) from accounts").fetchone()
        counters = {counter for (counter,) in ledger.execute("select last_counter_uj from meters")}
    return Kept({backend: meter for backend, (meter, _) in accounts.items()}, unattributed, counters)


def test_both_are_busy_and_the_board_is_counted_once(
    engines: tuple[SimulatedEngine, SimulatedEngine], tmp_path: Path
) -> None:
    """At every look the parts add up to the board: in the API, on the metrics page and in the file."""
    with live(engines, tmp_path, recording(tmp_path)) as proxy:
        with Clients(proxy) as clients:
            for _ in range(8):
                clients.wait(2)
                assert_law(proxy.balance())
                Scrape(proxy.metrics()).assert_law()
        records = {name: proxy.settled(clients.answered[name][-1]) for name in SERVERS}
        balance, scrape = proxy.balance(), Scrape(proxy.metrics())

        assert_law(balance)
        scrape.assert_law()
        for name, books in zip(SERVERS, balance["backends"], strict=True):
            assert (records[name]["grade"], records[name]["estimated"]) == ("D", False)
            assert records[name]["energy_microjoules"] > 0
            assert records[name]["backend"] == books["backend"] == name
            assert [(meter["gpu"], meter["estimated"]) for meter in books["meters"]] == [("board", False)]
            assert books["meters"][0]["description"].endswith(SHARED)
            assert books["accounts"]["requests"] > 0
            assert scrape.total_uj("jouleproxy_gpu_energy_joules_total", gpu="board", backend=name) > 0
        power_uw = scrape.total_uj("jouleproxy_gpu_power_watts", gpu="board")
        assert power_uw == pytest.approx(BOARD_W * 1_000_000, rel=1e-3)
        rows = get(proxy, "/energy/summary", by="backend")["rows"]
        charged = {books["backend"]: books["accounts"]["requests"] for books in balance["backends"]}
        assert {row["backend"]: row["energy_microjoules"] for row in rows} == charged
    found = kept(tmp_path / "ledger.db")
    assert found.meter_uj.keys() == set(SERVERS)
    assert found.origin_uj % (ROW_MS * BOARD_W * 1000) == 1_000_000_000 % (ROW_MS * BOARD_W * 1000)
    assert 1_000_000_000 <= found.origin_uj < 1_000_000_000 + 10 * BOARD_W * 1_000_000
    assert "shared by left and right: each one's part is modelled" in proxy.log.read_text()


def test_kill_under_load_counts_the_time_between_once(
    engines: tuple[SimulatedEngine, SimulatedEngine], tmp_path: Path
) -> None:
    """SIGKILL with both at work: the counter ran on unwatched once, not once for each server."""
    path = tmp_path / "ledger.db"
    proxy = live(engines, tmp_path, "modelled:idle_w=50,core_w=12")
    try:
        proxy.start()
        with Clients(proxy) as clients:
            clients.wait(20)
            proxy.kill()
        before = kept(path)
        proxy.start()
        assert_law(proxy.balance())
        after = _after_first_reading(path, before)
        assert after.unattributed_uj > before.unattributed_uj
        with Clients(proxy) as clients:
            clients.wait(5)
        assert_law(proxy.balance())
        assert proxy.stop() == 0
    finally:
        proxy.kill()
    assert before.origin_uj == after.origin_uj == kept(path).origin_uj


def _after_first_reading(path: Path, before: Kept) -> Kept:
    deadline = time.monotonic() + 5
    while (found := kept(path)).counters_uj == before.counters_uj:
        assert time.monotonic() < deadline, "the restarted proxy posted nothing"
        time.sleep(0.02)
    return found


def test_without_the_setting_the_proxy_does_not_start(
    engines: tuple[SimulatedEngine, SimulatedEngine], tmp_path: Path
) -> None:
    """It says why, and what to set."""
    with pytest.raises(ProxyFailed, match="modelled would be counted for left and for right"):
        live(engines, tmp_path, "modelled", share=False).start()
