"""Minutes of mixed load through the proxy, against a reader of the same counter that knows nothing of the proxy."""

import asyncio
import time
from collections import Counter
from typing import Any

import httpx
import pytest

from proxy.accounting.units import SECOND, Nanoseconds
from proxy.meters.nvml import NvmlMeter
from proxy.meters.pace import change_edges
from tests.gpu.edges import Reader
from tests.gpu.engine import Served
from tests.gpu.load import Load, mixed
from tests.gpu.machine import Gpu
from tests.gpu.page import Note, Say
from tests.gpu.plan import Plan
from tests.live import LiveProxy, assert_law

pytestmark = pytest.mark.gpu

CLIENTS = 24
PAUSE_S = 4.0
QUIET_S = 3.0
"""Before and after the load, so that the ends of the compared stretch lie where power is small and steady."""
WATCH = Nanoseconds(4 * SECOND)
BAR = 0.01
"""The proxy's books lag their reader by up to two seconds at either end, at idle power; nothing else may differ."""


def reading(gpu: Gpu) -> dict[str, float | None]:
    """Period of the counter and cost of a reading, in ms, by the code of `jouleproxy meters`."""
    meter = NvmlMeter(gpu.uuid)
    try:
        pace = change_edges(meter.read, time.monotonic_ns, time.sleep, changes=1_000_000, limit=WATCH)
    finally:
        meter.close()
    period_ms = None if pace.period_s is None else pace.period_s * 1000
    return {"counter_period_ms": period_ms, "read_ms": pace.read_s * 1000}


def looked(proxy: LiveProxy) -> tuple[int, dict[str, int]]:
    """The instant, and the accounts with the meter at it; the law must hold."""
    balance = proxy.balance()
    assert_law(balance)
    total = balance["total"]
    return time.monotonic_ns(), {"meter": total["meter_microjoules"], **total["accounts"]}


def settled(proxy: LiveProxy, sent: list[str]) -> list[dict[str, Any]]:
    """All records, once all requests that were answered are settled."""
    for request_id in sent:
        proxy.settled(request_id)
    found = httpx.get(f"{proxy.admin}/energy/requests", params={"limit": 100_000}, timeout=60, trust_env=False)
    records: list[dict[str, Any]] = found.json()["requests"]
    assert {"settled"} == {record["status"] for record in records}
    return records


def test_every_joule_is_in_an_account(
    proxy: LiveProxy, served: Served, gpu: Gpu, reader: Reader, plan: Plan, note: Note, say: Say
) -> None:
    """
    The accounts add up to the proxy's own meter exactly, and that to an independent window within 1 %.
    """
    pace = reading(gpu)

    async def work() -> tuple[int, list[str]]:
        async with Load(served, proxy.url) as load:
            return await mixed(load, CLIENTS, plan.mixed_s, PAUSE_S), load.sent

    time.sleep(QUIET_S)
    start, before = looked(proxy)
    say(f"conservation: {plan.mixed_s:g} s of mixed load")
    sent, answered = asyncio.run(work())
    records = settled(proxy, answered)
    time.sleep(QUIET_S)
    end, after = looked(proxy)

    grown = {name: after[name] - before[name] for name in after}
    independent_j = reader.until(end).between(start, end)
    off = grown["meter"] / 1e6 / independent_j - 1
    grades = Counter(record["grade"] for record in records)
    page = proxy.metrics()
    figures: dict[str, Any] = {
        "seconds": (end - start) / 1e9,
        "records": len(records),
        "independent_j": independent_j,
        "meter_j": grown["meter"] / 1e6,
        "difference": off,
        "imbalance_uj": grown["meter"] - sum(value for name, value in grown.items() if name != "meter"),
        "grade_a": grades["A"] / len(records),
        **{f"{name}_j": grown[name] / 1e6 for name in ("requests", "idle", "unattributed", "unmeasured")},
        **pace,
        "counter_power_ratio": gauge(page, "jouleproxy_meter_counter_power_ratio"),
        "proxy_read_ms": times(gauge(page, "jouleproxy_meter_read_seconds"), 1000),
    }
    note(figures, {"microjoules": grown, "grades": dict(grades), "sent": sent, "answered": len(answered)})
    say(f"conservation: {independent_j:.0f} J independent, {grown['meter'] / 1e6:.0f} J metered, {100 * off:+.3f} %")

    assert 0 == figures["imbalance_uj"]
    assert grown["requests"] == sum(record["energy_microjoules"] for record in records)
    assert grown["unmeasured"] == 0
    assert abs(off) <= BAR
    if served.step_log is not None:
        assert set(grades) == {"A"}, grades


def gauge(page: str, name: str) -> float | None:
    """The first series of a gauge on the proxy's page; None where it has none."""
    found = [line for line in page.splitlines() if line.startswith(f"{name}{{")]
    return float(found[0].rpartition(" ")[2]) if found else None


def times(value: float | None, factor: float) -> float | None:
    """The product; None of None."""
    return None if value is None else value * factor
