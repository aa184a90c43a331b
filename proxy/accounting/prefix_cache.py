"""What an engine's prefix cache is likely to hold, from the prompts it was sent.

A prompt is a chain of pieces; each is named by a keyed hash of itself and of all before it, so that equal names mean
equal prefixes (vLLM's own rule for its blocks). Nothing of a prompt can be read off the names.
Lengths are in units of about 16 tokens.
"""

from collections import OrderedDict
from itertools import takewhile
from math import ceil
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


class Match(NamedTuple):
    """How much of a prompt is there: `pieces` of it, `prompt` units sent before, then `answer` units made before."""

    pieces: int
    prompt: float
    answer: float


class PrefixCache:
    """Pieces by least recent use, as vLLM frees them: of one prompt the deepest go first (BlockPool.free_blocks)."""

    def __init__(self, room: int) -> None:
        """Room is in units."""
        self._room = room
        self._units = 0
        self._sizes: OrderedDict[bytes, int] = OrderedDict()

    @property
    def room(self) -> int:
        """Units that fit in; making it smaller throws out what does not fit any more."""
        return self._room

    @room.setter
    def room(self, units: int) -> None:
        self._room = units
        self._evict()

    def __len__(self) -> int:
        return self._units

    def found(self, chain: Chain) -> Match:
        """What of a prompt is there. An answer is taken to be there if the prompt that it followed was sent.

        The last unit, begun or whole, is never there: the engine finds whole blocks only, and not the last token.
        """
        held = self._sizes
        pieces = sum(1 for _ in takewhile(held.__contains__, chain.pieces))
        most = float(max(0, ceil(chain.length) - 1))
        again = pieces == len(chain.pieces) and chain.end in held
        at = most if again else min(most, float(reach(pieces)))
        known = [quote for quote in chain.quotes if quote.start < reach(pieces + 1) and quote.name in held]
        if not known or known[-1].end <= at:
            return Match(pieces, at, 0.0)
        at = max(at, known[-1].start)
        return Match(pieces, at, known[-1].end - at)

    def hold(self, chain: Chain, answer: int = 0) -> None:
        """Puts a prompt in, or notes that it is in use. answer: units made in answer to it, which need room too."""
        # Called twice for every request, over all of its pieces: one plain loop.
        sizes, use, pieces = self._sizes, self._sizes.move_to_end, chain.pieces
        before = sizes.get(chain.end, 0)
        answered = max(1, answer, before)
        self._units += answered - before
        sizes[chain.end] = answered
        use(chain.end)
        for number in range(len(pieces) - 1, -1, -1):  # the deepest first
            name = pieces[number]
            if name in sizes:
                use(name)
            else:
                sizes[name] = units = 1 if number < EQUAL_PIECES else size(number)
                self._units += units
        if self._units > self._room:
            self._evict()

    def drop(self, chain: Chain, *, beyond: int) -> None:
        """Takes out the pieces after the first `beyond` ones, and the end: they were never computed."""
        for name in (chain.end, *chain.pieces[beyond:]):
            self._units -= self._sizes.pop(name, 0)

    def clear(self) -> None:
        """The engine has begun anew."""
        self._sizes.clear()
        self._units = 0

    def _evict(self) -> None:
        while self._units > self._room:
            self._units -= self._sizes.popitem(last=False)[1]
