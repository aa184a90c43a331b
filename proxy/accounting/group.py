"""One energy group: the meters of one backend, the requests it runs, and the windows that wait to be divided.

A window is divided once every request in it has been heard of after the window's end, so that its token times
are known; a long prefill holds its windows open, up to a limit. Pure: time comes in as a parameter.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from proxy.accounting.attribution import Policy, Split, split, unmeasured
from proxy.accounting.bill import Bill
from proxy.accounting.books import Tallies
from proxy.accounting.engine_view import EngineView
from proxy.accounting.flight import Flight
from proxy.accounting.meter_state import MeterState
from proxy.accounting.provisional import Provisional, forecast
from proxy.accounting.samples import Sample, Timeline, Window
from proxy.accounting.units import SECOND, Microjoules, Nanoseconds, joules
from proxy.accounting.unseen import EngineCounters
from proxy.accounting.weights import Weights

FADE = 0.98
"""What a window leaves of the sums that make kappa: about the last fifty windows count."""
WINDOWS_A_PASS = 64
"""Windows divided before the loop gets to breathe: seconds of readings, milliseconds of work."""
STALLED_WAIT = Nanoseconds(2 * SECOND)
"""A stream that gave tokens and then none for this long holds no window open any more."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long windows wait: for a first token, for a silent answer, for the next scrape; and the longest gap."""

    prefill: Nanoseconds
    silent: Nanoseconds
    scrape: Nanoseconds
    gap: Nanoseconds


