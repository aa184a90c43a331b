"""Every joule of the meter is in an account and every request has its share, in front of the real engine.

But for one test the meter is the modelled one: an estimate from this machine's CPU time, so other programs are in it
too. What is asserted is therefore who is charged for the meter's energy and never how much that is. `pytest -rP` shows
the figures.
"""

import http.client
import json
import math
import re
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest

from tests.engine.real import RealEngine
from tests.live import LiveProxy, assert_law
from tests.real.exchange import Ask, Reply, connect, exchange, get, post

pytestmark = pytest.mark.real

LIMIT = 1900
"""Completion tokens of a request that is meant to be interrupted: some seconds' worth."""
EVEN_S = 300
"""Seconds of a constant 50 W."""


def new_prompt(tokens: int = 40) -> list[int]:
    """A prompt nobody has sent before, as token ids, so that nothing of it is in the prefix cache."""
    return [100 + byte * 7 for byte in uuid.uuid4().bytes * (tokens // 16 + 1)][:tokens]


def completion(max_tokens: int, **fields: Any) -> Ask:
    """A completion of exactly `max_tokens` tokens; a stream unless `fields` say otherwise."""
    fixed = {"model": "tiny", "temperature": 0, "ignore_eos": True, "max_tokens": max_tokens, "stream": True}
    return post("/v1/completions", {"prompt": new_prompt(), **fixed, **fields})


def chat(max_tokens: int, **fields: Any) -> Ask:
    """A chat completion of exactly `max_tokens` tokens."""
    fixed = {"model": "tiny", "temperature": 0, "ignore_eos": True, "max_tokens": max_tokens}
    return post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": uuid.uuid4().hex}], **fixed, **fields}
    )


def at_once(url: str, asks: list[Ask]) -> list[Reply]:
    """All requests at the same time, each on a connection of its own; replies in order."""
    with ThreadPoolExecutor(len(asks)) as pool:
        return list(pool.map(lambda ask: exchange(url, ask), asks))


def request_id(reply: Reply) -> str:
    """The id a reply is accounted under."""
    found = reply.header("x-request-id")
    assert found is not None
    return found


def provisional_joules(reply: Reply) -> float:
    """What the answer itself said of its energy."""
    if reply.is_stream:
        return float(reply.energy_comments[0]["energy_joules"])
    return float(reply.header("x-energy-joules") or "nan")


def usage(reply: Reply) -> dict[str, Any]:
    """The last usage object of an answer, in chat's words; cached tokens belong to the prompt."""
    start = reply.body.rindex(b'"usage":{') + len(b'"usage":')
    told = json.JSONDecoder().raw_decode(reply.body[start:].decode("latin-1"))[0]
    if "prompt_tokens" in told:
        return {"prompt": told["prompt_tokens"], "completion": told["completion_tokens"]}
    apart = told.get("cache_read_input_tokens", 0) + told.get("cache_creation_input_tokens", 0)
    return {"prompt": told["input_tokens"] + apart, "completion": told["output_tokens"]}


def running(engine: RealEngine) -> float:
    """Sequences in vLLM's batch, by its own gauge."""
    page = httpx.get(f"{engine.url}/metrics", timeout=10).text
    found = re.search(r"^vllm:num_requests_running\{[^}]*\} (\S+)", page, re.MULTILINE)
    assert found is not None
    return float(found.group(1))


def wait_for_running(engine: RealEngine, wanted: bool, timeout_s: float = 10.0) -> float:
    """Waits until vLLM runs something, or nothing; seconds it took."""
    began = time.monotonic()
    while (running(engine) > 0) is not wanted:
        assert time.monotonic() < began + timeout_s, f"after {timeout_s} s vLLM is {'idle' if wanted else 'busy'} still"
        time.sleep(0.01)
    return time.monotonic() - began


def accounts(live: LiveProxy) -> dict[str, int]:
    """The accounts as they stand, in microjoules; the law is checked on the way."""
    balance = live.balance()
    assert_law(balance)
    found: dict[str, int] = balance["total"]["accounts"]
    return found


@pytest.fixture(scope="module")
def proxy(real_engine: RealEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveProxy]:
    """A proxy with a ledger of its own, so that all its requests are those of this file."""
    with LiveProxy(backends=[real_engine.url], ledger=tmp_path_factory.mktemp("energy") / "ledger.db") as found:
        yield found


@pytest.fixture
def even_proxy(real_engine: RealEngine, tmp_path: Path) -> Iterator[LiveProxy]:
    """A proxy whose meter draws the same at any time: what other programs do beside the engine is not in it."""
    meter = tmp_path / "even.csv"
    meter.write_text("seconds,joules\n" + "".join(f"{n / 20},{n * 2.5}\n" for n in range(20 * EVEN_S)))
    with LiveProxy(backends=[real_engine.url], ledger=tmp_path / "ledger.db", meter=f"recorded:{meter}") as found:
        yield found


def mixed_load() -> list[Ask]:
    """Forty requests of all kinds."""
    counted = {"stream": True, "stream_options": {"include_usage": True}}
    two_prompts = [new_prompt(), new_prompt(70)]
    responses = {"model": "tiny", "input": "bada dofu", "max_output_tokens": 30}
    messages = {"model": "tiny", "messages": [{"role": "user", "content": "bada " * 40}], "max_tokens": 30}
    return 4 * [
        chat(40),
        chat(40, **counted),
        chat(25, n=2, temperature=1),
        chat(25, n=2, temperature=1, **counted),
        completion(30, stream=False, prompt=new_prompt(1500)),
        completion(30, prompt=two_prompts, **counted),
        completion(20, prompt=two_prompts, n=2, temperature=1, stream=False),
        post("/v1/responses", responses),
        post("/v1/responses", {**responses, "stream": True}),
        post("/v1/messages", {**messages, "stream": True}),
    ]


def test_a_mixed_load_is_accounted_to_the_microjoule(even_proxy: LiveProxy) -> None:
    """Each of forty requests at once gets a settled record with vLLM's own token counts; everything adds up."""
    before = accounts(even_proxy)
    replies = at_once(even_proxy.url, mixed_load())
    assert {reply.status for reply in replies} == {200}
    records = [even_proxy.settled(request_id(reply)) for reply in replies]

    for reply, record in zip(replies, records, strict=True):
        told = usage(reply)
        assert {kind: record["tokens"][kind] for kind in told} == told, record
        assert record["energy_microjoules"] > 0
        assert record["outcome"] == "ok"
        per_token = record["energy_joules"] / record["tokens"]["completion"]
        assert math.isfinite(per_token)
        assert record["energy_joules"] == pytest.approx(sum(record["phases"].values()))
    after = accounts(even_proxy)
    assert after["requests"] - before["requests"] == sum(record["energy_microjoules"] for record in records)
    assert after["unmeasured"] == before["unmeasured"] == 0
    # vLLM counts a token a little before it is seen here; what differs for longer is taken for somebody else's
    strange = (after["unattributed"] - before["unattributed"]) / (after["requests"] - before["requests"])
    print(f"unattributed to requests: {strange:.2%}")
    assert strange < 0.01


def test_the_law_holds_while_requests_run(proxy: LiveProxy) -> None:
    """Whenever the books are looked at, they balance to the microjoule."""
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(exchange, proxy.url, completion(300)) for _ in range(8)]
        looks = 0
        while not all(answer.done() for answer in answers):
            accounts(proxy)
            looks += 1
    assert looks > 3


