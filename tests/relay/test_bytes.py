"""
What the client reads through the proxy is what it would have read from the engine: every byte, every header.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.answers import Script
from tests.engine.simulated import SimulatedEngine
from tests.live import LiveProxy
from tests.relay.speaking import CHAT, HTTP

COMPLETIONS = "/v1/completions"
OPTIONS: list[dict[str, bool] | None] = [
    None,
    {},
    {"include_usage": False},
    {"include_usage": True},
    {"include_usage": True, "continuous_usage_stats": True},
    {"include_usage": False, "continuous_usage_stats": True},
]
FLAGS: dict[str, dict[str, bool]] = {
    "tiny": {},
    "bare": {"enable_prompt_tokens_details": False},
    "timed": {"enable_per_request_metrics": True},
}
VARYING = [
    (re.compile(rb'"(created|created_at|[a-z_]+_ms|tokens_per_second)":[0-9.e+-]+'), rb'"\1":0'),
    (re.compile(rb"(msg|resp|chatcmpl|cmpl)[_-][0-9a-f]{16}"), rb"\1"),
]
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}
OURS = {"x-request-id", "x-energy-joules", "x-energy-status"}


def normalised(body: bytes) -> bytes:
    """The bytes without what differs between any two answers of the engine: times, and ids nobody gave."""
    for pattern, instead in VARYING:
        body = pattern.sub(instead, body)
    return body


def without_comment(body: bytes, end: bytes = b"data: [DONE]\n\n") -> bytes:
    """The stream without the one line the proxy adds, which stands directly before the last event."""
    comments = re.findall(rb"^: energy \{.*\}\n", body, re.MULTILINE)
    assert len(comments) == 1, body
    assert comments[0] + end in body, body
    return body.replace(comments[0], b"")


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, SimulatedEngine]]:
    """One engine for each way to start vLLM that changes its bytes, each with a model of its own."""
    running = {model: SimulatedEngine(model=model, **flags) for model, flags in FLAGS.items()}
    for engine in running.values():
        engine.up()
    yield running
    for engine in running.values():
        engine.down()


@pytest.fixture(scope="module")
def proxy(engines: dict[str, SimulatedEngine], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveProxy]:
    folder = tmp_path_factory.mktemp("bytes")
    config = "\n".join(_backend(folder, model, engine) for model, engine in engines.items())
    with LiveProxy(backends=[], ledger=folder / "ledger.db", config=config) as running:
        yield running


def _backend(folder: Path, model: str, engine: SimulatedEngine) -> str:
    recording = folder / f"{model}.csv"
    recording.write_text("\n".join(["seconds,joules", *(f"{n / 10},{n * 10}" for n in range(3000))]))
    return f'[[backends]]\nname = "{model}"\nurl = "{engine.url}"\nmeter = "recorded:{recording}"'


def both(
    proxy: LiveProxy, engine: SimulatedEngine, path: str, body: dict[str, Any], script: Script | None = None
) -> tuple[httpx.Response, httpx.Response]:
    """The engine's own answer and the proxy's to the same request under the same name."""
    answers = []
    for url in (engine.url, proxy.url):
        if script is not None:
            engine.script(script)
        # the name is as long as the engine's own, so that content-length is the same
        answers.append(HTTP.post(url + path, json=body, headers={"x-request-id": "same-name"}))
    direct, relayed = answers
    return direct, relayed


def assert_same_head(direct: httpx.Response, relayed: httpx.Response) -> None:
    """Status and headers agree but for the connection's own and ours; dates may be a second apart."""
    assert direct.status_code == relayed.status_code

    def kept(answer: httpx.Response, dropped: set[str]) -> list[tuple[str, str]]:
        return sorted(
            (k.lower(), "" if k.lower() == "date" else v) for k, v in answer.headers.items() if k not in dropped
        )

    assert kept(direct, HOP_BY_HOP) == kept(relayed, HOP_BY_HOP | OURS)
    assert relayed.headers["x-request-id"] == "same-name"


@pytest.mark.parametrize("model", FLAGS)
@pytest.mark.parametrize(
    ("path", "options", "n"),
    list(itertools.product([CHAT, COMPLETIONS], OPTIONS, [1, 3])),
    ids=lambda value: value.rsplit("/", 1)[-1] if isinstance(value, str) else repr(value),
)
def test_streams(
    proxy: LiveProxy,
    engines: dict[str, SimulatedEngine],
    model: str,
    path: str,
    options: dict[str, bool] | None,
    n: int,
) -> None:
    """A stream differs in one comment line only, whatever usage was asked for and however vLLM was started."""
    body = _body(path, model) | {"stream": True, "n": n} | ({} if options is None else {"stream_options": options})

    direct, relayed = both(proxy, engines[model], path, body)

    assert normalised(without_comment(relayed.content)) == normalised(direct.content)
    assert_same_head(direct, relayed)


