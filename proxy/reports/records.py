"""What the ledger keeps, in the shape that the API shows."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from proxy.accounting.postings import RequestRow
from proxy.accounting.units import joules, seconds
from proxy.settlement import UNMEASURED
from proxy.stores.sums import Accounts, BackendBalance, MeterIdentity, Total
from proxy.wire.energy import energy_object


def _optional(value: int | None, show: Callable[[int], float]) -> float | None:
    return None if value is None else show(value)


def record(row: RequestRow, *, status: str) -> dict[str, Any]:
    """One request's row as the API shows it; energy is null where a meter failed and nothing is known."""
    unknown = row.grade == UNMEASURED and row.energy_uj == 0
    energy = energy_object(
        request_id=row.request_id,
        status=status,
        energy_uj=None if unknown else row.energy_uj,
        duration_ns=row.duration_ns,
        method=row.policy,
        metered_uj=row.metered_uj or None,
        grade=row.grade,
        estimated=row.estimated,
        relative_uncertainty=row.relative_uncertainty,
        phases_uj=None if unknown else (row.prefill_uj, row.decode_uj, row.shared_uj),
        tokens=(row.prompt_tokens, row.cached_tokens, row.completion_tokens),
        absolute_uncertainty=row.absolute_uncertainty,
    )
    return energy | {
        "energy_microjoules": None if unknown else row.energy_uj,
        "energy_by_token_share_joules": None if unknown else joules(row.token_share_uj),
        "outcome": row.outcome,
        "http_status": row.http_status,
        "tenant": row.tenant,
        "model": row.model,
        "backend": row.backend,
        "endpoint": row.endpoint,
        "stream": row.stream,
        "started_at": datetime.fromtimestamp(row.started_at_unix_ns / 1e9, UTC).isoformat(),
        "ttft_seconds": _optional(row.ttft_ns, seconds),
        "tpot_seconds": _optional(row.tpot_ns, seconds),
    }


def total_record(by: str, total: Total) -> dict[str, Any]:
    """One line of a summary. grade: of the worst request in it; null where that of one is not known."""
    return {
        by: total.keys[0],
        "requests": total.requests,
        "energy_joules": joules(total.energy_uj),
        "energy_microjoules": total.energy_uj,
        "prompt_tokens": total.prompt_tokens,
        "cached_tokens": total.cached_tokens,
        "completion_tokens": total.completion_tokens,
        "joules_per_output_token": total.joules_per_output_token,
        "grade": total.grade,
        "relative_uncertainty": total.relative_uncertainty,
        "absolute_uncertainty": total.absolute_uncertainty,
    }


def _accounts(accounts: Accounts) -> dict[str, Any]:
    return {
        "meter_microjoules": accounts.meter_uj,
        "accounts": {
            "requests": accounts.requests_uj,
            "idle": accounts.idle_uj,
            "unattributed": accounts.unattributed_uj,
            "unmeasured": accounts.unmeasured_uj,
        },
        "imbalance_microjoules": accounts.imbalance_uj,
    }


def _meter(meter: MeterIdentity) -> dict[str, Any]:
    return {
        "gpu": meter.gpu,
        "kind": meter.kind,
        "estimated": meter.estimated,
        "description": meter.description,
        "absolute_uncertainty": meter.absolute_uncertainty,
    }


def balance_record(balances: list[BackendBalance]) -> dict[str, Any]:
    """The law as it stands in the ledger, by backend and in all."""
    total = Accounts(
        **{
            name: sum(getattr(balance.accounts, name) for balance in balances)
            for name in ("requests_uj", "idle_uj", "unattributed_uj", "unmeasured_uj", "meter_uj")
        }
    )
    rows = [
        {
            "backend": balance.backend,
            "meters": [_meter(meter) for meter in balance.meters],
            "rows_microjoules": balance.rows_uj,
        }
        | _accounts(balance.accounts)
        | {"imbalance_microjoules": balance.imbalance_uj}
        for balance in balances
    ]
    imbalance = sum(balance.imbalance_uj for balance in balances)
    return {"backends": rows, "total": _accounts(total) | {"imbalance_microjoules": imbalance}}
