"""
The page shows the books: every name of the contract and no other, and sums that agree within one scrape.
"""

from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from proxy.accounting.activity import Work
from proxy.accounting.bill import Bill
from proxy.accounting.flight import Flight
from proxy.accounting.group import Group, Patience
from proxy.accounting.samples import Sample
from proxy.accounting.steps import Computed, EngineStep
from proxy.accounting.units import MILLISECOND, SECOND, Microjoules, Nanoseconds
from proxy.accounting.weights import LLAMA_8B, roofline_prior
from proxy.metrics import BooksCollector, RequestHistograms
from proxy.ports import MeterKind
from proxy.settlement import Settlement

COUNTERS = {
    "gpu_energy_joules_total": {"gpu", "backend"},
    "energy_joules_total": {"backend", "account"},
    "request_energy_joules_total": {"backend", "model", "phase"},
    "tokens_total": {"backend", "model", "kind"},
    "requests_total": {"backend", "model", "outcome"},
    "tenant_energy_joules_total": {"tenant"},
    "ledger_dropped_rows_total": set(),
    "meter_failures_total": {"gpu", "backend"},
    "meter_resets_total": {"gpu", "backend"},
    "meter_stuck_total": {"gpu", "backend"},
    "graded_requests_total": {"backend", "grade"},
    "step_log_lost_steps_total": {"backend"},
}
GAUGES = {
    "gpu_power_watts": {"gpu", "backend"},
    "idle_power_watts": {"gpu", "backend"},
    "kappa": {"backend"},
    "meter_age_seconds": {"gpu", "backend"},
    "meter_counter_power_ratio": {"gpu", "backend"},
    "meter_read_seconds": {"gpu", "backend"},
    "settlement_lag_seconds": {"backend"},
    "ledger_behind_postings": set(),
    "imbalance_joules": {"backend"},
    "requests_in_flight": {"backend"},
    "backend_up": {"backend"},
    "weights_learnt": {"backend"},
    "weights_error_ratio": {"backend"},
    "step_log_up": {"backend"},
    "meter_info": {"gpu", "backend", "kind", "estimated"},
}
HISTOGRAMS = (
    "energy_per_request_joules",
    "energy_per_output_token_joules",
    "time_to_first_token_seconds",
    "time_per_output_token_seconds",
    "added_latency_seconds",
    "request_relative_uncertainty_ratio",
)


class StillMeter:
    """Never read here: the tests hand in the samples."""

    kind: MeterKind = "recorded"
    epoch = "e"
    name = gpu = "GPU-1"
    estimated = False
    description = "a test"

    def read(self) -> Sample:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Page:
    """A service's books and the page made of them."""

    def __init__(self, max_tenants: int = 100) -> None:
        self.now = Nanoseconds(1_000 * SECOND)
        self.meter = StillMeter()
        patience = Patience(prefill=SECOND, silent=SECOND, scrape=Nanoseconds(0), gap=Nanoseconds(9 * SECOND))
        self.group = Group("b", ["GPU-1"], weights=roofline_prior(LLAMA_8B), patience=patience)
        self.registry = CollectorRegistry()
        histograms = RequestHistograms(self.registry)
        self.settlement = Settlement(
            {"b": self.group},
            {"GPU-1": self.meter},
            self,
            clock=lambda: self.now,
            known={},
            on_finished=histograms.finished,
        )
        self.registry.register(
            BooksCollector(
                self.settlement,
                clock=lambda: self.now,
                backend_up=lambda: {"b": True},
                dropped_rows=lambda: 3,
                ledger_behind=lambda: 5,
                max_tenants=max_tenants,
            )
        )
        self._counter = 0

    def post(self, posting: Any) -> None:
        """The ledger's part is not looked at here."""

    def later(self, ms: int, energy_uj: int, power_w: float | None = None) -> None:
        """The clock goes on and the meter is read."""
        self.now = Nanoseconds(self.now + ms * MILLISECOND)
        self._counter += energy_uj
        sample = Sample(self.now, Microjoules(self._counter), power_w)
        self.settlement.sampled(self.meter, sample, Nanoseconds(2 * MILLISECOND))

    def run(self, tenant: str = "acme", outcome: Any = "ok", tokens: int = 4, model: str = "m") -> None:
        """One stream of `tokens` tokens in windows of odd energies, settled."""
        flight = Flight(row=f"{tenant}{self.now}", request_id="r", sent=self.now, prompt_tokens=100, cached_tokens=30)
        bill = Bill(flight, tenant, model, "b", "chat", True, "weighted", started_at_unix_ns=0, added_ns=1_000_000)
        self.group.open(bill)
        for token in range(tokens):
            self.later(50, 1_234_567 + token, power_w=20.0)
            flight.tick(self.now, token + 1)
        flight.end(self.now, outcome)
        self.settlement.step(force=True)

    def idle(self) -> None:
        """Two quiet seconds, of which the second teaches the idle power."""
        for _ in range(3):
            self.later(1_001, 5_000_001)
            self.settlement.step(force=True)

    def samples(self) -> list[tuple[str, dict[str, str], float]]:
        text = generate_latest(self.registry).decode()
        return [
            (s.name.removeprefix("jouleproxy_"), s.labels, s.value)
            for family in text_string_to_metric_families(text)
            for s in family.samples
        ]

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        """By the values of the labels, in the order of the labels' names."""
        return {tuple(v for _, v in sorted(labels.items())): value for n, labels, value in self.samples() if n == name}

    def total_uj(self, name: str, **labels: str) -> int:
        found = [value for n, has, value in self.samples() if n == name and labels.items() <= has.items()]
        return sum(round(value * 1e6) for value in found)


