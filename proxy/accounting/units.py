"""Units and clocks as types: whole microjoules and whole monotonic nanoseconds.

Sums are made of integers only, so they are exact. Floats appear at the border, for people.
"""

from typing import NewType

Microjoules = NewType("Microjoules", int)
"""Energy, 1e-6 J. Never negative in an account."""

Nanoseconds = NewType("Nanoseconds", int)
"""An instant or a span on this process's monotonic clock; not comparable between processes."""

SECOND = Nanoseconds(1_000_000_000)
MILLISECOND = Nanoseconds(1_000_000)


def from_millijoules(counter: int) -> Microjoules:
    """NVML and DCGM count whole millijoules."""
    return Microjoules(counter * 1_000)


def from_watts(power_w: float, span: Nanoseconds) -> Microjoules:
    """Energy of a constant power over a span: W * ns = nJ."""
    return Microjoules(round(power_w * span / 1_000))


def joules(energy: int) -> float:
    """For people and Prometheus; never for sums."""
    return energy / 1e6


def seconds(span: int) -> float:
    """For people and Prometheus; never for sums."""
    return span / 1e9


def watts(energy: int, span: int) -> float | None:
    """Mean power of `energy` microjoules over `span` nanoseconds; undefined for no time."""
    return energy * 1_000 / span if span > 0 else None
