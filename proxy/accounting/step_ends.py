"""When steps really ended, whose tokens arrive unevenly: those that hold no prompt take about equally long.

Minimised over the ends e are  sum n_k * (e_k - a_k)^2 / UNEVEN^2  +  sum (e_k - e_(k-1) - d_k)^2 / (EVEN * d_k)^2
with a_k the mean arrival of n_k tokens and d_k the mean length of the steps about k; the second sum only over steps
without a prompt that follow one another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.accounting.joint_steps import UNEVEN

EVEN = 0.2
"""Relative, of the length of a step without a prompt against those about it. Held firmer, steps of unlike contexts are
drawn together, which hides what context costs; held less, looks tell too little while few streams run."""
ABOUT = 8
"""Steps before and after one whose mean length is its own."""
FEWEST = 4
"""Steps in a row before they say how long one takes."""


@dataclass(slots=True)
class Timed:
    """A step as it arrived. follows: another one ended where it starts. plain: it holds no prompt. tokens: arrived."""

    start: float
    end: float
    tokens: int
    follows: bool
    plain: bool


def smoothed(steps: Sequence[Timed]) -> list[float]:
    """The ends of steps, in order. What the first one follows is taken to have ended where it says."""
    size, lengths = len(steps), usual_lengths(steps)
    diagonal = [step.tokens / UNEVEN**2 for step in steps]
    right = [step.tokens / UNEVEN**2 * step.end for step in steps]
    beside = [0.0] * size
    for i, length in enumerate(lengths):
        if length is not None:
            firm = 1 / (EVEN * length) ** 2
            diagonal[i] += firm
            right[i] += firm * (length if i else steps[0].start + length)
            if i:
                diagonal[i - 1] += firm
                beside[i] = -firm
                right[i - 1] -= firm * length
    for i in range(1, size):
        part = beside[i] / diagonal[i - 1]
        diagonal[i] -= part * beside[i]
        right[i] -= part * right[i - 1]
    ends, following = [0.0] * size, 0.0
    for i in range(size - 1, -1, -1):
        ends[i] = following = (right[i] - (beside[i + 1] * following if i + 1 < size else 0.0)) / diagonal[i]
    return ends


def usual_lengths(steps: Sequence[Timed]) -> list[float | None]:
    """Mean length of the plain steps about each plain one; None for the others, and where there are too few."""
    found: list[float | None] = [None] * len(steps)
    first = 0
    while first < len(steps):
        last = first
        while last < len(steps) and steps[last].plain and steps[last].follows:
            last += 1
        if last - first >= FEWEST:
            times = [steps[first].start, *(step.end for step in steps[first:last])]
            for place in range(last - first):
                low, high = max(0, place - ABOUT), min(last - first, place + ABOUT + 1)
                length = (times[high] - times[low]) / (high - low)
                found[first + place] = length if length > 0 else None
        first = last + 1
    return found
