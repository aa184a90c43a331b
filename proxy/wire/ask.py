"""What a request asks for, as far as relaying and accounting must know, and the body the engine gets.

The body stays as it came but for two things. A stream is asked for running usage, because a chunk is not a token; what
the client did not ask for is taken out of the answer again. And /v1/responses, where vLLM does not look at
X-Request-Id, is told which id the answer shall have, for by that id the engine's step log knows it.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from proxy.accounting.prefix_chain import Chain
from proxy.errors import BadRequest
from proxy.wire.prompt import prefix_chains

GENERATING = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}
"""Endpoints that know stream_options; their path and what reports call them."""
WITHOUT_WORK = frozenset(
    {
        *("/v1/models", "/tokenize", "/detokenize", "/v1/tokenize", "/v1/detokenize", "/v1/messages/count_tokens"),
        *("/ping", "/version", "/load"),
    }
)
"""Endpoints that do no work on the GPU, beside every GET: nobody is charged for them."""
RESPONSES = "/v1/responses"
SCORING = frozenset({"/v1/score", "/score", "/v1/rerank", "/v2/rerank", "/rerank"})
POOLING = SCORING | {"/v1/embeddings", "/pooling"}
"""Endpoints that read prompts and make no tokens."""
CHECKS_MODEL = POOLING | set(GENERATING) | {"/v1/responses", "/v1/messages"}
"""Endpoints where vLLM answers 404 to the name of a model it does not serve; others may ignore the name."""
_SCORED = ("query", "queries", "text_1", "data_1", "documents", "items", "text_2", "data_2")
_TEXTS = {
    "/v1/chat/completions": ("messages",),
    "/v1/completions": ("prompt",),
    "/v1/responses": ("instructions", "input"),
    "/v1/messages": ("system", "messages"),
    "/v1/embeddings": ("input", "messages"),
    "/pooling": ("input", "messages"),
} | dict.fromkeys(SCORING, _SCORED)
"""The members of a body that hold its prompt, by path."""
_OTHER_TEXTS = ("messages", "prompt", "input")
CHARACTERS_PER_TOKEN = 4
"""A guess for the prompt's length until the engine says; English text."""
_WANTED = {"include_usage": True, "continuous_usage_stats": True}
_FLAGS = dict.fromkeys(("1", "on", "t", "true", "y", "yes"), True) | dict.fromkeys(
    ("0", "off", "f", "false", "n", "no"), False
)
"""Words that vLLM takes for a boolean (pydantic's lax mode), in lower case."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, read.

    model: None when the body names none. sequences: n times prompts. prompt_estimate: tokens of all prompts, a guess
    from their text; images and sound are not in it, and of a body that is no JSON it is 0.
    wants_usage, wants_continuous: what the client asked to see of usage in a stream.
    answer_id: what the engine calls the request, where that is not its X-Request-Id.
    body: what goes to the engine. prefix: names of the prompts' pieces, nothing of which can be read off them.
    """

    path: str
    endpoint: str
    model: str | None
    stream: bool
    sequences: int
    prompts: int
    prompt_estimate: int
    wants_usage: bool
    wants_continuous: bool
    work: bool
    body: bytes
    prefix: tuple[Chain, ...] = ()
    answer_id: str | None = None


