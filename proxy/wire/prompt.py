"""A request's prompts as chains of keyed hashes, for guessing what of them is in the engine's prefix cache.

The text is put together in the order of a usual chat template; it need not be the engine's own, only the same
whenever the engine's is the same. It is hashed and let go: names are kept, never text.
"""

import json
from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import blake2b
from itertools import count
from typing import Any

from proxy.accounting.prefix_chain import Chain, Quote, size

UNIT_BYTES = 64
"""Of UTF-8, or 16 ids of 4 bytes."""
_SEED = (
    *("model", "cache_salt", "chat_template", "chat_template_kwargs", "reasoning_effort", "reasoning", "thinking"),
    *("mm_processor_kwargs", "add_special_tokens", "truncate_prompt_tokens"),
)
"""Members that change a prompt from its start or name another cache, but are not text in it."""
_FIRST = ("tools", "documents")
"""Members that a template puts at the start."""
_MEDIA_BYTES, _SAMPLES = 64 * UNIT_BYTES, 4096
"""A picture counts as about a thousand tokens; of its data so many letters are looked at, to be quick."""
_ENGINE_MADE = {"reasoning", "function_call", "custom_tool_call"}
"""Kinds of items of /v1/responses that have no role and were made by the engine; others without a role are results."""
_MEMBERS = ("content", "tool_calls", "name", "arguments", "input", "output")
"""The members of a message or item that a template writes."""
_ATTRIBUTION = "x-anthropic-billing-header"
"""A text that begins so is new in every request, and vLLM leaves it out of the prompt (/v1/messages)."""


def prefix_chains(path: str, fields: Mapping[str, Any], salt: bytes) -> tuple[Chain, ...]:
    """One chain for each prompt; none where the prompt cannot be known or the engine will not look into its cache.

    salt: at most 64 bytes, random, the same for requests that shall be compared.
    """
    if fields.get("prompt_logprobs") is not None or (fields.get("echo") and fields.get("logprobs") is not None):
        return ()  # vLLM reads such a prompt anew (SamplingParams.skip_reading_prefix_cache)
    try:
        seed = json.dumps({name: fields[name] for name in _SEED if name in fields}).encode()
        if path == "/v1/completions":
            return _plain(fields.get("prompt"), seed, salt)
        if path in ("/v1/embeddings", "/pooling") and "messages" not in fields:
            return _plain(fields.get("input"), seed, salt)
        messages = _messages(path, fields)
        return () if messages is None else (_chain(*_Script(fields, messages).read(), seed, salt),)
    except (RecursionError, OverflowError, TypeError, ValueError):
        return ()  # too deeply nested, or no prompt that the engine will accept


def _messages(path: str, fields: Mapping[str, Any]) -> list[Any] | None:
    """The conversation as a list; None where it is not in the body."""
    if path in ("/v1/chat/completions", "/v1/embeddings", "/pooling"):
        found = fields.get("messages")
    elif path == "/v1/messages":
        found = _after_system(fields.get("system"), fields.get("messages"))
    elif path == "/v1/responses" and fields.get("previous_response_id") is None:
        asked = fields.get("input")
        asked = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        found = _after_system(fields.get("instructions"), asked)
    else:
        return None
    return found if isinstance(found, list) else None


def _after_system(system: object, messages: object) -> object:
    return [{"role": "system", "content": system}, *messages] if system and isinstance(messages, list) else messages


def _plain(prompts: object, seed: bytes, salt: bytes) -> tuple[Chain, ...]:
    """Texts or lists of token ids."""
    if isinstance(prompts, str):
        return (_chain(_utf8(prompts), [], seed, salt),)
    if not isinstance(prompts, list) or not prompts:
        return ()
    if isinstance(prompts[0], int):
        return (_chain(array("i", prompts).tobytes(), [], seed, salt),)
    return tuple(chain for prompt in prompts for chain in _plain(prompt, seed, salt))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class _Script:
    """A conversation written down; remembers where the engine's answers stand in it."""

    def __init__(self, fields: Mapping[str, Any], messages: list[Any]) -> None:
        first = [json.dumps(fields[name], ensure_ascii=False) for name in _FIRST if fields.get(name)]
        self._written = [_utf8(text) for text in first]
        self._length = sum(map(len, self._written))
        self._answers: list[tuple[int, int]] = []
        self._speaker, self._began = "", 0
        for message in messages:
            self._add(message if isinstance(message, dict) else {"content": message})

    def read(self) -> tuple[bytes, list[tuple[int, int]]]:
        """The text up to where the engine goes on, and the answers in it as [start, end)."""
        self._turn_to("assistant")  # as add_generation_prompt does
        return b"".join(self._written), self._answers

    def _add(self, message: Mapping[str, Any]) -> None:
        kind = "assistant" if message.get("type") in _ENGINE_MADE else "tool"
        role = str(message.get("role") or kind)
        if role != "assistant" or self._speaker != role:
            self._turn_to(role)
        for name in _MEMBERS:
            self._write_part(message.get(name))

    def _turn_to(self, role: str) -> None:
        if self._speaker == "assistant":
            self._answers.append((self._began, self._length))
        self._write("<|end|>" * bool(self._speaker) + f"<|{role}|>")
        self._speaker, self._began = role, self._length

    def _write(self, text: str) -> None:
        written = _utf8(text)
        self._written.append(written)
        self._length += len(written)

    def _write_part(self, part: object) -> None:
        if isinstance(part, list):
            for one in part:
                self._write_part(one)
        elif isinstance(part, str):
            self._write(part)
        elif isinstance(part, dict):
            kind, text = str(part.get("type")), part.get("text")
            if any(word in kind for word in ("image", "audio", "video", "file")):
                self._write(_medium(part))
            elif isinstance(text, str):
                self._write("" if text.startswith(_ATTRIBUTION) else text)
            elif kind == "tool_result":
                self._write_part(part.get("content"))
            else:
                self._write(json.dumps(part, ensure_ascii=False))


def _medium(part: Mapping[str, Any]) -> str:
    """A picture or sound as an opaque text of fixed length: equal for equal ones."""
    sampled, left = blake2b(digest_size=16), list[object]([part])
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += one.values()
        elif isinstance(one, list):
            left += one
        elif isinstance(one, str):
            sampled.update(_utf8(f"{len(one)}:{one[:: 1 + len(one) // _SAMPLES]}"))
    return (sampled.hexdigest() * _MEDIA_BYTES)[:_MEDIA_BYTES]


def _chain(text: bytes, answers: list[tuple[int, int]], seed: bytes, salt: bytes) -> Chain:
    """Cuts and hashes in one pass."""
    hashed: Callable[..., Any] = partial(blake2b, digest_size=8, key=salt)
    names = [hashed(seed).digest()]
    edges = [0]
    for number in count():
        start, end = edges[-1], edges[-1] + UNIT_BYTES * size(number)
        if end > len(text):
            break
        names.append(hashed(names[-1] + text[start:end]).digest())
        edges.append(end)

    def up_to(place: int) -> bytes:
        whole = bisect_right(edges, place) - 1
        name: bytes = hashed(names[whole] + text[edges[whole] : place], person=b"end").digest()
        return name

    quotes = tuple(Quote(up_to(start), start / UNIT_BYTES, end / UNIT_BYTES) for start, end in answers)
    return Chain(tuple(names[1:]), len(text) / UNIT_BYTES, up_to(len(text)), quotes)
