"""A step log made from the tokens of all streams, where the engine keeps none: for what a sensor saw of single steps.

Who pays is not decided by it, but by `reconstruction`, which knows every case; this teaches what work costs. A window
of a part-time sensor says little of its work, a look at known steps much. So steps are left out of which it is not
known what they held: while strangers run, or requests that do not tell their tokens one by one.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median

from proxy.accounting.activity import Span, Work
from proxy.accounting.chunk_size import ChunkSize
from proxy.accounting.flight import ABORT_TAIL, Flight
from proxy.accounting.joint_steps import JointSteps, Shown
from proxy.accounting.power_curve import PowerCurve
from proxy.accounting.prompt_steps import Prompt, Slot, computed_in
from proxy.accounting.reconstruction import BATCHED_TOKENS
from proxy.accounting.step_ends import Timed, smoothed
from proxy.accounting.steps import EngineStep
from proxy.accounting.units import MILLISECOND, SECOND, Nanoseconds
from proxy.accounting.weights import Weights

LATE = Nanoseconds(30 * MILLISECOND)
"""Tokens of a step may arrive so long after its others."""
LONG = Nanoseconds(20 * MILLISECOND)
"""A step longer by this than three without a prompt holds one, whether we know of it or not."""
SHORTEST = 200_000
"""Nanoseconds."""
USUAL = 12
"""Steps without a prompt that tell how long one takes."""
LONG_ENOUGH = 0.25
"""Of the longest of a prompt's steps: the first step that is so much too long is its first."""
MOST_WAITING = 2_000
"""Steps that wait until it is known what they held; of more, as where prompts queue without end, none is ever told."""
FOREVER = Nanoseconds(1 << 62)
BLUR = Nanoseconds(3 * MILLISECOND)
"""By so much the ends of steps may be off."""


@dataclass(slots=True)
class Passed(Timed):
    """A step that was shown. steps: with those before it that nobody showed. decode, context, rows: see Shown."""

    number: int
    steps: int
    decode: int
    context: float
    rows: set[str]
    prefill: float = 0.0
    prefill_context: float = 0.0


@dataclass(slots=True)
class Cluster:
    """Steps from the first to the last place that prompts were read in, which may have shared them."""

    first: int
    last: int
    read: list[tuple[Flight, int]] = field(default_factory=list)


