"""A prompt as a chain of pieces, so that two can be compared without either being kept.

Each piece is named by a keyed hash of itself and of all before it, so that equal names mean equal prefixes (vLLM's own
rule for its blocks). Nothing of a prompt can be read off the names. Lengths are in units of about 16 tokens.
"""

from typing import NamedTuple

TOKENS_PER_UNIT = 16.0
"""About: a unit is 64 bytes of text or 16 token ids, and English has about four letters to a token."""
EQUAL_PIECES = 256
"""So many pieces have one length, then it doubles: a long prompt is cut into few pieces, to 0.4 % of its length."""


def size(number: int) -> int:
    """Units in the piece of that number, counted from 0."""
    return 1 << (number // EQUAL_PIECES)


def reach(count: int) -> int:
    """Units in the first `count` pieces."""
    doublings, rest = divmod(count, EQUAL_PIECES)
    return EQUAL_PIECES * ((1 << doublings) - 1) + (rest << doublings)


class Quote(NamedTuple):
    """An answer that stands in a later prompt, from `start` to `end` (units). name: of the prompt it may answer."""

    name: bytes
    start: float
    end: float


class Chain(NamedTuple):
    """One prompt. length: units, with the last piece, which is no whole one and has no name. end: name of it all."""

    pieces: tuple[bytes, ...]
    length: float
    end: bytes
    quotes: tuple[Quote, ...] = ()
