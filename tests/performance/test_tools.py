"""
The bench's own tools: the engine speaks vLLM's format, the client counts what it is sent, the figures are right.
"""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from tests.engine.real import free_port
from tests.performance.course import Run, in_turn
from tests.performance.figures import Runs, Spread, as_json
from tests.performance.native import program
from tests.performance.pinned import Pinned, Ready, wait_until
from tests.performance.systems import SYSTEMS
from tests.performance.tables import readme_table


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The mock engine's port."""
    port = free_port()
    log = tmp_path_factory.mktemp("engine") / "log"
    with Pinned([program("engine"), str(port)], 0, log, {}) as running:
        wait_until(Ready(port), running)
        yield port


def test_the_engine_speaks_to_the_openai_client(engine: int) -> None:
    """Streams with usage as asked for, and whole answers; `seed` is the pace."""
    client = OpenAI(base_url=f"http://127.0.0.1:{engine}/v1", api_key="none")
    asked = {"model": "mock", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "seed": 100}

    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options=options))  # type: ignore[call-overload]

    assert (whole.usage.completion_tokens, client.models.list().data[0].id) == (5, "mock")
    assert [chunk.usage.completion_tokens for chunk in chunks] == [0, 1, 2, 3, 4, 5, 5]
    assert [len(chunk.choices) for chunk in chunks] == [1] * 6 + [0]
    assert chunks[-2].choices[0].finish_reason == "length"


def test_the_engine_counts_on_its_metrics_page(engine: int) -> None:
    """What the proxy compares its own counts with."""
    tokens = [_made(engine)]
    httpx.post(
        f"http://127.0.0.1:{engine}/v1/chat/completions",
        json={"messages": [], "max_tokens": 7, "stream": True},
        trust_env=False,
    )
    tokens.append(_made(engine))

    assert tokens[1] - tokens[0] == 7


def _made(port: int) -> float:
    page = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    (line,) = [line for line in page.splitlines() if line.startswith("vllm:generation_tokens_total")]
    return float(line.split()[-1])


@pytest.mark.parametrize(
    "settings",
    [
        {"connections": 5, "tokens": 3, "step_us": 200},
        {"connections": 5, "tokens": 3, "step_us": 0, "churn": 1},
        {"connections": 5, "stream": 0},
        {"connections": 5, "stream": 0, "prompt": 200_000},
        {"connections": 5, "tokens": 40, "step_us": 0, "slow": 2},
    ],
    ids=str,
)
def test_the_client_counts_every_answer(engine: int, settings: dict[str, int]) -> None:
    """No answer is an error, each has its events, and times are in order."""
    given = [f"{name}={value}" for name, value in {**settings, "seconds": 1, "warm": 0}.items()]
    done = subprocess.run([program("client"), str(engine), *given], capture_output=True, check=True)
    said = json.loads(done.stdout)

    assert said["answered"] > 5
    assert said["errors"] == 0
    latency = said["latency_us"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
    if settings.get("stream") == 0:
        assert (said["events_all"], said["ttft_us"]) == (0, None)
    else:
        events = settings["tokens"] + 2  # with the role's and [DONE]
        assert abs(said["events_all"] / said["answered"] - events) < events * 5 / said["answered"] + 0.01


def test_the_client_tells_errors(tmp_path: Path) -> None:
    """Nobody listens."""
    done = subprocess.run(
        [program("client"), str(free_port()), "connections=2", "seconds=1", "warm=0"], capture_output=True, check=True
    )
    said = json.loads(done.stdout)
    assert (said["answered"], said["errors"] > 0) == (0, True)


def run(system: str, cpu_s: float | None, events: int, ttft_ms: float = 1.0) -> Run:
    times = {"p50": ttft_ms * 1000, "p90": ttft_ms * 1000, "p99": ttft_ms * 1000}
    said = {"seconds": 10.0, "events": events, "events_all": events, "answered": 10, "latencies": 10, "errors": 0}
    return Run(system, "streams", {**said, "ttft_us": times, "gap_us": times}, cpu_s, None)


def test_ratios_compare_round_by_round() -> None:
    """The machine may be slower in one of them; what a system lacks is null and not nought."""
    rounds = [run("jouleproxy", 3.0, 100_000), run("nginx", 2.0, 100_000)]
    rounds += [run("jouleproxy", 12.0, 200_000, 3.0), run("nginx", 4.0, 200_000)]
    runs = Runs([*rounds, run("direct", None, 100_000, 0.5), run("direct", None, 100_000, 0.5)])

    assert runs.ratio("streams", "CPU s per 1e5 chunks", "jouleproxy", "nginx") == Spread(2.25, 1.5, 3.0)
    assert runs.more("streams", "TTFT p50 ms", "direct") == Spread(1.5, 0.5, 2.5)
    found = as_json(runs, ["jouleproxy", "nginx"], ["streams"])
    assert found["ratios"]["cpu_per_chunk_vs_nginx_200"] == 2.25
    assert found["ratios"]["cpu_per_chunk_vs_vllm_router_200"] is None
    assert found["figures"]["streams"]["nginx"]["CPU s per 1e5 chunks"] == 2.0


def test_the_readmes_table_is_made_from_the_runs() -> None:
    """What was not run is a dash."""
    table = readme_table(Runs([run("nginx", 2.0, 100_000)]), ["nginx", "direct"])

    assert table.splitlines()[2] == "| nginx | 2.00 | 1.00 / 1.00 | – | – | – |"
    assert table.splitlines()[3] == "| direct | – | – / – | – | – | – |"


def test_the_order_turns_round() -> None:
    """What drifts meets all alike."""
    systems = list(SYSTEMS.values())[:3]

    assert [*in_turn(systems, 2)] == [*systems, *reversed(systems)]


def test_the_plain_relay_relays(engine: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is slow and not wrong."""
    monkeypatch.setenv("ENGINE_PORT", str(engine))
    from tests.performance.plain_relay import app

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://relay") as client:
            return await client.post("/v1/chat/completions", json={"messages": [], "max_tokens": 2, "stream": True})

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.text.count("data: ")) == (200, 4)
