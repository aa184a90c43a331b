"""A vLLM server without a model: the same HTTP answers as vLLM 0.32, at any speed, with faults on request.

    with SimulatedEngine(step_s=0.001) as engine:
        engine.script(Script(drop_after=3))        # the next answer breaks off after three events
        httpx.post(f"{engine.url}/v1/chat/completions", json=...)
        engine.requests[0].body                    # what the server was sent

It listens on a real port of 127.0.0.1, in a thread of its own. `test_real.py` holds it against the real server.
"""

import asyncio
import contextlib
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from types import TracebackType
from typing import Any, Self

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from tests.engine import shapes
from tests.engine.answers import HEALTHY, EngineDied, Gone, Outlet, Script, generate
from tests.engine.asks import BUSY, DEAD, NOT_FOUND, UNAUTHORIZED, Refusal, check_model, document, read_ask, require
from tests.engine.batch import Batch, Counters, Step, exposition
from tests.engine.language import chat_tokens, text_of, tokens

GENERATION = {"/v1/chat/completions": "chat", "/v1/completions": "completions", "/v1/responses": "responses"}
VECTOR_LENGTH = 8


@dataclass(frozen=True)
class Flags:
    """What `vllm serve` would be told, and how long its work takes."""

    model: str = "tiny"
    max_model_len: int = 2048
    max_num_seqs: int = 64
    enable_prompt_tokens_details: bool = True
    enable_force_include_usage: bool = False
    enable_per_request_metrics: bool = False
    api_key: str | None = None
    pooling: bool = False
    """--runner pooling: embeddings instead of chat and completions."""
    prefill_s_per_token: float = 0.0
    step_s: float = 0.0
    answer_tokens: int = 16
    """How long an answer is that has neither ignore_eos nor a smaller max_tokens."""
    send_buffer_bytes: int | None = None
    """The kernel's buffer per connection; small ones let a test feel a slow reader soon."""


@dataclass(frozen=True)
class Canned:
    """A fixed answer for a path, whatever is asked."""

    status: int
    body: bytes
    content_type: str = "application/json"


@dataclass(eq=False)
class Received:
    """A request as the server received it."""

    method: str
    path: str
    query: str
    header_pairs: list[tuple[str, str]]
    body: bytes
    at_ns: int = field(default_factory=time.monotonic_ns)
    disconnected: threading.Event = field(default_factory=threading.Event)
    """The client left before its answer was complete."""
    over: threading.Event = field(default_factory=threading.Event)
    """Nothing more will be sent."""

    @property
    def headers(self) -> dict[str, str]:
        """Headers by lower-case name (of a name that comes twice, the last)."""
        return dict(self.header_pairs)


class SimulatedEngine:
    """The server: start it, script its answers, look at what it was asked."""

    def __init__(self, **flags: Any) -> None:
        """Takes the fields of Flags as keywords."""
        self.flags = Flags(**flags)
        self.always = HEALTHY
        """The script of every answer that has none of its own."""
        self.canned: dict[str, Canned] = {"/version": Canned(200, b'{"version":"0.32.0"}')}
        self.requests: list[Received] = []
        self.port = 0
        self._arrival = threading.Condition()
        self._scripts: deque[Script] = deque()
        self._run: _Run | None = None

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @property
    def url(self) -> str:
        """Where it listens, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def counters(self) -> Counters:
        """What it has counted since it came up; tests may change them (preemptions, say)."""
        return self._running.batch.counters

    @property
    def steps(self) -> Sequence[Step]:
        """What it has computed since it came up, step by step."""
        return tuple(self._running.batch.steps)

    @property
    def under_way(self) -> Step | None:
        """The step it computes, or its last one, which is in `steps` then; it ends when it should, not when it did."""
        return self._running.batch.under_way

    def up(self) -> None:
        """Starts listening; after `down()` on the same port again, with counters at zero and an empty prefix cache."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.flags.send_buffer_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.flags.send_buffer_bytes)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._run = _Run(self, listener)

    def down(self) -> None:
        """The server process is killed: open connections break off, new ones are refused."""
        if self._run is not None:
            self._run.stop()
            self._run = None

    def die(self) -> None:
        """The engine process dies behind the server: answers end with an error event, /health says 503."""
        self._running.call(self._running.die)

    def release(self) -> None:
        """Lets stalled answers go on."""
        self._running.call(self._running.released.set)

    def script(self, *scripts: Script) -> None:
        """Says how the next generation requests are answered, one script each, in order of arrival."""
        self._scripts.extend(scripts)

    def next_script(self) -> Script:
        """The script for a request that has just come."""
        return self._scripts.popleft() if self._scripts else self.always

    def note(self, request: Received) -> None:
        """Adds a request to the list and wakes who waits for it."""
        with self._arrival:
            self.requests.append(request)
            self._arrival.notify_all()

    def wait_for_request(self, number: int = 1, timeout_s: float = 5.0) -> Received:
        """The `number`-th request since the beginning, as soon as it has come; TimeoutError if it does not."""
        with self._arrival:
            if not self._arrival.wait_for(lambda: len(self.requests) >= number, timeout_s):
                raise TimeoutError(f"{len(self.requests)} requests came in {timeout_s} s, not {number}")
            return self.requests[number - 1]

    @property
    def _running(self) -> "_Run":
        if self._run is None:
            raise RuntimeError("the simulated engine is not up")
        return self._run


