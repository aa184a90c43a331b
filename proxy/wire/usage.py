"""OpenAI's usage object found, read and cut out by its bytes, without parsing the rest of the answer.

Inside a JSON string every quote is escaped, so the bytes `,"usage":{` can only be structure. The last such
place is the outermost one of a chunk: nothing that vLLM writes after it has a usage of its own.
"""

import math
import re
from dataclasses import dataclass

_USAGE = re.compile(rb',\s*"usage"\s*:\s*\{')
_NUMBER = {
    name: re.compile(rb'"' + name + rb'"\s*:\s*(\d+)')
    for name in (
        *(b"prompt_tokens", b"completion_tokens", b"input_tokens", b"output_tokens", b"cached_tokens"),
        *(b"cache_read_input_tokens", b"cache_creation_input_tokens"),
    )
}
_QUEUE = re.compile(rb'"queue_time_ms"\s*:\s*([0-9.eE+-]+)')


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one usage object; None where it does not say. cached is a part of prompt."""

    prompt: int | None
    completion: int | None
    cached: int | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a usage object lies: [start, end) with the comma before it, `body` the index of its opening brace."""

    start: int
    body: int
    end: int


def locate(data: bytes) -> Place | None:
    """The last usage object in `data`, or None; `"usage":null` is none."""
    matches = list(_USAGE.finditer(data))
    if not matches:
        return None
    found = matches[-1]
    end = _closing_brace(data, found.end() - 1)
    return None if end is None else Place(found.start(), found.end() - 1, end)


def _closing_brace(data: bytes, opening: int) -> int | None:
    """Index after the brace that closes the one at `opening`; usage objects hold no braces inside strings."""
    depth = 0
    for match in re.compile(rb"[{}]").finditer(data, opening):
        depth += 1 if match.group() == b"{" else -1
        if depth == 0:
            return match.end()
    return None


def _number(name: bytes, data: bytes) -> int | None:
    found = _NUMBER[name].search(data)
    return int(found.group(1)) if found else None


def read(data: bytes, place: Place) -> Usage:
    """The counts, under chat's names or those of /v1/responses or of /v1/messages.

    The last leaves out of its input_tokens what came from the cache and what went into it; here both are prompt.
    """
    body = data[place.body : place.end]
    prompt, completion = _number(b"prompt_tokens", body), _number(b"completion_tokens", body)
    cached, found = _number(b"cached_tokens", body), _number(b"cache_read_input_tokens", body)
    told = _number(b"input_tokens", body)
    if told is not None:
        told += (found or 0) + (_number(b"cache_creation_input_tokens", body) or 0)
    return Usage(
        prompt if prompt is not None else told,
        completion if completion is not None else _number(b"output_tokens", body),
        cached if cached is not None else found,
    )


def without(data: bytes, place: Place, instead: bytes = b"") -> bytes:
    """`data` with the usage object and its comma replaced."""
    return data[: place.start] + instead + data[place.end :]


def with_energy(data: bytes, place: Place, energy: bytes) -> bytes:
    """`data` with `energy` (a JSON object) as a further member of its usage object."""
    comma = b"" if data[place.body + 1 : place.end - 1].strip() == b"" else b","
    return data[: place.end - 1] + comma + b'"energy":' + energy + data[place.end - 1 :]


def queue_time_ms(data: bytes) -> float | None:
    """vLLM's own queueing time, where it runs with --enable-per-request-metrics; None for what is no such time.

    The last one counts: the engine's metrics are an answer's last member, behind whatever else stands in it.
    """
    found = _QUEUE.findall(data)
    try:
        told = float(found[-1]) if found else math.nan
    except ValueError:
        return None
    return told if math.isfinite(told) and told >= 0 else None
