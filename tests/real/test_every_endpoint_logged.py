"""Whatever the endpoint, the real engine's step log is joined to the request, and the request pays for its steps."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.engine.real import RealEngine
from tests.live import LiveProxy, assert_law

pytestmark = pytest.mark.real

METERED_S = 600
"""Seconds of a constant 100 W."""
RESPONSE = {"model": "tiny", "input": "bada kopi", "max_output_tokens": 400, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module", params=["generates", "pools"])
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveProxy]:
    """A proxy before an engine that tells its steps; one engine can either generate or pool."""
    folder = tmp_path_factory.mktemp(request.param)
    log, meter = folder / "steps.sock", folder / "meter.csv"
    # a counter: with an estimated meter there is no grade but D
    meter.write_text("seconds,joules\n" + "".join(f"{n / 20},{n * 5}\n" for n in range(20 * METERED_S)))
    options = ("--runner", "pooling", "--convert", "embed") if request.param == "pools" else ()
    with (
        RealEngine(folder / "engine.log", *options, environment={"JOULEPROXY_STEP_LOG": str(log)}) as engine,
        LiveProxy(
            backends=[engine.url],
            ledger=folder / "ledger.db",
            meter=f"recorded:{meter}",
            settings={"step_log": str(log)},
        ) as running,
    ):
        running.pools = request.param == "pools"  # type: ignore[attr-defined]
        yield running


def asked(proxy: LiveProxy, name: str, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The settled record of a request that was alone on the engine, and its answer."""
    headers = {"x-request-id": name}
    answer = httpx.post(proxy.url + path, json=body, headers=headers, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    return proxy.settled(name), answer.content


def accounts(proxy: LiveProxy) -> dict[str, int]:
    balance = proxy.balance()
    assert_law(balance)
    found: dict[str, int] = balance["total"]["accounts"]
    return found


def test_a_request_of_any_endpoint_pays_for_its_steps(proxy: LiveProxy) -> None:
    """Grade A, and hardly anything of what it cost is left to nobody."""
    if proxy.pools:  # type: ignore[attr-defined]
        texts = ["bada kopi zulo " * 60] * 40
        asks = {
            "embeddings": ("/v1/embeddings", {"model": "tiny", "input": texts}),
            "pooling": ("/pooling", {"model": "tiny", "input": texts}),
            "score": ("/v1/score", {"model": "tiny", "text_1": texts[0], "text_2": texts}),
            "rerank": ("/v1/rerank", {"model": "tiny", "query": "bada", "documents": texts}),
        }
    else:
        asks = {
            "response": ("/v1/responses", RESPONSE),
            "response-streamed": ("/v1/responses", {**RESPONSE, "stream": True}),
            "response-of-its-own-name": ("/v1/responses", {**RESPONSE, "request_id": "resp_mine"}),
        }
    asked(proxy, "first", asks[next(iter(asks))][0], asks[next(iter(asks))][1])
    for name, (path, body) in asks.items():
        before = accounts(proxy)
        record, answer = asked(proxy, name, path, body)
        after = accounts(proxy)
        grown = {account: after[account] - before[account] for account in after}
        print(name, record["grade"], f"{record['energy_joules']:.3f} J", grown)
        assert record["grade"] == "A", name
        assert record["energy_microjoules"] > 0.9 * (grown["requests"] + grown["unattributed"]), (name, grown)
        if name == "response-of-its-own-name":
            assert b'"id":"resp_mine"' in answer
