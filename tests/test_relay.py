"""
One request is forwarded and billed: to whom it goes, what is noted of it, and what its end is called.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

import pytest

from proxy.accounting.bill import Bill
from proxy.accounting.flight import Flight
from proxy.accounting.group import Group, Patience
from proxy.accounting.prefix_chain import Chain
from proxy.accounting.units import MILLISECOND, SECOND, Nanoseconds
from proxy.accounting.weights import LLAMA_8B, roofline_prior
from proxy.errors import BackendFailed, BackendTimeout, NoBackend, Refused
from proxy.ports import Sink
from proxy.relay import UNKNOWN, Incoming, Relay
from proxy.upstream.pool import Pool
from proxy.wire.headers import Headers

CHAT = "/v1/chat/completions"
EVENT_STREAM: Headers = [(b"content-type", b"text/event-stream")]


def chunk(tokens: int, choice: int = 0) -> bytes:
    """A chunk of a stream with running usage."""
    return (
        b'data: {"choices":[{"index":%d,"delta":{},"finish_reason":null}],'
        b'"usage":{"prompt_tokens":9,"completion_tokens":%d}}\n\n' % (choice, tokens)
    )


LAST = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


@dataclass
class ScriptedAnswer:
    """What an engine sends; an exception among the pieces is raised, an Event is waited for."""

    pieces: list[bytes | Exception | asyncio.Event]
    status: int = 200
    headers: Headers = None  # type: ignore[assignment]

    async def whole(self) -> bytes:
        taken: list[bytes] = []
        await self.pour(taken.append)
        return b"".join(taken)

    async def pour(self, sink: Sink) -> None:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, asyncio.Event):
                await piece.wait()
            elif (slow := sink(piece)) is not None:
                await slow


class ScriptedEngine:
    """Answers in order; an exception instead of an answer is raised before anything is sent."""

    def __init__(self, *answers: ScriptedAnswer | Exception) -> None:
        self._answers = list(answers)
        self.bodies: list[bytes] = []
        self.closed = 0

    @asynccontextmanager
    async def ask(self, method: str, target: str, headers: Headers, body: bytes) -> AsyncIterator[ScriptedAnswer]:
        self.bodies.append(body)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        try:
            yield answer
        finally:
            self.closed += 1


class Listener:
    """The client: keeps what it is sent."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: Headers = []
        self.body = b""
        self.finished = False
        self.heard = asyncio.Event()

    async def start(self, status: int, headers: Headers) -> None:
        self.status, self.headers = status, headers

    def write(self, body: bytes) -> None:
        self.body += body
        self.heard.set()

    async def finish(self, body: bytes = b"") -> None:
        self.body += body
        self.finished = True


class Road:
    """A relay with scripted engines; its clock is a millisecond later at every look."""

    def __init__(self, **engines: ScriptedEngine) -> None:
        patience = Patience(prefill=SECOND, silent=SECOND, scrape=SECOND, gap=SECOND)
        ticks = count(1)
        self.pool = Pool(list(engines))
        self.client = Listener()
        self.groups = {n: Group(n, ["m"], weights=roofline_prior(LLAMA_8B), patience=patience) for n in engines}
        self.relay = Relay(
            pool=self.pool,
            engines=engines,
            groups=self.groups,
            clock=lambda: Nanoseconds(next(ticks) * MILLISECOND),
            wall_clock_ns=lambda: 77,
        )
        for name in engines:
            self.pool.checked(name, True, frozenset({"m"}))

    def send(self, body: bytes = b'{"model":"m","stream":true}', path: str = CHAT, method: str = "POST") -> None:
        asyncio.run(self.forward(body, path, method))

    async def forward(
        self, body: bytes = b'{"model":"m","stream":true}', path: str = CHAT, method: str = "POST"
    ) -> None:
        incoming = Incoming(method, path, path, [], body, "r", "acme", Nanoseconds(0))
        await self.relay.relay(incoming, self.client)

    @property
    def bills(self) -> list[Bill]:
        return [bill for group in self.groups.values() for bill in group.bills.values()]

    @property
    def flight(self) -> Flight:
        (bill,) = self.bills
        return bill.flight


def stream(*pieces: bytes | Exception | asyncio.Event) -> ScriptedEngine:
    return ScriptedEngine(ScriptedAnswer(list(pieces), headers=EVENT_STREAM))


