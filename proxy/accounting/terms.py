"""What of an engine's work is priced, in the order of every fit's unknowns."""

from proxy.accounting.activity import Work
from proxy.accounting.weights import Weights

TERMS = ("step", "experts", "prefill", "attention", "decode", "context")
"""Weights that are fitted."""


def amounts_of(work: Work) -> tuple[float, ...]:
    """Units of work of each of TERMS."""
    return (work.steps, work.experts, work.prefill, work.prefill_context, work.decode, work.decode_context)


def terms_of(weights: Weights, work: Work) -> tuple[float, ...]:
    """Predicted joules of each of TERMS."""
    return (
        weights.step * work.steps,
        weights.experts * work.experts,
        weights.prefill * work.prefill,
        weights.attention * work.prefill_context,
        weights.decode * work.decode,
        weights.context * work.decode_context,
    )
