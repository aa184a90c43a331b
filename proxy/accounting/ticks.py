"""When the tokens of one answer arrived, kept so that an instant is found fast: there are fifty a second and stream."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, MutableSequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from proxy.accounting.units import Nanoseconds


class Tick(NamedTuple):
    """At the instant `at` the request had `tokens` completion tokens in all, over all its sequences."""

    at: Nanoseconds
    tokens: int


def _numbers() -> MutableSequence[Any]:
    return array("q")


@dataclass(slots=True)
class Ticks:
    """Ticks in the order of their times. Another thread may add one while it is copied.

    times: nanoseconds; tokens: how many there were then. Side by side in plain arrays: a search through objects costs
    several times as much, most of it waiting for memory.
    """

    times: MutableSequence[Nanoseconds] = field(default_factory=_numbers)
    tokens: MutableSequence[int] = field(default_factory=_numbers)

    def add(self, at: Nanoseconds, tokens: int) -> None:
        """Notes one that is not before the last."""
        self.times.append(at)
        self.tokens.append(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, number: int) -> Tick:
        return Tick(self.times[number], self.tokens[number])

    def __iter__(self) -> Iterator[Tick]:
        return map(Tick, self.times, self.tokens)

    def copy(self) -> "Ticks":
        """All that is there now."""
        tokens = self.tokens[:]
        return Ticks(self.times[: len(tokens)], tokens)

    def within(self, start: Nanoseconds, end: Nanoseconds) -> dict[Nanoseconds, int]:
        """Tokens by time from the last tick not after `start` to the first one after `end`, or as far as they go.

        Of several ticks at one instant the last tells how many tokens there were.
        """
        begun = max(0, bisect_right(self.times, start) - 1)
        past = bisect_right(self.times, end) + 1
        return dict(zip(self.times[begun:past], self.tokens[begun:past], strict=True))

    def made_by(self, instant: Nanoseconds) -> int:
        """Tokens known to have been there at an instant."""
        later = bisect_right(self.times, instant)
        return self.tokens[later - 1] if later else 0

    def made_at(self, instant: Nanoseconds) -> float:
        """The same for an instant after the first tick and not after the last, between two of them evenly."""
        times, tokens = self.times, self.tokens
        later = bisect_left(times, instant)
        before, made = times[later - 1], tokens[later - 1]
        return made + (tokens[later] - made) * (instant - before) / (times[later] - before)

    def forget_before(self, instant: Nanoseconds) -> None:
        """Drops those that no time from then on needs: the last one not after it stays."""
        times = self.times
        if len(times) > 1 and times[1] <= instant:
            gone = bisect_right(times, instant) - 1
            del times[:gone], self.tokens[:gone]
