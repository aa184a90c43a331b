"""The requests of one group that are not settled yet: those that run, and those that are over but not paid for."""

from collections.abc import Iterator, Sequence
from itertools import chain

from proxy.accounting.bill import Bill
from proxy.accounting.flight import Flight
from proxy.accounting.samples import Window
from proxy.accounting.units import Nanoseconds


class Roster:
    """Bills by row, in the order in which they were opened.

    Nobody says when a request is over: `look` sorts out those that are, so that the others are not asked every time.
    held: sequences of those that ran at the last look.
    """

    def __init__(self) -> None:
        self.bills: dict[str, Bill] = {}
        self.held = 0
        self._running: dict[str, Bill] = {}
        self._over: dict[str, Bill] = {}

    def add(self, bill: Bill) -> None:
        """A request was sent."""
        self.bills[bill.flight.row] = self._running[bill.flight.row] = bill

    def look(self) -> None:
        """Sorts out the requests that are over."""
        over = [row for row, bill in self._running.items() if bill.flight.ended is not None]
        for row in over:
            self._over[row] = self._running.pop(row)
        self.held = sum([bill.flight.sequences for bill in self._running.values()])

    def over(self) -> list[Bill]:
        """Those that were over at the last look."""
        return [*self._over.values()]

    def remove(self, bill: Bill) -> None:
        """One that was over is settled."""
        row = bill.flight.row
        del self.bills[row], self._over[row]

    def flights(self) -> list[Flight]:
        """Of all of them."""
        return [bill.flight for bill in self.bills.values()]

    def forget_before(self, instant: Nanoseconds) -> None:
        """Drops what nobody will ask of those that run."""
        for bill in self._running.values():
            bill.flight.forget_before(instant)

    def ran_in(self, window: Window) -> Iterator[Bill]:
        """Those that the engine may have held in the window; first those that run, the oldest of which ran in most."""
        bills = chain(self._running.values(), self._over.values())
        return (bill for bill in bills if bill.ran_in(window))

    def all_over(self, window: Window) -> bool:
        """Whether nothing runs beyond the window; the newest are asked first, for they are likely to."""
        ends = (bill.flight.ended for bill in reversed(self.bills.values()))
        return all(end is not None and end <= window.end for end in ends)

    def changed(self) -> Sequence[Bill]:
        """Those charged since this was last asked."""
        changed = [bill for bill in self.bills.values() if bill.changed]
        for bill in changed:
            bill.changed = False
        return changed
