"""Who pays for the experts of a mixture that one step had to stream: the exact Shapley value.

The more tokens a step holds, the more experts it touches, but each is streamed once: with a part r touched by each
token, t tokens touch f(t) = 1 - (1-r)^t of them (uniform routing). For this game the Shapley value is an integral
over the multilinear extension (Owen 1972): sequence i gains g_i * prod_{j != i} (1 - x*g_j) when every other one is
there with probability x, where g = 1 - (1-r)^t.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from proxy.accounting.activity import Work

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


def infer(works: Sequence[Work], touched: float, held: float) -> None:
    """Sets each work's part of the experts without a step log, from its parts of the steps.

    `experts` holds at first that part of its `steps` in which it read its prompt. held: mean sequences in a step.
    Steps in which somebody reads a prompt touch nearly all experts, and the reader pays for most of that.
    """
    steps, reading = sum(work.steps for work in works), sum(work.experts for work in works)
    if steps <= 0:
        return
    n = max(1, round(held))
    beside_reader = min(1.0, reading * n / steps)
    alone = shares([1] * n, touched)[1]
    with_reader = shares([1] * (n - 1) + [CHUNK], touched)
    decoder = (1 - beside_reader) * alone + beside_reader * with_reader.get(1, alone)
    for work in works:
        work.experts = n * ((work.steps - work.experts) * decoder + work.experts * with_reader[CHUNK])
