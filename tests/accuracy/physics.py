"""Where the joules of a step go: the rule's own physics and some that the rule does not assume.

own         affine in what the step holds; every weight 7-14 % above the rule's prior, attention twice it
skewed      affine too, but the ratios differ: fixed part 25 % below the prior, prompt work 25 % above
roofline    a step takes max(memory time, compute time); static power flows that long
power-cap   above the cap a step is stretched and runs at a lower voltage
drift       static power and idle power follow the chip's temperature
moe         the weights touched grow with the tokens in the step

Numbers: research on Llama-3.1-8B on an H100 (125 W static, 0.14 nJ per byte, 1.1 pJ per FLOP, 6.9 ms per empty step).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from proxy.accounting.weights import LLAMA_8B, ModelShape, roofline_prior
from tests.accuracy.engine import Load

STATIC_W = 125.0
IDLE_W = 100.0
QWEN_30B_A3B = ModelShape(3.3e9, weight_bytes=61e9, kv_bytes_per_token=98_304, attention_flops=786_432)


@dataclass(frozen=True, slots=True)
class Totals:
    """What a set of requests adds up to in one step."""

    p: float
    pc: float
    d: float
    c: float


def total(loads: Sequence[Load]) -> Totals:
    """Sums over the requests of a step."""
    return Totals(*(float(sum(column)) for column in zip(*((x.p, x.pc, x.d, x.c) for x in loads), strict=True)))


class Own:
    """E = F0 + a*P + q*PC + d*D + c*C; the time of a step is affine as well."""

    name = "own"
    shape = LLAMA_8B
    times = (6.9e-3, 30e-6, 30e-6, 55e-9)

    def __init__(self, rng: random.Random) -> None:
        prior = roofline_prior(self.shape)
        self.static_w = STATIC_W
        high = [1 / (1 - rng.uniform(0.07, 0.14)) for _ in range(4)]
        self.fixed = prior.step * high[0]
        self.a, self.q = prior.prefill * high[1], prior.attention * 2
        self.d, self.c = prior.decode * high[2], prior.context * high[3]

    def duration(self, loads: Sequence[Load]) -> float:
        """Seconds."""
        return self.seconds(total(loads))

    def joules(self, loads: Sequence[Load]) -> float:
        """Joules of the step before noise."""
        return self.energy(total(loads), self.static_w)

    def seconds(self, x: Totals) -> float:
        """Seconds of a step that holds these totals."""
        t0, tp, td, tc = self.times
        return t0 + tp * x.p + td * x.d + tc * x.c

    def energy(self, x: Totals, static_w: float) -> float:
        """Joules of a step that holds these totals."""
        return self.fixed + self.a * x.p + self.q * x.pc + self.d * x.d + self.c * x.c

    def affine(self, loads: Sequence[Load], static_w: float) -> bool:
        """Whether every subset of these requests has the energy of one and the same affine function."""
        return True

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

    def energy(self, x: Totals, static_w: float) -> float:
        return static_w * self.seconds(x) + self.dynamic(x)


class Roofline(Split):
    """A step is as slow as the slower of memory and arithmetic."""

    name = "roofline"

    def memory_s(self, x: Totals) -> float:
        """Time to stream weights and keys and values."""
        return (self.shape.weight_bytes + self.shape.kv_bytes_per_token * x.c) / self.bandwidth

    def compute_s(self, x: Totals) -> float:
        """Time of the arithmetic."""
        return (2 * self.shape.active_parameters * (x.p + x.d) + self.shape.attention_flops * x.pc) / self.flops

    def seconds(self, x: Totals) -> float:
        return self.overhead_s + max(self.memory_s(x), self.compute_s(x))

    def affine(self, loads: Sequence[Load], static_w: float) -> bool:
        return self.compute_s(total(loads)) <= self.shape.weight_bytes / self.bandwidth


class PowerCap(Split):
    """Above the cap the clock falls: the step takes longer and its dynamic energy falls with the voltage."""

    name = "power-cap"
    cap_w = 560.0

    def _slowdown(self, x: Totals, static_w: float) -> float:
        asked = self.dynamic(x) / super().seconds(x) / (self.cap_w - static_w)
        return max(1.0, asked) ** (1 / 1.6)

    def seconds(self, x: Totals) -> float:
        return super().seconds(x) * self._slowdown(x, self.static_w)

    def energy(self, x: Totals, static_w: float) -> float:
        slow = self._slowdown(x, static_w)
        return static_w * super().seconds(x) * slow + self.dynamic(x) / slow**0.6

    def affine(self, loads: Sequence[Load], static_w: float) -> bool:
        sets = [loads, *([load] for load in loads if load.p)]
        return all(self._slowdown(total(one), static_w) <= 1.0 for one in sets)


class Drift(Split):
    """Leakage grows with temperature, which follows power with a lag."""

    name = "drift"
    celsius, constant_s = 40.0, 12.0

    def advance(self, seconds: float, power_w: float) -> None:
        target = 30 + 0.075 * power_w
        self.celsius += (target - self.celsius) * min(1.0, seconds / self.constant_s)
        self.static_w = STATIC_W * (1 + 0.012 * (self.celsius - 60))

    def idle_w(self) -> float:
        return IDLE_W * (1 + 0.008 * (self.celsius - 40))


class Moe(Split):
    """A mixture of 128 experts, 8 per token: the bytes streamed grow with the tokens and saturate."""

    name = "moe"
    shape = QWEN_30B_A3B
    shared, touched = 0.06, 8 / 128

    def _bytes(self, x: Totals) -> float:
        part = self.shared + (1 - self.shared) * (1 - (1 - self.touched) ** (x.p + x.d))
        return self.shape.weight_bytes * part

    def seconds(self, x: Totals) -> float:
        memory = (self._bytes(x) + self.shape.kv_bytes_per_token * x.c) / self.bandwidth
        compute = (2 * self.shape.active_parameters * (x.p + x.d) + self.shape.attention_flops * x.pc) / self.flops
        return 2e-3 + max(memory, compute)

    def dynamic(self, x: Totals) -> float:
        return super().dynamic(x) - self.fixed + self.per_byte * self._bytes(x)

    def affine(self, loads: Sequence[Load], static_w: float) -> bool:
        return False


PHYSICS: dict[str, type[Own]] = {kind.name: kind for kind in (Own, Skewed, Roofline, PowerCap, Drift, Moe)}
