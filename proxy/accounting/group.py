"""One energy group: the meters of one backend, the requests it runs, and the windows that wait to be divided.

A window is divided once every request in it has been heard of after the window's end, so that its token times
are known; a long prefill holds its windows open, up to a limit. Pure: time comes in as a parameter.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import hypot

from proxy.accounting.activity import Activity, Span
from proxy.accounting.attribution import Policy, Split, unmeasured
from proxy.accounting.bill import Bill
from proxy.accounting.books import Tallies
from proxy.accounting.divider import Divider, Given
from proxy.accounting.engine_view import EngineView
from proxy.accounting.fitting import Fit
from proxy.accounting.flight import ABORT_TAIL
from proxy.accounting.grading import Grading
from proxy.accounting.meter_state import MeterState, earliest
from proxy.accounting.patience import Patience
from proxy.accounting.postings import RequestRow, State
from proxy.accounting.provisional import Provisional, forecast
from proxy.accounting.roster import Roster
from proxy.accounting.samples import Sample, Timeline, Window
from proxy.accounting.step_book import StepBook
from proxy.accounting.steps import EngineStep
from proxy.accounting.units import MILLISECOND, Microjoules, Nanoseconds
from proxy.accounting.unseen import EngineCounters
from proxy.accounting.weights import Weights

SWEEP_EVERY = Nanoseconds(200 * MILLISECOND)
"""How often finished requests are looked for while no window has been divided."""
WORK_A_PASS = 4_000
"""Requests times windows divided before the loop gets to breathe, about 0.1 s of work; one window a meter is always."""


class Group:
    """The state of one group; every method runs on the same thread.

    grade: the best that the meters allow, B to D; A where the engine's step log is heard as well.
    estimated: a meter of the group is a model, not a sensor. request_ids: see StepBook. absolute_uncertainty: of all
    its figures in common, relative; None where nobody knows.
    """

    def __init__(
        self,
        backend: str,
        meters: Iterable[str],
        *,
        weights: Weights,
        patience: Patience,
        policy: Policy = "weighted",
        grade: str = "B",
        estimated: bool = False,
        absolute_uncertainty: float | None = None,
        request_ids: Callable[[str], Iterable[str]] = lambda name: (name,),
    ) -> None:
        self.backend = backend
        self.meters = {name: MeterState(name, Timeline(name)) for name in meters}
        self._roster = Roster()
        self.tallies = Tallies()
        self.estimated = estimated
        self.absolute_uncertainty = absolute_uncertainty
        self.engine = EngineView()
        self.steps = StepBook(request_ids)
        self.grading = Grading(grade)
        count = len(self.meters)
        self.divider = Divider(
            prior=weights, policy=policy, grading=self.grading, engine=self.engine, steps=self.steps, meters=count
        )
        self._swept: Nanoseconds | None = None
        self._sweep_after = Nanoseconds(0)
        self._patience = patience
        self.gap = patience.gap

    def weigh(self, prior: Weights) -> None:
        """Takes other weights, and learns anew from there."""
        self.divider.fit = Fit(prior)

    def open(self, bill: Bill) -> None:
        """A request was sent to this backend."""
        self._roster.add(bill)
        self.steps.opened(bill.flight)
        self.engine.opened(bill.flight)

    @property
    def bills(self) -> Mapping[str, Bill]:
        """The requests that are not settled yet, by row."""
        return self._roster.bills

    def sampled(self, meter: str, sample: Sample, *, known_counter: Microjoules | None = None) -> None:
        """A reading came in. known_counter: where the ledger left this same counter, on the first reading."""
        self.meters[meter].sampled(sample, known_counter)

    def share(self, part: MeterState) -> None:
        """One of the meters is another group's too; all figures are of grade D from now on."""
        self.meters[part.name] = part
        if self.absolute_uncertainty is not None and not self.grading.shared:
            self.absolute_uncertainty = hypot(self.absolute_uncertainty, part.part_doubt)
        self.grading.share()

    def scraped(self, counters: EngineCounters | None, at: Nanoseconds) -> None:
        """The engine's own counters were read at `at`; None when they could not be."""
        self.engine.scraped(counters, at, self._roster.flights(), reached=self.settled_until)

    def stepped(self, step: EngineStep) -> None:
        """The engine's log told of a step."""
        self.steps.take(step)

    def settle(self, now: Nanoseconds, *, force: bool = False) -> list[Split]:
        """Divides every window that is ready, books it, and gives the splits. force: at shutdown."""
        if force:
            self.engine.look_back(None, self._roster.flights())
        done: list[Split] = []
        for state in self.meters.values():
            while (ripe := state.take_ripe(now, [self], force=force)) is not None:
                done.append(self.divide(ripe.window, state, ripe.counter))
                if len(done) * (1 + len(self.bills)) > WORK_A_PASS and not force:
                    break
        self._roster.look()
        return done

    @property
    def wanted(self) -> Nanoseconds:
        """How long windows should be; shorter ones are joined."""
        return self.divider.wanted(self._roster.held)

    def has_heard(self, window: Window, now: Nanoseconds) -> bool:
        """Whether all that ran in the window is known, or was waited for long enough."""
        return self._patience.ended(
            Span(window.start, window.end), now, self._roster.flights(), self.engine, self.steps
        )

    def quiet(self, window: Window) -> bool:
        """Whether nothing ran in the window."""
        return not self.engine.unseen and next(self._roster.ran_in(window), None) is None

    def over(self, window: Window) -> bool:
        """Whether nothing runs beyond the window."""
        return self._roster.all_over(window)

    def activity(self, window: Window) -> Activity:
        """Who did what in a window of which all has been heard."""
        return self.divider.activity(window, self._roster.flights())

    def divide(self, window: Window, state: MeterState, counter: Microjoules, given: Given | None = None) -> Split:
        """Divides a window of one meter and books it, to its accounts and to the requests. given: see Divider."""
        if window.bridged or window.end - window.start > self.gap:
            result = unmeasured(window)
            state.worked_until = window.end
        else:
            result = self.divider.divide(window, state, self._roster.flights(), given)
        state.booked(result, counter)
        self._charge(result)
        return result

    def _charge(self, result: Split) -> None:
        doubts, bills = self.divider.doubts, self._roster.bills
        charges = [(bills[share.flight.row], share) for share in result.shares]
        for bill, share in charges:
            bill.charge(share, doubts)
        self.tallies.charged(charges)
        active, unmeasured = result.active, result.unmeasured > 0
        if result.activity is None:
            for bill in self._roster.ran_in(result.window):
                bill.was_in(active, unmeasured=unmeasured)
        else:
            for flight in result.activity.flights:
                bills[flight.row].was_in(active, unmeasured=unmeasured)

    @property
    def settled_until(self) -> Nanoseconds | None:
        """Up to here every meter's energy has been divided; None before the first readings."""
        return earliest(state.settled_until for state in self.meters.values())

    def close_finished(self, now: Nanoseconds, *, force: bool = False) -> list[Bill]:
        """Takes out the bills whose last window has been divided, and those the meters kept waiting too long.

        The latter are marked unmeasured: what they cost after the last reading is not known.
        """
        reached = earliest(state.worked_until for state in self.meters.values())
        if reached == self._swept and now < self._sweep_after and not force:
            return []
        if reached is not None and reached != self._swept:
            self.steps.forget_before(reached)
            self._roster.forget_before(reached)
        self._swept, self._sweep_after = reached, Nanoseconds(now + SWEEP_EVERY)
        finished: list[Bill] = []
        tail = ABORT_TAIL if self.grading.logging else 0
        self._roster.look()
        for bill in self._roster.over():
            flight, ended = bill.flight, bill.flight.ended
            if ended is None:
                continue
            settled = reached is not None and reached >= ended + (tail if flight.outcome == "aborted" else 0)
            if settled or not flight.metered_work or force or self._unreadable(ended, now):
                bill.unmeasured |= flight.metered_work and not settled
                self._close(bill)
                finished.append(bill)
        self.tallies.closed(finished)
        return finished

    def _unreadable(self, ended: Nanoseconds, now: Nanoseconds) -> bool:
        """Whether a meter has given nothing since then for longer than any gap that is still divided."""
        return now - ended > self._patience.gap and any(state.said_nothing(ended) for state in self.meters.values())

    def _close(self, bill: Bill) -> None:
        flight = bill.flight
        self._roster.remove(bill)
        for state in self.meters.values():
            state.true_up.forget(flight.row)
        self.steps.closed(flight)
        bill.grade = self.grading.of(flight.row)
        self.grading.forget(flight.row)
        self.engine.closed(flight, self.divider.weights)

    def power_w(self) -> float | None:
        """Mean power over the last windows, summed over the meters; None while any is unknown."""
        powers = [state.power_w for state in self.meters.values()]
        return sum(p for p in powers if p is not None) if powers and None not in powers else None

    def provisional(self, bill: Bill, now: Nanoseconds) -> Provisional | None:
        """Energy of a request before its last windows are divided; None when nothing is known yet."""
        return forecast(
            bill,
            now,
            reached=self.settled_until,
            held=self._roster.held,
            weights=self.divider.weights,
            kappa=self.divider.kappa,
            power_w=self.power_w(),
            pace=self.engine.pace,
        )

    def row(self, bill: Bill, state: State, now: Nanoseconds, *, grade: str | None = None) -> RequestRow:
        """A bill's row for the ledger. grade: in place of the bill's own."""
        known, grade = self.absolute_uncertainty, grade or self.grade_of(bill)
        return bill.row(state, grade=grade, estimated=self.estimated, now=now, absolute_uncertainty=known)

    def grade_of(self, bill: Bill) -> str:
        """A to D: A when all its windows so far were known from the step log."""
        return bill.grade or self.grading.of(bill.flight.row)

    def changed_bills(self) -> Sequence[Bill]:
        """Open bills charged since they were last asked for; asking resets the mark."""
        return self._roster.changed()
