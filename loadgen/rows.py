"""Rows of Locust's own statistics: one request each, and beside them TTFT, TPOT, lateness and energy.

The extra rows are logged straight into Locust's table. Fired as request events they would be counted as requests
and spoil the Aggregated row and the rate.
"""

from typing import Any

import locust.stats

from loadgen.outcome import Outcome, three_digits

REQUEST_NAME = "/v1/chat/completions"


def log_outcome(environment: Any, outcome: Outcome, ended_ns: int) -> None:
    """Report one request to Locust, its time counted from when it was due. `ended_ns` stands in for a failure's end."""
    end = outcome.last_ns if outcome.error is None and outcome.last_ns is not None else ended_ns
    environment.events.request.fire(
        request_type="POST",
        name=REQUEST_NAME,
        response_time=(end - outcome.due_ns) / 1e6,
        response_length=outcome.output_got or 0,
        exception=None if outcome.error is None else RuntimeError(outcome.error),
        context={"request_id": outcome.request_id, "bin": outcome.bin, "energy_uj": outcome.energy_uj},
    )
    extra = {
        "TTFT (ms)": _scaled(outcome.ttft_ns, 1e6),
        "TPOT (ms)": _scaled(outcome.tpot_ns, 1e6),
        "lateness (ms)": _scaled(outcome.lateness_ns, 1e6),
        "energy (mJ)": _scaled(outcome.energy_uj, 1e3),
    }
    for name, value in extra.items():
        if value is not None:
            environment.stats.entries[(name, "chat")].log(value, 0)


def keep_three_digits() -> None:
    """Have Locust bucket values to three significant digits; its own rule turns 7.3 ms into 7 and 147 into 150."""
    locust.stats.bucket_response_time = three_digits


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