class Group:
    """The state of one group; every method runs on the same thread.

    grade: quality of the figures, A to D; estimated: a meter of the group is a model, not a sensor.
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
    ) -> None:
        self.backend = backend
        self.meters = {name: MeterState(name, Timeline(name)) for name in meters}
        self.bills: dict[str, Bill] = {}
        self.tallies = Tallies()
        self.weights = weights
        self.policy: Policy = policy
        self.grade = grade
        self.estimated = estimated
        self._measured_j = self._predicted_j = 0.0
        self.engine = EngineView()
        self._patience = patience

    def open(self, bill: Bill) -> None:
        """A request was sent to this backend."""
        self.bills[bill.flight.row] = bill

    def sampled(self, meter: str, sample: Sample, *, known_counter: Microjoules | None = None) -> None:
        """A reading came in. known_counter: where the ledger left this same counter, on the first reading.

        What the meter counted while no proxy watched is real, and nobody can be charged for it: unattributed.
        """
        state = self.meters[meter]
        if state.timeline.last is None:
            state.settled_until, state.counter = sample.at, sample.counter
            if known_counter is not None and sample.counter >= known_counter:
                state.unwatched_uj = sample.counter - known_counter
                state.accounts.unattributed += state.unwatched_uj
                state.accounts.meter += state.unwatched_uj
        state.last_power_w = sample.power_w
        window = state.timeline.accept(sample)
        if window is not None:
            # What was bridged is booked: a restart must not take it for new when the counter catches up.
            state.waiting.append((window, Microjoules(sample.counter + state.timeline.bridged_uj)))

    def scraped(self, counters: EngineCounters | None, at: Nanoseconds) -> None:
        """The engine's own counters were read at `at`; None when they could not be."""
        self.engine.scraped(counters, at, self._flights(), reached=self.settled_until)

    def _flights(self) -> list[Flight]:
        return [bill.flight for bill in self.bills.values()]

    def settle(self, now: Nanoseconds, *, force: bool = False) -> list[Split]:
        """Divides every window that is ready, books it, and gives the splits. force: at shutdown."""
        done: list[Split] = []
        for state in self.meters.values():
            for _ in range(len(state.waiting) if force else WINDOWS_A_PASS):
                if not state.waiting or not (force or self._ready(state.waiting[0][0], now)):
                    break
                window, counter = state.waiting.popleft()
                result = self._split(window, state)
                state.accounts.add(result)
                state.settled_until, state.counter = window.end, counter
                self._book(result)
                done.append(result)
        return done

    def _ready(self, window: Window, now: Nanoseconds) -> bool:
        age = now - window.end
        if age < self._patience.scrape and not self.engine.seen_after(window.end):
            return False
        return all(
            bill.flight.heard_after(window.end) or age >= self._wait(bill.flight) for bill in self.bills.values()
        )

    def _wait(self, flight: Flight) -> Nanoseconds:
        if flight.silent:
            return self._patience.silent
        return self._patience.prefill if flight.first is None else STALLED_WAIT

    def _split(self, window: Window, state: MeterState) -> Split:
        if window.end - window.start > self._patience.gap:
            return unmeasured(window)
        flights = self.engine.taken_up(self._flights(), self.weights)
        result = split(
            window,
            flights,
            weights=self.weights,
            policy=self.policy,
            idle_w=state.idle.watts,
            unseen=self.engine.unseen,
        )
        if result.idle == window.energy and not self.engine.busy:
            state.idle.learn(window)
        else:
            state.idle.worked_until(window.end)
        return result

    def _book(self, result: Split) -> None:
        for share in result.shares:
            bill = self.bills[share.flight.row]
            bill.charge(share)
            self.tallies.energy_by_tenant[bill.tenant] += share.energy
            for phase in ("prefill", "decode", "shared"):
                self.tallies.energy_by_model_phase[bill.model, phase] += getattr(share, phase)
        for bill in self.bills.values():
            bill.was_in(result)
        if result.predicted_j > 0:
            self._measured_j = FADE * self._measured_j + joules(result.active)
            self._predicted_j = FADE * self._predicted_j + result.predicted_j

    @property
    def kappa(self) -> float | None:
        """Measured over predicted joules of recent windows, as a ratio of fading sums; None before there was work."""
        return self._measured_j / self._predicted_j if self._predicted_j > 0 else None

    @property
    def settled_until(self) -> Nanoseconds | None:
        """Up to here every meter's energy has been divided; None before the first readings."""
        reached = [state.settled_until for state in self.meters.values()]
        return None if None in reached or not reached else min(at for at in reached if at is not None)

    def close_finished(self, now: Nanoseconds, *, force: bool = False) -> list[Bill]:
        """Takes out the bills whose last window has been divided, and those the meters kept waiting too long.

        The latter are marked unmeasured: what they cost after the last reading is not known.
        """
        reached = self.settled_until
        finished: list[Bill] = []
        for bill in list(self.bills.values()):
            flight = bill.flight
            if flight.ended is None:
                if reached is not None:
                    flight.forget_before(reached)
                continue
            settled = reached is not None and reached >= flight.ended
            if settled or not flight.metered_work or force or self._unreadable(flight.ended, now):
                bill.unmeasured |= flight.metered_work and not settled
                finished.append(self._close(bill))
        return finished

    def _unreadable(self, ended: Nanoseconds, now: Nanoseconds) -> bool:
        """Whether a meter has given nothing since then for longer than any gap that is still divided."""
        last = [state.timeline.last for state in self.meters.values()]
        return now - ended > self._patience.gap and any(sample is None or sample.at < ended for sample in last)

    def _close(self, bill: Bill) -> Bill:
        flight = self.bills.pop(bill.flight.row).flight
        self.engine.closed(flight)
        counted = (flight.prompt_tokens, flight.cached_tokens, flight.completion_tokens)
        for kind, tokens in zip(("prompt", "cached", "completion"), counted, strict=True):
            self.tallies.tokens_by_model_kind[bill.model, kind] += tokens or 0
        self.tallies.requests_by_model_outcome[bill.model, flight.outcome or "ok"] += 1
        return bill

    def power_w(self) -> float | None:
        """Mean power over the last windows, summed over the meters; None while any is unknown."""
        powers = [state.timeline.power_w for state in self.meters.values()]
        return sum(p for p in powers if p is not None) if powers and None not in powers else None

    def provisional(self, bill: Bill, now: Nanoseconds) -> Provisional | None:
        """Energy of a request before its last windows are divided; None when nothing is known yet."""
        return forecast(
            bill,
            now,
            reached=self.settled_until,
            # Readers ask from other threads while the relay opens bills: a list is made in one step, a loop is not.
            flights=[other.flight for other in list(self.bills.values())],
            weights=self.weights,
            kappa=self.kappa,
            power_w=self.power_w(),
        )

    def changed_bills(self) -> Sequence[Bill]:
        """Open bills charged since they were last asked for; asking resets the mark."""
        changed = [bill for bill in self.bills.values() if bill.changed]
        for bill in changed:
            bill.changed = False
        return changed
