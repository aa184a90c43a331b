"""How the simulated engine answers one request: vLLM's chunks in vLLM's order, with the faults a script asks for."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.engine import shapes
from tests.engine.asks import DEAD, Ask, Refusal
from tests.engine.batch import Batch, Sequence, sequences_for
from tests.engine.language import text_of
from tests.engine.shapes import Shape, event

DONE = b"data: [DONE]\n\n"
GARBAGE = b'data: {"id":"chatcmpl-broken","object":"chat.comp\n\n'


@dataclass(frozen=True)
class Script:
    """How one answer goes; the default is a healthy one.

    `..._after` counts the server-sent events before the fault, the role chunk of a chat included; for an answer that
    is not streamed, 0 means before its first byte and more means in the middle of its body.
    """

    status: int | None = None
    """Answer with this error at once."""
    body: bytes | None = None
    """The body of that error, vLLM's own when None."""
    first_byte_after_s: float = 0.0
    """Keep the client waiting for the status line."""
    tokens_per_chunk: int = 1
    """The first token alone, then this many together, as --stream-interval does."""
    silent_every: int | None = None
    """Every n-th token has no text: in a chat its chunk is left out, so the next chunk counts two."""
    piece_bytes: int | None = None
    """Send the stream in pieces of this size, across the borders of events and characters."""
    drop_after: int | None = None
    """Close the connection, as a crashed server does."""
    stall_after: int | None = None
    """Send no more, and keep the connection open until the client leaves or `release()` is called."""
    die_after: int | None = None
    """The engine process behind the server dies: an error event, then [DONE], under status 200."""
    garbage_after: int | None = None
    """One event that is no JSON, then on as if nothing had been."""


HEALTHY = Script()


class Gone(Exception):
    """The client has left, or the script has closed the connection: nothing more can be sent."""


class EngineDied(Exception):
    """The engine process is dead; the server can still say so."""


