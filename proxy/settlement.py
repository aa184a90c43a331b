"""Loop 3: closed windows meet the requests that ran in them; the ledger is posted; finished requests are announced."""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from math import hypot

from proxy.accounting.bill import Bill
from proxy.accounting.board import Board
from proxy.accounting.books import Accounts
from proxy.accounting.group import Group
from proxy.accounting.meter_state import MeterState
from proxy.accounting.postings import BalancePosting, Posting, RequestRow
from proxy.accounting.samples import Sample
from proxy.accounting.uncertainty import absolute_uncertainty
from proxy.accounting.units import MILLISECOND, Microjoules, Nanoseconds
from proxy.ports import Clock, Meter, Store

POST_EVERY = Nanoseconds(250 * MILLISECOND)
"""Rows of running requests are written at most this often: conservation holds at every commit, not at every window."""
PERIOD_S = 0.05
RECENT = 10_000
"""Closed requests that can be found before the ledger has committed them: some seconds' worth."""
UNMEASURED = "unmeasured"
"""Grade of a request whose energy is not wholly known because its meter stopped."""


def gain_of(meter: Meter) -> float | None:
    """Relative uncertainty common to all that a meter says; None where nobody knows."""
    return absolute_uncertainty(meter.kind, integrated=meter.epoch.startswith("integral:"))


def doubt_of(meter: Meter, state: MeterState) -> float | None:
    """The same of what one backend has of the meter, which is less certain where several share it."""
    gain = gain_of(meter)
    return None if gain is None else hypot(gain, state.part_doubt)


@dataclass(slots=True)
class MeterHealth:
    """What is known of one meter's readings; read by the metrics, from another thread."""

    last_read: Nanoseconds | None = None
    call_ns: Nanoseconds | None = None
    failures: int = 0


class Settlement:
    """Owns the groups' progress. `lock` guards them against the metrics thread; the loop holds it for one pass.

    A meter that several groups name is divided between them. known: per meter, the counter where the ledger left off,
    if it still counts from the same origin.
    """

    def __init__(
        self,
        groups: Mapping[str, Group],
        meters: Mapping[str, Meter],
        store: Store,
        *,
        clock: Clock,
        known: Mapping[str, Microjoules],
        on_finished: Callable[[Bill], None],
    ) -> None:
        self.groups = groups
        self.meters = meters
        self.health = {name: MeterHealth() for name in meters}
        self.lock = threading.Lock()
        self._store = store
        self._clock = clock
        self._known = known
        self._on_finished = on_finished
        self._users = {name: [group for group in groups.values() if name in group.meters] for name in meters}
        self._boards = {name: Board(name, users) for name, users in self._users.items() if len(users) > 1}
        self._posted: dict[tuple[str, str], Accounts] = {}
        self._finished: list[RequestRow] = []
        self._recent: OrderedDict[str, RequestRow] = OrderedDict()
        self._last_post = clock()

    def sampled(self, meter: Meter, sample: Sample, call: Nanoseconds) -> None:
        """A reading; called on the loop's thread."""
        health = self.health[meter.name]
        health.last_read, health.call_ns = sample.at, call
        known = self._known.get(meter.name)
        with self.lock:
            board = self._boards.get(meter.name)
            if board is not None:
                board.sampled(sample, known_counter=known)
            else:
                (group,) = self._users[meter.name]
                group.sampled(meter.name, sample, known_counter=known)

    def failed(self, meter: Meter) -> None:
        """A reading that did not come."""
        self.health[meter.name].failures += 1

    def step(self, *, force: bool = False) -> None:
        """One pass: divide, close, and post when it is time. force: at shutdown, without waiting for anything."""
        now = self._clock()
        with self.lock:
            for board in self._boards.values():
                board.settle(now, force=force)
            for group in self.groups.values():
                group.settle(now, force=force)
                for bill in group.close_finished(now, force=force):
                    self._close(group.row(bill, "settled", now, grade=UNMEASURED if bill.unmeasured else None))
                    self._on_finished(bill)
            if force or now - self._last_post >= POST_EVERY:
                self._post(now)

    def _close(self, row: RequestRow) -> None:
        self._finished.append(row)
        newest = self._recent.get(row.request_id)
        if newest is None or newest.started_at_unix_ns <= row.started_at_unix_ns:
            self._recent[row.request_id] = row
            self._recent.move_to_end(row.request_id)
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def just_finished(self, request_id: str, tenant: str | None) -> RequestRow | None:
        """Of the closed requests of that name the one sent last, which may not be in the ledger yet; for a while."""
        with self.lock:
            row = self._recent.get(request_id)
        return row if row is not None and tenant in (None, row.tenant) else None

    def _post(self, now: Nanoseconds) -> None:
        self._last_post = now
        balances = tuple(balance for name in self.meters for balance in self._balances(name))
        rows = [group.row(bill, "open", now) for group in self.groups.values() for bill in group.changed_bills()]
        posting = Posting(balances, (*rows, *self._finished))
        self._finished = []
        if posting.balances or posting.requests:
            self._store.post(posting)

    def _balances(self, name: str) -> list[BalancePosting]:
        """What is new of a meter: of all its groups or of none, so that the ledger has one counter for it."""
        users = self._users[name]
        if all(group.meters[name].accounts == self._posted.get((group.backend, name), Accounts()) for group in users):
            return []
        return [balance for group in users if (balance := self._balance(name, group)) is not None]

    def _balance(self, name: str, group: Group) -> BalancePosting | None:
        state, meter = group.meters[name], self.meters[name]
        if state.counter is None:
            return None
        new = asdict(state.accounts)
        old = asdict(self._posted.get((group.backend, name), Accounts()))
        self._posted[group.backend, name] = Accounts(**new)
        return BalancePosting(
            backend=group.backend,
            meter=name,
            gpu=meter.gpu,
            kind=meter.kind,
            estimated=meter.estimated,
            epoch=meter.epoch,
            description=meter.description,
            last_counter_uj=state.counter,
            absolute_uncertainty=doubt_of(meter, state),
            **{f"{account}_uj": new[account] - old[account] for account in new},
        )

    def find(self, request_id: str, tenant: str | None) -> tuple[Bill, Group] | None:
        """The newest request of that name that is not settled yet, as it is now."""
        with self.lock:
            found = [
                (bill, group)
                for group in self.groups.values()
                for bill in list(group.bills.values())
                if bill.flight.request_id == request_id and tenant in (None, bill.tenant)
            ]
            if not found:
                return None
            bill, group = max(found, key=lambda pair: pair[0].started_at_unix_ns)
            return bill.snapshot(), group

    async def run(self, pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Passes until cancelled."""
        while True:
            self.step()
            await pause(PERIOD_S)
