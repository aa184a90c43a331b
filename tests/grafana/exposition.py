"""A made-up /metrics page with the proxy's names and labels, whose joules and tokens are known.

Backend `well` is healthy. Backend `sick` has everything that an alert should notice.
"""

from collections.abc import Iterator

POWER_W = {("GPU-0", "well"): 300.0, ("GPU-1", "well"): 100.0, ("GPU-2", "sick"): 500.0}
ACCOUNTS_W = {
    "well": {"requests": 320.0, "idle": 60.0, "unattributed": 20.0, "unmeasured": 0.0},
    "sick": {"requests": 200.0, "idle": 100.0, "unattributed": 150.0, "unmeasured": 50.0},
}
PHASES_W = {
    ("well", "small"): {"prefill": 80.0, "decode": 160.0, "shared": 80.0},
    ("sick", "large"): {"prefill": 50.0, "decode": 100.0, "shared": 50.0},
}
TOKENS_PER_S = {
    ("well", "small"): {"prompt": 1000.0, "cached": 400.0, "completion": 640.0},
    ("sick", "large"): {"prompt": 300.0, "cached": 0.0, "completion": 100.0},
}
TENANTS_W = {"research": 312.0, "other": 208.0}
OUTCOMES_PER_S = {"ok": 4.0, "error": 0.5, "aborted": 0.25, "partial": 0.25}
HISTOGRAM_BOUNDS = {
    "jouleproxy_energy_per_request_joules": (50.0, 100.0),
    "jouleproxy_energy_per_output_token_joules": (0.2, 0.4),
    "jouleproxy_time_to_first_token_seconds": (0.1, 0.2),
    "jouleproxy_time_per_output_token_seconds": (0.02, 0.04),
    "jouleproxy_added_latency_seconds": (0.0005, 0.001),
}
"""Every observation falls between the two bounds, so the median is in the middle of them."""

GAUGES_BY_GPU = {  # well, sick
    "jouleproxy_gpu_power_watts": (200.0, 500.0),
    "jouleproxy_idle_power_watts": (50.0, 90.0),
    "jouleproxy_meter_age_seconds": (0.1, 60.0),
    "jouleproxy_meter_counter_power_ratio": (1.01, 0.5),
    "jouleproxy_meter_read_seconds": (0.001, 0.002),
}
GAUGES_BY_BACKEND = {  # well, sick
    "jouleproxy_kappa": (1.02, 0.7),
    "jouleproxy_settlement_lag_seconds": (0.5, 60.0),
    "jouleproxy_imbalance_joules": (0.0, 1.5),
    "jouleproxy_requests_in_flight": (8.0, 1.0),
    "jouleproxy_backend_up": (1.0, 0.0),
}


def metric_names() -> set[str]:
    """Names of all series that the proxy shows; the dashboard and the rules may ask for no other."""
    return {line.split("{")[0].split(" ")[0] for line in page(1.0).splitlines() if not line.startswith("#")}


def page(elapsed_s: float) -> str:
    """The page after `elapsed_s` seconds of steady load."""
    lines: list[str] = []
    for name, kind, samples in _families(elapsed_s):
        lines.append(f"# TYPE {name} {kind}")
        lines.extend(samples)
    return "\n".join(lines) + "\n"


def _sample(name: str, value: float, **labels: str) -> str:
    listed = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return f"{name}{{{listed}}} {value!r}" if labels else f"{name} {value!r}"


def _families(t: float) -> Iterator[tuple[str, str, list[str]]]:
    yield from _energy(t)
    yield from _traffic(t)
    yield from _trouble(t)
    for name, by_state in GAUGES_BY_GPU.items():
        yield name, "gauge", [_sample(name, _of(b, by_state), gpu=g, backend=b) for g, b in POWER_W]
    for name, by_state in GAUGES_BY_BACKEND.items():
        yield name, "gauge", [_sample(name, _of(b, by_state), backend=b) for b in ACCOUNTS_W]
    for name, bounds in HISTOGRAM_BOUNDS.items():
        yield name, "histogram", _histogram(name, bounds, 4.0 * t)


def _of(backend: str, by_state: tuple[float, float]) -> float:
    well, sick = by_state
    return well if backend == "well" else sick


def _energy(t: float) -> Iterator[tuple[str, str, list[str]]]:
    name = "jouleproxy_gpu_energy_joules_total"
    yield name, "counter", [_sample(name, watts * t, gpu=g, backend=b) for (g, b), watts in POWER_W.items()]
    name = "jouleproxy_energy_joules_total"
    booked = [(b, account, watts) for b, accounts in ACCOUNTS_W.items() for account, watts in accounts.items()]
    yield name, "counter", [_sample(name, watts * t, backend=b, account=account) for b, account, watts in booked]
    name = "jouleproxy_request_energy_joules_total"
    spent = [(b, m, phase, watts) for (b, m), phases in PHASES_W.items() for phase, watts in phases.items()]
    yield name, "counter", [_sample(name, watts * t, backend=b, model=m, phase=phase) for b, m, phase, watts in spent]
    name = "jouleproxy_tenant_energy_joules_total"
    yield name, "counter", [_sample(name, watts * t, tenant=tenant) for tenant, watts in TENANTS_W.items()]


def _traffic(t: float) -> Iterator[tuple[str, str, list[str]]]:
    name = "jouleproxy_tokens_total"
    flow = [(b, m, kind, rate) for (b, m), kinds in TOKENS_PER_S.items() for kind, rate in kinds.items()]
    yield name, "counter", [_sample(name, rate * t, backend=b, model=m, kind=kind) for b, m, kind, rate in flow]
    name = "jouleproxy_requests_total"
    ends = [(b, m, end, rate) for b, m in TOKENS_PER_S for end, rate in OUTCOMES_PER_S.items()]
    yield (
        name,
        "counter",
        [_sample(name, rate * t, backend=b, model=m, outcome=end) for b, m, end, rate in ends],
    )


def _trouble(t: float) -> Iterator[tuple[str, str, list[str]]]:
    name = "jouleproxy_ledger_dropped_rows_total"
    yield name, "counter", [_sample(name, t)]
    name = "jouleproxy_ledger_behind_postings"
    yield name, "gauge", [_sample(name, 400.0)]
    for name in (f"jouleproxy_meter_{trouble}_total" for trouble in ("failures", "resets", "stuck")):
        yield name, "counter", [_sample(name, _of(b, (0.0, t)), gpu=g, backend=b) for g, b in POWER_W]
    name = "jouleproxy_meter_info"
    measured = {"well": ("nvml", "false"), "sick": ("modelled", "true")}
    meters = [(g, b, *measured[b]) for g, b in POWER_W]
    yield name, "gauge", [_sample(name, 1.0, gpu=g, backend=b, kind=k, estimated=e) for g, b, k, e in meters]


def _histogram(name: str, bounds: tuple[float, float], count: float) -> list[str]:
    low, high = bounds
    lines = []
    for model in ("small", "large"):
        for bound, reached in ((str(low), 0.0), (str(high), count), ("+Inf", count)):
            lines.append(_sample(f"{name}_bucket", reached, model=model, le=bound))
        lines.append(_sample(f"{name}_sum", count * (low + high) / 2, model=model))
        lines.append(_sample(f"{name}_count", count, model=model))
    return lines
