"""Below the first screen: the backends, and the meters and books behind all figures."""

from kinds import (
    ACCOUNT_COLOURS,
    ACCOUNTS,
    DASHED,
    HIGH_QUANTILE_DASHED,
    Query,
    bars,
    colour,
    curves,
    figures,
    override,
    steps,
    table,
    words,
)
from promql import (
    BOOKED,
    HERE,
    J_PER_TOKEN,
    METER,
    MODEL,
    SPENT,
    STEADY,
    TOKENS,
    gauge,
    in_account,
    over_range,
    quantiles,
    rate,
    ratio,
)

BACKEND_JOULES_PER_TOKEN = curves(
    "Joules per output token, by backend",
    "Energy of requests only, and (dashed) all energy of the backend's meters loaded on the same tokens.",
    J_PER_TOKEN,
    Query(ratio(rate(SPENT, "backend"), rate(TOKENS, "backend", f'{HERE},kind="completion"')), "{{backend}}"),
    Query(
        ratio(rate(BOOKED, "backend"), rate(TOKENS, "backend", f'{HERE},kind="completion"')), "{{backend}} with idle"
    ),
    min_step=STEADY,
    overrides=[override("/with idle$/", **DASHED)],
)
BACKEND_POWER = curves(
    "Power and idle power, by backend",
    "Mean power by the meter, and (dashed) what the GPUs draw with the model loaded and nothing running.",
    "watt",
    Query(rate(METER, "backend"), "{{backend}}"),
    Query(f"sum by (backend) (jouleproxy_idle_power_watts{{{HERE}}})", "{{backend}} idle"),
    overrides=[override("/ idle$/", **DASHED)],
)
ACCOUNT_TOTALS = bars(
    "Where the energy went, in range",
    "The four accounts over the time range of the dashboard; together they are the energy of the meters.",
    "watth",
    *(Query(f"{over_range(BOOKED, where=in_account(name))} / 3600", name, instant=True) for name in ACCOUNTS),
    overrides=ACCOUNT_COLOURS,
)
IN_FLIGHT = curves(
    "Requests in flight",
    "Fuller batches cost fewer joules per token, until the latency says stop.",
    "short",
    gauge("jouleproxy_requests_in_flight", "backend"),
)
OUTCOMES = curves(
    "Finished requests, by outcome",
    "Aborted and partial requests pay for the work done until they were dropped.",
    "reqps",
    Query(rate("jouleproxy_requests_total", "outcome", MODEL), "{{outcome}}"),
    stacked=True,
    overrides=[
        override(name, color=colour(hue))
        for name, hue in {"ok": "green", "aborted": "yellow", "partial": "orange", "error": "red"}.items()
    ],
)
ADDED_LATENCY = curves(
    "Latency added by the proxy",
    "Time the proxy itself adds to a request.",
    "s",
    *quantiles("jouleproxy_added_latency_seconds", high=99),
    min_step=STEADY,
    overrides=HIGH_QUANTILE_DASHED,
)
TOKEN_SPREAD = curves(
    "Joules per output token of single requests",
    "Median and 95th percentile over finished requests: short answers to long prompts are the expensive ones.",
    J_PER_TOKEN,
    *quantiles("jouleproxy_energy_per_output_token_joules"),
    min_step=STEADY,
    overrides=HIGH_QUANTILE_DASHED,
)
BACKENDS_UP = figures(
    "Health checks",
    "Whether the health check of each backend passes.",
    "short",
    gauge("jouleproxy_backend_up", "backend"),
    listed=True,
    overrides=[override("/.*/", mappings=words({"0": ("DOWN", "red"), "1": ("up", "green")}))],
)

