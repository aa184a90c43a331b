"""What one engine process has told of its steps."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from proxy.accounting.activity import Span, Work
from proxy.accounting.step_work import whole_of
from proxy.accounting.steps import EngineStep
from proxy.accounting.units import MILLISECOND, SECOND, Nanoseconds
from proxy.accounting.weights import Weights

BREATH = Nanoseconds(2 * MILLISECOND)
"""A pause between steps shorter than this is the engine's own work, whoever was in them."""
LINGERS = Nanoseconds(2 * SECOND)
"""A process that another one has come for, and that has told nothing for so long, takes no new requests any more."""
Process = tuple[int, int]
"""An engine process: the engine's rank, and the boot, which no other process of that rank has."""


@dataclass(slots=True)
class EngineLog:
    """The steps of one engine process that may lie in windows not divided yet, in order.

    broken: tokens went on arriving after its last step. replaced: when another process of the same engine began to
    tell of steps; this one may have ended, or may go on for as long as it has something to finish.
    """

    number: int
    reached: Nanoseconds
    broken: bool = False
    replaced: Nanoseconds | None = None
    steps: deque[EngineStep] = field(default_factory=deque)
    _works: dict[int, Work] = field(default_factory=dict)

    def took(self, step: EngineStep) -> None:
        """The next step; a pause before it is part of it if a request went on over it, and no step was lost in it."""
        before = self.steps[-1] if self.steps else None
        pause = step.start - self.reached
        told = step.number == self.number + 1
        if before is not None and told and pause > 0 and (pause < BREATH or _same_request(before, step)):
            step = step._replace(start=self.reached)
        self.number, self.reached, self.broken = step.number, step.end, False
        if step.sequences:
            self.steps.append(step)

    @property
    def hole(self) -> Span | None:
        """Time before its successor in which it may have ended with steps untold: none once it has told of later."""
        return None if self.replaced is None or self.replaced <= self.reached else Span(self.reached, self.replaced)

    def takes_new(self, at: Nanoseconds) -> bool:
        """Whether it may begin with another request then."""
        return self.replaced is None or self.reached + LINGERS > at

    def works(self, weights: Weights) -> Iterator[tuple[EngineStep, Work]]:
        """The steps with all their work, which is summed up once."""
        for step in self.steps:
            work = self._works.get(step.number)
            if work is None:
                work = self._works[step.number] = whole_of(step, weights)
            yield step, work

    def forget_before(self, instant: Nanoseconds) -> None:
        """Drops steps that ended by then; the last one stays, since a pause after it may belong to the next step."""
        while len(self.steps) > 1 and self.steps[0].end <= instant:
            self._works.pop(self.steps.popleft().number, None)


def _same_request(before: EngineStep, after: EngineStep) -> bool:
    return not {one.name for one in before.sequences}.isdisjoint(one.name for one in after.sequences)
