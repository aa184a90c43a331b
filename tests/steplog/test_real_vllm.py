"""
The real vLLM says what it computed in every step, and its tokens are those that usage and its own counters show.
"""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engine.real import REPOSITORY, VENV, RealEngine, interpreter
from tests.steplog.conftest import PLUGIN
from tests.steplog.listening import Listener

pytestmark = pytest.mark.real

BUDGET = 128
"""Tokens a step, so that longer prompts come in pieces."""
# 1,536 tokens of context in all, so that a crowd must be preempted
SCARCE = ("--num-gpu-blocks-override", "48", "--max-model-len", "1024", "--max-num-batched-tokens", str(BUDGET))
GREEDY = {"model": "tiny", "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """The plugin in vLLM's environment must be the one in this repository."""
    interpreter()
    for source in PLUGIN.glob("jouleproxy_steplog/*.py"):
        copies = list(VENV.glob(f"lib/python*/site-packages/jouleproxy_steplog/{source.name}"))
        if [copy.read_text() for copy in copies] != [source.read_text()]:
            pytest.fail(f"{source.name} is not installed in {VENV} as it is here: run deploy/engine install")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steps") / "steps.sock"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, path: Path) -> Iterator[RealEngine]:
    log = tmp_path_factory.mktemp("vllm-steps") / "server.log"
    with RealEngine(log, *SCARCE, environment={"JOULEPROXY_STEP_LOG": str(path)}) as engine:
        yield engine


@pytest.fixture
def listener(path: Path) -> Iterator[Listener]:
    """Binds the path anew for each test: a receiver that comes while the engine runs."""
    with Listener(path) as listener:
        yield listener


def ask(engine: RealEngine, endpoint: str, body: dict[str, Any], request_id: str) -> dict[str, Any]:
    """The answer's JSON."""
    headers = {"content-type": "application/json", "x-request-id": request_id}
    request = urllib.request.Request(engine.url + endpoint, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        read: dict[str, Any] = json.load(answer)
        return read


def complete(engine: RealEngine, request_id: str, prompt: Any, tokens: int, **more: Any) -> dict[str, Any]:
    """A completion's usage."""
    body = {**GREEDY, "prompt": prompt, "max_tokens": tokens, **more}
    usage: dict[str, Any] = ask(engine, "/v1/completions", body, request_id)["usage"]
    return usage


def counter(engine: RealEngine, name: str, label: str = "") -> float:
    """One of vLLM's own counters, over all labels or those with this one."""
    with urllib.request.urlopen(f"{engine.url}/metrics", timeout=10) as page:
        text = page.read().decode()
    found = re.findall(rf"^{name}{{([^}}]*)}} (\S+)$", text, re.MULTILINE)
    assert found, f"no {name} on the page"
    return sum(float(value) for labels, value in found if label in labels)


def settled(listener: Listener, request_id: str, decode: int) -> Counter[str]:
    """What was computed for a request that decodes so many positions."""
    listener.wait(lambda: listener.totals(request_id)["decode"] >= decode)
    return listener.totals(request_id)


def test_a_long_prompt_is_reported_in_pieces_and_a_cached_one_by_its_rest(
    engine: RealEngine, listener: Listener
) -> None:
    prompt = list(range(300, 600))
    complete(engine, "pieces", prompt, 4)
    assert settled(listener, "pieces", 3) == {"prefill": 300, "decode": 3, "recomputed": 0, "steps": 3 + 3}
    parts = [part for step in listener.steps for part in step.sequences]
    assert [(part.before, part.prefill, part.decode) for part in parts] == [
        *((0, 128, 0), (128, 128, 0), (256, 44, 0)),
        *((300, 0, 1), (301, 0, 1), (302, 0, 1)),
    ]
    usage = complete(engine, "cached", prompt, 4)
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert cached == 288
    assert settled(listener, "cached", 3)["prefill"] == 300 - cached
    assert listener.log.lost == listener.log.bad == 0


def test_steps_follow_each_other_without_overlap(engine: RealEngine, listener: Listener) -> None:
    complete(engine, "order", [700, 701], 30)
    settled(listener, "order", 29)
    for before, after in zip(listener.steps, listener.steps[1:], strict=False):
        assert before.start < before.end <= after.start
        assert after.number == before.number + 1


def test_every_token_of_usage_is_in_the_log(engine: RealEngine, listener: Listener) -> None:
    """A mixed load: its sums by usage, by the engine's counters and by the log are the same."""
    computed = counter(engine, "vllm:prompt_tokens_by_source_total", 'source="local_compute"')
    made = counter(engine, "vllm:generation_tokens_total")
    with ThreadPoolExecutor(8) as pool:
        usages = list(
            pool.map(lambda k: complete(engine, f"mixed-{k}", [1000 + k, *range(300, 310 + 7 * k)], 3 + k), range(8))
        )
    prompt = sum(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    tokens = sum(usage["completion_tokens"] for usage in usages)
    total = sum((settled(listener, f"mixed-{k}", 2 + k) for k in range(8)), Counter[str]())
    assert (total["prefill"], total["decode"], total["recomputed"]) == (prompt, tokens - 8, 0)
    assert counter(engine, "vllm:prompt_tokens_by_source_total", 'source="local_compute"') - computed == prompt
    assert counter(engine, "vllm:generation_tokens_total") - made == tokens


def test_each_answer_of_several_is_a_sequence_of_its_own(engine: RealEngine, listener: Listener) -> None:
    """Usage counts the prompt once, but the engine computes it for each."""
    usage = complete(engine, "twins", [800, 801, 802], 5, n=2, temperature=1)
    total = settled(listener, "twins", 8)
    assert (usage["prompt_tokens"], total["prefill"], total["decode"]) == (3, 6, 8)
    assert len(listener.names()) == 2
    complete(engine, "list", [[800, 801], [802]], 3)
    assert settled(listener, "list", 4)["prefill"] == 3


def test_an_aborted_request_is_reported_up_to_its_end(engine: RealEngine, listener: Listener) -> None:
    made = counter(engine, "vllm:generation_tokens_total")
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=60)
    body = json.dumps({**GREEDY, "prompt": [810, 811], "max_tokens": 900, "stream": True})
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json", "x-request-id": "gone"})
    answer = connection.getresponse()
    for _ in range(10):
        answer.readline()
    answer.close()
    connection.close()
    listener.wait(lambda: counter(engine, "vllm:num_requests_running") == 0)
    complete(engine, "after", [820], 2)
    settled(listener, "after", 1)
    total = listener.totals("gone")
    tokens = counter(engine, "vllm:generation_tokens_total") - made - 2
    assert total["prefill"] == 2
    assert 4 <= total["decode"] < 890
    # the steps under way when the abort came gave tokens that nobody counts; a starved server is some steps late
    assert 0 <= total["decode"] + 1 - tokens <= 5


def crowd(engine: RealEngine, listener: Listener) -> None:
    """More requests than there is room for. But for what preemptions undid, each position is computed once."""
    before = counter(engine, "vllm:num_preemptions_total")
    with ThreadPoolExecutor(24) as pool:
        usages = list(pool.map(lambda k: complete(engine, f"crowd-{k}", [900 + k] * 40, 120), range(24)))
    assert counter(engine, "vllm:num_preemptions_total") > before
    lost = 0
    for number, usage in enumerate(usages):
        total = settled(listener, f"crowd-{number}", 119)
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (40, 120)
        # the prompt, and every token but the last
        assert total["prefill"] + total["decode"] - total["recomputed"] == 40 + 119
        lost += total["recomputed"]
    assert lost > 0
    assert listener.log.lost == 0


def test_what_preemptions_undid_is_told_apart(engine: RealEngine, listener: Listener) -> None:
    crowd(engine, listener)


def test_every_endpoint_leads_back_to_its_request(engine: RealEngine, listener: Listener) -> None:
    chat = {**GREEDY, "messages": [{"role": "user", "content": "bada kopi"}], "max_tokens": 3}
    ask(engine, "/v1/chat/completions", chat, "a-chat-1")
    assert settled(listener, "a-chat-1", 2)["steps"] == 3
    ask(engine, "/v1/messages", {**chat, "ignore_eos": True}, "a-message-1")
    assert settled(listener, "a-message-1", 1)["prefill"] > 0
    ask(engine, "/v1/chat/completions/batch", {**chat, "messages": [chat["messages"]] * 2}, "a-batch-1")
    assert settled(listener, "a-batch-1", 4)["decode"] == 4


def test_a_response_is_found_by_the_id_of_its_answer(engine: RealEngine, listener: Listener) -> None:
    """/v1/responses ignores X-Request-Id; the id is in the answer, in a stream in its first event."""
    body = {"model": "tiny", "input": "bada kopi", "max_output_tokens": 4, "temperature": 0}
    answer = ask(engine, "/v1/responses", body, "ignored")
    total = settled(listener, answer["id"], answer["usage"]["output_tokens"] - 1)
    assert total["prefill"] == answer["usage"]["input_tokens"]
    assert listener.totals("ignored")["steps"] == 0
    ask(engine, "/v1/responses", {**body, "request_id": "resp_named"}, "ignored")
    assert settled(listener, "resp_named", 3)["decode"] == 3


def test_a_receiver_killed_under_load_is_found_again(engine: RealEngine, path: Path) -> None:
    """The engine serves on without noticing, and the new receiver sees how many steps it missed."""
    doomed = subprocess.Popen(
        [sys.executable, "-m", "tests.steplog.listening", str(path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    with doomed, ThreadPoolExecutor(1) as pool:
        assert doomed.stdout is not None
        assert doomed.stdout.readline() == "listening\n"
        load = pool.submit(complete, engine, "survivor", [830, 831], 900)
        assert doomed.stdout.readline() == "heard\n"
        os.kill(doomed.pid, signal.SIGKILL)
        doomed.wait(10)
        threading.Event().wait(0.1)  # some steps for nobody
        with Listener(path) as listener:
            listener.wait(lambda: bool(listener.steps))
            assert load.result(60)["completion_tokens"] == 900
            settled(listener, "survivor", 10)
            first, last = listener.steps[0], listener.steps[-1]
            listener.wait(lambda: listener.steps[-1].sequences[0].before == 900)
            assert first.dropped > 0
            assert (last.dropped, listener.log.lost) == (first.dropped, 0)


def test_embeddings_and_scores_are_prefill_only(tmp_path: Path) -> None:
    """An engine of its own, with the names of its endpoints."""
    path = tmp_path / "steps.sock"
    pooling = ("--runner", "pooling", "--convert", "embed")
    environment = {"JOULEPROXY_STEP_LOG": str(path)}
    with Listener(path) as listener, RealEngine(tmp_path / "log", *pooling, environment=environment) as engine:
        for endpoint, body, tokens in (
            ("/v1/embeddings", {"input": [[300, 301, 302], [303, 304]]}, 5),
            ("/pooling", {"input": [305, 306, 307]}, 3),
            ("/v1/score", {"text_1": "bada", "text_2": ["kopi", "zulo"]}, None),
            ("/v1/rerank", {"query": "bada", "documents": ["kopi", "zulo"]}, None),
        ):
            name = "pool" + endpoint.replace("/", "-")
            usage = ask(engine, endpoint, {"model": "tiny", **body}, name)["usage"]
            tokens = tokens or usage["prompt_tokens"]
            listener.wait(lambda name=name, tokens=tokens: listener.totals(name)["prefill"] >= tokens)
            total = listener.totals(name)
            assert (total["prefill"], total["decode"]) == (tokens, 0), endpoint


def test_steps_scheduled_ahead_are_told_apart(tmp_path: Path) -> None:
    """Asynchronous scheduling, which vLLM switches off on CPUs although it works there: a plugin switches it on."""
    plugin = tmp_path / "forced_async-1.dist-info"
    plugin.mkdir()
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: forced-async\nVersion: 1\n")
    (plugin / "entry_points.txt").write_text("[vllm.general_plugins]\nforced_async = forced_async:register\n")
    (tmp_path / "forced_async.py").write_text(FORCED_ASYNC)
    path = tmp_path / "steps.sock"
    environment = {"JOULEPROXY_STEP_LOG": str(path), "PYTHONPATH": str(tmp_path)}
    with Listener(path) as listener, RealEngine(tmp_path / "log", *SCARCE, environment=environment) as engine:
        complete(engine, "ahead", [840, 841], 200)
        assert settled(listener, "ahead", 199) == {"prefill": 2, "decode": 199, "recomputed": 0, "steps": 200}
        pairs = list(zip(listener.steps, listener.steps[1:], strict=False))
        assert all(after.start == before.end for before, after in pairs[:-1])
        crowd(engine, listener)


FORCED_ASYNC = """
from vllm.platforms.cpu import CpuPlatform

check = CpuPlatform.check_and_update_config.__func__


def forced(cls, config):
    check(cls, config)
    config.scheduler_config.async_scheduling = True


def register():
    CpuPlatform.check_and_update_config = classmethod(forced)
"""


def test_drafted_positions_are_counted_accepted_or_not(tmp_path: Path) -> None:
    """Speculative decoding. The model drafts for itself, so that nearly all its drafts are accepted."""
    path = tmp_path / "steps.sock"
    model = REPOSITORY / ".demo" / "tiny-model"
    drafts = json.dumps({"method": "draft_model", "model": str(model), "num_speculative_tokens": 3})
    environment = {"JOULEPROXY_STEP_LOG": str(path)}
    with (
        Listener(path) as listener,
        RealEngine(tmp_path / "log", "--speculative-config", drafts, environment=environment) as engine,
    ):
        complete(engine, "drafted", [850, 851], 100)
        total = settled(listener, "drafted", 99)
        drafted = counter(engine, "vllm:spec_decode_num_draft_tokens_total")
        assert total["prefill"] == 2
        assert total["decode"] == total["steps"] - 1 + drafted
        assert total["steps"] < 60
        assert total["recomputed"] == 0
