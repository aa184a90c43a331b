"""How a group divides one window: on what facts, with which weights, and what it learns from the outcome."""

from dataclasses import dataclass, replace

from proxy.accounting.activity import Activity, Span
from proxy.accounting.attribution import Policy, Split, idle_energy, split
from proxy.accounting.engine_view import EngineView
from proxy.accounting.fitting import Fit
from proxy.accounting.flight import Flight
from proxy.accounting.grading import Grading
from proxy.accounting.inferred_log import InferredLog
from proxy.accounting.meter_state import MeterState
from proxy.accounting.power_curve import PowerCurve
from proxy.accounting.reconstruction import reconstruct
from proxy.accounting.samples import Window
from proxy.accounting.step_book import LOOKS_BACK, StepBook
from proxy.accounting.step_clock import ONE_BY_ONE
from proxy.accounting.step_worth import Look
from proxy.accounting.uncertainty import Doubts, WindowNoise, doubts
from proxy.accounting.units import SECOND, Microjoules, Nanoseconds, joules
from proxy.accounting.weights import Weights

EVENED_OUT = Nanoseconds(SECOND)
"""Readings are joined to windows so long while the weights are trusted: with a step log, or a mixture of experts,
windows of 0.1 s are worse by a tenth to a quarter in our bench, and otherwise no better."""
CROWD = 500
"""Sequences of which a second's work is divided at once, trusted or not: to divide it at every reading would cost
several times as much, and in so large a crowd one reading says little of one request."""
SHOWING = 200
"""Requests whose tokens are asked for single steps; of more it would cost more than it tells."""
FADE = 0.98
"""What a window leaves of the sums that make kappa: about the last fifty windows count."""


@dataclass(frozen=True, slots=True)
class Given:
    """What is known of a group's part of a window on a shared meter before the group divides it.

    activity: the group's own. idle: so much of the part is. alone: nobody else worked, so that the rest is measured.
    """

    activity: Activity
    idle: Microjoules
    alone: bool