class Outlet:
    """The way out of one answer: sends, counts events and carries out the script's faults."""

    def __init__(
        self,
        send: Callable[[dict[str, Any]], Awaitable[None]],
        transport: asyncio.Transport,
        script: Script,
        released: asyncio.Event,
    ) -> None:
        self._send = send
        self._transport = transport
        self._script = script
        self._released = released
        self.news = asyncio.Event()
        self.gone = asyncio.Event()
        self.engine_dead = False
        self.dropped = False
        self.sequences: list[Sequence] = []
        self._events = 0

    async def wait(self) -> None:
        """Waits until a sequence has fresh tokens; raises Gone or EngineDied when there will be none."""
        await self.news.wait()
        self.news.clear()
        if self.gone.is_set():
            raise Gone
        if self.engine_dead:
            raise EngineDied

    async def whole(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        """Sends an answer in one piece, as far as the script lets it."""
        script = self._script
        if script.die_after is not None:
            raise EngineDied
        if script.stall_after == 0:
            await self._stall()
        if script.drop_after == 0:
            await self.drop()
        await self.plain(
            status, body if script.drop_after is None else body[: len(body) // 2], content_type, length=len(body)
        )
        if script.drop_after is not None:
            await self.drop()

    async def plain(
        self,
        status: int,
        body: bytes,
        content_type: str = "application/json",
        *,
        length: int | None = None,
        first: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        """Sends an answer in one piece, whatever the script says; `length` is what content-length promises."""
        promised = len(body) if length is None else length
        kind = [(b"content-type", content_type.encode())] if content_type else []
        headers = [*first, (b"content-length", str(promised).encode()), *kind, (b"vary", b"Origin")]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": promised > len(body)})

    async def begin_stream(self) -> None:
        """Sends status 200 and the headers of an event stream."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"vary", b"Origin")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def event(self, data: bytes) -> None:
        """Sends one event, or lets the fault happen that comes before it."""
        script, before = self._script, self._events
        self._events += 1
        if before == script.drop_after:
            await self.drop()
        if before == script.die_after:
            raise EngineDied
        if before == script.garbage_after:
            await self.raw(GARBAGE)
        if before == script.stall_after:
            await self._stall()
        await self.raw(data)

    async def raw(self, data: bytes) -> None:
        """Sends bytes of the stream; while a slow reader blocks them, the engine computes on."""
        if self.gone.is_set():
            raise Gone
        size = self._script.piece_bytes or len(data)
        self._block(True)
        for start in range(0, len(data), size):
            await self._send({"type": "http.response.body", "body": data[start : start + size], "more_body": True})
            if size < len(data):
                # each piece shall reach the client in a read of its own where the loop allows it
                await asyncio.sleep(0)
        self._block(False)

    async def end(self) -> None:
        """Ends the stream in good order."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def drop(self) -> None:
        """Closes the connection once what was sent has left; never returns."""
        self.dropped = True
        self._transport.close()
        await self.gone.wait()
        raise Gone

    async def _stall(self) -> None:
        self._block(True)
        leaving = asyncio.ensure_future(self.gone.wait())
        released = asyncio.ensure_future(self._released.wait())
        await asyncio.wait((leaving, released), return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        released.cancel()
        self._block(False)
        if self.gone.is_set():
            raise Gone

    def _block(self, blocked: bool) -> None:
        for sequence in self.sequences:
            sequence.blocked = blocked


async def generate(ask: Ask, outlet: Outlet, batch: Batch, script: Script, *, details: bool, timings: bool) -> None:
    """Computes and sends the answer; `details` and `timings` are vLLM's flags for cached tokens and request metrics."""
    head = _head(ask)
    outlet.sequences = sequences_for(
        model=ask.model,
        request_id=head["id"],
        prompts=ask.prompts,
        choices=ask.choices,
        length=ask.length,
        finish_reason=ask.finish_reason,
        streamed=ask.stream,
        salt=ask.salt,
        news=outlet.news,
        silent_every=script.silent_every,
    )
    batch.submit(outlet.sequences)
    answer = _Answer(ask, head, outlet, script.tokens_per_chunk, details=details, timings=timings)
    try:
        await (answer.stream() if ask.stream else answer.whole())
    finally:
        for sequence in outlet.sequences:
            sequence.aborted = not sequence.finished
            # whatever was not sent will never be: the batch must not wait for it
            sequence.blocked = True


def _head(ask: Ask) -> Shape:
    """The fields every chunk begins with; /v1/responses has another order and takes only the id."""
    given = ask.request_id or uuid.uuid4().hex[:16]
    if ask.endpoint == "responses":
        return {"id": ask.request_id or f"resp_{given}"}
    kind, prefix = ("text_completion", "cmpl") if ask.endpoint == "completions" else ("chat.completion", "chatcmpl")
    if ask.endpoint == "chat" and ask.stream:
        kind = "chat.completion.chunk"
    return {"id": f"{prefix}-{given}", "object": kind, "created": int(time.time()), "model": ask.model}


class _Answer:
    """One answer's chunks."""

    def __init__(
        self, ask: Ask, head: Shape, outlet: Outlet, tokens_per_chunk: int, *, details: bool, timings: bool
    ) -> None:
        self.ask = ask
        self.head = head
        self.outlet = outlet
        self.sequences = outlet.sequences
        self.tokens_per_chunk = tokens_per_chunk
        self.details = details
        self.timings = timings
        self.sent = [0] * len(self.sequences)

    async def whole(self) -> None:
        """Waits for all sequences, then sends one body."""
        while not all(sequence.finished for sequence in self.sequences):
            await self.outlet.wait()
        await self.outlet.whole(200, shapes.dumps(self._body()))

    async def stream(self) -> None:
        """Sends the events of the endpoint; an engine that dies is told in an event of its own."""
        chunks = {"chat": self._chat, "completions": self._completions, "responses": self._responses}
        await self.outlet.begin_stream()
        try:
            async with contextlib.aclosing(chunks[self.ask.endpoint]()) as answer:
                async for chunk in answer:
                    await self.outlet.event(chunk)
        except EngineDied:
            if self.ask.endpoint == "responses":
                await self.outlet.drop()
            refusal = Refusal(500, DEAD, "InternalServerError")
            await self.outlet.raw(b"data: " + json.dumps(refusal.error).encode() + b"\n\n")
        if self.ask.endpoint != "responses":
            await self.outlet.raw(DONE)
        await self.outlet.end()

    def _body(self) -> Shape:
        if self.ask.endpoint == "responses":
            return self._response(
                self.sequences[0], shapes.output_item(_message_id(), text_of(self.sequences[0].answer))
            )
        prompt = sum(map(len, self.ask.prompts))
        counts = shapes.usage(prompt, sum(sequence.said for sequence in self.sequences))
        cached = None
        if self.details:
            created = self.sequences[-1].created if self.ask.endpoint == "chat" else None
            cached = {
                "cached_tokens": self.sequences[-1].cached,
                "created_cache_tokens": created,
                "multimodal_tokens": None,
            }
        counts = {**counts, "prompt_tokens_details": cached, "completion_tokens_details": None}
        metrics = self._metrics()
        if metrics is not None:
            metrics["speculative_decoding"] = None
        write = shapes.chat_answer if self.ask.endpoint == "chat" else shapes.completion_answer
        return write(self.head, self.sequences, counts=counts, token_ids=self.ask.token_ids, metrics=metrics)

    async def _deltas(self) -> AsyncGenerator[tuple[int, tuple[int, ...], str | None], None]:
        """Choice, fresh token ids and finish reason of each chunk to be sent."""
        held: list[list[int]] = [[] for _ in self.sequences]
        while not all(sequence.told == len(sequence.answer) for sequence in self.sequences):
            await self.outlet.wait()
            for index, sequence in enumerate(self.sequences):
                fresh = sequence.take()
                if not fresh:
                    continue
                held[index] += fresh
                finished = sequence.told == len(sequence.answer)
                if finished or len(held[index]) >= (self.tokens_per_chunk if self.sent[index] else 1):
                    ids, held[index] = tuple(held[index]), []
                    self.sent[index] += len(ids)
                    yield index, ids, sequence.finish_reason if finished else None

    async def _chat(self) -> AsyncGenerator[bytes, None]:
        prompt = len(self.ask.prompts[0])
        begun = False
        async for index, ids, finish in self._deltas():
            if not begun:
                begun = True
                for choice in range(len(self.sequences)):
                    yield event(
                        shapes.chat_role(
                            self.head,
                            choice,
                            prompt_ids=self.ask.prompts[0] if self.ask.token_ids else None,
                            counts=shapes.usage(prompt, 0) if self.ask.continuous_usage else None,
                        )
                    )
            text = text_of(ids)
            if text or finish or self.ask.token_ids:
                chunk = shapes.chat_delta(
                    self.head,
                    index,
                    text,
                    finish=finish,
                    ids=ids if self.ask.token_ids else None,
                    counts=shapes.usage(prompt, self.sent[index]) if self.ask.continuous_usage else None,
                )
                yield event(self._stamped(chunk, finish))
        if self.ask.include_usage:
            created = self.sequences[0].created
            yield event(self._last_usage({"cached_tokens": self.sequences[0].cached, "created_cache_tokens": created}))

    async def _completions(self) -> AsyncGenerator[bytes, None]:
        shown: set[int] = set()
        async for index, ids, finish in self._deltas():
            sequence = self.sequences[index]
            first = self.ask.token_ids and index not in shown
            shown.add(index)
            chunk = shapes.completion_delta(
                self.head,
                index,
                text_of(ids),
                finish=finish,
                ids=ids if self.ask.token_ids else None,
                prompt_ids=sequence.prompt if first else None,
                counts=shapes.usage(len(sequence.prompt), self.sent[index]) if self.ask.continuous_usage else None,
            )
            yield event(self._stamped(chunk, finish))
        if self.ask.include_usage:
            yield event(self._last_usage({"cached_tokens": self.sequences[0].cached}))

    def _stamped(self, chunk: Shape, finish: str | None) -> Shape:
        """The fingerprint is on each choice's last chunk, unless a usage chunk follows that carries it."""
        if finish is None or self.ask.include_usage:
            return chunk
        return {**chunk, "system_fingerprint": shapes.FINGERPRINT}

    def _last_usage(self, cached: Shape) -> Shape:
        counts = shapes.usage(sum(map(len, self.ask.prompts)), sum(self.sent))
        return shapes.last_usage(self.head, counts, cached if self.details else None, self._metrics())

    def _metrics(self) -> Shape | None:
        """What --enable-per-request-metrics adds; several sequences have none, for whose would it be?"""
        sequence = self.sequences[0]
        times = (sequence.scheduled_ns, sequence.first_token_ns, sequence.last_token_ns)
        if not self.timings or len(self.sequences) > 1 or None in times:
            return None
        scheduled, first, last = (time or 0 for time in times)
        decoding_ms = (last - first) / 1e6
        return {
            "time_to_first_token_ms": (first - sequence.arrived_ns) / 1e6,
            "generation_time_ms": decoding_ms,
            "queue_time_ms": (scheduled - sequence.arrived_ns) / 1e6,
            "mean_itl_ms": decoding_ms / max(1, sequence.said - 1),
            "tokens_per_second": sequence.said / max(1e-9, (last - sequence.arrived_ns) / 1e9),
        }

    def _response(self, sequence: Sequence | None, item: Shape | None) -> Shape:
        ask = self.ask
        return shapes.response(self.head["id"], int(time.time()), ask.model, ask.body, item=item, sequence=sequence)

    async def _responses(self) -> AsyncGenerator[bytes, None]:
        number = 0

        def named(kind: str, fields: Shape) -> bytes:
            nonlocal number
            number += 1
            return event({**fields, "sequence_number": number - 1, "type": kind}, kind)

        def in_item(**fields: object) -> Shape:
            return dict(sorted({**fields, "item_id": item_id, "output_index": 0}.items()))

        item_id = _message_id()
        text = ""
        for kind in ("response.created", "response.in_progress"):
            yield named(kind, {"response": self._response(None, None)})
        async for _, ids, _ in self._deltas():
            if not text:
                item = shapes.output_item(item_id, None)
                yield named("response.output_item.added", {"item": item, "output_index": 0})
                part = in_item(content_index=0, part=shapes.output_text("", []))
                yield named("response.content_part.added", part)
            text += text_of(ids)
            yield named("response.output_text.delta", in_item(content_index=0, delta=text_of(ids), logprobs=[]))
        # "text" stands after the sequence number there, and nowhere else
        done = {**in_item(content_index=0, logprobs=[]), "sequence_number": number, "text": text}
        number += 1
        yield event({**done, "type": "response.output_text.done"}, "response.output_text.done")
        part = in_item(content_index=0, part=shapes.output_text(text, None))
        yield named("response.content_part.done", part)
        item = shapes.output_item(item_id, text)
        yield named("response.output_item.done", {"item": item, "output_index": 0})
        yield named("response.completed", {"response": self._response(self.sequences[0], item)})


def _message_id() -> str:
    return f"msg_{uuid.uuid4().hex[:16]}"
