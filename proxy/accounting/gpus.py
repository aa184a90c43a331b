"""What a byte moved and a FLOP done cost on each kind of accelerator: the hardware half of the roofline prior.

Bandwidth, peak rate and power limit are the vendor's; `source` names the sheet. Peaks are dense (no sparsity), bf16
with fp32 accumulation, fp16 where a chip has no bf16. The energies of the H100 are the research's, fitted to public
measurements of Llama-3.1-8B. Those of all others are ESTIMATES scaled from it:

    joules per FLOP   1.1 pJ times the family's `silicon`: power limit over peak rate of its full board, relative to
                      the H100's 700 W / 989 TFLOP/s
    joules per byte   the memory's own (Micron's table of ultra-bandwidth memory: HBM2E 6.0, GDDR6 7.5 pJ per bit)
                      plus the way through the chip, 92 pJ on the H100, times the root of `silicon` where above 1:
                      wires shrink less than gates
    static power      the H100's 125 W times the ratio of power limits to the 0.6: 89 W at 400 W, 32 W at 72 W, about
                      what loaded but idle boards of those sizes take
    narrow numbers    where a format runs k times as fast, one operation costs 1/sqrt(k) of bf16's: its energy shrinks
                      less than its bytes

Only ratios matter for the split: one that is wrong by two moves 3-10 % between requests. A calibration replaces them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from proxy.accounting.model_shape import Arithmetic

Rates = tuple[tuple[Arithmetic, float], ...]
HBM, GDDR = 48e-12, 60e-12
"""Joules per byte inside the memory."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of accelerator.

    bandwidth: bytes per second from memory. flop_per_s: dense bf16. joules_per_byte, joules_per_flop: dynamic energy.
    static_w: watts while busy that do not depend on the work. tdp_w: the default power limit.
    faster: times bf16's rate at which narrower formats run; one that is not named is multiplied as bf16.
    source: where the figures come from, and which are estimates.
    """

    name: str
    bandwidth: float
    flop_per_s: float
    joules_per_byte: float
    joules_per_flop: float
    static_w: float
    tdp_w: float
    faster: Rates
    source: str

    def speed(self, arithmetic: Arithmetic) -> float:
        """Rate of a format over that of bf16; 1 where the chip has no units for it."""
        return dict(self.faster).get(arithmetic, 1.0)

    def flop_joules(self, arithmetic: Arithmetic) -> float:
        """Joules of one FLOP in a format."""
        return self.joules_per_flop / sqrt(self.speed(arithmetic))


@dataclass(frozen=True, slots=True)
class _Family:
    """What boards of one chip family share. static_w: at a power limit of 700 W."""

    silicon: float
    memory: float
    faster: Rates
    static_w: float = 125.0


_INT8: Rates = (("int8", 2.0),)
_FP8: Rates = (("fp8", 2.0), ("int8", 2.0))

H100 = Gpu(
    name="H100 SXM",
    bandwidth=3.35e12,
    flop_per_s=989e12,
    joules_per_byte=0.14e-9,
    joules_per_flop=1.1e-12,
    static_w=125.0,
    tdp_w=700.0,
    faster=_FP8,
    source="NVIDIA H100 data sheet; energies fitted to public measurements (ML.ENERGY leaderboard v3, Llama-3.1-8B)",
)
CPU = Gpu(
    name="server CPU",
    bandwidth=307e9,
    flop_per_s=57e12,
    joules_per_byte=0.8e-9,
    joules_per_flop=10e-12,
    static_w=100.0,
    tdp_w=350.0,
    faster=_INT8,
    source="Intel Xeon Platinum 8480+ data sheet (8 x DDR5-4800, 56 cores, 350 W); the rest are estimates: rate midway "
    "(geometric mean) between AVX-512's 14 and AMX's 229 TFLOP/s, 1.5 times 350 W over it, 250 W at full bandwidth",
)
"""vLLM without a GPU. A FLOP weighs 1.6 times as much against a byte as on an H100."""

_HOPPER = _Family(1.0, HBM, _FP8)
_BLACKWELL = _Family(0.7, HBM, (("fp8", 2.0), ("int8", 2.0), ("fp4", 4.0)), static_w=202.0)
_BLACKWELL_ULTRA = _Family(0.7, HBM, (("fp8", 2.0), ("fp4", 6.0)), static_w=202.0)
"""0.7: joules per step and sequence of Llama-3.1-70B, 0.259 on two B200 against 0.372 on four H100. Static power: its
26.9 J per empty step on two B200 (all ML.ENERGY v3), less its bytes, over two boards and 13 ms: about 250 W of 1000."""
_GA100 = _Family(1.5, HBM, _INT8)
"""1.5: the research's figure for the A100; the rule above would say 1.8."""
_ADA = _Family(1.4, GDDR, _FP8)
_GA102 = _Family(2.2, GDDR, _INT8)
"""Between the A10 (1.7) and the A40 (2.8), which are one chip at two power limits."""
_GB202 = _Family(1.7, GDDR, (("fp8", 2.0), ("int8", 2.0), ("fp4", 4.0)))
_TURING = _Family(1.5, GDDR, _INT8)
_VOLTA = _Family(3.4, HBM, ())