class Divider:
    """Weights, policy and grade of one group.

    engine, steps: where the facts come from; the step log goes first. meters: how many meters see the same work.
    """

    def __init__(
        self, *, prior: Weights, policy: Policy, grading: Grading, engine: EngineView, steps: StepBook, meters: int
    ) -> None:
        self.policy = policy
        self.grading = grading
        self.fit = Fit(prior)
        self._engine = engine
        self._steps = steps
        self._meters = meters
        self._inferred_log = InferredLog()
        self._noise = WindowNoise()
        self._measured_j = self._predicted_j = 0.0

    @property
    def weights(self) -> Weights:
        """What work is predicted with."""
        return self.fit.weights

    @property
    def evens_out(self) -> bool:
        """Whether charges are evened out between windows: only with weights that nothing speaks against."""
        return self.policy == "weighted" and self.fit.trusted

    def wanted(self, held: int) -> Nanoseconds:
        """How long windows should be while the engine holds so many sequences.

        With doubtful weights each reading is divided by itself, because what is wrong in them is put right at every
        one; but no more shares a second are made of it than the crowd allows.
        """
        return EVENED_OUT if self.evens_out else _allowed(held)

    @property
    def kappa(self) -> float | None:
        """Measured over predicted joules of recent windows, as a ratio of fading sums; None before there was work."""
        return self._measured_j / self._predicted_j if self._predicted_j > 0 else None

    @property
    def doubts(self) -> Doubts:
        """How far what goes into a split may be off just now."""
        return doubts(self.grading.now, trust=1.0 if self.fit.in_use else 0.0, sensor_noise=self._noise.relative)

    def divide(self, window: Window, state: MeterState, flights: list[Flight], given: Given | None = None) -> Split:
        """Divides a measured window of one meter among the flights, and learns from it.

        given: the window is a part of one that other groups have had theirs of; what is idle in it is settled.
        """
        if given is None:
            looks, time, activity = self._looked(window, state, flights)
            shown = replace(window, start=time.start, end=time.end)
            result = replace(self._split(shown, activity, state), window=window)
            state.idle.ran(shown, nothing=activity.covered_ns == 0 and not self._engine.busy)
            state.worked_until = time.end
        else:
            looks, activity = [], given.activity
            rest = replace(window, energy=Microjoules(window.energy - given.idle))
            busy = replace(activity, covered_ns=window.end - window.start)
            result = replace(self._split(rest, busy, state), window=window, idle=given.idle, activity=activity)
            state.worked_until = window.end
        self.grading.note(activity)
        if result.predicted_j > 0:
            if looks:
                self._look(looks)
            elif given is None:
                self._observe(result, activity, state, Nanoseconds(state.worked_until - window.end))
            elif given.alone:
                self._take_in(activity, result.active, window)
            self._judge(result)
        return result

    def _looked(self, window: Window, state: MeterState, flights: list[Flight]) -> tuple[list[Look], Span, Activity]:
        """What the sensor saw of single steps, when the window's energy was used, and who worked then."""
        polled = Span(window.start, window.end)
        logged = self._steps.covers(polled, flights)
        for work, lasted in self._steps.ended(polled, self.weights) if logged else ():
            self.fit.ran(work, lasted)
        curve = self._steps.curve(polled, self.weights) if logged else self._shown(polled, flights)
        moves = state.worth.ripe(window.moves, curve.until if curve is not None and not logged else None)
        looks, time = state.worth.looked(moves, curve), state.worth.time_of(window)
        if curve is None or not logged:
            return looks, time, self._activity(time, flights, logged)
        return looks, time, self._steps.activity(time, flights, self.weights, state.worth.factors)

    def _shown(self, window: Span, flights: list[Flight]) -> PowerCurve | None:
        """What the streams show of the steps up to about a window's end; None where they cannot.

        Nor while a log is kept that does not tell of this window: its clock is the engine's, theirs is arrival here.
        """
        engine = self._engine
        if self._steps.heard or engine.pace != ONE_BY_ONE or engine.engines > 1 or len(flights) > SHOWING:
            self._inferred_log = InferredLog()
            return None
        self._inferred_log.extend(window.end, flights, self.weights, (one.span for one in engine.unseen))
        self._inferred_log.forget_before(Nanoseconds(window.start - LOOKS_BACK))
        return self._inferred_log.curve(self.weights)

    def _split(self, window: Window, activity: Activity, state: MeterState) -> Split:
        return split(
            window,
            activity,
            weights=self.weights,
            policy=self.policy,
            idle_w=state.idle.watts,
            true_up=state.true_up if self.evens_out else None,
        )

    def activity(self, window: Window, flights: list[Flight]) -> Activity:
        """Who did what in a window that is ready to be divided."""
        span = Span(window.start, window.end)
        return self._activity(span, flights, self._steps.covers(span, flights))

    def _activity(self, span: Span, flights: list[Flight], logged: bool) -> Activity:
        if logged:
            return self._steps.activity(span, flights, self.weights)
        return self._inferred(span, self._engine.taken_up(flights, self.weights))

    def _inferred(self, span: Span, held: list[Flight]) -> Activity:
        engine = self._engine
        return reconstruct(
            span, held, weights=self.weights, unseen=engine.unseen, pace=engine.pace, engines=engine.engines
        )

    def _look(self, looks: list[Look]) -> None:
        # Of several meters each sees a part of the same work; the fit must see all of it.
        for look in looks:
            self.fit.looked(look.work, look.energy_uj * self._meters, look.span_ns, look.noise)

    def _observe(self, result: Split, activity: Activity, state: MeterState, late: Nanoseconds) -> None:
        """Shows the fit a window, reading by reading where work is inferred: a chip's clock, for one, follows what ran
        just now, so that over a second one kind of work would answer for what another costs.

        late: by which what ran follows the readings; below zero, as a rule.
        """
        held = sum(flight.sequences for flight in activity.flights)
        parts = [] if activity.logged else result.window.parts(_allowed(held))
        if len(parts) < 2:
            self._take_in(activity, result.active, result.window)
            return
        for part in parts:
            span = Span(Nanoseconds(part.start + late), Nanoseconds(part.end + late))
            inside = self._inferred(span, activity.flights)
            active = Microjoules(part.energy - idle_energy(part, inside.covered_ns, state.idle.watts))
            self._take_in(inside, active, part)

    def _take_in(self, activity: Activity, active: Microjoules, window: Window) -> None:
        """Of one meter's window all its work, and what that cost on all meters (see _look)."""
        work, length = activity.total(), Nanoseconds(window.end - window.start)
        if activity.clocked:
            self.fit.ran(work, Nanoseconds(activity.covered_ns))
        self.fit.observe(work, active * self._meters, length)

    def _judge(self, result: Split) -> None:
        predicted_j = result.predicted_j / self._meters
        self._noise.learn(result.active, predicted_j, self.kappa)
        self._measured_j = FADE * self._measured_j + joules(result.active)
        self._predicted_j = FADE * self._predicted_j + predicted_j


def _allowed(held: int) -> Nanoseconds:
    """How short a stretch may be that is divided among so many."""
    return Nanoseconds(EVENED_OUT * min(held, CROWD) // CROWD)
