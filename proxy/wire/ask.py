"""What a request asks for, as far as relaying and accounting must know, and the body the engine gets.

The body stays as it came but for one thing: a stream is asked for running usage, because a chunk is not a
token. What the client did not ask for is taken out of the answer again.
"""

import json
from dataclasses import dataclass
from typing import Any

from proxy.errors import BadRequest

GENERATING = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}
"""Endpoints that know stream_options; their path and what reports call them."""
WITHOUT_WORK = frozenset(
    {"/v1/models", "/tokenize", "/detokenize", "/v1/tokenize", "/v1/detokenize", "/v1/messages/count_tokens"}
)
"""Endpoints that do no work on the GPU: nobody is charged for them."""
BYTES_PER_TOKEN = 4
"""A guess for the prompt's length until the engine says; English text and JSON overhead."""
_WANTED = {"include_usage": True, "continuous_usage_stats": True}
_FLAGS = dict.fromkeys(("1", "on", "t", "true", "y", "yes"), True) | dict.fromkeys(
    ("0", "off", "f", "false", "n", "no"), False
)
"""Words that vLLM takes for a boolean (pydantic's lax mode), in lower case."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, read.

    model: None when the body names none. sequences: n times prompts. prompt_estimate: tokens of all prompts, a guess.
    wants_usage, wants_continuous: what the client asked to see of usage in a stream.
    body: what goes to the engine.
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


def read_ask(method: str, path: str, body: bytes, *, usage_wanted: bool = False) -> Ask:
    """The request as far as it can be read; a body that is no JSON object is passed on for the engine to judge.

    usage_wanted: the client asked by header for energy inside usage, so it shall see the usage chunk.
    Raises BadRequest for nesting no engine would accept either.
    """
    fields = _fields(body) if method == "POST" else None
    endpoint = GENERATING.get(path, path.removeprefix("/v1/").strip("/") or path)
    work = method == "POST" and path not in WITHOUT_WORK
    if fields is None:
        return Ask(path, endpoint, None, False, 1, 1, len(body) // BYTES_PER_TOKEN, False, False, work, body)
    stream = _flag(fields.get("stream")) or False
    prompts = _prompts(fields)
    asked = fields.get("stream_options")
    options = asked if isinstance(asked, dict) else {}
    wants_usage, wants_continuous = (_flag(options.get(name)) for name in _WANTED)
    acceptable = (asked is None or isinstance(asked, dict)) and None not in (wants_usage, wants_continuous)
    if stream and path in GENERATING and acceptable:
        body = _with_usage(body, fields, options)
    return Ask(
        path=path,
        endpoint=endpoint,
        model=fields["model"] if isinstance(fields.get("model"), str) else None,
        stream=stream,
        sequences=_answers(fields) * prompts,
        prompts=prompts,
        prompt_estimate=_prompt_estimate(fields),
        wants_usage=bool(wants_usage) or usage_wanted,
        wants_continuous=bool(wants_usage and wants_continuous),
        work=work,
        body=body,
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
        close = body.rindex(b"}")
        comma = b"," if fields else b""
        return body[:close] + comma + b'"stream_options":' + json.dumps(_WANTED).encode() + body[close:]
    return json.dumps({**fields, "stream_options": {**options, **_WANTED}}).encode()


def _answers(fields: dict[str, Any]) -> int:
    n = fields.get("n")
    return n if isinstance(n, int) and 0 < n < 10_000 else 1


def _prompts(fields: dict[str, Any]) -> int:
    prompt = fields.get("prompt")
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1


def _prompt_estimate(fields: dict[str, Any]) -> int:
    prompt = next((fields[name] for name in ("messages", "prompt", "input") if fields.get(name)), "")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        return len(prompt)
    if isinstance(prompt, str):
        return max(1, len(prompt) // BYTES_PER_TOKEN)
    return max(1, len(json.dumps(prompt)) // BYTES_PER_TOKEN)
