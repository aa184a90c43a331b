"""How many prompt tokens each of some steps computed, when prompts came and when their first tokens did.

The engine serves first who came first: decodes take a position each, prompts what is left of the step's budget. Who
came but just before a step began may be in it or in the next; so that is tried until everybody's first token comes
when it did, and then as long as the steps' lengths are met better. Where nothing fits, the lengths alone decide.
"""

from collections.abc import Sequence
from typing import NamedTuple

from proxy.accounting.placing import level_above
from proxy.accounting.units import MILLISECOND, Nanoseconds

NEARLY = Nanoseconds(2 * MILLISECOND)
"""A step that seems to have begun so shortly before a prompt came may hold it."""
MANY = 40
"""Prompts that are tried in turn; of more, lengths must do."""
WRONG = 0.2
"""Part of the prompts whose first token may seem to come a step off: not every stream is placed right."""


class Slot(NamedTuple):
    """A step: nanoseconds, decode positions, and by how much it was longer than one without a prompt."""

    start: float
    end: float
    decode: int
    excess: float


class Prompt(NamedTuple):
    """tokens: to compute. came: nanoseconds. due: place of the step that gave its first token."""

    tokens: int
    came: int
    due: int


def computed_in(slots: Sequence[Slot], prompts: Sequence[Prompt], budget: int, token_ns: float) -> list[float]:
    """Tokens by slot; prompts in the order in which they came. token_ns: what a token adds to a step, about."""
    seen = by_excess(slots, prompts, token_ns)
    if len(prompts) > MANY:
        return seen
    return in_turn(slots, prompts, budget, seen) or seen


def by_excess(slots: Sequence[Slot], prompts: Sequence[Prompt], token_ns: float) -> list[float]:
    """In proportion to what the steps were too long, above a level of chance."""
    tokens = float(sum(prompt.tokens for prompt in prompts))
    level = level_above([slot.excess for slot in slots], tokens * token_ns)
    above = [max(0.0, slot.excess - level) for slot in slots]
    whole = sum(above)
    if not whole:
        return [0.0] * (len(slots) - 1) + [tokens]
    return [tokens * one / whole for one in above]


def in_turn(slots: Sequence[Slot], prompts: Sequence[Prompt], budget: int, seen: Sequence[float]) -> list[float] | None:
    """First come, first served; None where first tokens would come at other times than they did. seen: see above."""
    turns = Turns(slots, prompts, budget)
    if not turns.fit():
        return None
    turns.improve(seen)
    return turns.tokens


class Turns:
    """From which slot on each prompt is read, as it is tried."""

    def __init__(self, slots: Sequence[Slot], prompts: Sequence[Prompt], budget: int) -> None:
        self._room = [max(0, budget - slot.decode) for slot in slots]
        self._prompts = prompts
        self._least = [_place(prompt, [slot.end > prompt.came for slot in slots]) for prompt in prompts]
        self._from = [_place(one, [slot.start >= one.came - NEARLY for slot in slots]) for one in prompts]
        self._settled: set[int] = set()
        self.tokens, self._done = self._filled()

    def fit(self) -> bool:
        """Moves the beginnings until the first tokens come when they should, but for some that are a step off."""
        for _ in range(10 + 6 * len(self._prompts)):
            off = next((n for n, one in enumerate(self._prompts) if self._is_off(n, one.due)), None)
            if off is None:
                break
            way = 1 if self._done[off] < self._prompts[off].due else -1
            if self._may_begin(off, self._from[off] + way):
                self._from[off] += way
                self.tokens, self._done = self._filled()
            else:
                self._settled.add(off)
        wrong = [abs(done - one.due) for done, one in zip(self._done, self._prompts, strict=True)]
        return max(wrong) <= 1 and sum(wrong) <= WRONG * len(wrong)

    def improve(self, seen: Sequence[float]) -> None:
        """Moves them as long as all stay done where they are and the tokens come nearer to what was seen."""
        due, best = self._done, _apart(self.tokens, seen)
        for n in range(len(self._prompts)):
            for way in (1, -1):
                while n not in self._settled and self._may_begin(n, self._from[n] + way):
                    self._from[n] += way
                    tokens, done = self._filled()
                    if done != due or _apart(tokens, seen) >= best:
                        self._from[n] -= way
                        break
                    self.tokens, best = tokens, _apart(tokens, seen)

    def _is_off(self, number: int, due: int) -> bool:
        return self._done[number] != due and number not in self._settled

    def _may_begin(self, number: int, place: int) -> bool:
        return self._least[number] <= place <= self._prompts[number].due

    def _filled(self) -> tuple[list[float], list[int]]:
        """Tokens by slot, and the slot in which each prompt is done; one too many where it is in none."""
        room, tokens, done = [*self._room], [0.0] * len(self._room), []
        for prompt, place in zip(self._prompts, self._from, strict=True):
            left, last = prompt.tokens, place
            while left > 0 and place < len(room):
                taken = min(left, room[place])
                if taken > 0:
                    room[place] -= taken
                    tokens[place] += taken
                    left, last = left - taken, place
                place += 1
            done.append(last if left <= 0 else len(room))
        return tokens, done


def _place(prompt: Prompt, wanted: Sequence[bool]) -> int:
    """The first place that is wanted, at the latest where it is due."""
    return next((place for place, one in enumerate(wanted[: prompt.due]) if one), prompt.due)


def _apart(left: Sequence[float], right: Sequence[float]) -> float:
    return sum((one - other) ** 2 for one, other in zip(left, right, strict=True))