def _board(name: str, family: _Family, gb_per_s: float, tflop_per_s: float, tdp_w: float, sheet: str) -> Gpu:
    way = (H100.joules_per_byte - HBM) * sqrt(max(1.0, family.silicon))
    return Gpu(
        name=name,
        bandwidth=gb_per_s * 1e9,
        flop_per_s=tflop_per_s * 1e12,
        joules_per_byte=family.memory + way,
        joules_per_flop=H100.joules_per_flop * family.silicon,
        static_w=family.static_w * (tdp_w / H100.tdp_w) ** 0.6,
        tdp_w=tdp_w,
        faster=family.faster,
        source=f"{sheet}; energies are estimates scaled from the H100",
    )


_RTX_PRO = "NVIDIA RTX Blackwell PRO architecture whitepaper"
_BY_NAME: tuple[tuple[str, Gpu], ...] = (
    (r"GB300", _board("GB300", _BLACKWELL_ULTRA, 8_000, 2_500, 1400, "NVIDIA GB300 NVL72 data sheet, one GPU")),
    (r"B300", _board("B300", _BLACKWELL_ULTRA, 8_000, 2_250, 1100, "NVIDIA HGX B300 data sheet")),
    (r"GB200", _board("GB200", _BLACKWELL, 8_000, 2_500, 1200, "NVIDIA GB200 NVL72 data sheet, one GPU")),
    (r"B200", _board("B200", _BLACKWELL, 7_700, 2_250, 1000, "NVIDIA HGX B200 data sheet")),
    (r"GH200 144G", _board("GH200 144 GB", _HOPPER, 4_900, 989, 700, "NVIDIA GH200 data sheet, GPU part")),
    (r"GH200", _board("GH200 96 GB", _HOPPER, 4_000, 989, 700, "NVIDIA GH200 data sheet, GPU part")),
    (r"H200 NVL", _board("H200 NVL", _HOPPER, 4_800, 835, 600, "NVIDIA H200 data sheet")),
    (r"H200", _board("H200 SXM", _HOPPER, 4_800, 989, 700, "NVIDIA H200 data sheet")),
    (r"H20", _board("H20", _HOPPER, 4_000, 148, 400, "published figures of NVIDIA's H20")),
    (r"H100 NVL", _board("H100 NVL", _HOPPER, 3_900, 835, 400, "NVIDIA H100 NVL data sheet")),
    (r"H[18]00 PCIE", _board("H100 PCIe", _HOPPER, 2_000, 756, 350, "NVIDIA H100 data sheet")),
    (r"H[18]00", H100),
    (r"A[18]00 PCIE 40GB", _board("A100 PCIe 40 GB", _GA100, 1_555, 312, 250, "NVIDIA A100 data sheet")),
    (r"A[18]00 (80GB PCIE|PCIE 80GB)", _board("A100 PCIe 80 GB", _GA100, 1_935, 312, 300, "NVIDIA A100 data sheet")),
    (r"A[18]00 (SXM4 )?40GB", _board("A100 SXM 40 GB", _GA100, 1_555, 312, 400, "NVIDIA A100 data sheet")),
    (r"A[18]00X?", _board("A100 SXM 80 GB", _GA100, 2_039, 312, 400, "NVIDIA A100 data sheet")),
    (r"A30", _board("A30", _GA100, 933, 165, 165, "NVIDIA A30 data sheet")),
    (r"L40S", _board("L40S", _ADA, 864, 362, 350, "NVIDIA L40S data sheet")),
    (r"L40G?", _board("L40", _ADA, 864, 181, 300, "NVIDIA L40 data sheet")),
    (r"L4", _board("L4", _ADA, 300, 121, 72, "NVIDIA L4 data sheet")),
    (r"RTX 6000 ADA", _board("RTX 6000 Ada", _ADA, 960, 364, 300, "NVIDIA RTX 6000 Ada Generation data sheet")),
    (r"RTX 4090( D)?", _board("RTX 4090", _ADA, 1_008, 165, 450, "NVIDIA Ada architecture whitepaper")),
    (r"A40", _board("A40", _GA102, 696, 150, 300, "NVIDIA A40 data sheet")),
    (r"(RTX )?A6000", _board("RTX A6000", _GA102, 768, 155, 300, "NVIDIA RTX A6000 data sheet")),
    (r"A10G", _board("A10G", _GA102, 600, 70, 300, "NVIDIA A10G data sheet")),
    (r"A10", _board("A10", _GA102, 600, 125, 150, "NVIDIA A10 data sheet")),
    (r"RTX 3090( TI)?", _board("RTX 3090", _GA102, 936, 71, 350, "NVIDIA GA102 architecture whitepaper")),
    (r"RTX PRO 6000 .*MAX Q", _board("RTX PRO 6000 Max-Q", _GB202, 1_792, 439, 300, _RTX_PRO)),
    (r"RTX PRO 6000 .*SERVER", _board("RTX PRO 6000 Server", _GB202, 1_597, 504, 600, _RTX_PRO)),
    (r"RTX PRO 6000", _board("RTX PRO 6000", _GB202, 1_792, 504, 600, _RTX_PRO)),
    (r"RTX 5090( D)?", _board("RTX 5090", _GB202, 1_792, 210, 575, "NVIDIA RTX Blackwell architecture whitepaper")),
    (r"T4", _board("T4", _TURING, 320, 65, 70, "NVIDIA T4 data sheet (fp16)")),
    (r"V100S", _board("V100S", _VOLTA, 1_134, 130, 250, "NVIDIA V100 data sheet (fp16)")),
    (r"V100 PCIE", _board("V100 PCIe", _VOLTA, 900, 112, 250, "NVIDIA V100 data sheet (fp16)")),
    (r"V100", _board("V100 SXM", _VOLTA, 900, 125, 300, "NVIDIA V100 data sheet (fp16)")),
)
"""Names as NVML spells them, in capitals with single blanks; the first that fits. Whole words only."""
GPUS: tuple[Gpu, ...] = tuple(gpu for _, gpu in _BY_NAME)
_UUID = re.compile(r"[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}")
"""A group of an identifier may read like a product: …-A100-…"""