def test_what_does_no_work_costs_nothing(proxy: LiveProxy) -> None:
    """Refusals, tokenising and the list of models have records too, and their energy is 0."""
    asks = [
        chat(10, model="nobody"),
        chat(10, temperature=-3),
        post("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "bada " * 4000}]}),
        post("/tokenize", {"model": "tiny", "prompt": "bada dofu"}),
        get("/v1/models"),
    ]

    records = [proxy.settled(request_id(reply)) for reply in at_once(proxy.url, asks)]

    assert [record["energy_microjoules"] for record in records] == [0] * len(asks)
    assert [record["outcome"] for record in records] == ["error", "error", "error", "ok", "ok"]


@pytest.mark.parametrize(
    "ask",
    [
        completion(400),
        completion(400, stream=False),
        completion(100, prompt=[new_prompt(200) for _ in range(6)]),
        chat(100, n=4, temperature=1, stream=True),
        post(
            "/v1/responses",
            {"model": "tiny", "input": "hale", "max_output_tokens": 1000, "ignore_eos": True, "stream": True},
        ),
    ],
    ids=["stream", "whole", "prompts", "choices", "responses"],
)
def test_a_request_alone_gets_all_active_energy(ask: Ask, proxy: LiveProxy) -> None:
    """Nobody else ran, so nobody else pays, whatever the request's kind."""
    record = proxy.settled(request_id(exchange(proxy.url, ask)))

    print("attribution ratio", record["attribution_ratio"])
    assert record["attribution_ratio"] > 0.95


def test_twins_cost_the_same(proxy: LiveProxy) -> None:
    """Two requests of equal length in the same batch differ only by the instants at which they came and went."""
    records = [proxy.settled(request_id(reply)) for reply in at_once(proxy.url, [completion(500), completion(500)])]

    less, more = sorted(record["energy_joules"] for record in records)
    print(f"twins differ by {more / less - 1:.1%}")
    assert more / less < 1.15
    assert 0.4 < records[0]["attribution_ratio"] < 0.6


def test_an_answer_twice_as_long_pays_for_its_time_alone(proxy: LiveProxy) -> None:
    """While both run they pay alike; what comes after is the longer one's, and that is more than half of all."""
    replies = at_once(proxy.url, [completion(500), completion(250)])
    long, short = (proxy.settled(request_id(reply))["energy_joules"] for reply in replies)

    assert 0.2 < short / long < 0.6


def test_the_provisional_figure_is_near_the_settled_one(proxy: LiveProxy) -> None:
    """It predicts what the open windows will say: no answer is off by a factor of 3, nor the median by one of 2.

    Answers of half a second live in windows that are open for the most part, so here prediction is at its worst;
    the batch that follows answers alone is foretold from what those cost.
    """
    replies = [exchange(proxy.url, completion(300, stream=stream)) for stream in (True, False) * 2]
    replies += at_once(proxy.url, [completion(300, stream=stream) for stream in (True, False) * 3])

    ratios = [provisional_joules(reply) / proxy.settled(request_id(reply))["energy_joules"] for reply in replies]

    print("provisional / settled", *(f"{ratio:.2f}" for ratio in ratios))
    assert all(1 / 3 < ratio < 3 for ratio in ratios), ratios
    assert 0.5 < median(ratios) < 2, ratios


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_hangs_up(stream: bool, proxy: LiveProxy, real_engine: RealEngine) -> None:
    """vLLM drops the request at once, long before its end; the record says aborted and has what it cost until then."""
    name = f"gone-{uuid.uuid4().hex}"
    connection = connect(proxy.url)
    ask = completion(LIMIT, stream=stream)
    connection.request(ask.method, ask.path, ask.body, {**dict(ask.headers), "x-request-id": name})
    if stream:
        answer: http.client.HTTPResponse = connection.getresponse()
        for _ in range(20):
            answer.readline()
        answer.close()
    else:
        wait_for_running(real_engine, True)
    connection.close()

    assert wait_for_running(real_engine, False) < 1.0
    record = proxy.settled(name)
    assert record["outcome"] == "aborted"
    assert record["energy_joules"] > 0
    completed = record["tokens"]["completion"]
    assert 0 < completed < LIMIT if stream else completed is None
    accounts(proxy)


def test_traffic_beside_the_proxy_is_unattributed(proxy: LiveProxy, real_engine: RealEngine) -> None:
    """What others ask of vLLM directly is charged to no request of ours."""
    before = accounts(proxy)
    at_once(real_engine.url, [completion(500) for _ in range(4)])
    proxy.settled(request_id(exchange(proxy.url, completion(1))))  # the books have passed the end of that traffic
    after = accounts(proxy)

    assert after["requests"] - before["requests"] < (after["unattributed"] - before["unattributed"]) / 4
    assert after["unattributed"] > before["unattributed"]


def test_a_request_amid_traffic_beside_the_proxy(proxy: LiveProxy, real_engine: RealEngine) -> None:
    """One request of ours among four of others pays its part, far from all and far from nothing."""
    before = accounts(proxy)
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(exchange, real_engine.url, completion(700)) for _ in range(4)]
        wait_for_running(real_engine, True)
        record = proxy.settled(request_id(exchange(proxy.url, completion(300))))
    assert {other.result().status for other in others} == {200}
    after = accounts(proxy)

    print("attribution ratio", record["attribution_ratio"])
    assert 0.05 < record["attribution_ratio"] < 0.6
    assert after["requests"] - before["requests"] == record["energy_microjoules"]
    assert after["unattributed"] - before["unattributed"] > record["energy_microjoules"]


