"""
What people read at the end says what was found, and how far it can be believed.
"""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from proxy.accounting.calibration import Calibrated, Finding, Stretch, calibrated
from proxy.accounting.terms import terms_of
from proxy.accounting.weights import LLAMA_8B, roofline_prior
from proxy.commands.calibration.summary import _joules, show, verdict
from tests.accounting.test_calibration import LOAD, PRIOR, ran, truth

FOUND = calibrated(ran(truth(step=0.6, decode=2.0)), PRIOR)


def shown(found: Calibrated, stretches: list[Stretch], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(found, stretches, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_every_weight_and_every_kind_of_work_has_a_line() -> None:
    """In eighty columns, none of them broken."""
    lines = shown(FOUND, ran(truth(step=0.6, decode=2.0))).splitlines()

    for name in ("step", "prefill", "attention", "decode", "context", *LOAD):
        assert len([line for line in lines if line.startswith(name + "  ")]) == 1, name
    assert max(map(len, lines)) <= 80
    attention = next(line for line in lines if line.startswith("attention"))
    assert "stays at the prior" in attention
    assert any("the load does not tell it apart" in line for line in lines)


def test_the_verdict_names_its_quality() -> None:
    """By the error on what was not fitted."""
    assert verdict(replace(FOUND, held_out=0.02), short=False).startswith("Good: ")
    assert verdict(replace(FOUND, held_out=0.05), short=False).startswith("Fair: ")
    assert verdict(replace(FOUND, held_out=0.1), short=False).startswith("Poor, yet better than the prior: ")
    assert "within 2.0 %, the prior within " in verdict(replace(FOUND, held_out=0.02), short=False)


def test_the_verdict_says_what_speaks_against_it() -> None:
    """No help, nothing told, a wrong prior, an edge, short stretches."""
    edge = tuple(replace(one, at_limit=one.name == "decode") for one in FOUND.findings)
    untold = tuple(replace(one, error=None) for one in FOUND.findings)

    assert "no better than the prior" in verdict(replace(FOUND, held_out=0.5), short=False)
    assert "nothing was learnt" in verdict(replace(FOUND, findings=untold), short=False)
    assert "more than a factor of three" in verdict(replace(FOUND, beyond=True), short=False)
    assert verdict(replace(FOUND, findings=edge), short=False).endswith("the truth may lie beyond: decode.")
    assert verdict(FOUND, short=True).endswith("takes --minutes 2.5.")


def test_an_edge_has_no_error() -> None:
    """A standard deviation at the edge of a region would be made up."""
    edge = Finding("decode", 0.04, 0.12, 3.0, 0.1, True)
    text = shown(replace(FOUND, findings=(edge,)), ran(truth()))

    assert "3 edge of trust" in text
    assert "±" not in text


@pytest.mark.parametrize(
    ("amount", "words"),
    [(3.2, "3.2 J"), (0.0161, "16.1 mJ"), (1e-3, "1 mJ"), (5.24e-6, "5.24 µJ"), (2e-10, "200 pJ"), (0.0, "0 J")],
)
def test_joules_have_three_digits_and_a_prefix(amount: float, words: str) -> None:
    """From femtojoules up."""
    assert _joules(amount) == words


def test_a_mixture_of_experts_shows_its_experts() -> None:
    """With a step log their part is known."""
    prior = replace(roofline_prior(LLAMA_8B), experts=2.0, touched=0.25)
    stretches = [
        Stretch(one.phase, one.repeat, replace(one.work, experts=one.work.steps * 0.5), one.energy_j, one.busy_s)
        for one in ran(truth())
    ]
    stretches = [replace(one, energy_j=sum(terms_of(prior, one.work))) for one in stretches]

    assert "experts" in shown(calibrated(stretches, prior), stretches)
