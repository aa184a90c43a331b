"""How much later than it was made a token arrives here, so that a request's work is placed beside its tokens.

A token takes its way through detokeniser, HTTP server and network; its request took the way there. Both together
are the least that a short prompt's first token ever took beyond one step of the engine, which the pace of its own
later tokens shows. Source: research on time alignment (6.7).
"""

from collections import deque

from proxy.accounting.flight import Flight
from proxy.accounting.units import MILLISECOND, SECOND, Nanoseconds
from proxy.accounting.weights import Weights

REMEMBERED = 64
LEAST = 8
"""Requests, before anything is said; the least of fewer may be nobody's."""
MOST = Nanoseconds(300 * MILLISECOND)
SHORT_PROMPT = 1024
"""Tokens to compute; a longer prefill's time is too uncertain to be taken off."""


class ArrivalLag:
    """The lag of one engine's tokens, from its latest finished streams."""

    def __init__(self) -> None:
        self._seen: deque[int] = deque(maxlen=REMEMBERED)
        self._finished = 0
        self.lag = Nanoseconds(0)

    def finished(self, flight: Flight, weights: Weights) -> None:
        """Takes in a request that is over."""
        if flight.outcome != "ok":
            return
        ttft, tpot, computed = flight.ttft_ns, flight.tpot_ns, flight.computed
        if ttft is None or tpot is None or computed > SHORT_PROMPT:
            return
        self._seen.append(ttft - tpot - round(weights.token_s * computed * SECOND))
        self._finished += 1
        if len(self._seen) >= LEAST and self._finished % LEAST == 0:
            # Not the very least: jitter makes some tokens early.
            early = sorted(self._seen)[len(self._seen) // 8]
            self.lag = Nanoseconds(max(0, min(MOST, early)))
