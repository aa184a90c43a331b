"""Ridge regression towards aims, inside a box: the solver behind what is learnt about weights.

Minimises  m' A m - 2 b' m + sum_k h_k * (m_k - a_k)^2  over factors m within bounds: A and b are normal equations, a
the aims and h how firmly each is held to its own. Coordinate descent: the function is convex and the region a box,
so each sweep comes nearer to the one minimum.
"""

from collections.abc import Sequence

NARROWEST, WIDEST = 1 / 3, 3.0
"""Trust region: so far from its aim a factor may be."""
SETTLED = 1e-7
"""A sweep that moves nothing by more than this part of the largest factor is the last."""


def solve(
    square: Sequence[Sequence[float]],
    cross: Sequence[float],
    held: Sequence[float],
    aims: Sequence[float],
    *,
    bounds: Sequence[tuple[float, float]],
    start: Sequence[float],
    sweeps: int,
) -> list[float]:
    """The factors after at most `sweeps` sweeps from `start`. held: above 0 each."""
    factors = list(start)
    for _ in range(sweeps):
        moved = 0.0
        for i, (firmly, aim, (low, high)) in enumerate(zip(held, aims, bounds, strict=True)):
            others = sum(square[i][j] * m for j, m in enumerate(factors) if j != i)
            best = (cross[i] - others + firmly * aim) / (square[i][i] + firmly)
            best = min(high, max(low, best))
            moved = max(moved, abs(best - factors[i]))
            factors[i] = best
        if moved <= SETTLED * max(map(abs, factors)):
            break
    return factors


def solve_near(
    square: Sequence[Sequence[float]],
    cross: Sequence[float],
    stiffness: Sequence[float],
    aims: Sequence[float],
    *,
    start: Sequence[float],
    sweeps: int,
    region: tuple[float, float] = (NARROWEST, WIDEST),
) -> list[float]:
    """The same with lambda_k * (m_k/a_k - 1)^2 for what holds the factors, and a region around the aims."""
    low, high = region
    held = [firmly / aim**2 for firmly, aim in zip(stiffness, aims, strict=True)]
    bounds = [(low * aim, high * aim) for aim in aims]
    return solve(square, cross, held, aims, bounds=bounds, start=start, sweeps=sweeps)


def inverse(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    """Of a symmetric positive definite matrix, by Gauss and Jordan. Raises ZeroDivisionError for a singular one."""
    size = len(matrix)
    rows = [[*map(float, row), *(float(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for i, row in enumerate(rows):
        pivot = row[i]
        rows[i] = row = [value / pivot for value in row]
        for j, other in enumerate(rows):
            if j != i and other[i]:
                rows[j] = [value - other[i] * own for value, own in zip(other, row, strict=True)]
    return [row[size:] for row in rows]


def dot(left: Sequence[float], right: Sequence[float]) -> float:
    """Sum of products."""
    return sum(a * b for a, b in zip(left, right, strict=True))