TURNS = 5
"""Of the event loop until a connection just accepted is known, and until an aborted one is closed."""


class _Connection(HttpToolsProtocol):
    """uvicorn's connection, which lets the application reach its transport: a fault must be able to close it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self.access_log = False
        self.app_state = {"transport": transport}


class _Run:
    """One life of the server, from up to down, in a thread with an event loop."""

    def __init__(self, engine: SimulatedEngine, listener: socket.socket) -> None:
        self.engine = engine
        self.flags = engine.flags
        self.started_at = int(time.time())
        self.dead = False
        self._listener = listener
        self._outlets: set[Outlet] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="simulated-engine", daemon=True)
        self._thread.start()
        self._ready.wait()

    def call(self, function: Callable[[], object]) -> None:
        """Runs `function` on the event loop and waits until it is done."""
        done = threading.Event()

        def run() -> None:
            function()
            done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait(5)

    def stop(self) -> None:
        """Ends the life; returns when the port is closed and the thread is over."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def die(self) -> None:
        """Marks the engine dead and tells every answer in progress."""
        self.dead = True
        for outlet in self._outlets:
            outlet.engine_dead = True
            outlet.news.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self.released = asyncio.Event()
        self.batch = Batch(
            prefill_s_per_token=self.flags.prefill_s_per_token,
            step_s=self.flags.step_s,
            max_sequences=self.flags.max_num_seqs,
        )
        computing = asyncio.create_task(self.batch.run())
        state = ServerState()
        state.default_headers = [(b"date", formatdate(usegmt=True).encode()), (b"server", b"uvicorn")]
        config = uvicorn.Config(self._application, interface="asgi3", ws="none", lifespan="off", log_config=None)
        server = await self._loop.create_server(
            lambda: _Connection(config, state, {}), sock=self._listener, backlog=1024
        )
        self._ready.set()
        await self._stopping.wait()
        # A connection accepted without a transport yet would be left open for ever by a server that is closed.
        self._loop.remove_reader(self._listener)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        server.close()
        for outlet in self._outlets:
            outlet.dropped = True
        for _ in range(TURNS):
            for connection in list(state.connections):
                connection.transport.abort()
            await asyncio.sleep(0)
        computing.cancel()
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=5)

    async def _application(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        request = await _read(scope, receive)
        self.engine.note(request)
        script = self.engine.next_script() if request.path in (*GENERATION, "/v1/embeddings") else HEALTHY
        outlet = Outlet(send, scope["state"]["transport"], script, self.released)
        watching = asyncio.create_task(_watch(receive, request, outlet))
        self._outlets.add(outlet)
        try:
            await self._answer(request, outlet, script)
        except Gone:
            await outlet.gone.wait()
        except EngineDied:
            await outlet.plain(500, Refusal(500, DEAD, "InternalServerError").body)
        except Refusal as refusal:
            await outlet.plain(refusal.status, refusal.body)
        finally:
            self._outlets.discard(outlet)
            watching.cancel()
            request.over.set()

    async def _answer(self, request: Received, outlet: Outlet, script: Script) -> None:
        if script.first_byte_after_s:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(outlet.gone.wait(), script.first_byte_after_s)
                raise Gone
        if not self._may_enter(request):
            return await outlet.plain(401, UNAUTHORIZED)
        if script.status is not None:
            return await outlet.plain(script.status, script.body if script.body is not None else _error(script.status))
        if request.path in self.engine.canned:
            canned = self.engine.canned[request.path]
            return await outlet.plain(canned.status, canned.body, canned.content_type)
        if request.path in GENERATION and not self.flags.pooling:
            return await self._generate(request, outlet, script)
        await self._other(request, outlet)

    def _may_enter(self, request: Received) -> bool:
        """Whether the key is right; only /v1/* asks for one."""
        key = self.flags.api_key
        guarded = key is not None and request.path.startswith("/v1/")
        return not guarded or request.headers.get("authorization") == f"Bearer {key}"

    async def _generate(self, request: Received, outlet: Outlet, script: Script) -> None:
        if request.method != "POST":
            return await outlet.plain(405, b'{"detail":"Method Not Allowed"}', first=((b"allow", b"POST"),))
        ask = read_ask(
            GENERATION[request.path],
            document(request.headers, request.body),
            request.headers,
            model=self.flags.model,
            max_model_len=self.flags.max_model_len,
            answer_tokens=self.flags.answer_tokens,
            force_usage=self.flags.enable_force_include_usage,
        )
        if self.dead:
            raise EngineDied
        await generate(
            ask,
            outlet,
            self.batch,
            script,
            details=self.flags.enable_prompt_tokens_details,
            timings=self.flags.enable_per_request_metrics,
        )

    async def _other(self, request: Received, outlet: Outlet) -> None:
        answers: dict[tuple[str, str], Callable[[Received], tuple[bytes, str]]] = {
            ("GET", "/v1/models"): self._models,
            ("GET", "/metrics"): self._metrics,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
        }
        if self.flags.pooling:
            answers["POST", "/v1/embeddings"] = self._embeddings
        if request.path in ("/health", "/ping"):
            return await outlet.plain(503 if self.dead else 200, b"", "")
        if (request.method, request.path) not in answers:
            return await outlet.plain(404, NOT_FOUND)
        body, content_type = answers[request.method, request.path](request)
        await outlet.whole(200, body, content_type)

    def _models(self, _: Received) -> tuple[bytes, str]:
        return _json(shapes.models(self.flags.model, self.started_at, self.flags.max_model_len))

    def _metrics(self, _: Received) -> tuple[bytes, str]:
        return exposition(self.batch, self.flags.model).encode(), "text/plain; version=1.0.0; charset=utf-8"

    def _tokenize(self, request: Received) -> tuple[bytes, str]:
        body = document(request.headers, request.body)
        check_model(body, self.flags.model)
        ids = chat_tokens(body["messages"], body.get("tools")) if "messages" in body else tokens(body["prompt"])
        strings = [text_of([i]) for i in ids] if body.get("return_token_strs") else None
        counted = {"count": len(ids), "max_model_len": self.flags.max_model_len}
        return _json({**counted, "tokens": list(ids), "token_strs": strings})

    def _detokenize(self, request: Received) -> tuple[bytes, str]:
        body = document(request.headers, request.body)
        require(body, "tokens")
        return _json({"prompt": text_of(body["tokens"])})

    def _embeddings(self, request: Received) -> tuple[bytes, str]:
        body = document(request.headers, request.body)
        require(body, "input")
        check_model(body, self.flags.model)
        given = body["input"]
        inputs = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
        prompts = [tokens(one) if isinstance(one, str) else tuple(one) for one in inputs]
        self.batch.counters.prompt_computed += sum(map(len, prompts))
        vectors = [[float(hash((prompt, i)) % 199 - 99) / 100 for i in range(VECTOR_LENGTH)] for prompt in prompts]
        request_id = f"embd-{request.headers.get('x-request-id') or uuid.uuid4().hex[:16]}"
        total = sum(map(len, prompts))
        return _json(shapes.embeddings(request_id, int(time.time()), self.flags.model, vectors, total))


def _json(value: object) -> tuple[bytes, str]:
    return shapes.dumps(value), "application/json"


def _error(status: int) -> bytes:
    """vLLM's body for an error status."""
    if status == 401:
        return UNAUTHORIZED
    messages = {503: (BUSY, "Service Unavailable"), 500: (DEAD, "InternalServerError")}
    return Refusal(status, *messages.get(status, (f"scripted error {status}", "BadRequestError"))).body


async def _read(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]]) -> Received:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = bool(message.get("more_body", False))
    return Received(
        method=scope["method"],
        path=scope["path"],
        query=scope["query_string"].decode(),
        header_pairs=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
        body=body,
    )


async def _watch(receive: Callable[[], Awaitable[dict[str, Any]]], request: Received, outlet: Outlet) -> None:
    """Notes that the client has left, at once; a connection which the script closed is not the client's doing."""
    message = await receive()
    if message["type"] == "http.disconnect":
        if not outlet.dropped:
            request.disconnected.set()
        outlet.gone.set()
        outlet.news.set()