def whole(body: bytes, status: int = 200) -> ScriptedEngine:
    return ScriptedEngine(ScriptedAnswer([body], status, [(b"content-length", b"%d" % len(body))]))


def test_a_stream_is_billed_by_its_usage() -> None:
    """Tokens are counted as they come, the bill is opened before and closed after."""
    road = Road(a=stream(chunk(0), chunk(1), chunk(2) + LAST, DONE))

    road.send()

    assert (road.flight.outcome, road.flight.prompt_tokens, road.flight.completion_tokens) == ("ok", 9, 2)
    assert [tick.tokens for tick in road.flight.ticks] == [1, 2]
    assert road.flight.sent < road.flight.ticks[0].at <= (road.flight.ended or 0)
    (bill,) = road.bills
    assert (bill.tenant, bill.model, bill.endpoint, bill.started_at_unix_ns) == ("acme", "m", "chat", 77)
    assert (bill.added_ns, road.client.finished) == (road.flight.sent, True)
    assert road.pool.members["a"].outstanding == 0


def test_choices_begin_one_after_another() -> None:
    """Each with its first token, which a chunk that only names the role does not hold."""
    road = Road(a=stream(chunk(0) + chunk(0, 1) + chunk(1), chunk(2), chunk(1, 1), LAST, DONE))

    road.send(b'{"model":"m","stream":true,"n":2}')

    assert road.flight.begins == [road.flight.ticks[0].at, road.flight.ticks[2].at]


def test_a_response_is_known_by_the_id_the_engine_is_told() -> None:
    """/v1/responses takes it from the body; each request has its own."""
    ids = []
    for _ in range(2):
        engine = whole(b"{}")
        road = Road(a=engine)
        road.send(b'{"model":"m","input":"x"}', "/v1/responses")
        ids.append(road.flight.engine_id)
        assert json.loads(engine.bodies[0]) == {"model": "m", "input": "x", "request_id": road.flight.engine_id}
    assert all(re.fullmatch("resp_[0-9a-f]{16}", str(one)) for one in ids)
    assert ids[0] != ids[1]
    road = Road(a=whole(b"{}"))
    road.send(path=CHAT)
    assert road.flight.engine_id is None


PROMPT = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"%s"}]}' % (b"a secret " * 50)


def prefixes_of(road: Road) -> list[tuple[Chain, ...]]:
    """What the flights carry when they are opened, from now on."""
    seen: list[tuple[Chain, ...]] = []
    group = road.groups["a"]
    open_bill = group.open

    def look(bill: Bill) -> None:
        seen.append(bill.flight.prefix)
        open_bill(bill)

    group.open = look  # type: ignore[method-assign]
    return seen


def test_a_prompt_is_named_when_it_is_sent_and_forgotten_at_its_end() -> None:
    """The flight brings the names of the prompt's pieces to its group and has none of them once it is over."""
    road = Road(a=stream(chunk(1), chunk(2) + LAST, DONE))
    seen = prefixes_of(road)

    road.send(PROMPT)

    ((chain,),) = seen
    assert len(chain.pieces) == 7
    assert road.flight.prefix == ()
    assert "secret" not in repr(road.bills)


def test_every_start_has_names_of_its_own() -> None:
    """One relay names the same prompt alike, another one differently: the salt is made anew."""
    roads = [Road(a=ScriptedEngine(*(ScriptedAnswer([b"{}"], headers=[]) for _ in range(2)))) for _ in range(2)]
    seen = [prefixes_of(road) for road in roads]
    for road in (*roads, *roads):
        road.send(PROMPT)

    assert seen[0][0] == seen[0][1]
    assert not {*seen[0][0][0].pieces} & {*seen[1][0][0].pieces}


def test_a_refused_connection_is_tried_elsewhere_and_kept_as_an_attempt() -> None:
    """Two bills of one request: the first cost nothing, its backend is out."""
    road = Road(a=ScriptedEngine(Refused("a is away")), b=whole(b"{}"))

    road.send(b'{"model":"m"}')

    assert {bill.backend: bill.flight.outcome for bill in road.bills} == {"a": "error", "b": "ok"}
    assert len({bill.flight.row for bill in road.bills}) == 2
    assert {bill.flight.request_id for bill in road.bills} == {"r"}
    assert [member.up for member in road.pool.members.values()] == [False, True]
    assert (road.client.status, road.client.body) == (200, b"{}")
    assert [member.outstanding for member in road.pool.members.values()] == [0, 0]


