"""One simulated engine: continuous batching with chunked prefill, a prefix cache, preemption and speculative decoding.

Time is simulated seconds. Every step holds a position (with a draft: some more) for each sequence that decodes and, in
what the token budget leaves, chunks of prompts; it takes the time the physics says. Steps follow one another without a
gap while there is work. Order is first come, first served; who came last is preempted first and computes anew.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple, Protocol

from proxy.wire.ask import Ask
from tests.accuracy.kv import BLOCK, Memory, Table
from tests.accuracy.prompts import Prompt

ANSWER_LATE_S = 0.015
"""What a client sees this long after its step; then it thinks, or leaves."""
NOISE = 0.04
"""Relative standard deviation of each step's time and energy."""


class Impossible(ValueError):
    """What was asked for cannot be played; the message says why."""


@dataclass(frozen=True, slots=True)
class Config:
    """The engine's flags. draft: tokens drafted per step; acceptance: chance that a drafted token holds if those
    before it do. blocks: room for keys and values, in blocks of 16 tokens (26,000: an 8B model on 80 GB)."""

    token_budget: int = 2048
    max_sequences: int = 256
    blocks: int = 26_000
    draft: int = 0
    acceptance: float = 0.7


@dataclass(slots=True, eq=False)
class Job:
    """One request. Times in seconds: sent by the relay, taken into the batch, first and last token made.

    blocks: the chain of its prompt's full blocks and, after those, of its (first) answer's. output: tokens of each of
    `answers`; none for an embedding. seen: it comes through the proxy. silent: answered in one piece. leaves: the
    client goes after so many tokens (0: `patience_s` after sending), which is at `left`; the engine drops it later.
    next: what the same client sends `think_s` after this answer. text: what the prompt is made of; ask: the
    same as the relay reads it, once it has.
    cached: prompt tokens that the first sequence found; told: those that the last one found, which the engine says.
    """

    row: str
    kind: str
    tenant: str
    sent: float
    prompt: int
    output: int
    blocks: tuple[int, ...] = ()
    answers: int = 1
    seen: bool = True
    silent: bool = False
    leaves: int | None = None
    patience_s: float = 0.2
    next: "Job | None" = None
    think_s: float = 0.0
    text: Prompt = ()
    cached: int = 0
    told: int = 0
    ask: Ask | None = None
    made: int = 0
    preempted: int = 0
    open: int = 0
    scheduled: float = -1.0
    first: float = -1.0
    left: float | None = None
    dropped: float = float("inf")
    ended: float = -1.0

    @property
    def prefix(self) -> tuple[int, ...]:
        """The chain of its prompt."""
        return self.blocks[: self.prompt // BLOCK]


@dataclass(slots=True, eq=False)
class Strand:
    """One sequence of a job: what the engine schedules, and a player of its own.

    filled: positions whose keys and values are there; lost: how many were, before a preemption.
    """

    job: Job
    index: int
    table: Table
    filled: int = 0
    made: int = 0
    lost: int = 0
    cached: int = -1

    @property
    def missing(self) -> int:
        """Positions to compute before the next token can be made."""
        return self.job.prompt + self.made - self.filled

    @property
    def done(self) -> bool:
        """All is made."""
        return self.made >= self.job.output and self.filled >= self.job.prompt


class Load(NamedTuple):
    """Work of one sequence in one step: positions computed as a chunk and the sum of their contexts, decode positions
    (drafted ones too) and the context that is read for them. before: what was there; again: computed once already."""

    strand: Strand
    p: int
    pc: float
    d: int
    c: int
    before: int
    again: int = 0

    @property
    def job(self) -> Job:
        """Whose it is."""
        return self.strand.job


class State(NamedTuple):
    """What the physics was in when a step ran: watts that flow whatever is computed, and the clock (1 is full)."""

    static_w: float
    clock: float = 1.0


class Made(NamedTuple):
    """Tokens that one sequence made in one step; first: its prompt was done in this step."""

    strand: Strand
    tokens: int
    first: bool


@dataclass(slots=True)
class Step:
    """One engine step and its energy in joules. running, waiting: the engine's gauges after it; preempted: so far."""

    start: float
    end: float
    loads: list[Load]
    joules: float
    state: State
    running: int = 0
    waiting: int = 0
    preempted: int = 0
    made: list[Made] = field(default_factory=list)


class StepPhysics(Protocol):
    """What the engine asks of the physics."""

    state: State

    def duration(self, loads: Sequence[Load]) -> float: ...
    def joules(self, loads: Sequence[Load]) -> float: ...
    def idle_w(self) -> float: ...
    def advance(self, seconds: float, power_w: float) -> None: ...


@dataclass(slots=True)
class Run:
    """All that happened. idle: (start, end, watts) of the time between steps."""

    jobs: list[Job]
    config: Config = Config()
    steps: list[Step] = field(default_factory=list)
    idle: list[tuple[float, float, float]] = field(default_factory=list)
    end: float = 0.0

    @property
    def concurrency(self) -> float:
        """Mean number of requests under way, from the first sent to the last sent."""
        low, high = self.jobs[0].sent, self.jobs[-1].sent
        return sum(min(job.ended, high) - job.sent for job in self.jobs) / max(1e-9, high - low)


class Engine:
    """Runs jobs to their end. noise: relative, of each step's time and energy."""

    def __init__(self, physics: StepPhysics, rng: random.Random, config: Config, noise: float) -> None:
        self._physics = physics
        self._rng = rng
        self._config = config
        self._noise = noise
        self._memory = Memory(config.blocks)
        self._waiting: deque[Strand] = deque()
        self._running: list[Strand] = []
        self._coming: list[tuple[float, str, Job]] = []
        self._now = 0.0
        self._preempted = 0

    def run(self, jobs: Sequence[Job], *, until: float, tail_s: float) -> Run:
        """`jobs` begin at their own times; what follows them is not sent after `until`; idle follows the last."""
        run = Run([], self._config)
        for job in jobs:
            self._send(job, job.sent)
        while self._coming or self._waiting or self._running:
            self._take_in(run)
            loads = self._schedule()
            if not loads:
                # Nothing to do, or all who waited have left.
                self._rest(run, self._coming[0][0] if self._coming else self._now)
                continue
            step = self._execute(loads)
            run.steps.append(step)
            self._retire(until)
            step.running, step.waiting, step.preempted = len(self._running), len(self._waiting), self._preempted
        self._rest(run, self._now + tail_s)
        run.end = self._now
        run.jobs.sort(key=lambda job: job.sent)
        return run

    def _send(self, job: Job, at: float) -> None:
        if -(-(job.prompt + job.output + self._config.draft) // BLOCK) > self._config.blocks:
            raise Impossible(f"request {job.row} of {job.prompt} + {job.output} tokens does not fit into the memory")
        job.sent = at
        if job.leaves == 0:
            self._leave(job, at + job.patience_s)
        heappush(self._coming, (at + 0.002 + self._rng.random() * 0.002, job.row, job))

    def _leave(self, job: Job, at: float) -> None:
        job.left = at
        job.dropped = at + 0.005 + self._rng.expovariate(1 / 0.03)

    def _take_in(self, run: Run) -> None:
        while self._coming and self._coming[0][0] <= self._now:
            job = heappop(self._coming)[2]
            run.jobs.append(job)
            job.open = job.answers
            for index in range(job.answers):
                chain = job.blocks if index == 0 else job.prefix
                self._waiting.append(Strand(job, index, Table(chain)))
        for strand in [one for one in self._waiting if one.job.dropped <= self._now]:
            self._waiting.remove(strand)
            self._close(strand)
        for strand in [one for one in self._running if one.job.dropped <= self._now]:
            self._running.remove(strand)
            self._close(strand)

    def _rest(self, run: Run, end: float) -> None:
        while self._now < end:
            until = min(end, self._now + 0.25)
            power = self._physics.idle_w()
            run.idle.append((self._now, until, power))
            self._physics.advance(until - self._now, power)
            self._now = until

    def _schedule(self) -> list[Load]:
        loads: list[Load] = []
        budget, place, preempted = self._config.token_budget, 0, False
        while place < len(self._running) and budget:
            strand = self._running[place]
            tokens = self._wanted(strand, budget)
            while place < len(self._running) and not self._memory.extend(strand.table, strand.filled + tokens):
                self._preempt()
                preempted = True
            if place < len(self._running):
                loads.append(_load(strand, tokens))
                budget -= tokens
                place += 1
        while self._waiting and budget and not preempted and len(self._running) < self._config.max_sequences:
            load = self._admit(self._waiting[0], budget)
            if load is None:
                break
            self._running.append(self._waiting.popleft())
            loads.append(load)
            budget -= load.p + load.d
        return loads

    def _wanted(self, strand: Strand, budget: int) -> int:
        if strand.missing > 1 or not strand.made:
            return min(budget, strand.missing)
        left = strand.job.output - strand.made
        return min(budget, 1 + min(self._config.draft, left - 1))

    def _preempt(self) -> None:
        victim = self._running.pop()
        self._memory.release(victim.table)
        victim.lost, victim.filled = max(victim.lost, victim.filled), 0
        victim.job.preempted += 1
        self._preempted += 1
        self._waiting.appendleft(victim)

    def _admit(self, strand: Strand, budget: int) -> Load | None:
        hits = self._memory.found(strand.table.chain, strand.job.prompt + strand.made)
        tokens = min(budget, strand.missing - hits * BLOCK)
        if not self._memory.admit(strand.table, hits, hits * BLOCK + tokens):
            return None
        strand.filled = hits * BLOCK
        if strand.cached < 0:
            strand.cached = strand.filled
            if strand.index == 0:
                strand.job.cached = strand.cached
            strand.job.told = strand.cached
        if strand.job.scheduled < 0:
            strand.job.scheduled = self._now
        return _load(strand, tokens)

    def _execute(self, loads: list[Load]) -> Step:
        physics = self._physics
        duration = physics.duration(loads) * max(0.5, self._rng.gauss(1, self._noise))
        energy = physics.joules(loads) * max(0.5, self._rng.gauss(1, self._noise))
        step = Step(self._now, self._now + duration, loads, energy, physics.state)
        self._now = step.end
        for load in loads:
            begun = load.strand.made > 0
            tokens = self._emit(load)
            if tokens or load.strand.done:
                step.made.append(Made(load.strand, tokens, not begun))
                self._deliver(load.job, tokens)
        physics.advance(duration, energy / duration)
        return step

    def _emit(self, load: Load) -> int:
        strand = load.strand
        accepted = 0
        while accepted < load.d - 1 and self._rng.random() < self._config.acceptance:
            accepted += 1
        strand.filled += load.p + (1 + accepted if load.d else 0)
        if strand.filled < strand.job.prompt + strand.made or not strand.job.output:
            return 0
        tokens = 1 + accepted
        strand.made += tokens
        return tokens

    def _deliver(self, job: Job, tokens: int) -> None:
        job.made += tokens
        if job.first < 0 and tokens:
            job.first = self._now
        if job.leaves and job.left is None and job.made >= job.leaves:
            self._leave(job, self._now + ANSWER_LATE_S)

    def _retire(self, until: float) -> None:
        for strand in [one for one in self._running if one.done]:
            self._running.remove(strand)
            self._close(strand)
            job = strand.job
            at = self._now + ANSWER_LATE_S + job.think_s
            if not job.open and job.next is not None and at < until:
                self._send(job.next, at)

    def _close(self, strand: Strand) -> None:
        self._memory.release(strand.table)
        strand.job.open -= 1
        if not strand.job.open:
            strand.job.ended = self._now


def _load(strand: Strand, tokens: int) -> Load:
    before = strand.filled
    again = max(0, min(strand.lost, before + tokens) - before)
    if strand.made and before == strand.job.prompt + strand.made - 1:
        return Load(strand, 0, 0.0, tokens, before + 1, before, min(1, again))
    return Load(strand, tokens, tokens * (before + (tokens + 1) / 2), 0, 0, before, again)


def simulate(
    jobs: Sequence[Job],
    physics: StepPhysics,
    rng: random.Random,
    config: Config = Config(),
    *,
    until: float = float("inf"),
    noise: float = NOISE,
    tail_s: float = 4.0,
) -> Run:
    """Runs all jobs to their end on an engine of its own. The jobs are filled in: make new ones for another run."""
    return Engine(physics, rng, config, noise).run(jobs, until=until, tail_s=tail_s)
