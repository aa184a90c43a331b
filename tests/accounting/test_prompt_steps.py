"""Prompt tokens by step: first come, first served, where that gives first tokens when they came; else by length."""

import pytest

from proxy.accounting.prompt_steps import MANY, Prompt, Slot, by_excess, computed_in, in_turn

TOKEN_NS = 30_000.0
STEP_NS = 10e6


def slots(*tokens: int, decode: int = 0) -> list[Slot]:
    """Steps one after the other, as long as their prompt tokens make them."""
    found, at = [], 0.0
    for one in tokens:
        end = at + STEP_NS + one * TOKEN_NS
        found.append(Slot(at, end, decode, one * TOKEN_NS))
        at = end
    return found


def read(*prompts: tuple[int, int, int], steps: list[Slot], budget: int = 2048) -> list[float]:
    """Prompts as (tokens, came with the start of this step, due in that one)."""
    known = [Prompt(tokens, round(steps[came].start), due) for tokens, came, due in prompts]
    return computed_in(steps, known, budget, TOKEN_NS)


def test_a_prompt_within_the_budget_is_in_the_step_that_gave_its_first_token() -> None:
    """Even if it might have been in one before."""
    assert read((1500, 0, 2), steps=slots(0, 0, 1500)) == [0, 0, 1500]


def test_decodes_take_their_positions_first() -> None:
    """What they leave of the budget is the prompts'."""
    steps = slots(2000, 2000, 700, decode=48)

    assert read((4700, 0, 2), steps=steps) == [2000, 2000, 700]


def test_who_came_first_is_read_first() -> None:
    """The next one gets what is left of the step, and the rest in the following ones."""
    steps = slots(2048, 2048, 404)

    assert read((1500, 0, 0), (3000, 0, 2), steps=steps) == [2048, 2048, 404]


def test_lengths_decide_between_two_that_fit() -> None:
    """Who came as a step began may be in it or in the next."""
    late = slots(1000, 900, 0)
    shared = slots(1900, 0, 0)

    assert read((1000, 0, 0), (900, 0, 1), steps=late) == [1000, 900, 0]
    assert read((1000, 0, 0), (900, 0, 0), steps=shared) == [1900, 0, 0]


def test_lengths_alone_decide_where_nothing_fits() -> None:
    """A first token that came sooner than the budget allows: it is another than thought."""
    steps = slots(3000, 3000)

    assert in_turn(steps, [Prompt(6000, 0, 1)], 2048, [0, 0]) is None
    assert read((6000, 0, 1), steps=steps) == pytest.approx([3000, 3000])


def test_one_of_many_may_seem_to_be_a_step_off() -> None:
    """Not every stream is placed right; the others still tell."""
    steps = slots(*[2000] * 10)
    prompts = [(2000, place, place) for place in range(9)] + [(2000, 9, 8)]

    assert read(*prompts, steps=steps)[:8] == [2000] * 8


def test_chance_lengths_get_nothing() -> None:
    """Steps that are but a little too long are so by chance."""
    steps = [Slot(0, 1, 0, 1e6), Slot(1, 2, 0, 60e6), Slot(2, 3, 0, 1e6)]

    assert by_excess(steps, [Prompt(1500, 0, 2)], TOKEN_NS) == pytest.approx([0, 1500, 0])


def test_without_any_length_the_last_step_has_it() -> None:
    """Where the first token came from."""
    assert by_excess([Slot(0, 1, 0, 0.0), Slot(1, 2, 0, 0.0)], [Prompt(7, 0, 1)], TOKEN_NS) == [0, 7]


def test_of_a_crowd_lengths_must_do() -> None:
    """Trying would take too long."""
    steps = slots(*[1000] * (MANY + 1))
    prompts = [(1000, place, place) for place in range(MANY + 1)]

    assert read(*prompts, steps=steps, budget=1) == pytest.approx([1000] * (MANY + 1))