def gpu_named(description: str) -> Gpu | None:
    """The kind of GPU in a product name of NVML, or in a text that begins with one; None for one not known here.

    A MIG slice is known by its whole board. Laptop parts share a name with another chip and are not known.
    """
    words = re.sub(r"[^A-Z0-9.]+", " ", _UUID.sub(" ", description.upper()))
    if re.search(r"\b(LAPTOP|MOBILE)\b", words):
        return None
    return next((gpu for pattern, gpu in _BY_NAME if re.search(rf"\b(?:{pattern})\b", words)), None)


def together(kinds: Sequence[Gpu]) -> Gpu | None:
    """One kind that stands for all GPUs of a group; None for none.

    Engines split a model evenly, so energies are the mean and the slowest part sets the pace.
    """
    if len(set(kinds)) <= 1:
        return kinds[0] if kinds else None
    formats = set.intersection(*({name for name, _ in kind.faster} for kind in kinds))
    return Gpu(
        name=" + ".join(sorted({kind.name for kind in kinds})),
        bandwidth=min(kind.bandwidth for kind in kinds),
        flop_per_s=min(kind.flop_per_s for kind in kinds),
        joules_per_byte=sum(kind.joules_per_byte for kind in kinds) / len(kinds),
        joules_per_flop=sum(kind.joules_per_flop for kind in kinds) / len(kinds),
        static_w=sum(kind.static_w for kind in kinds) / len(kinds),
        tdp_w=sum(kind.tdp_w for kind in kinds) / len(kinds),
        faster=tuple((name, min(kind.speed(name) for kind in kinds)) for name in sorted(formats)),
        source="; ".join(sorted({kind.source for kind in kinds})),
    )
