"""
GPUs are known by the names that NVML gives them; every figure says where it is from.
"""

import re

import pytest

from proxy.accounting.gpus import CPU, GPUS, H100, Gpu, gpu_named, together
from proxy.accounting.weights import LLAMA_8B, roofline_prior


def named(description: str) -> Gpu:
    """The kind, which must be known."""
    gpu = gpu_named(description)
    assert gpu is not None, description
    return gpu


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H800", "H100 SXM"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA H20", "H20"),
        ("NVIDIA GH200 480GB", "GH200 96 GB"),
        ("NVIDIA GH200 144G HBM3e", "GH200 144 GB"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA B300 SXM6 AC", "B300"),
        ("NVIDIA GB300", "GB300"),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40 GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80 GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40 GB"),
        ("A100-PCIE-40GB", "A100 PCIe 40 GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80 GB"),
        ("NVIDIA A800-SXM4-80GB", "A100 SXM 80 GB"),
        ("NVIDIA A30", "A30"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A40", "A40"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000 Server"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000 Max-Q"),
        ("Tesla V100-SXM2-16GB", "V100 SXM"),
        ("Tesla V100-PCIE-32GB", "V100 PCIe"),
        ("Tesla V100S-PCIE-32GB", "V100S"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX 3090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 5090", "RTX 5090"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "H100 SXM"),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "A100 SXM 40 GB"),
        ("NVIDIA L4, driver 570.40.02, power limit 72 W, energy counter", "L4"),
        ("NVIDIA A100-SXM4-80GB, driver 535.104.05, power limit 400 W, energy counter", "A100 SXM 80 GB"),
        ("nvidia l40s", "L40S"),
    ],
)
def test_products_by_their_names(description: str, name: str) -> None:
    """As NVML spells them, also at the start of a meter's description."""
    assert named(description).name == name


@pytest.mark.parametrize(
    "description",
    [
        "",
        "Quadro RTX 6000",
        "NVIDIA RTX 4000 SFF Ada Generation",
        "NVIDIA RTX A5000",
        "NVIDIA A16",
        "NVIDIA A2",
        "NVIDIA L20",
        "NVIDIA T400 4GB",
        "NVIDIA T4G Extended",
        "NVIDIA GB10",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "Tesla P100-PCIE-16GB",
        "Tesla P40",
        "recorded: replays run.csv, 10 samples over 5 s",
        "estimated, no sensor: a model of CPU time (idle_w=20,core_w=12)",
        "an unknown board, GPU-3f9a1b2c-a100-b200-a100-0123456789ab",
    ],
)
def test_products_that_are_not_known(description: str) -> None:
    """None rather than a neighbour's figures; the groups of a UUID are no products."""
    assert gpu_named(description) is None


def test_every_pattern_is_reached() -> None:
    """Each board in the table is found by its own name, so no earlier pattern hides it."""
    spelled = {gpu.name: re.sub(r"(\d+) GB", r"\1GB", gpu.name).replace("GH200 144GB", "GH200 144G") for gpu in GPUS}
    spelled["RTX PRO 6000 Max-Q"] = "RTX PRO 6000 Blackwell Max-Q"
    spelled["RTX PRO 6000 Server"] = "RTX PRO 6000 Blackwell Server"

    assert {name: named(text.replace("SXM ", "SXM4 ")).name for name, text in spelled.items()} == {
        name: name for name in spelled
    }


@pytest.mark.parametrize("gpu", [*GPUS, CPU], ids=lambda gpu: gpu.name)
def test_figures_are_plausible_and_sourced(gpu: Gpu) -> None:
    """Energies within a factor of the H100's; alone in a step, Llama 8B draws about what the board may, or less."""
    prior = roofline_prior(LLAMA_8B, gpu)

    assert re.search(r"NVIDIA|Intel", gpu.source)
    assert gpu is H100 or "estimates" in gpu.source
    assert 0.5 * H100.joules_per_flop <= gpu.joules_per_flop <= 10 * H100.joules_per_flop
    assert 0.5 * H100.joules_per_byte <= gpu.joules_per_byte <= 6 * H100.joules_per_byte
    assert 0.15 * gpu.tdp_w < gpu.static_w < 0.5 * gpu.tdp_w
    assert 0.4 < (prior.step + prior.decode) / (prior.step_s + prior.token_s) / gpu.tdp_w < 1.25


def test_newer_chips_spend_less_on_a_flop() -> None:
    """Volta, Ampere, Hopper, Blackwell, in this order."""
    joules = [named(name).joules_per_flop for name in ("V100", "A100", "H100", "B200")]

    assert joules == sorted(joules, reverse=True)


def test_narrow_numbers_are_faster_and_cheaper_where_the_chip_has_them() -> None:
    """FP8 at twice the rate costs less than bf16 but more than half of it; an A100 multiplies it as bf16."""
    ampere = named("NVIDIA A100-SXM4-80GB")

    assert H100.speed("fp8") == 2
    assert 0.5 < H100.flop_joules("fp8") / H100.flop_joules("bf16") < 1
    assert ampere.speed("fp8") == 1
    assert ampere.flop_joules("fp8") == ampere.flop_joules("bf16")
    assert H100.flop_joules("fp4") == H100.flop_joules("bf16")
    assert named("NVIDIA B200").speed("fp4") == 4


def test_a_group_of_one_kind_is_that_kind() -> None:
    """Tensor parallelism over equal GPUs changes no ratio."""
    assert together([H100, H100]) is H100
    assert together([]) is None


def test_a_group_of_several_kinds_goes_at_the_slowest_pace() -> None:
    """Energies are the mean, since each GPU does an equal part; the slower one holds up the other."""
    ampere = named("NVIDIA A100-SXM4-80GB")
    both = together([H100, ampere])

    assert both is not None
    assert both == together([ampere, H100, H100, ampere])
    assert both.bandwidth == ampere.bandwidth
    assert both.flop_per_s == ampere.flop_per_s
    assert both.joules_per_flop == pytest.approx((1.1e-12 + 1.65e-12) / 2)
    assert (both.speed("fp8"), both.speed("int8")) == (1, 2)
    assert both.name == "A100 SXM 80 GB + H100 SXM"