class InferredLog:
    """Of one engine, window after window."""

    def __init__(self) -> None:
        self._size = ChunkSize()
        self._usual: deque[float] = deque(maxlen=USUAL)
        self._steps: deque[tuple[EngineStep, Work]] = deque()
        self._begin()

    def _begin(self) -> None:
        self._joint = JointSteps()
        self._unread: dict[str, tuple[Flight, int]] = {}
        self._last: Passed | None = None

    def curve(self, weights: Weights) -> PowerCurve:
        """Predicted power, as far as it is known."""
        return PowerCurve([self._steps], weights, blur=BLUR)

    def forget_before(self, instant: Nanoseconds) -> None:
        """Drops steps that ended by then."""
        while self._steps and self._steps[0][0].end <= instant:
            self._steps.popleft()

    def extend(self, until: Nanoseconds, flights: Sequence[Flight], weights: Weights, blind: Iterable[Span]) -> None:
        """Adds the steps up to about `until`. flights: all that ran since the last time. blind: strangers ran."""
        if self._joint.after(self._number) > MOST_WAITING:
            self._begin()
        for flight, number in self._joint.take(filter(_tells, flights), weights):
            self._unread[flight.row] = flight, number
        passed = list(self._passed(until, weights))
        clusters, known = self._clusters(passed, self._held_up(flights))
        passed = self._smooth(passed[:known], clusters)
        self._read([one for one in clusters if one.last < known], passed, weights)
        hidden = [*blind, *filter(None, map(_hidden, flights))]
        for step in passed:
            self._last = step
            if not any(span.start < step.end and step.start < span.end for span in hidden):
                self._steps.append(_logged(step, weights))
        self._joint.keep({flight.row for flight in flights}, self._number)

    @property
    def _number(self) -> int:
        """Of the last step that was told; the first one after nothing is 0."""
        return -1 if self._last is None else self._last.number

    def _passed(self, until: Nanoseconds, weights: Weights) -> Iterator[Passed]:
        """Steps that all tokens should have arrived of."""
        before, number = self._last, self._number
        arrivals = [(one, flight.sent + flight.lag) for flight, one in self._unread.values()]
        unshown: list[Shown] = []
        for at in sorted(one for one in self._joint.steps if one > number):
            shown = self._joint.steps[at]
            unshown.append(shown)
            if not shown.arrived:
                continue
            if shown.end > until - LATE:
                return
            follows = before is not None and not before.rows.isdisjoint(shown.rows)
            start = shown.end - weights.step_s * SECOND if before is None else before.end
            came = [when for due, when in arrivals if number < due <= at]
            if came and not follows:
                start = min(came) if before is None else max(before.end, min(came))
            end = max(shown.end, start + SHORTEST)
            decode, context = sum(one.decode for one in unshown), sum(one.context for one in unshown)
            steps = len(unshown)
            before = Passed(start, end, shown.arrived, follows, True, at, steps, decode, context, shown.rows)
            number = at
            unshown = []
            yield before

    def _held_up(self, flights: Iterable[Flight]) -> float | None:
        """When the first came of those whose first token is still to come, or to be placed; None for nobody."""
        waiting = (one for one in flights if _tells(one) and one.ended is None and not self._joint.placed(one.row))
        return min((one.sent + one.lag for one in waiting), default=None)

    def _clusters(self, passed: Sequence[Passed], held_up: float | None) -> tuple[list[Cluster], int]:
        """Where prompts were read, and how many steps there are of which all that they held is known."""
        known = len(passed)
        if held_up is not None:
            known = next((place for place, step in enumerate(passed) if step.end > held_up), known)
        found: list[Cluster] = []
        spans = []
        for flight, number in self._unread.values():
            due = next((place for place, step in enumerate(passed) if step.number >= number), len(passed))
            came = flight.sent + flight.lag
            first = next((place for place, step in enumerate(passed) if step.end > came), due)
            spans.append((min(first, due), due, flight))
        for first, due, flight in sorted(spans, key=lambda span: span[:2]):
            if found and first <= found[-1].last:
                found[-1].last = max(due, found[-1].last)
            else:
                found.append(Cluster(first, due))
            found[-1].read.append((flight, due))
        for cluster in reversed(found):
            if cluster.first < known <= cluster.last:
                known = cluster.first
        return found, known

    def _smooth(self, passed: list[Passed], clusters: Sequence[Cluster]) -> list[Passed]:
        longest = 3 * median(self._usual) + LONG if self._usual else LONG
        for cluster in clusters:
            for step in passed[cluster.first : cluster.last + 1]:
                step.plain = False
        for step in passed:
            step.plain &= step.end - step.start <= longest
        reached = self._last.end if self._last else 0.0
        for step, end in zip(passed, smoothed(passed), strict=True):
            step.start = reached if step.follows else max(step.start, reached)
            step.end = reached = max(end, step.start + SHORTEST)
        return passed

    def _read(self, clusters: Iterable[Cluster], passed: Sequence[Passed], weights: Weights) -> None:
        """Gives the steps the prompt tokens that they computed."""
        reached = 0
        for cluster in clusters:
            self._usual.extend(step.end - step.start for step in passed[reached : cluster.first] if step.decode)
            reached = cluster.last + 1
            usual = median(self._usual) if self._usual else weights.step_s * SECOND
            steps = passed[cluster.first : reached]
            slots = [Slot(one.start, one.end, one.decode, max(0.0, one.end - one.start - usual)) for one in steps]
            read = sorted(cluster.read, key=lambda one: one[0].sent)
            prompts = [Prompt(one.computed, one.sent + one.lag, due - cluster.first) for one, due in read]
            if len(read) == 1:
                self._size.learn(prompts[0].tokens, _steps_of(slots))
            tokens = computed_in(slots, prompts, self._size.tokens or BATCHED_TOKENS, weights.token_s * SECOND)
            _hand_out(steps, tokens, [flight for flight, _ in read], weights)
            for flight, _ in read:
                del self._unread[flight.row]
        self._usual.extend(step.end - step.start for step in passed[reached:] if step.decode)


def _tells(flight: Flight) -> bool:
    """Whether its tokens come one by one, a step each."""
    return flight.told_by_its_tokens and flight.sequences == 1


def _hidden(flight: Flight) -> Span | None:
    """When a request may have been in steps without telling so."""
    if not flight.metered_work or flight.refused:
        return None
    if _tells(flight) and (flight.first is not None or flight.ended is None):
        return None
    return Span(flight.sent, FOREVER if flight.ended is None else Nanoseconds(flight.ended + ABORT_TAIL))


def _steps_of(slots: Sequence[Slot]) -> int:
    """In how many of them a prompt was read that was done in the last: its first chunk is its longest."""
    longest = max(slot.excess for slot in slots)
    return len(slots) - next(n for n, slot in enumerate(slots) if slot.excess >= LONG_ENOUGH * longest)


def _hand_out(steps: Sequence[Passed], tokens: Iterable[float], flights: Iterable[Flight], weights: Weights) -> None:
    """The contexts that the tokens of each step read: one prompt after the other."""
    waiting = iter(flights)
    flight, done = next(waiting, None), 0.0
    for step, wanted in zip(steps, tokens, strict=True):
        step.prefill = left = wanted
        while left > 1e-6 and flight is not None:
            taken = min(left, flight.computed - done)
            step.prefill_context += weights.prefill_context(flight.cached + done, taken)
            left, done = left - taken, done + taken
            if done >= flight.computed - 1e-6:
                flight, done = next(waiting, None), 0.0


def _logged(step: Passed, weights: Weights) -> tuple[EngineStep, Work]:
    # Before the first token of somebody who was alone there may have been steps that nobody showed.
    steps = step.steps if step.decode else max(step.steps, ceil(step.prefill / BATCHED_TOKENS))
    experts = steps * weights.touched_by((step.prefill + step.decode) / steps)
    start, end = Nanoseconds(round(step.start)), Nanoseconds(round(step.end))
    work = Work(step.prefill, step.prefill_context, float(step.decode), step.context, float(steps), experts)
    return EngineStep(0, 0, step.number, start, end, ()), work
