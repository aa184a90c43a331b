"""Which kinds of work a calibration runs, how large, how long, and in which order.

    prefill, short and long     answers of one token to prompts no cache has: prompt tokens, beside the steps they take
    decode x 1, 8, 32           long answers to short prompts: the fixed part of a step, and what a sequence adds
    decode, long context        the same with long prompts that were read before: reading keys and values
    mixed                       long prompts among answers, as in real traffic

Every repeat holds each kind once, in an order of its own, so that what drifts with temperature hits all alike.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from proxy.commands.calibration.energy import FEWEST_UPDATES
from proxy.errors import ConfigurationError

BATCHES = (1, 8, 32)
SHORT, TINY = 128, 32
"""Prompt tokens of short prefills, and of answers whose prompt shall not matter."""
STEP_TOKENS = 2048
"""The least budget of prompt tokens a step has by default: what exceeds it may come in pieces nobody counts."""
LONGEST_CONTEXT = 8192
PREFILL_S, CONTEXT_S = 0.25, 4.0
"""How long one long prefill may take, and how long reading all prompts of the long context."""
CACHE_PART = 0.7
"""Of the engine's cache that the load fills at most, so that nothing is preempted."""
LONG_S, SHORT_S, SHORTEST_S = 2.5, 2.0, 0.25
"""A stretch that is wanted, the least for a calibration worth its name, and the least of all."""
MOST_REPEATS, FEWEST_REPEATS = 5, 2
CHECKS_S, TURN_S = 3.0, 0.3
"""Before the load; and for each stretch, until its first tokens are there and its last request is gone."""


@dataclass(frozen=True, slots=True)
class Part:
    """Requests of one shape, `slots` at a time. kept: the prompts stay the same, so that the cache has them."""

    slots: int
    prompt: int
    tokens: int
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of work."""

    name: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Room:
    """What the server allows. cache_tokens: None where it does not tell. sequences: that it runs at once, at most 32.

    prompt_token_s: time to read a prompt token. logged: the step log tells of prompts in pieces too.
    """

    max_model_len: int
    cache_tokens: float | None
    sequences: int
    prompt_token_s: float
    logged: bool


@dataclass(frozen=True, slots=True)
class Timetable:
    """How long everything takes, in seconds. window_s: measured of each stretch; ramp_s: before it."""

    repeats: int
    window_s: float
    ramp_s: float
    idle_s: float
    warm_s: float
    total_s: float

    @property
    def stretch_s(self) -> float:
        """One stretch with all around it."""
        return TURN_S + self.ramp_s + self.window_s

    @property
    def short(self) -> bool:
        """Whether its stretches are shorter than a calibration worth its name has."""
        return self.window_s < SHORT_S


def kinds(room: Room) -> tuple[Kind, ...]:
    """The kinds of work that fit. Raises ConfigurationError for a context too short to tell them apart."""
    short = min(SHORT, room.max_model_len // 8)
    tiny = min(TINY, room.max_model_len // 8)
    step = LONGEST_CONTEXT if room.logged else STEP_TOKENS
    long = min(step // 2, room.max_model_len // 2, int(PREFILL_S / room.prompt_token_s))
    several = min(8, room.sequences)
    read = [CONTEXT_S / room.prompt_token_s / several, room.max_model_len * 0.6, LONGEST_CONTEXT]
    context = int(min([*read, *([] if room.cache_tokens is None else [room.cache_tokens * CACHE_PART / 2 / several])]))
    long = max(long, 2 * short)
    if tiny < 2 or long + 1 > room.max_model_len:
        raise ConfigurationError(f"a max_model_len of {room.max_model_len} is too short to calibrate with")
    batches = sorted({min(n, room.sequences) for n in BATCHES})
    found = [
        Kind("prefill, short prompts", (Part(several, short, 1),)),
        Kind("prefill, long prompts", (Part(min(2, room.sequences), long, 1),)),
        *(Kind(f"decode × {n:2}", (_answers(room, n, tiny),)) for n in batches),
    ]
    if context >= 4 * tiny:
        found.append(Kind("decode, long context", (_answers(room, several, context, kept=True),)))
    if room.sequences > 1:
        found.append(Kind("mixed", (_answers(room, several - 1, tiny), Part(1, long, 1))))
    return tuple(found)


def _answers(room: Room, slots: int, prompt: int, *, kept: bool = False) -> Part:
    tokens = room.max_model_len - prompt - 1
    if room.cache_tokens is not None:
        tokens = min(tokens, int(room.cache_tokens * CACHE_PART / slots) - prompt)
    return Part(slots, prompt, max(2, tokens), kept)


def timetable(minutes: float, count: int, *, period_s: float, step_s: float) -> Timetable:
    """Fits `count` kinds of work into the time. period_s: between moves of the slowest counter; step_s: of the engine.

    Raises ConfigurationError, which says how many minutes are needed.
    """
    least_s = max(FEWEST_UPDATES * period_s * 1.2, FEWEST_UPDATES * step_s, SHORTEST_S)
    table = _laid_out(minutes * 60, count, period_s, step_s)
    if table.window_s < least_s:
        longer = (tenths / 10 for tenths in range(ceil(minutes * 10), 100 * ceil(minutes * 10 + least_s)))
        needed = next(m for m in longer if _laid_out(m * 60, count, period_s, step_s).window_s >= least_s)
        raise ConfigurationError(
            f"{minutes:g} minutes are too few: here a calibration takes at least --minutes {needed:g} "
            f"(its meter moves every {period_s * 1000:.0f} ms, and a step takes {step_s * 1000:.0f} ms)"
        )
    return table


def _laid_out(total_s: float, count: int, period_s: float, step_s: float) -> Timetable:
    """As many repeats as leave long stretches, else the fewest; the stretches may come out too short."""
    ample = total_s >= 60
    idle_s = min(5.0, max(FEWEST_UPDATES * period_s * 1.2, total_s * 0.04))
    ramp_s = max(0.3 if ample else 0.1, period_s, step_s)
    warm_s = 1.0 if ample else 0.1
    fixed_s = min(CHECKS_S, total_s / 10) + 2 * idle_s + count * (TURN_S + ramp_s + warm_s)
    for repeats in range(MOST_REPEATS, FEWEST_REPEATS - 1, -1):
        window_s = (total_s - fixed_s) / (repeats * count) - TURN_S - ramp_s
        if window_s >= LONG_S:
            break
    return Timetable(repeats, window_s, ramp_s, idle_s, warm_s, total_s)


def order(found: Sequence[Kind], repeats: int, source: random.Random) -> list[tuple[int, Kind]]:
    """Each kind once in every repeat, shuffled anew each time."""
    return [(repeat, kind) for repeat in range(repeats) for kind in source.sample(found, len(found))]
