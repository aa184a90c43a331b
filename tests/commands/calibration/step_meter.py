"""A meter with a known truth: the energy of a simulated engine's steps under given weights, and idle power beside.

Power is even within a step, as a sensor would see it; were a step's energy only there at its end, the ends of a
stretch would be uncertain by a step. Between steps of the same sequences the engine waits for its server, the more the
slower the machine, and that costs nothing.
"""

import json
import random
import time
from collections.abc import Sequence

from proxy.accounting.samples import Sample
from proxy.accounting.units import Microjoules, Nanoseconds
from proxy.accounting.weights import Weights
from proxy.ports import MeterKind
from tests.engine.batch import Step
from tests.engine.simulated import SimulatedEngine


class StepMeter:
    """noise: of each step's energy, relative."""

    name, gpu, epoch = "test:steps", "GPU-1", "test"
    kind: MeterKind = "nvml"
    description = "NVIDIA H100 80GB HBM3, driver 570.86.15, power limit 700 W, energy counter"

    def __init__(
        self,
        engine: SimulatedEngine,
        truth: Weights,
        *,
        idle_w: float = 90.0,
        noise: float = 0.02,
        estimated: bool = False,
    ) -> None:
        self.estimated = estimated
        self.closed = False
        self._engine = engine
        self._truth = truth
        self._idle_w = idle_w
        self._noise = noise
        self._chance = random.Random(7)
        self._start = time.monotonic_ns()
        self._counted = self._last_uj = 0
        self._prompts: dict[str, int] = {}
        self._asked = 0
        self._made: dict[str, int] = {}
        self._work_j = self._busy_s = 0.0
        self._busy_until = self._start
        self._now_j = (-1, 0.0)

    def read(self) -> Sample:
        """What was used up to now."""
        now = self._under_way()
        at = time.monotonic_ns()
        for step in self._new_steps():
            self._work_j += self._of(step)
            self._busy_s += (step.ended_ns - self._busy_from(step)) / 1e9
            self._busy_until = step.ended_ns
        work_j, busy_s = self._work_j, self._busy_s
        if now is not None and now.started_ns >= self._busy_until:
            work_j += self._of(now) * min(1.0, (at - now.started_ns) / max(1, now.ended_ns - now.started_ns))
            busy_s += (at - self._busy_from(now)) / 1e9
        idle_j = self._idle_w * ((at - self._start) / 1e9 - busy_s)
        self._last_uj = max(self._last_uj, round((work_j + idle_j) * 1e6))
        return Sample(Nanoseconds(at), Microjoules(self._last_uj))

    def _busy_from(self, step: Step) -> int:
        return self._busy_until if step.decode else step.started_ns

    def _of(self, step: Step) -> float:
        """Joules of a step, the same each time it is asked for."""
        started, joules = self._now_j
        if started != step.started_ns:
            joules = self._energy_j(step) * self._chance.gauss(1, self._noise)
            self._now_j = step.started_ns, joules
        return joules

    def _under_way(self) -> Step | None:
        try:
            return self._engine.under_way
        except RuntimeError:
            return None

    def _new_steps(self) -> Sequence[Step]:
        try:
            new = self._engine.steps[self._counted :]
        except RuntimeError:  # the engine is down; its energy has been counted
            return ()
        self._counted += len(new)
        return new

    def close(self) -> None:
        """Notes that it was."""
        self.closed = True

    def _energy_j(self, step: Step) -> float:
        true = self._truth
        joules = true.step
        for name, tokens in step.prefill.items():
            cached = max(0, self._prompt(name) - tokens)
            joules += true.prefill * tokens + true.attention * true.prefill_context(cached, tokens)
        for name in step.decode:
            self._made[name] = self._made.get(name, 0) + 1
            joules += true.decode + true.context * true.context_of(self._prompt(name) + self._made[name])
        return joules

    def _prompt(self, name: str) -> int:
        """Length of the prompt of a sequence, `cmpl-REQUEST-0`; 0 of one that a stranger sent."""
        for request in self._engine.requests[self._asked :]:
            self._asked += 1
            if "x-request-id" in request.headers and request.body:
                self._prompts[request.headers["x-request-id"]] = len(json.loads(request.body)["prompt"])
        return self._prompts.get(name.removeprefix("cmpl-").removesuffix("-0"), 0)
