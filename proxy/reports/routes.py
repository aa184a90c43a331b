"""The routes under /energy."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request

from proxy.reports.finder import Finder
from proxy.reports.records import balance_record, record, total_record
from proxy.stores.books import Books

MOST_FOR_OPERATORS, MOST_FOR_CLIENTS = 100_000, 1_000
"""Records in one list; on the traffic port a list must not take long from those who wait for answers."""
TenantOf = Callable[[Request], str | None]
"""Whose requests this caller may see; None: everybody's."""


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
