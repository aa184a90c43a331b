"""
The load fits the server and the time it is given.
"""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.commands.calibration.timetable import (
    CACHE_PART,
    FEWEST_REPEATS,
    LONG_S,
    STEP_TOKENS,
    Room,
    kinds,
    order,
    timetable,
)
from proxy.errors import ConfigurationError

H100 = Room(max_model_len=131_072, cache_tokens=450_000, sequences=32, prompt_token_s=3e-5, logged=False)


def test_a_large_server_gets_every_kind_of_work() -> None:
    """Prefills of two lengths, three batch sizes, a long context, a mixture."""
    assert [kind.name for kind in kinds(H100)] == [
        "prefill, short prompts",
        "prefill, long prompts",
        "decode ×  1",
        "decode ×  8",
        "decode × 32",
        "decode, long context",
        "mixed",
    ]


def test_prompts_stay_within_a_step_unless_the_log_tells_of_pieces() -> None:
    """What is computed in pieces takes steps that the engine's own count leaves out."""
    short, long, *_ = kinds(H100)
    logged = kinds(replace(H100, logged=True))[1]

    assert all(part.slots * part.prompt <= STEP_TOKENS for kind in (short, long) for part in kind.parts)
    assert logged.parts[0].prompt == 4096


@given(
    st.builds(
        Room,
        max_model_len=st.integers(32, 200_000),
        cache_tokens=st.one_of(st.none(), st.floats(3_000, 1e7)),
        sequences=st.integers(1, 32),
        prompt_token_s=st.floats(1e-6, 0.1),
        logged=st.booleans(),
    )
)
def test_no_request_is_larger_than_the_server_takes(room: Room) -> None:
    """Neither its context nor its places nor, where it tells it, its cache."""
    found = kinds(room)

    for kind in found:
        for part in kind.parts:
            assert part.prompt + part.tokens <= room.max_model_len
            assert part.prompt >= 1
            assert part.tokens >= 1
        assert sum(part.slots for part in kind.parts) <= room.sequences
        if room.cache_tokens is not None and kind.name.startswith("decode"):
            held = sum(part.slots * (part.prompt + part.tokens) for part in kind.parts)
            assert held <= max(room.cache_tokens * CACHE_PART, room.sequences * (room.max_model_len // 8 + 2))
    assert len({kind.name for kind in found}) == len(found)


def test_a_context_of_nothing_is_refused() -> None:
    """There would be nothing to tell apart."""
    with pytest.raises(ConfigurationError, match="max_model_len of 8 is too short"):
        kinds(replace(H100, max_model_len=8))


def test_two_and_a_half_minutes_are_five_rounds_of_long_stretches() -> None:
    """As the command does by default with an NVML counter."""
    table = timetable(2.5, 7, period_s=0.1, step_s=0.007)

    assert table.repeats == 5
    assert table.window_s >= LONG_S
    assert not table.short


@given(st.floats(0.2, 10.0), st.integers(2, 7), st.floats(0.01, 0.2), st.floats(0.001, 0.1))
def test_everything_fits_into_the_time(minutes: float, count: int, period_s: float, step_s: float) -> None:
    """With ten moves of the counter and ten steps in every stretch; or the message says how long it takes."""
    try:
        table = timetable(minutes, count, period_s=period_s, step_s=step_s)
    except ConfigurationError as error:
        needed = float(str(error).partition("--minutes ")[2].partition(" ")[0])
        assert needed > minutes
        table = timetable(needed, count, period_s=period_s, step_s=step_s)
        minutes = needed
    runs_s = table.repeats * count * table.stretch_s
    warm_s = count * (table.stretch_s - table.window_s + table.warm_s)
    assert 2 * table.idle_s + warm_s + runs_s <= minutes * 60 + 1e-6
    assert table.window_s >= max(10 * period_s, 10 * step_s)
    assert table.repeats >= FEWEST_REPEATS


def test_every_round_holds_each_kind_once_in_an_order_of_its_own() -> None:
    """So that what drifts hits all alike."""
    runs = order(kinds(H100), 4, random.Random(1))
    rounds = [[kind.name for repeat, kind in runs if repeat == number] for number in range(4)]

    assert all(sorted(names) == sorted(rounds[0]) for names in rounds)
    assert len({tuple(names) for names in rounds}) == 4