@pytest.fixture
def page() -> Page:
    made = Page()
    made.later(0, 0)
    return made


def test_names_and_labels_are_exactly_those_of_the_contract(page: Page) -> None:
    """Nothing is missing once everything has happened, and nothing is there that nobody knows of."""
    page.idle()
    page.run()
    page.group.stepped(EngineStep(0, 1, 1, page.now, page.now, (Computed("r", 0, 10, 0),)))
    for _ in range(24):
        page.group.divider.fit.observe(Work(steps=50.0, decode=100.0), 10_000_000, SECOND)
    found: dict[str, set[str]] = defaultdict(set)
    for name, labels, _ in page.samples():
        found[name] |= set(labels)

    expected = {**COUNTERS, **GAUGES}
    for name in HISTOGRAMS:
        expected |= {f"{name}_bucket": {"model", "le"}, f"{name}_count": {"model"}, f"{name}_sum": {"model"}}
    assert found == expected


def test_what_is_not_known_makes_no_series() -> None:
    """Before the first reading there is no power, no age and no lag: absent is never 0."""
    names = {name for name, _, _ in Page().samples()}

    assert not names & {
        "gpu_power_watts",
        "idle_power_watts",
        "kappa",
        "meter_age_seconds",
        "meter_read_seconds",
        "meter_counter_power_ratio",
        "settlement_lag_seconds",
    }
    assert {"imbalance_joules", "meter_info", "backend_up"} <= names


def test_a_meter_without_power_reading_has_no_ratio(page: Page) -> None:
    """Its counter cannot be compared with anything."""
    page.idle()

    assert "meter_counter_power_ratio" not in {name for name, _, _ in page.samples()}


def test_everything_adds_up_within_a_scrape(page: Page) -> None:
    """Accounts to the meter; phases and tenants to the account `requests`; to the microjoule."""
    for number in range(7):
        page.run(tenant=f"t{number % 3}", model=f"m{number % 2}", tokens=3 + number)
        page.idle()

    requests = page.total_uj("energy_joules_total", account="requests")
    assert page.total_uj("energy_joules_total") == page.total_uj("gpu_energy_joules_total")
    assert page.total_uj("request_energy_joules_total") == requests > 0
    assert page.total_uj("tenant_energy_joules_total") == requests
    assert page.values("imbalance_joules") == {("b",): 0.0}


def test_tenants_are_bounded() -> None:
    """The first ones by name, the rest as `other`; nobody is lost."""
    page = Page(max_tenants=2)
    page.later(0, 0)
    for tenant in ("a", "b", "c", "d"):
        page.run(tenant)

    assert list(page.values("tenant_energy_joules_total")) == [("a",), ("b",), ("other",)]
    requests = page.total_uj("energy_joules_total", account="requests")
    assert page.total_uj("tenant_energy_joules_total") == requests


