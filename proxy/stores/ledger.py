"""Keeps the books: takes postings from any thread, one thread commits them in groups, nothing is lost on the way.

While a commit runs, further postings merge into the next one, so the database's own pace sets the group size.
A commit that fails is tried again, unchanged, until it works or is found to have worked. What is not yet
committed when the process dies was never acknowledged by flush(), and the next process meters that energy
again: it continues from last_counter(), which is committed together with what it covers.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable

from sqlalchemy import Connection, Engine, func, select

from proxy.accounting.postings import Posting
from proxy.stores.batch import Batch
from proxy.stores.books import Books
from proxy.stores.schema import NS_PER_HOUR, meters
from proxy.stores.writing import AlreadyApplied, Term, apply, begin_term, retire

_log = logging.getLogger(__name__)

_RETIRE_AT_ONCE = 5_000
"""Rows per deleting transaction: a few tens of milliseconds, so postings never wait long behind it."""


class Ledger(Books):
    """The one writer of a ledger under a name, and a reader of all of it.

    writer: who writes, stable over restarts; every process that shares a database needs its own, and taking
        a name ends the term of the process that had it.
    clock: wall-clock nanoseconds since 1970; decides the hour energy is booked under, and what is old.
    max_rows: request rows that may wait in memory before settled ones are folded into hourly totals.
    keep_ns: request rows older than this become hourly totals, checked once an hour; None keeps all.
    retry_s: first pause after a failed commit; it doubles up to 5 s.

    Raises what the database raises if it cannot be reached at the start, and ConfigurationError if the schema
    is another version's.
    """

    def __init__(
        self,
        *,
        writing: Engine,
        reading: Engine,
        writer: str = "main",
        clock: Callable[[], int] = time.time_ns,
        max_rows: int = 50_000,
        keep_ns: int | None = None,
        retry_s: float = 0.1,
    ) -> None:
        super().__init__(reading)
        self.merged_postings = 0
        self.folded_rows = 0
        self.last_error: str | None = None
        self._writing = writing
        self._term = Term(writer, uuid.uuid4().hex)
        self._clock = clock
        self._max_rows = self._fold_at = max_rows
        self._keep_ns = keep_ns
        self._retry_s = retry_s
        self._changed = threading.Condition()
        self._next = Batch()
        self._open: set[str] = set()
        self._posted = self._committed = self._sequence = 0
        self._retire_before: int | None = None
        self._retired_hour: int | None = None
        self._closing = self._abandoned = False
        with writing.begin() as connection:
            begin_term(connection, self._term)
        self._thread = threading.Thread(target=self._write_until_closed, name="ledger", daemon=True)
        self._thread.start()

    @property
    def behind(self) -> int:
        """Postings taken and not yet committed."""
        return self._posted - self._committed

    def post(self, posting: Posting) -> None:
        """Takes a posting; never waits for the database. Raises ValueError once the ledger is closed."""
        hour = self._clock() // NS_PER_HOUR
        with self._changed:
            if self._closing:
                raise ValueError("the ledger is closed")
            self.merged_postings += 1 if self._next.postings else 0
            self._next.add(posting, hour)
            self._posted += 1
            if len(self._next.rows) > self._fold_at:
                self._fold()
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Waits until all that was posted before is committed; False if that took longer."""
        with self._changed:
            target = self._posted
            return self._changed.wait_for(lambda: self._committed >= target, timeout_s)

    def retire(self, before_unix_ns: int, timeout_s: float) -> bool:
        """Turns settled requests that started before then into hourly totals; False if not done in time."""
        with self._changed:
            self._retire_before = before_unix_ns
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._retire_before is None, timeout_s)

    def last_counter(self, meter: str, epoch: str) -> int | None:
        """How far this writer's books reach on that counter since that origin, in microjoules, under any backend.

        The same counter may have been booked under an earlier backend's name: the furthest counts, so that nothing
        is metered twice.
        """
        furthest = select(func.max(meters.c.last_counter_uj)).where(
            meters.c.writer == self._term.writer, meters.c.meter == meter, meters.c.epoch == epoch
        )
        with self._read() as connection:
            counter_uj: int | None = connection.execute(furthest).scalar_one()
        return counter_uj

    def close(self, timeout_s: float = 10.0) -> None:
        """Commits what is left, for at most that long, and ends the writer. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self.behind:
            _log.error("ledger closed with %d postings not kept: %s", self.behind, self.last_error)
        self._writing.dispose()
        super().close()

    def _fold(self) -> None:
        self.folded_rows += self._next.fold(self._max_rows * 9 // 10, self._open)
        # Rows that may not be folded stay; looking through them again at every posting would cost too much.
        self._fold_at = max(self._max_rows, len(self._next.rows) * 5 // 4)

    def _write_until_closed(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next.postings or self._retire_before is not None or self._closing)
                batch = self._take()
                retire_before = None if self._closing else self._retire_before
            if batch is not None and not self._commit(batch):
                return
            if retire_before is not None and not self._retire_some(retire_before):
                return
            if batch is None and retire_before is None:
                return

    def _take(self) -> Batch | None:
        batch = self._next
        if not batch.postings:
            return None
        self._next, self._fold_at = Batch(), self._max_rows
        for name, row in batch.rows.items():
            (self._open.add if row.state == "open" else self._open.discard)(name)
        return batch

    def _commit(self, batch: Batch) -> bool:
        self._sequence += 1
        sequence = self._sequence
        if not self._persist(lambda connection: apply(connection, self._term, sequence, batch)):
            return False
        with self._changed:
            self._committed += batch.postings
            self._schedule_retirement()
            self._changed.notify_all()
        return True

    def _schedule_retirement(self) -> None:
        now = self._clock()
        if self._keep_ns is None or self._retire_before is not None or self._retired_hour == now // NS_PER_HOUR:
            return
        self._retired_hour = now // NS_PER_HOUR
        self._retire_before = now - self._keep_ns

    def _retire_some(self, before_unix_ns: int) -> bool:
        done: list[int] = []
        if not self._persist(lambda c: done.append(retire(c, self._term, before_unix_ns, _RETIRE_AT_ONCE))):
            return False
        with self._changed:
            if done[-1] < _RETIRE_AT_ONCE and self._retire_before == before_unix_ns:
                self._retire_before = None
            self._changed.notify_all()
        return True

    def _persist(self, step: Callable[[Connection], None]) -> bool:
        """Runs the step in a transaction until it is kept; False if the ledger was closed before."""
        pause_s = self._retry_s
        while True:
            try:
                with self._writing.begin() as connection:
                    step(connection)
            except AlreadyApplied:
                break
            except Exception as error:  # whatever it is, the postings must outlive it
                self._failed(error)
                with self._changed:
                    if self._changed.wait_for(lambda: self._abandoned, pause_s):
                        return False
                pause_s = min(pause_s * 2, 5.0)
            else:
                break
        self.last_error = None
        return True

    def _failed(self, error: Exception) -> None:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        if message != self.last_error:
            _log.warning("ledger: %s; %d postings wait", message, self.behind)
        self.last_error = message
