"""What an engine's prefix cache is likely to hold, from the prompts it was sent.

Lengths are in units of about 16 tokens: see prefix_chain.
"""

from collections import OrderedDict
from collections.abc import Iterable
from itertools import takewhile
from math import ceil
from typing import NamedTuple

from proxy.accounting.prefix_chain import Chain, reach
from proxy.accounting.prefix_entries import End, Held, Stretch

SLACK_BITS = 8
"""So little, 1/256 of the room, may be there too much: what goes then goes at once, not piece by piece."""


class Match(NamedTuple):
    """How much of a prompt is there: `pieces` of it, `prompt` units sent before, then `answer` units made before."""

    pieces: int
    prompt: float
    answer: float


NOTHING = Match(0, 0.0, 0.0)


class PrefixCache:
    """Pieces by least recent use, as vLLM frees them: of one prompt the deepest go first (BlockPool.free_blocks).

    What requests under way have stays, even beyond the room. What was last used together is kept together and found by
    its first name, so that a prompt is a few entries.
    """

    def __init__(self, room: int) -> None:
        """Room is in units."""
        self._room = room
        self._units = 0
        self._stretches: dict[bytes, Stretch] = {}
        self._ends: dict[bytes, End] = {}
        self._order: OrderedDict[Stretch | End, None] = OrderedDict()  # of those that nobody has, the oldest first
        self._torn = False

    @property
    def room(self) -> int:
        """Units that fit in, about (see SLACK_BITS); making it smaller throws out what does not fit any more."""
        return self._room

    @room.setter
    def room(self, units: int) -> None:
        self._room = units
        self._evict_many()

    def __len__(self) -> int:
        return self._units

    def found(self, chain: Chain) -> Match:
        """What of a prompt is there. An answer is taken to be there if the prompt that it followed was sent.

        The last unit, begun or whole, is never there: the engine finds whole blocks only, and not the last token.
        """
        held, pieces = self._ends, self._pieces_of(chain.pieces)
        if not pieces and chain.pieces and not chain.quotes:
            return NOTHING
        most = float(max(0, ceil(chain.length) - 1))
        again = pieces == len(chain.pieces) and chain.end in held
        at = most if again else min(most, float(reach(pieces)))
        known = [quote for quote in chain.quotes if quote.start < reach(pieces + 1) and quote.name in held]
        if not known or known[-1].end <= at:
            return Match(pieces, at, 0.0)
        at = max(at, known[-1].start)
        return Match(pieces, at, known[-1].end - at)

    def _pieces_of(self, pieces: tuple[bytes, ...]) -> int:
        count = 0
        while count < len(pieces) and (stretch := self._stretches.get(pieces[count])) is not None:
            count += stretch.in_common(pieces)
        return count

    def look_up(self, chain: Chain) -> tuple[Match, Held]:
        """What of a prompt is there; then all of it is, and in use until it is `answered` or dropped."""
        pieces = chain.pieces
        known = not pieces or pieces[0] in self._stretches or chain.end in self._ends
        if not known and not chain.quotes and not self._torn:
            match, held = NOTHING, Held(End(chain.end), [self._added(pieces, 0)])
            self._ends[chain.end] = held.end
        else:
            match, held = self.found(chain), self._put(chain)
        for one in held.deepest_first:
            one.users += 1
            self._order.pop(one, None)
        self._grow(held.end, 1)
        return match, held

    def hold(self, chain: Chain, answer: int = 0) -> None:
        """Puts a prompt in that is over at once. answer: units made in answer to it, which need room too."""
        self.answered(chain, self.look_up(chain)[1], answer)

    def answered(self, chain: Chain, held: Held, answer: int) -> None:
        """A prompt that was looked up is over: nobody has it now, and it was used last."""
        held = held if held.whole(chain.pieces) else self._put(chain)
        self._leave(held.deepest_first)
        self._grow(held.end, max(1, answer))

    def _put(self, chain: Chain) -> Held:
        end = self._ends.get(chain.end)
        if end is None:
            end = self._ends[chain.end] = End(chain.end)
        return Held(end, self._path(chain.pieces))

    def _leave(self, entries: Iterable[Stretch | End]) -> None:
        """One user less; what has none left is the newest that nobody has, the beginning newer than what follows."""
        order = self._order
        for one in entries:
            one.users = max(0, one.users - 1)
            if not one.users:
                order[one] = None
                order.move_to_end(one)

    def _grow(self, end: End, units: int) -> None:
        if units > end.units:
            self._units += units - end.units
            end.units = units
        self._evict_many()

    def _evict_many(self) -> None:
        if self._units - self._room > self._room >> SLACK_BITS:
            self._evict()

    def _path(self, pieces: tuple[bytes, ...]) -> list[Stretch]:
        """The stretches that make up a prompt; what is not there is put in."""
        path, place, known = [], 0, self._stretches.get
        while place < len(pieces):
            stretch = known(pieces[place])
            if stretch is None:
                stretch = self._added(pieces, place)
            else:
                common = stretch.in_common(pieces)
                if common < stretch.count:
                    stretch = self._parted(stretch, common)
            path.append(stretch)
            place += stretch.count
        return path

    def _added(self, pieces: tuple[bytes, ...], start: int) -> Stretch:
        """Up to where something is there again, as may be once prompts were taken out again."""
        names = pieces[start:] if start else pieces
        if self._torn and not self._stretches.keys().isdisjoint(names):
            names = tuple(takewhile(lambda name: name not in self._stretches, names))
        stretch = self._stretches[names[0]] = Stretch(names, start, len(names))
        self._units += stretch.units_from(0)
        return stretch

    def _parted(self, stretch: Stretch, number: int) -> Stretch:
        """The first so many pieces, which are about to be used, by themselves; the others stay where they are."""
        first = Stretch(stretch.names[:number], stretch.start, number, stretch.users)
        stretch.names, stretch.start = stretch.names[number : stretch.count], stretch.start + number
        stretch.count -= number
        self._stretches[first.names[0]], self._stretches[stretch.names[0]] = first, stretch
        return first

    def drop(self, chain: Chain, *, beyond: int) -> None:
        """A prompt that was looked up is over: the pieces after the first `beyond` ones, and the end, go, because they
        were never computed.
        """
        end, place, self._torn = self._ends.get(chain.end), 0, True
        if end is not None:
            self._shorten(end, 0)
        kept: list[Stretch] = []
        while place < len(chain.pieces):
            stretch = self._stretches.get(chain.pieces[place])
            if stretch is None:
                place += 1
                continue
            common = stretch.in_common(chain.pieces)
            if place + common > beyond:
                self._shorten(stretch, max(0, beyond - place))
            if stretch.count:
                kept.insert(0, stretch)
            place += common
        self._leave(kept)
        self._evict_many()

    def _shorten(self, held: Stretch | End, number: int) -> None:
        """Leaves the first so many pieces of it, none of an end."""
        if isinstance(held, End):
            self._units -= held.units
            held.units = 0
            del self._ends[held.name]
            self._order.pop(held, None)
            return
        self._units -= held.units_from(number)
        if not number:
            del self._stretches[held.names[0]]
            self._order.pop(held, None)
        held.count = number

    def clear(self) -> None:
        """The engine has begun anew."""
        for end in self._ends.values():
            end.units = 0
        self._stretches.clear()
        self._ends.clear()
        self._order.clear()
        self._units = 0

    def _evict(self) -> None:
        order, over = self._order, self._units - self._room
        while over > 0 and order:
            oldest = next(iter(order))
            if isinstance(oldest, End):
                over -= oldest.units
                oldest.units = 0
                del self._ends[oldest.name], order[oldest]
                continue
            left = oldest.without(over)
            over -= oldest.units_from(left)
            oldest.count = left
            if not left:
                del self._stretches[oldest.names[0]], order[oldest]
        self._units = self._room + over