def test_a_tenant_keeps_its_label() -> None:
    """With several backends who comes later takes nobody's place: every counter only grows, and nothing is lost."""
    patience = Patience(prefill=SECOND, silent=SECOND, scrape=SECOND, gap=SECOND)
    groups = {name: Group(name, [], weights=roofline_prior(LLAMA_8B), patience=patience) for name in ("b1", "b2")}
    nobody: Any = None
    settlement = Settlement(groups, {}, nobody, clock=lambda: Nanoseconds(0), known={}, on_finished=nobody)
    registry = CollectorRegistry()
    registry.register(
        BooksCollector(settlement, clock=lambda: 0, backend_up=lambda: {}, dropped_rows=lambda: 0, max_tenants=2)
    )
    scrapes = []
    for charged in ("b2 p", "b2 other", "b1 q", "b1 r", "b2 q", "b1 s", "b1 p"):
        backend, tenant = charged.split()
        groups[backend].tallies.energy_by_tenant[tenant] += 1_000_000
        text = generate_latest(registry).decode()
        lines = [line for line in text.splitlines() if line.startswith("jouleproxy_tenant_energy")]
        scrapes.append({line.split('"')[1]: float(line.split()[-1]) for line in lines})
        assert sum(scrapes[-1].values()) == len(scrapes)

    assert scrapes[-1] == {"p": 2.0, "q": 2.0, "other": 3.0}
    for before, after in pairwise(scrapes):
        assert all(after[tenant] >= energy for tenant, energy in before.items())


def test_counts_of_requests_and_tokens(page: Page) -> None:
    """By outcome and by kind; cached tokens are a part of the prompt's."""
    page.run()
    page.run(outcome="aborted")

    assert page.values("requests_total") == {("b", "m", "ok"): 1.0, ("b", "m", "aborted"): 1.0}
    assert page.values("tokens_total") == {
        ("b", "prompt", "m"): 200.0,
        ("b", "cached", "m"): 60.0,
        ("b", "completion", "m"): 8.0,
    }


def test_distributions_take_complete_answers_only(page: Page) -> None:
    """An aborted answer would look cheap."""
    page.run(outcome="aborted")
    assert page.values("energy_per_request_joules_count") == {}

    page.run()

    for name in HISTOGRAMS:
        assert page.values(f"{name}_count") == {("m",): 1.0}, name
    assert page.values("time_to_first_token_seconds_sum") == {("m",): 0.05}
    assert page.values("time_per_output_token_seconds_sum") == {("m",): 0.05}
    assert page.values("added_latency_seconds_sum") == {("m",): 0.001}


def test_uncertainty_of_requests_and_meters(page: Page) -> None:
    """A distribution by model of the relative part; the absolute one by meter, and no series where nobody knows it."""
    page.run()
    assert 0 < page.values("request_relative_uncertainty_ratio_sum")["m",] < 1
    assert page.values("meter_absolute_uncertainty_ratio") == {}

    page.meter.kind = "nvml"
    assert page.values("meter_absolute_uncertainty_ratio") == {("b", "GPU-1"): 0.05}
    page.meter.epoch = "integral:boot"
    assert page.values("meter_absolute_uncertainty_ratio") == {("b", "GPU-1"): 0.06}


def test_health_gauges(page: Page) -> None:
    """Power, age and call time of the meter; requests under way; rows that were folded."""
    page.run()
    page.group.open(Bill(Flight("x", "x", page.now), "t", "m", "b", "chat", True, "weighted", started_at_unix_ns=0))
    page.settlement.failed(page.meter)
    page.now = Nanoseconds(page.now + 250 * MILLISECOND)

    assert page.values("requests_in_flight") == {("b",): 1.0}
    assert page.values("meter_age_seconds") == {("b", "GPU-1"): 0.25}
    assert page.values("settlement_lag_seconds") == {("b",): 0.25}
    assert page.values("meter_read_seconds") == {("b", "GPU-1"): 0.002}
    assert page.values("meter_failures_total") == {("b", "GPU-1"): 1.0}
    assert page.values("gpu_power_watts")["b", "GPU-1"] == pytest.approx(24.69, abs=0.01)
    assert page.values("meter_counter_power_ratio")["b", "GPU-1"] == pytest.approx(24.69 / 20, abs=0.01)
    assert page.values("ledger_dropped_rows_total") == {(): 3.0}
    assert page.values("ledger_behind_postings") == {(): 5.0}
    assert page.values("meter_stuck_total") == {("b", "GPU-1"): 0.0}
    page.group.meters["GPU-1"].timeline.stuck = 2
    assert page.values("meter_stuck_total") == {("b", "GPU-1"): 2.0}
    (labels,) = [labels for name, labels, _ in page.samples() if name == "meter_info"]
    assert labels == {"gpu": "GPU-1", "backend": "b", "kind": "recorded", "estimated": "false"}
