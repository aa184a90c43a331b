"""The ends of steps: where tokens arrive unevenly, steps about as long as their neighbours are likelier."""

from random import Random

import pytest

from proxy.accounting.step_ends import FEWEST, Timed, smoothed, usual_lengths

MS = 1e6


def row(*ends: float, plain: bool = True, tokens: int = 1) -> list[Timed]:
    """Steps that follow one another, the first from 0; milliseconds."""
    starts = [0.0, *ends[:-1]]
    return [
        Timed(start * MS, end * MS, tokens, follows=True, plain=plain) for start, end in zip(starts, ends, strict=True)
    ]


def test_even_steps_stay() -> None:
    """Where tokens say what is likely anyway."""
    assert smoothed(row(*range(10, 200, 10))) == pytest.approx([end * MS for end in range(10, 200, 10)])


@pytest.mark.parametrize("length", [3.0, 8.0, 20.0])
def test_uneven_arrivals_are_evened_out(length: float) -> None:
    """To a half of the error at most, whatever a step's length."""
    random, true = Random(3), [length * number for number in range(1, 100)]
    arrived = [end + random.gauss(0, 6) for end in true]
    found = [end / MS for end in smoothed(row(*arrived))]

    def error(ends: list[float]) -> float:
        return sum((one - other) ** 2 for one, other in zip(ends, true, strict=True)) ** 0.5

    assert error(found) < error(arrived) / 2


def test_steps_with_prompts_end_when_their_tokens_say() -> None:
    """They may be of any length."""
    ends = [10.0, 90.0, 95.0, 200.0, 210.0]

    assert smoothed(row(*ends, plain=False)) == pytest.approx([end * MS for end in ends])


def test_a_step_with_a_prompt_stands_between_the_others() -> None:
    """Its neighbours do not make it short."""
    steps = row(*(10.0 * n for n in range(1, 11)), 190.0, *(190 + 10.0 * n for n in range(1, 11)))
    steps[10].plain = False
    ends = smoothed(steps)

    assert ends[10] - ends[9] == pytest.approx(90 * MS)


def test_too_few_in_a_row_tell_no_length() -> None:
    """Chance would be taken for it."""
    steps = row(*(10.0 * n for n in range(1, FEWEST)))

    assert usual_lengths(steps) == [None] * (FEWEST - 1)
    assert usual_lengths(row(*(10.0 * n for n in range(1, FEWEST + 1)))) == pytest.approx([10 * MS] * FEWEST)


def test_none_are_none() -> None:
    """Nothing arrived."""
    assert smoothed([]) == []
