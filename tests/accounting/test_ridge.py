"""
The solver finds the minimum of the ridge inside its box.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.regression import Regression
from proxy.accounting.ridge import NARROWEST, WIDEST, inverse, solve_near

SOFT = [1e-9] * 3
rows = st.lists(st.lists(st.floats(0.1, 2.0), min_size=3, max_size=3), min_size=6, max_size=12)


def normal(design: list[list[float]], factors: list[float]) -> tuple[list[list[float]], list[float]]:
    square = [[sum(row[i] * row[j] for row in design) for j in range(3)] for i in range(3)]
    return square, [sum(a * m for a, m in zip(line, factors, strict=True)) for line in square]


@given(rows, st.lists(st.floats(0.5, 2.0), min_size=3, max_size=3))
def test_factors_inside_the_region_are_found(design: list[list[float]], truth: list[float]) -> None:
    """What the factors found predict is what the true ones do."""
    square, cross = normal(design, truth)

    found = solve_near(square, cross, SOFT, [1.0] * 3, start=[1.0] * 3, sweeps=100_000)

    for row in design:
        assert sum(m * x for m, x in zip(found, row, strict=True)) == pytest.approx(
            sum(m * x for m, x in zip(truth, row, strict=True)), rel=1e-2
        )


def test_factors_beyond_the_region_end_at_its_edge() -> None:
    """And never above or below, whatever the data say."""
    square, cross = normal([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [100.0, 1.0, 0.0])

    assert solve_near(square, cross, SOFT, [2.0] * 3, start=[2.0] * 3, sweeps=10) == pytest.approx(
        [2 * WIDEST, 1.0, 2 * NARROWEST]
    )


def test_without_data_the_factors_are_the_scale() -> None:
    """The prior, whatever the start."""
    zero = [[0.0] * 3 for _ in range(3)]

    assert solve_near(zero, [0.0] * 3, [5.0] * 3, [0.4] * 3, start=[0.2, 0.4, 1.2], sweeps=10) == pytest.approx(
        [0.4] * 3
    )


def test_the_online_fit_solves_the_same_problem() -> None:
    """Regression keeps normal equations and asks for the same minimum."""
    online = Regression()
    for x, energy_j in (((3.0, 0, 1.0, 0.1, 0.5, 0.2), 6.0), ((1.0, 0, 4.0, 0.4, 0.2, 0.1), 5.0)) * 4:
        online.add(x, energy_j, 2.0, 0.25)
    for _ in range(200):
        online.solve()

    from proxy.accounting.regression import STIFFNESS

    found = solve_near(online._square, online._cross, STIFFNESS, [online.scale] * 6, start=[1.0] * 6, sweeps=5_000)
    assert found == pytest.approx(online.factors, rel=1e-4)


def test_the_inverse_is_one() -> None:
    """Times the matrix it gives the unit matrix."""
    matrix = [[4.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 2.0]]
    found = inverse(matrix)

    product = [[sum(matrix[i][k] * found[k][j] for k in range(3)) for j in range(3)] for i in range(3)]
    assert [*product[0], *product[1], *product[2]] == pytest.approx([1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0])
