"""What is to be committed next: postings merged until the writer takes them, in bounded memory.

Merging loses nothing: increments add and the newest state of a row is the only one that counts. When the
database stays away so long that too many rows wait, settled rows are folded into the hourly totals that
retention would have made of them: their detail goes, their energy does not.
"""

from collections.abc import Container
from dataclasses import dataclass

from proxy.accounting.postings import BalancePosting, Posting, RequestRow, joined
from proxy.stores.schema import AMOUNTS, NS_PER_HOUR, SPREAD
from proxy.stores.sums import worst_grade


@dataclass(frozen=True, slots=True)
class FoldKey:
    """Which total a folded row belongs to; `hour` is that of its start, in hours since 1970."""

    hour: int
    backend: str
    tenant: str
    model: str


class Batch:
    """Postings merged into one; everything in it is committed in one transaction."""

    def __init__(self) -> None:
        self.postings = 0
        self.balances: dict[tuple[int, str, str], BalancePosting] = {}
        self.rows: dict[str, RequestRow] = {}
        self.folded: dict[FoldKey, dict[str, float | None]] = {}
        self.folded_grades: dict[FoldKey, str | None] = {}

    def add(self, posting: Posting, hour: int) -> None:
        """Takes a posting in; `hour` is the hour its energy is booked under."""
        self.postings += 1
        for balance in posting.balances:
            key = (hour, balance.backend, balance.meter)
            before = self.balances.get(key)
            self.balances[key] = balance if before is None else joined(before, balance)
        for row in posting.requests:
            self.rows[row.row] = row

    def fold(self, room: int, keep: Container[str]) -> int:
        """Folds settled rows, oldest first, until `room` rows are left; returns how many it folded.

        `keep` names rows that the database already holds as open: their energy is counted there, so they
        must be replaced, not added.
        """
        surplus = len(self.rows) - room
        foldable = [r for r in self.rows.values() if r.state == "settled" and r.row not in keep][: max(surplus, 0)]
        for row in foldable:
            del self.rows[row.row]
            self._fold_one(row)
        return len(foldable)

    def _fold_one(self, row: RequestRow) -> None:
        key = FoldKey(row.started_at_unix_ns // NS_PER_HOUR, row.backend, row.tenant, row.model)
        total = self.folded.setdefault(key, {"requests": 0} | dict.fromkeys(AMOUNTS) | dict.fromkeys(SPREAD, 0.0))
        total["requests"] = (total["requests"] or 0) + 1
        self.folded_grades[key] = worst_grade((row.grade, self.folded_grades.get(key, row.grade)))
        for name in AMOUNTS:
            amount: int | None = getattr(row, name)
            if amount is not None:
                total[name] = (total[name] or 0) + amount
        for name in SPREAD:
            doubt: float | None = getattr(row, name)
            before = total[name]
            total[name] = None if doubt is None or before is None else before + doubt
