"""Evens out what a part-time sensor got wrong from window to window, without ever touching a window's sum.

A board that looks 25 of every 100 ms reads one window too high and the next too low, whatever ran in them. Divided
window by window, that error lands on whoever happened to be there. With weights that have proved right it is better
that a request ends up with the joules per predicted joule of the last half minute: in each window it claims what it
was predicted at that level, less what it was charged too much before. What the reading has beyond the claims, or
lacks, goes first to those that run on, within narrow bounds, because later windows will even it out, and then to all
in proportion to what they did. Every window still adds up to its reading, and who did nothing in it pays nothing.

Source of the constants: our own bench (tests/accuracy). With the weights known, WAPE of the step log on a part-time
sensor is 2.1 and 2.5 (concurrency 4 and 28) with windows of 0.1 s, 1.5 and 1.5 with 0.5 s and charges kept level among
those present, and 1.2 and 1.4 as it is done here; 1.3 at 28 is what the noise of single steps leaves.
"""

from collections.abc import Sequence
from math import exp, inf

from proxy.accounting.units import SECOND, Nanoseconds

MEMORY_S = 10.0
"""How far back a request's charges are compared with its predictions."""
LEVEL_S = 30.0
"""How far back the common level reaches: long for the sensor, short for a chip that gets warm."""
BAND = 0.02
"""How far from the level the reading's error may push one that runs on, before all must bear it."""


class TrueUp:
    """What the requests of one meter were predicted and were charged of late, both fading."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, float, Nanoseconds]] = {}
        self._predicted = self._charged = 0.0
        self._at = Nanoseconds(0)

    def claims(
        self,
        rows: Sequence[str],
        predicted: Sequence[float],
        active: float,
        at: Nanoseconds,
        *,
        staying: Sequence[bool] = (),
    ) -> list[float]:
        """Non-negative claims on a window's active energy, in its unit; they replace `predicted` as weights.

        rows: names, parallel to `predicted` (joules, any scale); what is longer in `predicted` has no past.
        at: the window's end. staying: which rows run on after it.
        """
        whole = sum(predicted)
        level = self._level(whole, active, at)
        if not 0 < level < inf or not whole > 0:
            return list(predicted)
        past = self._faded(rows, at)
        past += [(0.0, 0.0)] * (len(predicted) - len(rows))
        due = [level * (before + now) for (before, _), now in zip(past, predicted, strict=True)]
        claims = [
            owed - charged if now > 0 and owed > charged else 0.0
            for owed, (_, charged), now in zip(due, past, predicted, strict=True)
        ]
        self._push(claims, due, past, active, [i for i, stays in enumerate(staying) if stays and predicted[i] > 0])
        over = active - sum(claims)
        if over > 0:
            # Not in proportion to claims: a newcomer's is all its own, and it must not bear the others' past.
            claims = [claim + over * (now / whole) for claim, now in zip(claims, predicted, strict=True)]
        return claims if 0 < sum(claims) < inf else list(predicted)

    def _level(self, predicted: float, active: float, at: Nanoseconds) -> float:
        """Energy per predicted joule of the last half minute, this window included; 0 where nothing was predicted."""
        left = exp(min(0, self._at - at) / SECOND / LEVEL_S)
        self._predicted = left * self._predicted + predicted
        self._charged = left * self._charged + active
        self._at = at
        return self._charged / self._predicted if self._predicted > 0 else 0.0

    @staticmethod
    def _push(
        claims: list[float],
        due: Sequence[float],
        past: Sequence[tuple[float, float]],
        active: float,
        staying: Sequence[int],
    ) -> None:
        """Gives those that stay what the claims leave over, or takes from them what is missing, within the band."""
        over = active - sum(claims)
        room = []
        for index in staying:
            claim, owed = claims[index], due[index]
            off = past[index][1] + claim - owed
            space = BAND * owed - off if over > 0 else min(claim, BAND * owed + off)
            room.append(space if space > 0 else 0.0)
        whole = sum(room)
        if 0 < whole < inf:
            part = max(-1.0, min(1.0, over / whole))
            for index, space in zip(staying, room, strict=True):
                claims[index] = max(0.0, claims[index] + part * space)

    def _faded(self, rows: Sequence[str], at: Nanoseconds) -> list[tuple[float, float]]:
        """What each was predicted and charged before, as much of it as is left at `at`."""
        known, nothing = self._known, (0.0, 0.0, at)
        # Nearly all were charged last in the window before, so that as much is left of each.
        since, left, found = at, 1.0, []
        for row in rows:
            predicted, charged, then = known.get(row, nothing)
            if then != since:
                since, left = then, exp(min(0, then - at) / SECOND / MEMORY_S)
            found.append((predicted * left, charged * left))
        return found

    def charged(self, row: str, predicted: float, energy: float, at: Nanoseconds) -> None:
        """Notes what one request was predicted and charged in the window that ends at `at`."""
        self.all_charged([row], [predicted], [energy], at)

    def all_charged(
        self, rows: Sequence[str], predicted: Sequence[float], energies: Sequence[float], at: Nanoseconds
    ) -> None:
        """The same of several; what is longer than `rows` is not remembered."""
        known = self._known
        for row, (before, charged), joules, energy in zip(
            rows, self._faded(rows, at), predicted, energies, strict=False
        ):
            known[row] = before + joules, charged + energy, at

    def forget(self, row: str) -> None:
        """The request is over."""
        self._known.pop(row, None)