@pytest.mark.parametrize("model", FLAGS)
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_whole_answers(proxy: LiveProxy, engines: dict[str, SimulatedEngine], model: str, path: str, n: int) -> None:
    """An answer in one piece is untouched; its energy is in the headers."""
    direct, relayed = both(proxy, engines[model], path, _body(path, model) | {"n": n})

    assert normalised(relayed.content) == normalised(direct.content)
    if model != "timed":  # whose times have as many digits as they like
        assert_same_head(direct, relayed)
    assert set(relayed.headers) >= OURS


def _body(path: str, model: str) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": "Énergie?"}]} if path == CHAT else {"prompt": "Énergie?"}
    return {"model": model, "max_tokens": 6} | asked


@pytest.mark.parametrize(
    "script",
    [
        Script(piece_bytes=1),
        Script(piece_bytes=7),
        Script(tokens_per_chunk=4),
        Script(silent_every=2),
        Script(silent_every=3, tokens_per_chunk=2),
        Script(garbage_after=2),
        Script(die_after=3),
    ],
    ids=lambda script: ", ".join(f"{k}={v}" for k, v in vars(script).items() if v != getattr(Script(), k)),
)
@pytest.mark.parametrize("options", [None, {"include_usage": True}], ids=["no usage", "usage"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_streams_cut_and_merged(
    proxy: LiveProxy, engines: dict[str, SimulatedEngine], path: str, options: dict[str, bool] | None, script: Script
) -> None:
    """However the network cuts the bytes, however many tokens a chunk has, and whatever the engine's fault."""
    body = _body(path, "tiny") | {"stream": True, "stream_options": options, "max_tokens": 12}

    direct, relayed = both(proxy, engines["tiny"], path, body, script)

    assert normalised(without_comment(relayed.content)) == normalised(direct.content)


def test_forced_usage_is_hidden_too(proxy: LiveProxy, engines: dict[str, SimulatedEngine], tmp_path: Path) -> None:
    """A server started with --enable-force-include-usage looks like any other: who did not ask sees no usage."""
    body = _body(CHAT, "tiny") | {"stream": True}
    forced = SimulatedEngine(enable_force_include_usage=True)
    with forced, LiveProxy(backends=[forced.url], ledger=tmp_path / "ledger.db") as other:
        hidden = HTTP.post(other.url + CHAT, json=body, headers={"x-request-id": "same-name"})

    direct, _ = both(proxy, engines["tiny"], CHAT, body)
    assert normalised(without_comment(hidden.content)) == normalised(direct.content)


@pytest.mark.parametrize("stream", [False, True])
def test_lists_of_prompts(proxy: LiveProxy, engines: dict[str, SimulatedEngine], stream: bool) -> None:
    """Several prompts with several choices each are as many sequences in one answer."""
    prompts = ["one", "two two", "three three three"]
    body = {"model": "tiny", "prompt": prompts, "n": 2, "max_tokens": 3, "stream": stream}

    direct, relayed = both(proxy, engines["tiny"], COMPLETIONS, body)

    content = without_comment(relayed.content) if stream else relayed.content
    assert normalised(content) == normalised(direct.content)


@pytest.mark.parametrize("stream", [False, True])
def test_responses(proxy: LiveProxy, engines: dict[str, SimulatedEngine], stream: bool) -> None:
    """The other API passes too; its comment stands before its own last event."""
    body = {"model": "tiny", "input": "hello", "max_output_tokens": 5, "stream": stream}

    direct, relayed = both(proxy, engines["tiny"], "/v1/responses", body)

    content = without_comment(relayed.content, b"event: response.completed\n") if stream else relayed.content
    assert normalised(content) == normalised(direct.content)
    assert_same_head(direct, relayed)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"model": "tiny"}),
        (CHAT, {"model": "tiny", "messages": [], "stream_options": {"include_usage": True}}),
        (CHAT, {"model": "tiny", "messages": [], "max_tokens": -1, "stream": True}),
        (CHAT, {"model": "tiny", "messages": [], "max_tokens": 10_000, "stream": True}),
        (COMPLETIONS, {"model": "tiny", "prompt": "", "stream": True}),
        (COMPLETIONS, {"model": "none", "prompt": "x", "stream": True}),
        ("/v1/embeddings", {"model": "tiny", "input": "x"}),
        ("/tokenize", {"model": "tiny", "prompt": "one two", "return_token_strs": True}),
        ("/detokenize", {"model": "tiny", "tokens": [300, 301]}),
        ("/v1/nothing/there", {"a": 1}),
    ],
)
def test_refusals_and_small_answers(
    proxy: LiveProxy, engines: dict[str, SimulatedEngine], path: str, body: dict[str, Any]
) -> None:
    """Errors and answers without a model behind them are the engine's own bytes."""
    direct, relayed = both(proxy, engines["tiny"], path, body)

    assert relayed.content == direct.content
    assert_same_head(direct, relayed)
