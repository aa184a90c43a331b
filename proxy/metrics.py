"""Prometheus' view of the running totals: a reading of the books, not a second set of them.

Base units, bounded labels, no request ids. Ratios such as joules per token are recording rules, never gauges.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.accounting.bill import Bill
from proxy.accounting.group import Group
from proxy.accounting.meter_state import MeterState
from proxy.accounting.units import joules, seconds
from proxy.ports import Meter
from proxy.settlement import MeterHealth, Settlement, doubt_of

# One more series per histogram and model, which nobody asks for; the process's start says the same.
disable_created_metrics()  # type: ignore[no-untyped-call]

ACCOUNTS = ("requests", "idle", "unattributed", "unmeasured")
_JOULES = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
_JOULES_PER_TOKEN = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
_TTFT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TPOT_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 1)
OTHER = "other"
"""The label of all tenants that are not shown by name; one who is really called so is among them."""
_RATIO = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1)
_ADDED_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1)


class RequestHistograms:
    """Distributions by model, filled when a request is closed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"jouleproxy_{name}", text, ["model"], buckets=buckets, registry=registry)

        self._energy = histogram("energy_per_request_joules", "Settled energy of one request.", _JOULES)
        self._per_token = histogram(
            "energy_per_output_token_joules", "Settled energy of one request over its output tokens.", _JOULES_PER_TOKEN
        )
        self._ttft = histogram("time_to_first_token_seconds", "From sending to the first token (streams).", _TTFT_S)
        self._tpot = histogram("time_per_output_token_seconds", "Mean time per token after the first.", _TPOT_S)
        self._added = histogram("added_latency_seconds", "Time the proxy itself held a request.", _ADDED_S)
        text = "Standard deviation of a request's energy against other requests', as a part of it."
        self._uncertainty = histogram("request_relative_uncertainty_ratio", text, _RATIO)

    def finished(self, bill: Bill) -> None:
        """Takes in one closed request; only complete answers of work on the GPU count."""
        flight = bill.flight
        if flight.outcome != "ok" or not flight.metered_work:
            return
        if not bill.unmeasured:
            self._energy.labels(bill.model).observe(joules(bill.energy_uj))
            if flight.completion_tokens:
                self._per_token.labels(bill.model).observe(joules(bill.energy_uj) / flight.completion_tokens)
            uncertainty = bill.relative_uncertainty()
            if uncertainty is not None:
                self._uncertainty.labels(bill.model).observe(uncertainty)
        times = ((self._ttft, flight.ttft_ns), (self._tpot, flight.tpot_ns), (self._added, bill.added_ns))
        for histogram, span in times:
            if span is not None:
                histogram.labels(bill.model).observe(seconds(span))


class BooksCollector(Collector):
    """Shows the settlement's groups as they stand at one instant, so that accounts add up within every scrape.

    dropped_rows: rows the ledger has folded. ledger_behind: postings it has taken and not yet committed.
    """

    def __init__(
        self,
        settlement: Settlement,
        *,
        clock: Callable[[], int],
        backend_up: Callable[[], Mapping[str, bool]],
        dropped_rows: Callable[[], int],
        max_tenants: int,
        ledger_behind: Callable[[], int] = lambda: 0,
    ) -> None:
        self._settlement = settlement
        self._clock = clock
        self._backend_up = backend_up
        self._dropped_rows = dropped_rows
        self._ledger_behind = ledger_behind
        self._max_tenants = max_tenants
        self._named: list[str] = []

    def describe(self) -> list[Metric]:
        """Nothing ahead of time: registering must not read the books."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families, from one state of the books."""
        families = _Families()
        now = self._clock()
        with self._settlement.lock:
            for group in self._settlement.groups.values():
                _show_group(families, group, now)
                for state in group.meters.values():
                    meter = self._settlement.meters[state.name]
                    _show_meter(families, group, state, meter, self._settlement.health[state.name], now)
            for tenant, energy in self._tenants().items():
                text = "Energy of each tenant's requests."
                families.counter("tenant_energy_joules", text, joules(energy), tenant=tenant)
        for backend, up in self._backend_up().items():
            families.gauge("backend_up", "1 while the backend answers its health check.", float(up), backend=backend)
        text = "Rows kept only as hourly totals because the database was behind; no energy is lost."
        families.counter("ledger_dropped_rows", text, float(self._dropped_rows()))
        text = "Postings that the ledger has taken and not yet committed."
        families.gauge("ledger_behind_postings", text, float(self._ledger_behind()))
        yield from families.all()

    def _tenants(self) -> dict[str, int]:
        """The tenants that were seen first by name, the rest as `other`, so that labels stay bounded.

        Who once has a name keeps it, and who has none gets none later: each of these counters only ever grows.
        """
        shown: dict[str, int] = {}
        for group in self._settlement.groups.values():
            for tenant, energy in group.tallies.energy_by_tenant.items():
                if tenant not in self._named and tenant != OTHER and len(self._named) < self._max_tenants:
                    self._named.append(tenant)
                label = tenant if tenant in self._named else OTHER
                shown[label] = shown.get(label, 0) + energy
        return shown