def test_every_surface_says_the_same(proxy: LiveProxy) -> None:
    """The list of records, the summary, the balance and the metrics are one set of books."""
    exchange(proxy.url, chat(20))
    last = proxy.settled(request_id(exchange(proxy.url, completion(20))))
    rows = httpx.get(f"{proxy.admin}/energy/requests", params={"limit": 100_000}, timeout=10).json()["requests"]
    summary = httpx.get(f"{proxy.admin}/energy/summary", timeout=10).json()["rows"]
    of_requests = accounts(proxy)["requests"]

    assert rows[0]["request_id"] == last["request_id"]
    assert {row["status"] for row in rows} == {"settled"}
    assert sum(row["energy_microjoules"] for row in rows) == of_requests
    assert sum(row["energy_microjoules"] for row in summary) == of_requests
    tiny = next(row for row in summary if row["model"] == "tiny")
    assert tiny["completion_tokens"] == sum(row["tokens"]["completion"] or 0 for row in rows if row["model"] == "tiny")
    assert math.isfinite(tiny["joules_per_output_token"])
    assert tiny["joules_per_output_token"] > 0
    _assert_metrics_balance(proxy.metrics())


def _assert_metrics_balance(page: str) -> None:
    def total(series: str) -> float:
        return sum(float(value) for value in re.findall(rf"^{series}\{{[^}}]*\}} (\S+)$", page, re.MULTILINE))

    assert total("jouleproxy_imbalance_joules") == 0
    assert total("jouleproxy_energy_joules_total") == pytest.approx(
        total("jouleproxy_gpu_energy_joules_total"), abs=1e-5
    )
    of_requests = total("jouleproxy_energy_joules_total")
    assert total("jouleproxy_request_energy_joules_total") <= of_requests
