"""How long an engine's work really takes, and what its prior lacks where that is longer than a roofline says.

The joules of a roofline are those of bytes and FLOPs in the time that they need. Small models, slow hosts and kernels
that reach little of the peak take longer, and that time costs energy as well. How much power flows in it nobody knows:
at least the static, at most the limit. So the prior gets the middle, and is held less firmly by as much as a power that
may be anywhere between has for its standard deviation:

    weight_k = roofline_k + (static + limit) / 2 * max(0, t_k - t0_k)       t0_k: the roofline's time for a unit of k

t_k is learnt: the time in which anything ran is sum_k t_k * x_k of the work done in it, whatever the meter said, so
some seconds of load tell it far better than a sensor could. Minimised over t_k >= 0 are the squares of what is missed
over the time, plus HELD_S * (part of all time that t_k - t0_k makes)^2: terms that the load does not tell apart share
what is missing evenly. A standard error is taken off each t_k, so that chance is not made good. Work that takes less
than t0_k costs no less: it may be hidden behind other work.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import exp, inf, sqrt
from typing import Any, NamedTuple

from proxy.accounting.activity import Work
from proxy.accounting.ridge import dot, inverse, solve
from proxy.accounting.terms import TERMS, amounts_of, cost_of
from proxy.accounting.units import Nanoseconds, seconds
from proxy.accounting.weights import Roofline, Weights

HELD_S = 0.3
"""So many seconds of load count as much as the roofline's times."""
MEMORY_S = 300.0
"""Clocks, batches and versions of an engine change."""
SURE = 1.0
"""Standard errors."""
SWEEPS = 50


class MadeGood(NamedTuple):
    """A prior with the energy of all the time it takes.

    doubts: relative standard deviation of each of TERMS for want of knowing the power in the time that was added.
    """

    weights: Weights
    doubts: Sequence[float]


class BusyTime:
    """One engine's times, as they are learnt. prior: whose joules are to be made good."""

    def __init__(self, prior: Weights) -> None:
        self._prior = prior
        size = len(TERMS)
        self._square = [[0.0] * size for _ in range(size)]
        self._units = [0.0] * size
        self._busy_s = self._stretches = 0.0
        self._shares: dict[int, float] = {}

    def observe(self, work: Work, busy_ns: Nanoseconds) -> None:
        """All the work of a step, or of a stretch of time, and for how long of it anything ran."""
        if self._prior.roofline is None:
            return
        busy_s, units = seconds(busy_ns), amounts_of(work)
        if busy_s <= 0 or not any(units):
            return
        fade = exp(-busy_s / MEMORY_S)
        self._busy_s = fade * self._busy_s + busy_s
        self._stretches = fade * self._stretches + 1
        self._units = [fade * known + new for known, new in zip(self._units, units, strict=True)]
        for left, row in zip(units, self._square, strict=True):
            part = left / busy_s
            for j, right in enumerate(units):
                row[j] = fade * row[j] + part * right

    def seconds_of(self, roofline: Sequence[float]) -> list[float]:
        """What a unit of each term takes for certain; of those that never ran what the roofline says."""
        used = [i for i, units in enumerate(self._units) if units > 0]
        unit = [self._busy_s / self._units[i] for i in used]
        square = [
            [self._square[i][j] * left * right for j, right in zip(used, unit, strict=True)]
            for i, left in zip(used, unit, strict=True)
        ]
        # With squares over the time what the times are asked to explain is the units themselves.
        cross = [self._busy_s] * len(used)
        shares = solve(
            square,
            cross,
            [HELD_S] * len(used),
            [roofline[i] / one for i, one in zip(used, unit, strict=True)],
            bounds=[(0.0, inf)] * len(used),
            start=[self._shares.get(i, 0.0) for i in used],
            sweeps=SWEEPS,
        )
        self._shares = dict(zip(used, shares, strict=True))
        found = list(roofline)
        for i, one, share, error in zip(used, unit, shares, self._errors(square, shares), strict=True):
            found[i] = one * max(0.0, share - SURE * error)
        return found

    def _errors(self, square: Sequence[Sequence[float]], shares: Sequence[float]) -> list[float]:
        """Standard error of each share, by what all of them together miss."""
        explained = sum(share * dot(row, shares) for share, row in zip(shares, square, strict=True))
        missed = self._busy_s - 2 * self._busy_s * sum(shares) + explained
        noise = max(0.0, missed) / max(1.0, self._stretches - len(shares))
        firm = [[value + HELD_S * (i == j) for j, value in enumerate(row)] for i, row in enumerate(square)]
        return [sqrt(noise * max(0.0, row[i])) for i, row in enumerate(inverse(firm))]

    def made_good(self) -> MadeGood:
        """The prior by what was observed; as it is where nothing tells.

        On the level of the prior: it predicts as many joules for all that has run.
        """
        prior, roofline = self._prior, self._prior.roofline
        if roofline is None or not self._busy_s:
            return MadeGood(prior, [0.0] * len(TERMS))
        known, plain = cost_of(roofline), cost_of(prior)
        takes = [max(before, now) for before, now in zip(known, self.seconds_of(known), strict=True)]
        longer = [now - before for before, now in zip(known, takes, strict=True)]
        whole = [joules + roofline.middle_w * more for joules, more in zip(plain, longer, strict=True)]
        level = dot(plain, self._units) / dot(whole, self._units)
        doubts = [
            roofline.doubt_w * more / joules if joules else 0.0 for more, joules in zip(longer, whole, strict=True)
        ]
        told: dict[str, Any] = {name: level * joules for name, joules in zip(TERMS, whole, strict=True)}
        return MadeGood(replace(prior, roofline=_scaled(roofline, takes, level), **told), doubts)


def _scaled(roofline: Roofline, takes: Sequence[float], level: float) -> Roofline:
    """With other times, and with its watts on another level."""
    times = dict(zip(TERMS, takes, strict=True))
    return replace(roofline, static_w=level * roofline.static_w, limit_w=level * roofline.limit_w, **times)
