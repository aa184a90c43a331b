"""Finds one request, wherever it is just now."""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool

from proxy.errors import NotFound
from proxy.reports.records import record
from proxy.settlement import Settlement
from proxy.stores.books import Books
from proxy.wire.energy import provisional_energy

LOOK_AGAIN_S = 0.05
LONGEST_WAIT_S = 60.0


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
