"""A small real HTTP server that speaks vLLM's shapes, and remembers what it was asked. Raw ASGI on uvicorn."""

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

MODEL = "mock-8b"
TEMPLATE_TOKENS = 5
Send = Callable[[dict[str, Any]], Awaitable[None]]


def tokens_of(text: str) -> int:
    """This tokenizer splits words of more than seven letters into two tokens; the chat template costs five."""
    return TEMPLATE_TOKENS + sum(1 + (len(word) > 7) for word in text.split())


@dataclass
class MockVllm:
    """The ASGI app. `energy` adds the comment a jouleproxy sends; `refuse_every` answers each n-th chat with 500."""

    energy: bool = True
    tokenize: bool = True
    refuse_every: int | None = None
    max_model_len: int = 512
    token_s: float = 0.0005
    chats: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    arrived: threading.Condition = field(default_factory=threading.Condition)

    async def __call__(
        self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send
    ) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"] == "/v1/models":
            model = {"id": MODEL, "object": "model", "owned_by": "vllm", "max_model_len": self.max_model_len}
            await answer_json(send, 200, {"object": "list", "data": [model]})
        elif scope["path"] == "/tokenize" and self.tokenize:
            count = tokens_of(json.loads(body)["messages"][0]["content"])
            await answer_json(send, 200, {"count": count, "max_model_len": self.max_model_len, "tokens": []})
        elif scope["path"] == "/v1/chat/completions":
            await self.chat(dict(scope["headers"]), json.loads(body), send)
        else:
            await answer_json(send, 404, {"detail": "Not Found"})

    async def chat(self, headers: dict[bytes, bytes], asked: dict[str, Any], send: Send) -> None:
        prompt_tokens = tokens_of(asked["messages"][0]["content"])
        if not asked.get("stream"):
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 1, "total_tokens": prompt_tokens + 1}
            await answer_json(send, 200, {"object": "chat.completion", "choices": [], "usage": usage})
            return
        with self.arrived:
            self.chats.append((headers.get(b"x-request-id", b"").decode(), asked))
            self.arrived.notify_all()
        if self.refuse_every and len(self.chats) % self.refuse_every == 0:
            await answer_json(send, 500, {"error": {"message": "the engine is not well", "type": "x", "code": 500}})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        async for line in self.stream(asked["max_tokens"], prompt_tokens):
            await send({"type": "http.response.body", "body": line + b"\n\n", "more_body": True})
        self.at_once -= 1
        await send({"type": "http.response.body", "body": b""})

    def seen(self, chats: int, timeout_s: float) -> bool:
        """Wait, in another thread, until so many chats have come; False if they did not in time."""
        with self.arrived:
            return self.arrived.wait_for(lambda: len(self.chats) >= chats, timeout_s)

    async def stream(self, tokens: int, prompt_tokens: int) -> Any:
        yield data([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        for k in range(tokens):
            await asyncio.sleep(self.token_s)
            finish = "length" if k == tokens - 1 else None
            yield data([{"index": 0, "delta": {"content": " rawa"}, "finish_reason": finish}])
        usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens + tokens, "completion_tokens": tokens}
        yield data([], usage=usage)
        if self.energy:
            told = {"energy_joules": round(0.25 + 0.01 * tokens, 6), "status": "provisional", "grade": "B"}
            yield b": energy " + json.dumps({**told, "estimated": False}).encode()
        yield b"data: [DONE]"


def data(choices: list[dict[str, Any]], **more: Any) -> bytes:
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": MODEL, "choices": choices, **more}
    return b"data: " + json.dumps(chunk).encode()


async def answer_json(send: Send, status: int, value: object) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})


@contextmanager
def serving(app: MockVllm) -> Iterator[str]:
    """Serve `app` on a free port from a thread; gives the base URL. The socket listens before the thread starts."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    config = uvicorn.Config(app, log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
