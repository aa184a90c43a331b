"""What a stranger's tokens are taken to read, and how our own prompts teach it."""

import pytest

from proxy.accounting.flight import Flight
from proxy.accounting.usual_context import ENOUGH, Context, UsualContext
from tests.accounting.flights import ms, stream

pytestmark = pytest.mark.unit


def taught(*prompts: tuple[int, int]) -> UsualContext:
    """By own requests of so many prompt tokens, of which so many were cached; over and over."""
    usual = UsualContext()
    for number in range(200):
        prompt, cached = prompts[number % len(prompts)]
        usual.closed(stream(f"r{number}", first=10, prompt=prompt, cached=cached, tokens=10))
    return usual


def test_nothing_is_said_of_nobody() -> None:
    """
    The engine does not tell of first tokens, or not one stranger has had one.
    """
    assert UsualContext().learn(1000, 10, None) is None
    assert UsualContext().learn(0, 10, 0) is None


def test_without_own_requests_strangers_are_alike() -> None:
    """
    Two prompts of 500 tokens and answers of 100: a prompt's token has 250 before it, an answer's 550.
    """
    usual = UsualContext()
    for number in range(int(ENOUGH) - 1):
        usual.closed(stream(f"few{number}", first=10, prompt=9000, tokens=10))

    assert Context(250, 550) == usual.learn(1000, 200, 2)


def test_own_prompts_that_are_alike_and_new_change_nothing() -> None:
    """
    A mean token is in the middle.
    """
    context = taught((2000, 0)).learn(1000, 0, 2)

    assert context is not None
    assert 250 == pytest.approx(context.prefill)


def test_long_prompts_have_more_of_the_tokens() -> None:
    """
    Of 1000 and 3000 tokens in turn: (1 * 0.5 + 3 * 1.5) / 4 thousand before a mean token, 2 thousand in a mean prompt.
    """
    context = taught((1000, 0), (3000, 0)).learn(2000, 0, 1)

    assert context is not None
    assert 1250 == pytest.approx(context.prefill, rel=0.02)


def test_new_tokens_read_the_cached_ones_before_them() -> None:
    """
    Of 2000 tokens 1600 were found: those computed have 1800 before them.
    """
    context = taught((2000, 1600)).learn(4000, 0, 2)

    assert context is not None
    assert 1800 == pytest.approx(context.prefill)


def test_what_has_no_prompt_to_read_teaches_nothing() -> None:
    """
    One that left before its first token.
    """
    usual = taught((2000, 1600))
    for _ in range(100):
        usual.closed(Flight("gone", "gone", ms(0), prompt_tokens=9000))

    context = usual.learn(4000, 0, 2)
    assert context is not None
    assert 1800 == pytest.approx(context.prefill)
