"""Loop 1: one request forwarded, its answer handed back untouched, its tokens noted in passing."""

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.accounting.bill import Bill
from proxy.accounting.flight import Flight
from proxy.accounting.group import Group
from proxy.accounting.units import Nanoseconds
from proxy.errors import BackendFailed, BackendTimeout, Refused
from proxy.ports import Answer, Client, Clock, Engine, Member, Pool
from proxy.wire import usage
from proxy.wire.answer import StreamTap
from proxy.wire.ask import CHECKS_MODEL, GENERATING, POOLING, Ask, read_ask
from proxy.wire.energy import as_json, comment, error_body, headers, provisional_energy
from proxy.wire.headers import Headers, value_of
from proxy.wire.sse import DONE, data_event

_log = logging.getLogger(__name__)
UNKNOWN = "unknown"
"""The model of a request for a name that no engine is known to serve: what a client writes must not be a label."""
SALT_BYTES = 32
"""Made anew at every start: names of prompts' pieces say nothing to anybody else, nor after the end."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """One request as the client sent it, after the edge has let it in.

    target: path with query. headers: what the engine shall get. received: when its body was complete.
    energy_in_usage: the client asked by `x-energy: usage` for the energy inside the usage object.
    """

    method: str
    path: str
    target: str
    headers: Headers
    body: bytes
    request_id: str
    tenant: str
    received: int
    energy_in_usage: bool = False


class Relay:
    """Forwards requests to engines and keeps a bill for each attempt."""

    def __init__(
        self,
        *,
        pool: Pool,
        engines: Mapping[str, Engine],
        groups: Mapping[str, Group],
        clock: Clock,
        wall_clock_ns: Callable[[], int],
    ) -> None:
        self._pool = pool
        self._engines = engines
        self._groups = groups
        self._clock = clock
        self._wall_clock_ns = wall_clock_ns
        self._salt = secrets.token_bytes(SALT_BYTES)
        self._chance = random.Random(secrets.token_bytes(32))  # names, not secrets: asking the kernel takes longer

    async def relay(self, incoming: Incoming, client: Client) -> None:
        """Answers the client. Raises RequestError if nothing was sent to it yet, for the edge to put in words.

        A backend that cannot be reached is passed over; after the first byte there is no second try.
        Cancelled when the client has gone: the engine's connection is closed at once and the bill says aborted.
        """
        ask = read_ask(
            incoming.method,
            incoming.path,
            incoming.body,
            usage_wanted=incoming.energy_in_usage,
            salt=self._salt,
            answer_id=f"resp_{self._chance.getrandbits(64):016x}",
        )
        tried: frozenset[str] = frozenset()
        while True:
            member = self._pool.choose(ask.model, without=tried)
            bill = self._open(incoming, ask, member)
            member.outstanding += 1
            try:
                await self._attempt(incoming, ask, member, bill, client)
                return
            except Refused:
                tried |= {member.name}
                self._pool.refused(member.name)
                if len(tried) == len(self._engines):
                    raise
            except (BackendFailed, BackendTimeout):
                bill.flight.end(self._clock(), "partial")
                raise
            except asyncio.CancelledError:
                bill.flight.end(self._clock(), "aborted")
                raise
            finally:
                bill.flight.end(self._clock(), "error")
                member.outstanding -= 1

    def _open(self, incoming: Incoming, ask: Ask, member: Member) -> Bill:
        flight = Flight(
            row=f"{self._chance.getrandbits(128):032x}",
            request_id=incoming.request_id,
            engine_id=ask.answer_id,
            sent=self._clock(),
            sequences=ask.sequences,
            prompts=ask.prompts,
            prompt_estimate=ask.prompt_estimate,
            silent=not ask.stream,
            rough=ask.stream and ask.path not in GENERATING,
            metered_work=ask.work,
            decodes=ask.path not in POOLING,
            prefix=ask.prefix,
        )
        group = self._groups[member.name]
        bill = Bill(
            flight=flight,
            tenant=incoming.tenant,
            model=ask.model if ask.model and ask.model in (member.models or ()) else UNKNOWN,
            backend=member.name,
            endpoint=ask.endpoint,
            stream=ask.stream,
            policy=group.divider.policy,
            started_at_unix_ns=self._wall_clock_ns(),
        )
        group.open(bill)
        return bill

    async def _attempt(self, incoming: Incoming, ask: Ask, member: Member, bill: Bill, client: Client) -> None:
        bill.flight.sent = self._clock()
        bill.added_ns = bill.flight.sent - incoming.received
        engine = self._engines[member.name]
        async with engine.ask(incoming.method, incoming.target, incoming.headers, ask.body) as answer:
            bill.http_status = answer.status
            self._name_model(bill, ask, member, answer.status)
            kind = value_of(answer.headers, b"content-type") or b""
            if answer.status == 200 and kind.startswith(b"text/event-stream"):
                await self._stream(incoming, ask, member, bill, answer, client)
            else:
                await self._whole(incoming, bill, answer, client)

    def _name_model(self, bill: Bill, ask: Ask, member: Member, status: int) -> None:
        """Bounds the label: a new name is taken once an engine that checks it answers to it.

        None at all means the engine's first model.
        """
        if not 200 <= status < 300:
            return
        if not ask.model:
            bill.model = next(iter(sorted(member.models or ())), UNKNOWN)
        elif ask.path in CHECKS_MODEL:
            bill.model = ask.model

    async def _whole(self, incoming: Incoming, bill: Bill, answer: Answer, client: Client) -> None:
        body = await answer.whole()
        arrived = self._clock()
        flight = bill.flight
        flight.silent = True
        place = usage.locate(body)
        if place is not None and answer.status < 400:
            counts = usage.read(body, place)
            flight.prompt_tokens, flight.cached_tokens = counts.prompt, counts.cached
            flight.completion_tokens = counts.completion
        if incoming.path in GENERATING:
            flight.scheduled = _scheduled(flight, usage.queue_time_ms(body), arrived)
        flight.end(arrived, "ok" if answer.status < 400 else "error")
        sent = answer.headers
        if answer.status < 400:
            energy = self._energy(bill)
            sent = sent + headers(energy)
            if incoming.energy_in_usage and place is not None:
                body = usage.with_energy(body, place, as_json(energy))
                sent = [(n, str(len(body)).encode() if n == b"content-length" else v) for n, v in sent]
        await client.start(answer.status, sent)
        await client.finish(body)
        bill.added_ns = (bill.added_ns or 0) + self._clock() - arrived

    async def _stream(
        self, incoming: Incoming, ask: Ask, member: Member, bill: Bill, answer: Answer, client: Client
    ) -> None:
        tap = StreamTap(ask, member.fingerprint)
        flight = bill.flight
        flight.silent = False
        await client.start(answer.status, answer.headers)

        def take(chunk: bytes) -> Awaitable[None] | None:
            arrived = self._clock()
            seen = tap.feed(chunk)
            self._note(flight, tap, arrived)
            return client.write(seen) if seen else None

        failure: str | None = None
        try:
            await answer.pour(take)
        except (BackendFailed, BackendTimeout) as error:
            failure = error.message
        complete = tap.complete or (ask.path not in GENERATING and failure is None)
        if not complete and failure is None:
            failure = f"The backend {member.name} ended the stream before it was complete."
        flight.end(self._clock(), "ok" if complete and not tap.failed else "partial")
        await client.finish(self._closing(incoming, bill, tap, failure))

    def _note(self, flight: Flight, tap: StreamTap, arrived: Nanoseconds) -> None:
        counts = tap.counts
        completion = counts.completion
        if counts.prompt is not None:
            flight.prompt_tokens = counts.prompt
        if counts.cached is not None:
            flight.cached_tokens = counts.cached
        if completion:
            flight.tick(arrived, completion)
            if len(flight.begins) < flight.sequences > 1:
                flight.begun(arrived, sum(tokens > 0 for tokens in counts.by_choice.values()))
        if tap.queue_time_ms is not None and flight.scheduled is None:
            flight.scheduled = _scheduled(flight, tap.queue_time_ms, arrived)

    def _closing(self, incoming: Incoming, bill: Bill, tap: StreamTap, failure: str | None) -> bytes:
        energy = as_json(self._energy(bill))
        if tap.complete:
            return tap.finish(energy, comment=comment(energy), in_usage=incoming.energy_in_usage)
        if failure is None:
            return tap.rest + comment(energy) + b"\n\n"
        _log.warning("%s (request %s)", failure, incoming.request_id)
        error = error_body(failure, type="server_error", code=BackendFailed.code)
        return tap.held + data_event(error) + comment(energy) + b"\n" + data_event(DONE)

    def _energy(self, bill: Bill) -> dict[str, Any]:
        return provisional_energy(bill, self._groups[bill.backend], self._clock())


def _scheduled(flight: Flight, queued_ms: float | None, arrived: Nanoseconds) -> Nanoseconds | None:
    """When the engine took the request up, by its own word; never later than what came of it."""
    if queued_ms is None:
        return None
    latest = arrived if flight.first is None else flight.first
    return Nanoseconds(flight.sent + round(min(queued_ms * 1e6, latest - flight.sent)))
