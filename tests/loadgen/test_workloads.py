"""The workloads shipped here, held against the public trace where it lies beside the repository."""

import lzma
from pathlib import Path

import pytest

from loadgen.binning import derive, read_trace
from loadgen.bins import WORKLOADS, Workload, load_workload, workload_names

TRACE = Path(__file__).parents[3] / "shared" / "traces" / "azure_2023_conv.csv.xz"
AZURE_CONV_REQUESTS = 19_366
AZURE_CONV_INPUT = 22_361_870
AZURE_CONV_OUTPUT = 4_088_665
"""Counted over the trace itself."""


@pytest.fixture(scope="module")
def azure() -> Workload:
    return load_workload("azure-conv-2023")


@pytest.mark.parametrize("name", workload_names())
def test_every_workload_names_its_source_licence_and_author(name: str) -> None:
    """The licences of the traces ask for it, and the README repeats it."""
    notes = " ".join(load_workload(name).notes)

    assert all(word in notes for word in ("source:", "licence:", "attribution:", "derived:"))
    assert f"`{name.replace('-', '_')}.csv`" in (WORKLOADS / "README.md").read_text(encoding="utf-8")


def test_a_full_plan_has_the_total_tokens_of_the_trace(azure: Workload) -> None:
    """Not within a tolerance: exactly."""
    plan = azure.plan(azure.count, seed=7)

    assert len(plan) == AZURE_CONV_REQUESTS
    assert sum(p.input_tokens for p in plan) == AZURE_CONV_INPUT
    assert sum(p.output_tokens for p in plan) == AZURE_CONV_OUTPUT


def test_bin_means_keep_the_moments_that_decide_energy(azure: Workload) -> None:
    """Decoding reads in * out, attention (in + out)^2: within 0.5 % and 4 % of the trace's, which the table carries."""
    plan = azure.plan(azure.count, seed=7)
    products = sum(p.input_tokens * p.output_tokens for p in plan)
    squares = sum((p.input_tokens + p.output_tokens) ** 2 for p in plan)
    true_products = sum(b.products for b in azure.bins)
    true_squares = sum(b.input_squares + b.output_squares + 2 * b.products for b in azure.bins)

    assert products == pytest.approx(true_products, rel=0.005)
    assert squares == pytest.approx(true_squares, rel=0.04)


def test_500_requests_stand_for_the_trace(azure: Workload) -> None:
    """A stratified plan of 500 has the trace's mean lengths within 2 %."""
    plan = azure.plan(500, seed=0)

    assert sum(p.input_tokens for p in plan) / 500 == pytest.approx(azure.mean_input, rel=0.02)
    assert sum(p.output_tokens for p in plan) / 500 == pytest.approx(azure.mean_output, rel=0.02)


def test_the_table_is_what_the_command_derives_from_the_trace(azure: Workload) -> None:
    """Where the trace is at hand the table must be its image; elsewhere only its own sums are checked."""
    if not TRACE.is_file():
        assert azure.count == AZURE_CONV_REQUESTS
        return
    with lzma.open(TRACE, "rt", encoding="utf-8", newline="") as file:
        trace = read_trace(file)
    derived = derive(trace, azure.notes[:-2])

    assert derived == (WORKLOADS / "azure_conv_2023.csv").read_text(encoding="utf-8").splitlines()
    assert sum(i for i, _ in trace.pairs) == AZURE_CONV_INPUT
    assert sum(o for _, o in trace.pairs) == AZURE_CONV_OUTPUT
    assert sum(b.products for b in azure.bins) == sum(i * o for i, o in trace.pairs)
    assert sum(b.input_squares for b in azure.bins) == sum(i * i for i, _ in trace.pairs)
