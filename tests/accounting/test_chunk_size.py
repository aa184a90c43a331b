"""How many tokens of a prompt a step computes, found out from how many steps prompts took."""

from math import ceil
from random import Random

import pytest

from proxy.accounting.chunk_size import FADE, SIZES, ChunkSize


def read(chunks: ChunkSize, size: int, prompts: int = 200, *, longest: int = 9000, waits: float = 1.0) -> None:
    """Prompts of an engine with chunks of a size; each waits for up to so many steps, and tokens come unevenly."""
    draws = Random(f"{size} {longest}")
    for _ in range(prompts):
        tokens = draws.randint(1, longest)
        chunks.learn(tokens, ceil(tokens / size) + draws.uniform(0, waits) + draws.gauss(0, 0.2))


def test_at_first_nothing_is_known() -> None:
    """None, not a default."""
    assert ChunkSize().tokens is None


@pytest.mark.parametrize("size", SIZES[:-1])
def test_the_size_is_found(size: int) -> None:
    """Whatever it is, if some prompts are longer; most wait for some part of a step."""
    chunks = ChunkSize()
    read(chunks, size, longest=4 * size)

    assert chunks.tokens == size


@pytest.mark.parametrize("waits", [0.0, 1.5])
def test_it_is_found_however_long_prompts_wait(waits: float) -> None:
    """Not at all, or for more than a step."""
    chunks = ChunkSize()
    read(chunks, 2048, waits=waits)

    assert chunks.tokens == 2048


def test_a_size_between_two_that_are_tried_is_taken_for_the_larger() -> None:
    """So that no prompt is thought to need more steps than it got."""
    chunks = ChunkSize()
    read(chunks, 3000)

    assert chunks.tokens == 4096


def test_while_all_prompts_are_short_each_is_one_chunk() -> None:
    """Which is all that anybody needs to know of them."""
    chunks = ChunkSize()
    read(chunks, 8192, longest=500)

    assert chunks.tokens is not None
    assert chunks.tokens >= 512


def test_an_engine_that_was_started_anew_with_another_size_is_noticed() -> None:
    """In both directions, once as many prompts as are remembered have been read."""
    chunks = ChunkSize()
    for size in (8192, 1024, 4096):
        read(chunks, size, prompts=round(4 / (1 - FADE)), longest=30_000)
        assert chunks.tokens == size


def test_one_prompt_says_at_once_what_a_step_can_hold() -> None:
    """It was read in so few steps; the next may be held to that."""
    chunks = ChunkSize()
    chunks.learn(3000, 1.2)

    assert chunks.tokens == 4096