def read_ask(
    method: str,
    path: str,
    body: bytes,
    *,
    usage_wanted: bool = False,
    salt: bytes | None = None,
    answer_id: str | None = None,
) -> Ask:
    """The request as far as it can be read; a body that is no JSON object is passed on for the engine to judge.

    usage_wanted: the client asked by header for energy inside usage, so it shall see the usage chunk.
    salt: at most 64 random bytes that key the names of the prompts' pieces; without it nothing is named.
    answer_id: for an answer of /v1/responses to which the client gives none.
    Raises BadRequest for nesting no engine would accept either.
    """
    fields = _fields(body) if method == "POST" else None
    endpoint = GENERATING.get(path, path.removeprefix("/v1/").strip("/") or path)
    work = method == "POST" and path not in WITHOUT_WORK
    if fields is None:
        return Ask(path, endpoint, None, False, 1, 1, 0, False, False, work, body)
    stream = _flag(fields.get("stream")) or False
    prompts = _prompts(path, fields)
    asked = fields.get("stream_options")
    options = asked if isinstance(asked, dict) else {}
    wants_usage, wants_continuous = (_flag(options.get(name)) for name in _WANTED)
    acceptable = (asked is None or isinstance(asked, dict)) and None not in (wants_usage, wants_continuous)
    if stream and path in GENERATING and acceptable:
        body = _with_usage(body, fields, options)
    if path == RESPONSES:
        body, answer_id = _with_answer_id(body, fields, answer_id)
    return Ask(
        path=path,
        endpoint=endpoint,
        model=fields["model"] if isinstance(fields.get("model"), str) else None,
        stream=stream,
        sequences=_answers(fields) * prompts if path in GENERATING else prompts,
        prompts=prompts,
        prompt_estimate=_prompt_estimate(path, fields),
        wants_usage=bool(wants_usage) or usage_wanted,
        wants_continuous=bool(wants_usage and wants_continuous),
        work=work,
        body=body,
        prefix=prefix_chains(path, fields, salt) if salt else (),
        answer_id=answer_id if path == RESPONSES else None,
    )


def _fields(body: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(body)
    except RecursionError:
        raise BadRequest("The request body is nested too deeply; send flatter JSON.") from None
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _flag(value: object) -> bool | None:
    """A boolean as vLLM reads it; null and absent are False, and None is what the engine shall refuse itself."""
    if isinstance(value, str):
        return _FLAGS.get(value.lower())
    if value is None or value in (0, 1):
        return bool(value)
    return None


def _with_usage(body: bytes, fields: dict[str, Any], options: dict[str, Any]) -> bytes:
    """The body asking for running usage: spliced in at the end, where a later key wins over an earlier null."""
    if all(options.get(name) is True for name in _WANTED):
        return body
    if not options:
        return _with_member(body, fields, b'"stream_options":' + json.dumps(_WANTED).encode())
    return json.dumps({**fields, "stream_options": {**options, **_WANTED}}).encode()


def _with_answer_id(body: bytes, fields: dict[str, Any], answer_id: str | None) -> tuple[bytes, str | None]:
    """The body with an id for the answer, and that id; the client's own stays, and one that is no text is refused."""
    if "request_id" in fields:
        own = fields["request_id"]
        return body, own if isinstance(own, str) and own else None
    if answer_id is None:
        return body, None
    return _with_member(body, fields, b'"request_id":' + json.dumps(answer_id).encode()), answer_id


def _with_member(body: bytes, fields: dict[str, Any], member: bytes) -> bytes:
    """The object with one more member at its end."""
    close = body.rindex(b"}")
    return body[:close] + (b"," if fields else b"") + member + body[close:]


def _answers(fields: dict[str, Any]) -> int:
    n = fields.get("n")
    return n if isinstance(n, int) and 0 < n < 10_000 else 1


def _prompts(path: str, fields: dict[str, Any]) -> int:
    """How many prompts the body holds: texts or lists of token ids. A list of messages is one conversation."""
    if path == "/v1/completions":
        return _listed(fields.get("prompt"), (str, list))
    if path in SCORING:
        return max(_listed(fields.get(name), object) for name in _SCORED)
    return _listed(fields.get("input"), (str, list)) if path in POOLING else 1


def _listed(value: object, kind: type | tuple[type, ...]) -> int:
    """The length of a list whose first entry is of that kind and no token id, else 1."""
    if not isinstance(value, list) or not value or isinstance(value[0], int):
        return 1
    return len(value) if isinstance(value[0], kind) else 1


def _prompt_estimate(path: str, fields: dict[str, Any]) -> int:
    """Tokens of the body's text, rounded up. A loop and not a recursion: the nesting is the client's to choose."""
    characters = tokens = 0
    left: list[object] = [fields.get(name) for name in _TEXTS.get(path, _OTHER_TEXTS)]
    while left:
        part = left.pop()
        if isinstance(part, str):
            characters += len(part)
        elif isinstance(part, dict):
            left += [part.get("content"), part.get("text")]
        elif isinstance(part, list) and part and isinstance(part[0], int):
            tokens += len(part)
        elif isinstance(part, list):
            left += part
    return tokens + math.ceil(characters / CHARACTERS_PER_TOKEN)
