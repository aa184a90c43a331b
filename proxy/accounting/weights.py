"""What one unit of work costs, in predicted joules: the roofline prior.

Only the ratios of these weights matter for who pays; the scale of every figure is the meter's.
Energy of an engine step is affine in what it holds: a fixed part (weights streamed once, static power)
and each sequence's own work. In a mixture of experts the fixed part grows with the step's tokens, because more
experts are touched, and levels off. Constants: research on public H100 measurements (Llama-3.1-8B, bf16), an empty
step 1.4 times the time its bytes take at full bandwidth plus 0.2 ms, 30 µs per prefill or decode position.
"""

from dataclasses import dataclass, field
from math import floor, pow, sqrt

from proxy.accounting.gpus import H100, Gpu
from proxy.accounting.model_shape import LLAMA_8B, ModelShape

__all__ = ["LLAMA_8B", "SKINNY_MATMUL", "ModelShape", "Roofline", "Weights", "roofline_prior"]

ATTENTION = 1.5
"""A FLOP of attention costs more than one of a matrix product: its kernels reach between half and all of their rate."""
SKINNY_MATMUL = 2.0
"""A decode position costs about twice a prefill position: skinny matrix products, sampling, launches."""
STREAMING = 1.4
"""Time of an empty step over the time its bytes take at full bandwidth: 6.9 ms against 4.8 ms on the H100."""
LAUNCH_S = 0.2e-3
POSITION_S = 30e-6
"""Seconds that a position adds to a step of Llama-3.1-8B on an H100."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """What the joules of a prior take for granted: how long its work lasts, and the power of any longer time.

    step, experts, prefill, attention, decode, context: seconds for the unit of the weight of that name.
    static_w, limit_w: watts while busy that do not depend on the work, and the power limit, of all boards together.
    """

    step: float
    experts: float
    prefill: float
    attention: float
    decode: float
    context: float
    static_w: float
    limit_w: float

    @property
    def middle_w(self) -> float:
        """Watts of time of which nothing else is known."""
        return (self.static_w + self.limit_w) / 2

    @property
    def doubt_w(self) -> float:
        """Standard deviation of a power that may be anywhere between the two."""
        return (self.limit_w - self.static_w) / sqrt(12)


@dataclass(frozen=True, slots=True)
class Weights:
    """Predicted joules per unit of work.

    prefill (a): per uncached prompt token; attention (q): per prompt token and token of its context;
    decode (d): per decode position; context (c): per decode step and token of its context;
    step (F0): per engine step, shared equally by the sequences in it.
    step_s: time of a step that holds one token; token_s: what each position adds. Seconds; they place work in time
    where the engine's own times are unknown.
    experts: per step, beside `step`, if every expert of a mixture is streamed. touched: fraction of the experts that
    one token is sent to.
    window: length in tokens of sliding-window attention. windowed: fraction of the layers that have it.
    measured: told by a meter, in a calibration or since, not computed from data sheets.
    roofline: what they take for granted; None for those that were measured.
    """

    prefill: float
    attention: float
    decode: float
    context: float
    step: float
    step_s: float
    token_s: float
    experts: float = 0.0
    touched: float = 1.0
    window: int | None = None
    windowed: float = 0.0
    measured: bool = field(default=False, compare=False)
    roofline: Roofline | None = field(default=None, compare=False)

    def context_of(self, length: float) -> float:
        """Context tokens that a position with `length` tokens before it reads, as a mean over the layers."""
        if self.window is None or length <= self.window:
            return length
        return length - self.windowed * (length - self.window)

    def prefill_context(self, before: float, tokens: float) -> float:
        """Context read by `tokens` new prompt tokens, the first of which has `before` tokens before it.

        Exactly the sum of context_of(before), context_of(before + 1), ... for whole numbers; a part of a token counts
        in proportion. So the parts of a prompt add up to the whole however it is cut.
        """
        whole = _sum_below(before + tokens) - _sum_below(before)
        if self.window is None:
            return whole
        start, end = (max(0.0, at - self.window) for at in (before, before + tokens))
        return whole - self.windowed * (_sum_below(end) - _sum_below(start))

    def fixed(self, tokens: float) -> float:
        """Joules shared by the sequences of a step that holds so many tokens.

        An expert is spared by all of n tokens with probability (1 - touched)^n, if they choose independently and
        evenly (research, section 3.6).
        """
        return self.step + self.experts * self.touched_by(tokens)

    def touched_by(self, tokens: float) -> float:
        """Fraction of the experts that are streamed for so many tokens; 0 where there are none."""
        return 1.0 - pow(1.0 - self.touched, tokens) if self.experts else 0.0


def _sum_below(length: float) -> float:
    """0 + 1 + ... + (length - 1), with straight lines between whole numbers."""
    whole = floor(length)
    return whole * (whole - 1) / 2 + (length - whole) * whole


def roofline_prior(shape: ModelShape, gpu: Gpu = H100, *, gpus: int = 1) -> Weights:
    """The weights that a model's shape implies on a kind of GPU.

    gpus: over how many one engine spreads the model. Tensor parallelism only sums: together they move the same bytes
    and do the same FLOPs in a fraction of the time; just the static power of a launch is paid by each.
    """
    bytes_per_s = gpu.bandwidth * gpus
    always = shape.weight_bytes - shape.expert_bytes
    joules_per_expert_byte = gpu.joules_per_byte + gpu.static_w * gpus * STREAMING / bytes_per_s
    empty_s = STREAMING * always / bytes_per_s + LAUNCH_S
    experts_s = STREAMING * shape.expert_bytes / bytes_per_s
    pace = H100.flop_per_s / (gpu.flop_per_s * gpu.speed(shape.arithmetic) * gpus)
    token_s = POSITION_S * shape.active_parameters / LLAMA_8B.active_parameters * pace
    flop_joules = gpu.flop_joules(shape.arithmetic)
    return Weights(
        prefill=flop_joules * 2 * (shape.active_parameters - shape.head_parameters),
        attention=ATTENTION * gpu.joules_per_flop * shape.attention_flops,
        decode=flop_joules * 2 * shape.active_parameters * SKINNY_MATMUL,
        context=gpu.joules_per_byte * shape.kv_bytes_per_token + gpu.joules_per_flop * shape.absorbed_flops,
        step=gpu.joules_per_byte * always + gpu.static_w * gpus * empty_s,
        step_s=empty_s + shape.touched * experts_s,
        token_s=token_s,
        experts=joules_per_expert_byte * shape.expert_bytes,
        touched=shape.touched,
        window=shape.window,
        windowed=shape.windowed,
        roofline=Roofline(
            step=empty_s,
            experts=experts_s,
            prefill=token_s,
            attention=ATTENTION * shape.attention_flops / (gpu.flop_per_s * gpus),
            decode=token_s,
            context=shape.kv_bytes_per_token / bytes_per_s,
            static_w=gpu.static_w * gpus,
            limit_w=gpu.tdp_w * gpus,
        ),
    )