def test_all_refuse() -> None:
    """The client hears it as 503, from the last one or from the pool."""
    road = Road(a=ScriptedEngine(Refused("x")), b=ScriptedEngine(Refused("x")))

    with pytest.raises(NoBackend):
        road.send()

    assert {bill.flight.outcome for bill in road.bills} == {"error"}
    assert road.client.status is None


@pytest.mark.parametrize("failure", [BackendFailed("broke off"), BackendTimeout("silent")])
def test_a_request_that_was_taken_is_not_sent_twice(failure: Exception) -> None:
    """The backend may have worked for it: it is partial, hence charged, and nobody else is asked."""
    road = Road(a=ScriptedEngine(failure), b=whole(b"{}"))

    with pytest.raises(type(failure)):
        road.send(b'{"model":"m"}')

    assert (road.flight.outcome, road.flight.refused) == ("partial", False)
    assert road.pool.members["a"].up


@pytest.mark.parametrize("failure", [BackendFailed("broke off"), BackendTimeout("silent")])
@pytest.mark.parametrize(
    "pieces", [[], [chunk(0)], [chunk(0), chunk(1)]], ids=["at once", "after the role", "after a token"]
)
def test_a_stream_that_breaks_off(pieces: list[bytes | Exception | asyncio.Event], failure: Exception) -> None:
    """The client is told inside the stream; what came before it is not lost."""
    road = Road(a=stream(*pieces, failure))

    road.send()

    assert (road.flight.outcome, road.client.status, road.client.finished) == ("partial", 200, True)
    assert road.client.body.endswith(b"\n" + DONE)
    assert road.client.body.count(b'{"error": ') == 1
    assert road.client.body.count(b": energy {") == 1


def test_a_stream_without_its_end_is_partial() -> None:
    """A connection that closes politely too early is no end."""
    road = Road(a=stream(chunk(1)))

    road.send()

    assert road.flight.outcome == "partial"
    assert b"ended the stream before it was complete" in road.client.body


def test_a_break_after_the_end_does_not_matter() -> None:
    """All was said; the client gets it as it was."""
    road = Road(a=stream(chunk(1), chunk(2) + LAST, DONE, BackendFailed("late")))

    road.send()

    assert road.flight.outcome == "ok"
    assert b"error" not in road.client.body


def test_an_engines_own_error_event() -> None:
    """The stream ended in order, the answer did not."""
    road = Road(a=stream(chunk(1), b'data: {"error": {"message": "dead"}}\n\n', DONE))

    road.send()

    assert road.flight.outcome == "partial"
    assert road.client.body.count(b"error") == 1


def test_a_client_that_leaves_is_aborted() -> None:
    """The engine's connection is left at once and the place in the queue is given back."""
    never = asyncio.Event()
    engine = stream(chunk(1), never)
    road = Road(a=engine)

    async def leave() -> None:
        work = asyncio.ensure_future(road.forward())
        await road.client.heard.wait()
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work

    asyncio.run(leave())

    assert (road.flight.outcome, road.flight.completion_tokens) == ("aborted", 1)
    assert (engine.closed, road.pool.members["a"].outstanding) == (1, 0)


def test_a_whole_answer_keeps_its_body() -> None:
    """Counts come from its usage, the energy goes into headers only."""
    body = b'{"id":1,"usage":{"prompt_tokens":5,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}}'
    road = Road(a=whole(body))

    road.send(b'{"model":"m"}')

    flight = road.flight
    assert road.client.body == body
    assert (flight.prompt_tokens, flight.cached_tokens, flight.completion_tokens) == (5, 2, 3)
    assert (flight.silent, flight.outcome, flight.ttft_ns) == (True, "ok", None)
    assert (b"x-energy-status", b"provisional") in road.client.headers


def test_the_engines_own_queue_time_is_believed() -> None:
    """Who waits in the queue does not pay."""
    road = Road(a=whole(b'{"a":1,"usage":{"completion_tokens":1},"metrics":{"queue_time_ms":0.5}}'))

    road.send(b'{"model":"m"}')

    assert road.flight.scheduled == road.flight.sent + 500_000


@pytest.mark.parametrize("told", [b"1e300", b"86400000", b"1e9"])
def test_a_queue_time_ends_before_the_answer(told: bytes) -> None:
    """However long the engine says it was: the request was taken up between its sending and its answer."""
    road = Road(a=whole(b'{"a":1,"metrics":{"queue_time_ms":%s}}' % told))

    road.send(b'{"model":"m"}')

    assert road.flight.scheduled == road.flight.ended


