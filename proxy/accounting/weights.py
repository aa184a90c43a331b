"""What one unit of work costs, in predicted joules: the roofline prior.

Only the ratios of these weights matter for who pays; the scale of every figure is the meter's.
Energy of an engine step is affine in what it holds: a fixed part (weights streamed once, static power)
and each sequence's own work. Constants: research on public H100 measurements (Llama-3.1-8B, bf16):
0.14 nJ per byte streamed, 1.1 pJ per FLOP, 125 W static power while busy, 30 µs per prefill or decode position.
"""

from dataclasses import dataclass

JOULES_PER_BYTE = 0.14e-9
JOULES_PER_FLOP = 1.1e-12
STATIC_POWER_W = 125.0
SKINNY_MATMUL = 2.0
"""A decode position costs about twice a prefill position: skinny matrix products, sampling, launches."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the prior needs to know of a model.

    active_parameters: parameters touched per token; weight_bytes: all weights streamed per step.
    kv_bytes_per_token: keys and values of one token over all layers.
    attention_flops: FLOPs per pair of (query token, context token) over all layers: 4 * layers * heads * head_dim.
    """

    active_parameters: float
    weight_bytes: float
    kv_bytes_per_token: float
    attention_flops: float


LLAMA_8B = ModelShape(8.03e9, weight_bytes=16.06e9, kv_bytes_per_token=131_072, attention_flops=524_288)
"""Llama-3.1-8B in bf16: 32 layers, 32 heads of 128, 8 KV heads; the default when a model says nothing of itself."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Predicted joules per unit of work.

    prefill (a): per uncached prompt token; attention (q): per prompt token and token of its context;
    decode (d): per decode position; context (c): per decode position and token of its context;
    step (F0): per engine step, shared equally by the sequences in it.
    step_s: time of an empty step; token_s: what each position adds. Seconds; they place work in time where
    the engine's own times are unknown.
    """

    prefill: float
    attention: float
    decode: float
    context: float
    step: float
    step_s: float
    token_s: float


def roofline_prior(shape: ModelShape) -> Weights:
    """The weights a model's shape implies on an H100-class GPU; other GPUs differ in scale, hardly in ratio."""
    step_s = 1.4 * shape.weight_bytes / 3.35e12 + 0.2e-3
    token_s = 30e-6 * shape.active_parameters / LLAMA_8B.active_parameters
    prefill = JOULES_PER_FLOP * 2 * shape.active_parameters
    return Weights(
        prefill=prefill,
        attention=JOULES_PER_FLOP * shape.attention_flops,
        decode=prefill * SKINNY_MATMUL,
        context=JOULES_PER_BYTE * shape.kv_bytes_per_token,
        step=JOULES_PER_BYTE * shape.weight_bytes + STATIC_POWER_W * step_s,
        step_s=step_s,
        token_s=token_s,
    )
