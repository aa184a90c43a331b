"""Ridge regression towards a scale, inside a trust region: the solver behind what is learnt about weights.

Minimises  m' A m - 2 b' m + sum_k lambda_k * (m_k/g - 1)^2  over factors m with g * NARROWEST <= m_k <= g * WIDEST,
where A and b are normal equations and g is the scale that all factors have in common. Coordinate descent: the function
is convex and the region a box, so each sweep comes nearer to the one minimum.
"""

from collections.abc import Sequence

NARROWEST, WIDEST = 1 / 3, 3.0
"""Trust region: so far from the common scale a factor may be."""
SETTLED = 1e-7
"""A sweep that moves nothing by more than this part of the scale is the last."""


def solve(
    square: Sequence[Sequence[float]],
    cross: Sequence[float],
    stiffness: Sequence[float],
    *,
    scale: float,
    start: Sequence[float],
    sweeps: int,
    region: tuple[float, float] = (NARROWEST, WIDEST),
) -> list[float]:
    """The factors after at most `sweeps` sweeps from `start`. stiffness: lambda, above 0 each."""
    low, high = region
    factors = list(start)
    for _ in range(sweeps):
        moved = 0.0
        for i, held in enumerate(stiffness):
            others = sum(square[i][j] * m for j, m in enumerate(factors) if j != i)
            best = (cross[i] - others + held / scale) / (square[i][i] + held / scale**2)
            best = min(high * scale, max(low * scale, best))
            moved = max(moved, abs(best - factors[i]))
            factors[i] = best
        if moved <= SETTLED * scale:
            break
    return factors


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