@pytest.mark.parametrize("told", [b"-5", b"1e999", b"1.2.3", b"+-", b"e"])
def test_a_queue_time_that_is_none_is_ignored(told: bytes) -> None:
    """The answer is passed on, whatever stands there."""
    road = Road(a=whole(b'{"a":1,"metrics":{"queue_time_ms":%s}}' % told))

    road.send(b'{"model":"m"}')

    assert (road.flight.scheduled, road.client.status) == (None, 200)


def test_a_queue_time_of_a_stream_ends_before_its_first_token() -> None:
    """Who has a token has left the queue."""
    last = LAST.replace(b"]", b'],"metrics":{"queue_time_ms":1e9}')
    road = Road(a=stream(chunk(0), chunk(1), chunk(2) + last, DONE))

    road.send()

    assert road.flight.scheduled == road.flight.first


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/embeddings", "/v1/messages"])
def test_what_a_client_wrote_is_no_queue_time(path: str) -> None:
    """/v1/responses gives back the client's own JSON; only chat and completions tell a queue time of the engine's."""
    road = Road(a=whole(b'{"text":{"format":{"schema":{"queue_time_ms":0.5}}}}'))

    road.send(b'{"model":"m"}', path)

    assert road.flight.scheduled is None


def test_a_refusal_of_the_engine_costs_nothing() -> None:
    """4xx before scheduling: no energy headers, no usage read."""
    road = Road(a=whole(b'{"error":{},"usage":{"completion_tokens":7}}', status=400))

    road.send(b'{"model":"m"}')

    assert (road.flight.outcome, road.flight.refused, road.flight.completion_tokens) == ("error", True, None)
    assert [name for name, _ in road.client.headers] == [b"content-length"]


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        (b'{"model":"m"}', 200, "m"),
        (b'{"model":"m"}', 500, "m"),
        (b'{"model":"new adapter"}', 200, "new adapter"),
        (b'{"model":"nobody\'s"}', 404, UNKNOWN),
        (b"{}", 200, "m"),
        (b"{}", 400, UNKNOWN),
        (b'{"model":"invented"}', 307, UNKNOWN),
        (b'{"model":"m"}', 307, "m"),
    ],
)
def test_models_become_labels_only_when_served(asked: bytes, status: int, expected: str) -> None:
    """A client cannot make a metric's label by writing a name."""
    road = Road(a=whole(b"{}", status))

    road.send(asked)

    assert [bill.model for bill in road.bills] == [expected]


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v1/responses", "invented"),
        ("POST", "/v1/messages", "invented"),
        ("POST", "/v1/embeddings", "invented"),
        ("POST", "/rerank", "invented"),
        ("POST", "/ping", UNKNOWN),
        ("POST", "/detokenize", UNKNOWN),
        ("POST", "/v1/anything", UNKNOWN),
        ("GET", "/v1/models", "m"),
    ],
)
def test_a_new_name_is_a_label_only_where_the_engine_checks_it(method: str, path: str, expected: str) -> None:
    """An endpoint that ignores the name says 200 to every one of them; no name at all is the engine's model."""
    road = Road(a=whole(b"{}"))

    road.send(b'{"model":"invented"}', path, method)

    assert [bill.model for bill in road.bills] == [expected]


@pytest.mark.parametrize(
    ("method", "path", "work"),
    [
        ("POST", "/v1/embeddings", True),
        ("GET", "/v1/models", False),
        ("POST", "/tokenize", False),
        ("POST", "/ping", False),
    ],
)
def test_who_does_no_work_is_not_charged(method: str, path: str, work: bool) -> None:
    """Reading a list, counting tokens and asking for health do not use the GPU."""
    road = Road(a=whole(b"{}"))

    road.send(b"{}", path, method)

    assert road.flight.metered_work is work


@pytest.mark.parametrize(("path", "decodes"), [(CHAT, True), ("/v1/embeddings", False), ("/rerank", False)])
def test_who_makes_no_tokens(path: str, decodes: bool) -> None:
    """Embeddings and scores are prompt work only."""
    road = Road(a=whole(b"{}"))

    road.send(b'{"model":"m"}', path)

    assert road.flight.decodes is decodes
