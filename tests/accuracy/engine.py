"""One simulated engine: continuous batching with chunked prefill, a prefix cache and first-come-first-served admission.

Time is simulated seconds. Every step holds a token for each decoding request and, in what the token budget leaves,
chunks of prompts; it takes the time the physics says. Steps follow one another without a gap while there is work.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

TOKEN_BUDGET = 2048
"""Tokens per step (max_num_batched_tokens of vLLM's online server)."""
MAX_SEQUENCES = 256


@dataclass(slots=True)
class Job:
    """One request. Times in seconds: sent by the relay, taken into the batch, first and last token made.

    cached: prompt tokens found in the prefix cache. seen: it comes through the proxy. silent: answered in one piece.
    """

    row: str
    kind: str
    tenant: str
    sent: float
    prompt: int
    cached: int
    output: int
    seen: bool = True
    silent: bool = False
    scheduled: float = -1.0
    first: float = -1.0
    ended: float = -1.0
    filled: int = 0
    made: int = 0

    @property
    def decoding(self) -> bool:
        """Its prompt is done and answers are being made."""
        return self.filled >= self.prompt


@dataclass(frozen=True, slots=True)
class Load:
    """Work of one request in one step: prompt tokens and their contexts, decode positions and their contexts."""

    job: Job
    p: int
    pc: float
    d: int
    c: int


@dataclass(slots=True)
class Step:
    """One engine step and its energy in joules. static_w: the power that flows whatever is computed."""

    start: float
    end: float
    loads: list[Load]
    joules: float
    static_w: float
    emitted: list[Job] = field(default_factory=list)


class StepPhysics(Protocol):
    """What the engine asks of the physics."""

    static_w: float

    def duration(self, loads: Sequence[Load]) -> float: ...
    def joules(self, loads: Sequence[Load]) -> float: ...
    def idle_w(self) -> float: ...
    def advance(self, seconds: float, power_w: float) -> None: ...


@dataclass(slots=True)
class Run:
    """All that happened. idle: (start, end, watts) of the time between steps; counters: after each step."""

    jobs: list[Job]
    steps: list[Step] = field(default_factory=list)
    idle: list[tuple[float, float, float]] = field(default_factory=list)
    end: float = 0.0

    @property
    def concurrency(self) -> float:
        """Mean number of requests under way, from the first sent to the last done."""
        span = max(job.ended for job in self.jobs) - self.jobs[0].sent
        return sum(job.ended - job.sent for job in self.jobs) / span

    def counters(self) -> list[tuple[float, int, int, int]]:
        """After each step: (its end, output tokens, prompt tokens computed, prompt tokens from the cache) so far.

        As vLLM does, a prompt is counted when its first token is made.
        """
        output = computed = cached = 0
        found = []
        for step in self.steps:
            for load in step.loads:
                if load.p and load.job.first == step.end:
                    computed += load.job.prompt - load.job.cached
                    cached += load.job.cached
            output += len(step.emitted)
            found.append((step.end, output, computed, cached))
        return found


def simulate(
    jobs: Sequence[Job], physics: StepPhysics, rng: random.Random, *, noise: float = 0.04, tail_s: float = 4.0
) -> Run:
    """Runs all jobs to their end; `tail_s` seconds of idle follow. noise: relative, of each step's time and energy."""
    run = Run(sorted(jobs, key=lambda job: job.sent))
    coming = deque((job.sent + 0.002 + rng.random() * 0.002, job) for job in run.jobs)
    waiting: deque[Job] = deque()
    running: list[Job] = []
    now = 0.0
    while coming or waiting or running:
        while coming and coming[0][0] <= now:
            waiting.append(coming.popleft()[1])
        if not waiting and not running:
            now = _rest(run, physics, now, coming[0][0])
            continue
        loads = _schedule(running, waiting, now)
        step = _execute(loads, physics, now, rng, noise)
        now = step.end
        run.steps.append(step)
        running = [job for job in running if job.made < job.output]
    run.end = _rest(run, physics, now, now + tail_s)
    return run


def _rest(run: Run, physics: StepPhysics, start: float, end: float) -> float:
    at = start
    while at < end:
        until = min(end, at + 0.25)
        power = physics.idle_w()
        run.idle.append((at, until, power))
        physics.advance(until - at, power)
        at = until
    return end


def _schedule(running: list[Job], waiting: deque[Job], now: float) -> list[Load]:
    loads, budget = [], TOKEN_BUDGET
    for job in running:
        if job.decoding and budget:
            loads.append(Load(job, 0, 0.0, 1, job.prompt + job.made))
            budget -= 1
        elif budget:
            budget -= _prefill(job, budget, loads)
    while waiting and budget and len(running) < MAX_SEQUENCES:
        job = waiting.popleft()
        job.scheduled, job.filled = now, job.cached
        running.append(job)
        budget -= _prefill(job, budget, loads)
    return loads


def _prefill(job: Job, budget: int, loads: list[Load]) -> int:
    tokens = min(budget, job.prompt - job.filled)
    loads.append(Load(job, tokens, tokens * (job.filled + (tokens + 1) / 2), 0, 0))
    return tokens


def _execute(loads: list[Load], physics: StepPhysics, now: float, rng: random.Random, noise: float) -> Step:
    duration = physics.duration(loads) * max(0.5, rng.gauss(1, noise))
    energy = physics.joules(loads) * max(0.5, rng.gauss(1, noise))
    step = Step(now, now + duration, loads, energy, physics.static_w)
    for load in loads:
        job = load.job
        job.filled += load.p
        if job.decoding:
            job.made += 1
            step.emitted.append(job)
            if job.made == 1:
                job.first = step.end
            if job.made >= job.output:
                job.ended = step.end
    physics.advance(duration, energy / duration)
    return step
