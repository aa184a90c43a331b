"""What of an engine's work is priced, in the order of every fit's unknowns."""

from operator import mul

from proxy.accounting.activity import Work
from proxy.accounting.weights import Roofline, Weights

TERMS = ("step", "experts", "prefill", "attention", "decode", "context")
"""Weights that are fitted."""


def amounts_of(work: Work) -> tuple[float, ...]:
    """Units of work of each of TERMS."""
    return (work.steps, work.experts, work.prefill, work.prefill_context, work.decode, work.decode_context)


def cost_of(source: Weights | Roofline) -> tuple[float, ...]:
    """What a unit of each of TERMS costs: joules of weights, seconds of a roofline."""
    return (source.step, source.experts, source.prefill, source.attention, source.decode, source.context)


def terms_of(weights: Weights, work: Work) -> tuple[float, ...]:
    """Predicted joules of each of TERMS."""
    return tuple(map(mul, cost_of(weights), amounts_of(work)))