class _Families:
    """Metric families made at first use, in the order of use."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def counter(self, name: str, text: str, value: float, **labels: str) -> None:
        self._add(CounterMetricFamily, name, text, value, labels)

    def gauge(self, name: str, text: str, value: float | None, **labels: str) -> None:
        """A value that is not known makes no series."""
        if value is not None:
            self._add(GaugeMetricFamily, name, text, value, labels)

    def _add(self, kind: Any, name: str, text: str, value: float, labels: dict[str, str]) -> None:
        if name not in self._made:
            self._made[name] = kind(f"jouleproxy_{name}", text, labels=list(labels))
        self._made[name].add_metric(list(labels.values()), value)

    def all(self) -> Iterator[Metric]:
        yield from self._made.values()


def _show_group(families: _Families, group: Group, now: int) -> None:
    backend = group.backend
    for account in ACCOUNTS:
        total = sum(getattr(state.accounts, account) for state in group.meters.values())
        text = "Energy by where it went; the accounts add up to the meters."
        families.counter("energy_joules", text, joules(total), backend=backend, account=account)
    imbalance = sum(state.imbalance for state in group.meters.values())
    families.gauge("imbalance_joules", "Meter minus accounts; always 0.", joules(imbalance), backend=backend)
    for (model, phase), energy in group.tallies.energy_by_model_phase.items():
        text = "Energy of requests by phase; shared is the equal part of each step's fixed cost."
        families.counter("request_energy_joules", text, joules(energy), backend=backend, model=model, phase=phase)
    for (model, kind), tokens in group.tallies.tokens_by_model_kind.items():
        text = "Tokens of closed requests; cached ones are a part of prompt."
        families.counter("tokens", text, float(tokens), backend=backend, model=model, kind=kind)
    for (model, outcome), count in group.tallies.requests_by_model_outcome.items():
        families.counter("requests", "Closed requests.", float(count), backend=backend, model=model, outcome=outcome)
    for grade, count in group.tallies.requests_by_grade.items():
        text = "Closed requests by how good their energy figures are, A to D."
        families.counter("graded_requests", text, float(count), backend=backend, grade=grade)
    # The relay opens bills on its own thread without the lock: a list is made in one step, a loop is not.
    open_now = sum(1 for bill in list(group.bills.values()) if bill.flight.ended is None)
    families.gauge("requests_in_flight", "Requests being answered.", float(open_now), backend=backend)
    text = "Measured over predicted joules; near a constant while the weights fit."
    families.gauge("kappa", text, group.divider.kappa, backend=backend)
    _show_weights(families, group)
    reached = group.settled_until
    lag = None if reached is None else seconds(now - reached)
    families.gauge("settlement_lag_seconds", "Age of the newest divided window.", lag, backend=backend)


def _show_weights(families: _Families, group: Group) -> None:
    fit, steps = group.divider.fit, group.steps
    text = "1 while learnt weights are used, 0 while those it began with are."
    families.gauge("weights_learnt", text, float(fit.in_use), backend=group.backend)
    text = "How far the weights predict 5 s of energy ahead, root mean square, as a part of it."
    families.gauge("weights_error_ratio", text, fit.error, backend=group.backend)
    if steps.state != "unheard":
        text = "1 while the engine's step log is heard (grade A), 0 once it has fallen silent."
        families.gauge("step_log_up", text, float(steps.heard), backend=group.backend)
        text = "Engine steps that the log did not tell."
        families.counter("step_log_lost_steps", text, float(steps.lost), backend=group.backend)


def _show_meter(
    families: _Families, group: Group, state: MeterState, meter: Meter, health: MeterHealth, now: int
) -> None:
    labels = {"gpu": meter.gpu, "backend": group.backend}
    families.counter("gpu_energy_joules", "Energy the meter counted.", joules(state.accounts.meter), **labels)
    families.counter("meter_failures", "Readings that did not come.", float(health.failures), **labels)
    families.counter("meter_resets", "Times the meter's counter fell.", float(state.timeline.resets), **labels)
    text = "Times the meter's counter stood still while its power did not."
    families.counter("meter_stuck", text, float(state.timeline.stuck), **labels)
    families.gauge("gpu_power_watts", "Mean power over the last window.", state.power_w, **labels)
    families.gauge("idle_power_watts", "Power with the model loaded and nothing running.", state.idle_w, **labels)
    age = None if health.last_read is None else seconds(now - health.last_read)
    families.gauge("meter_age_seconds", "Time since the last reading.", age, **labels)
    call = None if health.call_ns is None else seconds(health.call_ns)
    families.gauge("meter_read_seconds", "How long the last reading took.", call, **labels)
    ratio = state.timeline.power_w / state.last_power_w if state.timeline.power_w and state.last_power_w else None
    families.gauge("meter_counter_power_ratio", "Power from the counter over the power reading.", ratio, **labels)
    unsure = doubt_of(meter, state)
    text = "Standard deviation common to all joules of the meter, as a part of them."
    families.gauge("meter_absolute_uncertainty_ratio", text, unsure, **labels)
    families.gauge(
        "meter_info",
        "What the meter is; estimated means a model, not a sensor.",
        1.0,
        **labels,
        kind=meter.kind,
        estimated=str(meter.estimated).lower(),
    )
