"""What one engine process has told of its steps."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.accounting.activity import Span, Work
from proxy.accounting.step_work import whole_of
from proxy.accounting.steps import EngineStep
from proxy.accounting.units import MILLISECOND, SECOND, Nanoseconds
from proxy.accounting.weights import Weights

BREATH = Nanoseconds(2 * MILLISECOND)
"""A pause between steps shorter than this is the engine's own work, whoever was in them."""
WAS_THERE = Nanoseconds(SECOND)
"""A process that is heard of so soon after listening began may have been at work long before."""
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


class Met(NamedTuple):
    """A log that begins, until when its process may have made steps that nobody told of, and how many it dropped."""

    log: EngineLog
    untold: Nanoseconds
    lost: int


def met(step: EngineStep, logs: Mapping[Process, EngineLog], since: Nanoseconds | None) -> Met:
    """A process that was never heard before, or not for long. since: when listening began.

    In a rolling restart the old process tells of steps for as long as it has something to finish; of two that were
    there before anybody listened, the one that has made more steps is the old one.
    """
    log = EngineLog(step.number, step.start)
    rivals = [one for (engine, _), one in logs.items() if engine == step.engine and one.replaced is None]
    there = since is not None and step.start <= since + WAS_THERE
    if rivals and there and step.number > max(one.number for one in rivals):
        log.replaced = step.start
    else:
        for one in rivals:
            one.replaced = step.start
    untold = step.start if since is None or (rivals and not there) else min(since, step.start)
    # Those that it did not have to drop were told, to us before we forgot it.
    lost = min(step.number - 1, step.dropped) if rivals and not there else 0
    return Met(log, untold if step.number > 1 else Nanoseconds(0), lost)
