"""Where the joules of a step go: the rule's own physics and some that the rule does not assume.

own          affine in what the step holds; every weight 7-14 % above the rule's prior, attention at half the efficiency
              of matrix products
skewed       affine too, but the ratios differ: fixed part 25 % below the prior, prompt work 25 % above
roofline     a step takes max(memory time, compute time); static power flows that long
power-cap    above the cap a step is stretched and runs at a lower voltage
drift        static power and idle power follow the chip's temperature
moe          the weights touched grow with the tokens in the step
superlinear  attention bounds long prompts: time and energy of a prompt token grow faster than its context
dvfs         the clock follows the power with a lag, in steps; a clock that is low costs time and saves energy

Numbers: research on Llama-3.1-8B on an H100 (125 W static, 0.14 nJ per byte, 1.1 pJ per FLOP, 6.9 ms per empty step).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from proxy.accounting.weights import LLAMA_8B, ModelShape, roofline_prior
from tests.accuracy.engine import Load, State

STATIC_W = 125.0
JOULES_PER_FLOP = 1.1e-12
IDLE_W = 100.0
QWEN_30B_A3B = ModelShape(
    3.3e9,
    weight_bytes=61e9,
    kv_bytes_per_token=98_304,
    attention_flops=786_432,
    expert_bytes=0.94 * 61e9,
    touched=8 / 128,
)
"""Qwen3-30B-A3B in bf16: 128 experts, 8 for each token."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What a set of sequences adds up to in one step. pl: sum over chunks of contexts times their mean context."""

    p: float = 0.0
    pc: float = 0.0
    d: float = 0.0
    c: float = 0.0
    pl: float = 0.0


def total(loads: Sequence[Load]) -> Totals:
    """Sums over the sequences of a step."""
    p = pc = d = c = pl = 0.0
    for load in loads:
        p, d, c = p + load.p, d + load.d, c + load.c
        if load.p:
            pc, pl = pc + load.pc, pl + load.pc * load.pc / load.p
    return Totals(p, pc, d, c, pl)


class Saturating(NamedTuple):
    """A part of a step's energy that is joules * (1 - kept ** tokens), tokens being prompt and decode positions."""

    joules: float
    kept: float


class Own:
    """E = F0 + a*P + q*PC + d*D + c*C; the time of a step is affine as well."""

    name = "own"
    shape = LLAMA_8B
    times = (6.9e-3, 30e-6, 30e-6, 55e-9)

    def __init__(self, rng: random.Random) -> None:
        prior = roofline_prior(self.shape)
        self.state = State(STATIC_W)
        high = [1 / (1 - rng.uniform(0.07, 0.14)) for _ in range(4)]
        self.fixed = prior.step * high[0]
        self.a, self.q = prior.prefill * high[1], 2 * JOULES_PER_FLOP * self.shape.attention_flops
        self.d, self.c = prior.decode * high[2], prior.context * high[3]

    def duration(self, loads: Sequence[Load]) -> float:
        """Seconds."""
        return self.seconds(total(loads), self.state)

    def joules(self, loads: Sequence[Load]) -> float:
        """Joules of the step before noise."""
        return self.energy(total(loads), self.state)

    def seconds(self, x: Totals, state: State) -> float:
        """Seconds of a step that holds these totals."""
        t0, tp, td, tc = self.times
        return t0 + tp * x.p + td * x.d + tc * x.c

    def energy(self, x: Totals, state: State) -> float:
        """Joules of a step that holds these totals."""
        return self.fixed + self.a * x.p + self.q * x.pc + self.d * x.d + self.c * x.c

    def affine(self, loads: Sequence[Load], state: State) -> bool:
        """Whether every subset of these sequences has the energy of one and the same affine function."""
        return True

    def saturating(self, loads: Sequence[Load], state: State) -> Saturating | None:
        """The part that is not affine, where that is one which saturates with the tokens and all else is affine."""
        return None

    def idle_w(self) -> float:
        """Watts with the model loaded and nothing running."""
        return IDLE_W

    def advance(self, seconds: float, power_w: float) -> None:
        """Time passes at this power."""


