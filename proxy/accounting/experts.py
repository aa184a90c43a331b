"""Who pays for the experts of a mixture that one step had to stream: the exact Shapley value.

The more tokens a step holds, the more experts it touches, but each is streamed once: with a part r touched by each
token, t tokens touch f(t) = 1 - (1-r)^t of them (uniform routing). For this game the Shapley value is an integral
over the multilinear extension (Owen 1972): sequence i gains g_i * prod_{j != i} (1 - x*g_j) when every other one is
there with probability x, where g = 1 - (1-r)^t.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from operator import sub

from proxy.accounting.crowd import Crowd, Presence, comings
from proxy.accounting.units import Nanoseconds

_NODES = (0.0694318442, 0.3300094782, 0.6699905218, 0.9305681558)
_FACTORS = (0.1739274226, 0.3260725774, 0.3260725774, 0.1739274226)
"""Gauss and Legendre's four points on [0, 1]: exact up to 8 sequences, below 1 % off for hundreds."""


def shares(tokens: Iterable[int], touched: float) -> Mapping[int, float]:
    """Part of all experts that one sequence pays for, by how many tokens it has in the step.

    tokens: of each sequence of the step. touched: part of the experts that one token touches, in (0, 1].
    """
    return _shares(tuple(sorted(Counter(tokens).items())), touched)


@lru_cache(maxsize=4096)
def _shares(held: tuple[tuple[int, int], ...], touched: float) -> Mapping[int, float]:
    gains = {tokens: 1 - (1 - touched) ** tokens for tokens, _ in held}
    found = dict.fromkeys(gains, 0.0)
    for x, factor in zip(_NODES, _FACTORS, strict=True):
        everybody = 1.0
        for tokens, sequences in held:
            everybody *= (1 - x * gains[tokens]) ** sequences
        for tokens, gain in gains.items():
            found[tokens] += factor * gain * everybody / (1 - x * gain)
    # What the four points miss is spread evenly, so that the parts add up to what the step touches.
    whole = 1 - (1 - touched) ** sum(tokens * sequences for tokens, sequences in held)
    said = sum(found[tokens] * sequences for tokens, sequences in held)
    return {tokens: part * whole / said for tokens, part in found.items()} if said > 0 else found


CHUNK = 512
"""Prompt tokens of one sequence in a step of its prefill: enough to touch nearly all experts."""


class Streamed:
    """The part of the experts that one sequence pays for without a step log, over the steps of a window.

    Steps in which somebody reads a prompt touch nearly all experts, and the reader pays for most of that.
    readers: who reads one, and when; a part of a sequence for one that does so in a part of the steps. positions: that
    a sequence computes in a step while it decodes.
    """

    def __init__(self, crowd: Crowd, readers: Sequence[Presence], touched: float, positions: float = 1.0) -> None:
        change = comings(crowd.edges, readers)
        self._edges = sorted(change)
        # From the first edge to each: steps, and the parts over them of one that decodes and of one that reads.
        self._sums = [(0.0, 0.0, 0.0)]
        reading = 0.0
        for edge, following in pairwise(self._edges):
            reading += change[edge]
            steps, shares, _ = crowd.between(edge, following)
            held = steps / shares if shares > 0 else 1.0
            decodes, reads = _parts(held, reading / crowd.engines, max(1, round(positions)), touched)
            done, decoder, reader = self._sums[-1]
            self._sums.append((done + steps, decoder + steps * decodes, reader + steps * reads))

    def decoding(self, start: Nanoseconds, end: Nanoseconds) -> float:
        """Mean over the steps in a span, of a sequence that decodes."""
        done, decoder, _ = self._between(start, end)
        return decoder / done if done > 0 else 0.0

    def reading(self, start: Nanoseconds, end: Nanoseconds) -> float:
        """The same of one that reads its prompt."""
        done, _, reader = self._between(start, end)
        return reader / done if done > 0 else 0.0

    def _between(self, start: Nanoseconds, end: Nanoseconds) -> tuple[float, ...]:
        return tuple(map(sub, self._until(end), self._until(start)))

    def _until(self, instant: Nanoseconds) -> tuple[float, ...]:
        edges = self._edges
        number = bisect_right(edges, instant, 0, len(edges) - 1) - 1
        part = (instant - edges[number]) / (edges[number + 1] - edges[number])
        return tuple(
            low + part * (high - low) for low, high in zip(self._sums[number], self._sums[number + 1], strict=True)
        )


def _parts(held: float, reading: float, positions: int, touched: float) -> tuple[float, float]:
    """Of one that decodes and of one that reads, in a step of so many, of which so many read in the mean."""
    fewer, over = divmod(reading, 1.0)
    decodes, reads = _whole_parts(round(held), round(fewer), positions, touched)
    if over > 1e-9:
        decodes_more, reads_more = _whole_parts(round(held), round(fewer) + 1, positions, touched)
        # Who reads has the others beside it as often as there is somebody to read.
        reads = (reads * (1 - over) * fewer + reads_more * over * (fewer + 1)) / reading
        decodes += over * (decodes_more - decodes)
    return decodes, reads


def _whole_parts(held: int, readers: int, positions: int, touched: float) -> tuple[float, float]:
    decoders = max(1, held - readers)
    step = [(tokens, count) for tokens, count in ((positions, decoders), (CHUNK, readers)) if count]
    found = _shares(tuple(step), touched)
    return found[positions], found.get(CHUNK, 0.0)
