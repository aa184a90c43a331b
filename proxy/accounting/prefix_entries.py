"""What a prefix cache is made of: stretches of pieces that were used together, and the ends of prompts."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from proxy.accounting.prefix_chain import EQUAL_PIECES, reach, size


@dataclass(slots=True, eq=False)
class Stretch:
    """Pieces of prompts that lie one after the other and were last used together, from the piece number `start` on.

    users: requests under way that have it; what is in use is not thrown out.

    Their names imply all before them: where one is equal to another's, so are all that come before. Only the first
    `count` names are there still.
    """

    names: tuple[bytes, ...]
    start: int
    count: int
    users: int = 0

    def in_common(self, pieces: tuple[bytes, ...]) -> int:
        """How many of them a prompt has, too, that has the first of them."""
        names, start = self.names, self.start
        count = min(self.count, len(pieces) - start)
        if names[count - 1] == pieces[start + count - 1]:
            return count
        return bisect_left(range(count), True, key=lambda number: names[number] != pieces[start + number])

    def units_from(self, number: int) -> int:
        """Units in those after the first so many."""
        end, start = self.start + self.count, self.start + number
        return end - start if end <= EQUAL_PIECES else reach(end) - reach(start)

    def without(self, units: int) -> int:
        """How many are left when so many units must go, the deepest first, or all."""
        left = self.count
        if self.start + left <= EQUAL_PIECES:
            return left - units if left > units else 0
        while units > 0 and left:
            left -= 1
            units -= size(self.start + left)
        return left


@dataclass(slots=True, eq=False)
class End:
    """The last piece of a prompt and the answer to it, in units; none once it has been thrown out. users: as above."""

    name: bytes
    units: int = 0
    users: int = 0


class Held(NamedTuple):
    """Where a prompt was put when it was sent, to be found at once when it has been answered."""

    end: End
    path: list[Stretch]

    @property
    def deepest_first(self) -> Sequence[Stretch | End]:
        """All of them."""
        return (self.end, *reversed(self.path))

    def whole(self, pieces: tuple[bytes, ...]) -> bool:
        """Whether it is all there still, and nobody has parted it since."""
        place = 0
        for stretch in self.path:
            if stretch.start != place or not stretch.count:
                return False
            place += stretch.count
        return place == len(pieces) and self.end.units > 0