class Skewed(Own):
    """Affine, with ratios further from the prior than a public measurement would leave them."""

    name = "skewed"

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        prior = roofline_prior(self.shape)
        self.fixed, self.a, self.d, self.c = prior.step * 0.75, prior.prefill * 1.25, prior.decode, prior.context * 1.25


class Split(Own):
    """Dynamic energy by part and static power over the step's time; base of the physics the rule does not assume."""

    bandwidth, flops = 2.6e12, 5.5e14
    overhead_s = 1.0e-3

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        shape, gain = self.shape, rng.uniform(0.95, 1.1)
        self.per_byte, self.per_flop = 0.14e-9 * gain, 1.1e-12 * rng.uniform(0.95, 1.1)
        self.fixed = self.per_byte * shape.weight_bytes
        self.a, self.q = self.per_flop * 2 * shape.active_parameters, self.per_flop * shape.attention_flops * 1.5
        self.d, self.c = 2.2 * self.a, self.per_byte * shape.kv_bytes_per_token

    def dynamic(self, x: Totals) -> float:
        """Joules without the static part."""
        return self.fixed + self.a * x.p + self.q * x.pc + self.d * x.d + self.c * x.c

    def energy(self, x: Totals, state: State) -> float:
        return state.static_w * self.seconds(x, state) + self.dynamic(x)

    def compute_s(self, x: Totals) -> float:
        """Time of the arithmetic."""
        return (2 * self.shape.active_parameters * (x.p + x.d) + self.shape.attention_flops * x.pc) / self.flops


class Roofline(Split):
    """A step is as slow as the slower of memory and arithmetic."""

    name = "roofline"

    def memory_s(self, x: Totals) -> float:
        """Time to stream weights and keys and values."""
        return (self.shape.weight_bytes + self.shape.kv_bytes_per_token * x.c) / self.bandwidth

    def seconds(self, x: Totals, state: State) -> float:
        return self.overhead_s + max(self.memory_s(x), self.compute_s(x))

    def affine(self, loads: Sequence[Load], state: State) -> bool:
        return self.compute_s(total(loads)) <= self.shape.weight_bytes / self.bandwidth


class PowerCap(Split):
    """Above the cap the clock falls: the step takes longer and its dynamic energy falls with the voltage."""

    name = "power-cap"
    cap_w = 560.0

    def _slowdown(self, x: Totals, state: State) -> float:
        asked = self.dynamic(x) / super().seconds(x, state) / (self.cap_w - state.static_w)
        return max(1.0, asked) ** (1 / 1.6)

    def seconds(self, x: Totals, state: State) -> float:
        return super().seconds(x, state) * self._slowdown(x, state)

    def energy(self, x: Totals, state: State) -> float:
        slow = self._slowdown(x, state)
        return state.static_w * super().seconds(x, state) * slow + self.dynamic(x) / slow**0.6

    def affine(self, loads: Sequence[Load], state: State) -> bool:
        # A subset is over the cap if its joules exceed what the cap gives for its time; the worst takes all that do.
        spare = [self._over(total([load]), state) - self._over(Totals(), state) for load in loads]
        return self._over(Totals(), state) + sum(one for one in spare if one > 0) <= 0

    def _over(self, x: Totals, state: State) -> float:
        return self.dynamic(x) - (self.cap_w - state.static_w) * super().seconds(x, state)


class Drift(Split):
    """Leakage grows with temperature, which follows power with a lag."""

    name = "drift"
    celsius, constant_s = 40.0, 12.0

    def advance(self, seconds: float, power_w: float) -> None:
        target = 30 + 0.075 * power_w
        self.celsius += (target - self.celsius) * min(1.0, seconds / self.constant_s)
        self.state = State(STATIC_W * (1 + 0.012 * (self.celsius - 60)))

    def idle_w(self) -> float:
        return IDLE_W * (1 + 0.008 * (self.celsius - 40))