GPU = "backend, gpu"
METERS = table(
    "Meters",
    "Every meter as it stands. Counter / power compares two readings of the same board: near 1 when both are right.",
    Query(f"max by (backend, gpu, kind, estimated) (jouleproxy_meter_info{{{HERE}}})", "info", instant=True),
    Query(gauge("jouleproxy_gpu_power_watts", GPU).expr, "power", instant=True),
    Query(gauge("jouleproxy_idle_power_watts", GPU).expr, "idle power", instant=True),
    Query(gauge("jouleproxy_meter_age_seconds", GPU).expr, "age", instant=True),
    Query(gauge("jouleproxy_meter_counter_power_ratio", GPU).expr, "counter / power", instant=True),
    Query(gauge("jouleproxy_meter_read_seconds", GPU).expr, "read time", instant=True),
    Query(over_range("jouleproxy_meter_failures_total", GPU), "failures in range", instant=True),
    Query(over_range("jouleproxy_meter_resets_total", GPU), "resets in range", instant=True),
    order=(
        *("backend", "gpu", "kind", "estimated", "power", "idle power", "age", "counter / power", "read time"),
        *("failures in range", "resets in range"),
    ),
    overrides=[
        override("/power$/", unit="watt", decimals=0),
        override("/^(age|read time)$/", unit="s"),
        override("counter / power", unit="short", decimals=3),
        override("/in range$/", decimals=0, thresholds=steps("green", (0.5, "orange"))),
        override("estimated", mappings=words({"true": ("YES", "orange"), "false": ("no", "green")})),
    ],
)
METER_AGE = curves(
    "Age of the last reading",
    "Grows when a meter stops answering; 10 s raise an alert.",
    "s",
    gauge("jouleproxy_meter_age_seconds", GPU),
)
GPU_POWER = curves(
    "Power, by GPU",
    "Last power of each meter.",
    "watt",
    gauge("jouleproxy_gpu_power_watts", GPU),
)
COUNTER_RATIO = curves(
    "Energy counter / power reading",
    "Two readings of the same board. No curve where a board has no power reading.",
    "percentunit",
    gauge("jouleproxy_meter_counter_power_ratio", GPU),
    soft_max=1.2,
)
KAPPA = curves(
    "Kappa",
    "Measured / predicted active energy. Only ratios between requests matter, so a steady value away from 1 is "
    "no error; a moving one means that the weights miss something.",
    "short",
    gauge("jouleproxy_kappa", "backend"),
    soft_max=1.2,
)
SETTLEMENT_LAG = curves(
    "Settlement lag",
    "How far the final figures of requests are behind the meter.",
    "s",
    gauge("jouleproxy_settlement_lag_seconds", "backend"),
)
IMBALANCE = curves(
    "Imbalance",
    "Meter minus requests, idle, unattributed and unmeasured, in whole microjoules. Always 0.",
    "joule",
    gauge("jouleproxy_imbalance_joules", "backend"),
    signed=True,
    soft_max=1,
)
TROUBLE = curves(
    "Failures, resets, dropped rows",
    "Failed meter readings, counters that started anew, and ledger rows that could not be written.",
    "short",
    Query("sum(increase(jouleproxy_meter_failures_total{" + HERE + "}[$__rate_interval]))", "meter failures"),
    Query("sum(increase(jouleproxy_meter_resets_total{" + HERE + "}[$__rate_interval]))", "meter resets"),
    Query("sum(increase(jouleproxy_ledger_dropped_rows_total[$__rate_interval]))", "dropped ledger rows"),
    soft_max=1,
)
READ_TIME = curves(
    "Time to read a meter",
    "A slow driver call makes windows long and shares coarse.",
    "s",
    gauge("jouleproxy_meter_read_seconds", GPU),
)

ROWS = [
    (
        "Backends",
        [
            (7, [(8, BACKEND_JOULES_PER_TOKEN), (8, BACKEND_POWER), (8, ACCOUNT_TOTALS)]),
            (7, [(5, IN_FLIGHT), (5, OUTCOMES), (5, ADDED_LATENCY), (6, TOKEN_SPREAD), (3, BACKENDS_UP)]),
        ],
    ),
    (
        "Meters and books",
        [
            (6, [(24, METERS)]),
            (6, [(6, GPU_POWER), (6, METER_AGE), (6, COUNTER_RATIO), (6, READ_TIME)]),
            (6, [(6, IMBALANCE), (6, SETTLEMENT_LAG), (6, KAPPA), (6, TROUBLE)]),
        ],
    ),
]
