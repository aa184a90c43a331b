"""GET /energy/*: what the ledger and the open requests say, as JSON."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from proxy.accounting.postings import RequestRow
from proxy.accounting.units import joules, seconds
from proxy.errors import NotFound
from proxy.relay import provisional_energy
from proxy.settlement import UNMEASURED, Settlement
from proxy.stores.books import Books
from proxy.stores.sums import Accounts, BackendBalance, MeterIdentity, Total
from proxy.wire.energy import energy_object

LOOK_AGAIN_S = 0.05
LONGEST_WAIT_S = 60.0
MOST_FOR_OPERATORS, MOST_FOR_CLIENTS = 100_000, 1_000
"""Records in one list; on the traffic port a list must not take long from those who wait for answers."""
TenantOf = Callable[[Request], str | None]
"""Whose requests this caller may see; None: everybody's."""


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
    """One line of a summary."""
    return {
        by: total.keys[0],
        "requests": total.requests,
        "energy_joules": joules(total.energy_uj),
        "energy_microjoules": total.energy_uj,
        "prompt_tokens": total.prompt_tokens,
        "cached_tokens": total.cached_tokens,
        "completion_tokens": total.completion_tokens,
        "joules_per_output_token": total.joules_per_output_token,
        "relative_uncertainty": total.relative_uncertainty,
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


class Finder:
    """Finds one request: settled in the ledger, else open here; waits for settlement on request."""

    def __init__(self, books: Books, settlement: Settlement, clock: Callable[[], Any]) -> None:
        self._books = books
        self._settlement = settlement
        self._clock = clock

    async def find(self, request_id: str, tenant: str | None, wait_s: float) -> dict[str, Any]:
        """The record; raises NotFound. Status `settled` means that it is committed to the ledger."""
        deadline = asyncio.get_running_loop().time() + min(wait_s, LONGEST_WAIT_S)
        while True:
            found = await run_in_threadpool(self._look, request_id, tenant)
            late = asyncio.get_running_loop().time() >= deadline
            if found is not None and (found["status"] == "settled" or late):
                return found
            if late:
                raise NotFound(f"No request {request_id!r} is known here; its id is in the answer's x-request-id.")
            await asyncio.sleep(LOOK_AGAIN_S)

    def _look(self, request_id: str, tenant: str | None) -> dict[str, Any] | None:
        running = self._settlement.find(request_id, tenant)
        finished = self._settlement.just_finished(request_id, tenant)
        # A failed attempt may be closed after the one that took its place: what was sent last is the request.
        if running and not (finished and finished.started_at_unix_ns > running[0].started_at_unix_ns):
            bill, group = running
            now = self._clock()
            row = group.row(bill, "open", now)
            with self._settlement.lock:
                shown = provisional_energy(bill, group, now)
            energy_j = shown["energy_joules"]
            whole = {"energy_microjoules": None if energy_j is None else round(energy_j * 1e6)}
            return record(row, status="provisional") | shown | whole
        row_kept, count = self._books.request(request_id, tenant)
        if row_kept is None or (finished is not None and finished.row != row_kept.row) or row_kept.state == "open":
            return None if finished is None else record(finished, status="provisional")
        return record(row_kept, status="settled") | {"records": count}


def energy_routes(books: Books, finder: Finder, tenant_of: TenantOf, *, whole: bool) -> APIRouter:
    """The routes under /energy. whole: for operators (admin listener), with long lists and everybody's balance."""
    routes = APIRouter(prefix="/energy", tags=["energy"])

    @routes.get("/requests/{request_id:path}")
    async def request(
        request: Request,
        request_id: str,
        wait: Annotated[float, Query(ge=0, description="seconds to wait for the settled figure, at most 60")] = 0.0,
    ) -> dict[str, Any]:
        """What one request cost: provisional while its last windows are open, settled about a second later."""
        return await finder.find(request_id, tenant_of(request), wait)

    _add_sums(routes, books, tenant_of, MOST_FOR_OPERATORS if whole else MOST_FOR_CLIENTS)
    if whole:

        @routes.get("/balance")
        def balance() -> dict[str, Any]:
            """requests + idle + unattributed + unmeasured == meter, as the ledger has it."""
            return balance_record(books.balance())

    return routes


def _add_sums(routes: APIRouter, books: Books, tenant_of: TenantOf, most: int) -> None:
    @routes.get("/requests")
    def requests(
        request: Request,
        since: Annotated[float | None, Query(description="seconds since 1970")] = None,
        limit: Annotated[int, Query(ge=1, le=most)] = 100,
    ) -> dict[str, Any]:
        """The newest requests in the ledger."""
        since_ns = None if since is None else round(since * 1e9)
        rows = books.requests(since_ns, limit, tenant_of(request))
        return {"requests": [record(r, status="settled" if r.state == "settled" else "provisional") for r in rows]}

    @routes.get("/summary")
    def summary(
        request: Request,
        by: Annotated[Literal["model", "tenant", "backend"], Query()] = "model",
        since: Annotated[float | None, Query(description="seconds since 1970")] = None,
        until: Annotated[float | None, Query(description="seconds since 1970")] = None,
    ) -> dict[str, Any]:
        """Energy and tokens summed by model, tenant or backend."""
        first, last = (None if edge is None else round(edge * 1e9) for edge in (since, until))
        totals = books.summary(by, first, last, tenant_of(request))
        return {"by": by, "rows": [total_record(by, total) for total in totals]}