class Moe(Split):
    """A mixture of 128 experts, 8 per token: the bytes streamed grow with the tokens and saturate."""

    name = "moe"
    shape = QWEN_30B_A3B
    overhead_s = 2e-3

    def _bytes(self, x: Totals) -> float:
        touched = 1 - (1 - self.shape.touched) ** (x.p + x.d)
        return self.shape.weight_bytes - self.shape.expert_bytes * (1 - touched)

    def seconds(self, x: Totals, state: State) -> float:
        memory = (self._bytes(x) + self.shape.kv_bytes_per_token * x.c) / self.bandwidth
        return self.overhead_s + max(memory, self.compute_s(x))

    def dynamic(self, x: Totals) -> float:
        return super().dynamic(x) - self.fixed + self.per_byte * self._bytes(x)

    def affine(self, loads: Sequence[Load], state: State) -> bool:
        return False

    def saturating(self, loads: Sequence[Load], state: State) -> Saturating | None:
        # Memory time less compute time is concave in the tokens, contexts of prompts aside, which count as if all
        # were there: not negative for none and for all tokens means not negative for any subset.
        x = total(loads)
        fewest, most = Totals(pc=x.pc), Totals(x.p, x.pc, x.d)
        if any(self.compute_s(one) > self._bytes(one) / self.bandwidth for one in (fewest, most)):
            return None
        joules = self.shape.expert_bytes * (self.per_byte + state.static_w / self.bandwidth)
        return Saturating(joules, 1 - self.shape.touched)


class Superlinear(Split):
    """Attention over long prompts at a low rate of arithmetic, which falls further the longer they are."""

    name = "superlinear"
    attention_s, turn = 1.5e-9, 6_000.0

    def _context(self, x: Totals) -> float:
        return x.pc + x.pl / self.turn

    def seconds(self, x: Totals, state: State) -> float:
        return super().seconds(x, state) + self.attention_s * self._context(x)

    def dynamic(self, x: Totals) -> float:
        return super().dynamic(x) + self.q * (self._context(x) - x.pc)


class Dvfs(Split):
    """A governor looks at the mean power of the last third of a second and moves the clock one step at a time."""

    name = "dvfs"
    clocks = (0.6, 0.75, 0.88, 1.0)
    low_w, high_w, every_s, mean_s = 330.0, 430.0, 0.15, 0.33

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._place, self._mean_w, self._since = 0, IDLE_W, 0.0
        self.state = State(STATIC_W, self.clocks[0])

    def seconds(self, x: Totals, state: State) -> float:
        return super().seconds(x, state) * (0.4 + 0.6 / state.clock)

    def energy(self, x: Totals, state: State) -> float:
        return state.static_w * self.seconds(x, state) + self.dynamic(x) * (0.35 + 0.65 * state.clock**2)

    def advance(self, seconds: float, power_w: float) -> None:
        self._mean_w += (power_w - self._mean_w) * min(1.0, seconds / self.mean_s)
        self._since += seconds
        if self._since < self.every_s:
            return
        self._since = 0.0
        busy = power_w > 1.2 * IDLE_W
        if self._mean_w > self.high_w or not busy:
            self._place = max(0, self._place - 1)
        elif self._mean_w < self.low_w:
            self._place = min(len(self.clocks) - 1, self._place + 1)
        self.state = State(STATIC_W, self.clocks[self._place])

    def idle_w(self) -> float:
        return IDLE_W * (0.8 + 0.2 * self.state.clock)


KINDS = (Own, Skewed, Roofline, PowerCap, Drift, Moe, Superlinear, Dvfs)
PHYSICS: dict[str, type[Own]] = {kind.name: kind for kind in KINDS}


def made(name: str, seed: int) -> Own:
    """A physics as it is before the first step; its constants follow from the seed."""
    return PHYSICS[name](random.Random(f"physics {name} {seed}"))
