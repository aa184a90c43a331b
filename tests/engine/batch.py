"""The inside of the simulated engine: sequences computed together step by step, and vLLM's counters of them."""

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.engine.language import answer

BLOCK = 32
"""Tokens per block of the prefix cache; only whole blocks are kept and found again (--block-size 32)."""

ITERATION_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")


@dataclass(eq=False)
class Sequence:
    """One answer being computed: a request has one for every prompt and choice."""

    name: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    finish_reason: str
    streamed: bool
    salt: str
    news: asyncio.Event
    arrived_ns: int = field(default_factory=time.monotonic_ns)
    scheduled_ns: int | None = None
    first_token_ns: int | None = None
    last_token_ns: int | None = None
    cached: int = 0
    created: int = 0
    said: int = 0
    told: int = 0
    blocked: bool = False
    aborted: bool = False

    @property
    def finished(self) -> bool:
        """Whether its last token is computed."""
        return self.said == len(self.answer)

    @property
    def awaits_its_server(self) -> bool:
        """Whether tokens lie here which the server could send at once."""
        return self.streamed and self.told < self.said and not (self.blocked or self.aborted)

    def take(self) -> tuple[int, ...]:
        """Tokens computed since the last call: several when the reader was slower than the engine."""
        fresh = self.answer[self.told : self.said]
        self.told = self.said
        return fresh


@dataclass(frozen=True)
class Step:
    """What one engine step computed, the truth that attribution tests compare with (tokens by sequence name)."""

    started_ns: int
    ended_ns: int
    prefill: dict[str, int]
    decode: dict[str, int]


@dataclass
class Counters:
    """vLLM's counters of one engine since it was started."""

    prompt_computed: int = 0
    prompt_cached: int = 0
    generated: int = 0
    preemptions: int = 0
    steps: int = 0
    step_tokens: int = 0
    step_buckets: list[int] = field(default_factory=lambda: [0] * len(ITERATION_BUCKETS))
    finished: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FINISH_REASONS, 0))

    def count(self, prefill: int, generated: int) -> None:
        """Notes one step."""
        self.steps += 1
        self.generated += generated
        self.step_tokens += prefill + generated
        for i, bound in enumerate(ITERATION_BUCKETS):
            self.step_buckets[i] += prefill + generated <= bound


class Batch:
    """Continuous batching: each step prefills what was admitted and gives every running sequence one token."""

    def __init__(self, *, prefill_s_per_token: float, step_s: float, max_sequences: int) -> None:
        self.prefill_s_per_token = prefill_s_per_token
        self.step_s = step_s
        self.max_sequences = max_sequences
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.counters = Counters()
        self.steps: deque[Step] = deque(maxlen=100_000)
        self.under_way: Step | None = None
        self._cache: set[int] = set()
        self._work = asyncio.Event()

    def submit(self, sequences: Iterable[Sequence]) -> None:
        """Queues sequences for the next step."""
        self.waiting.extend(sequences)
        self._work.set()

    async def run(self) -> None:
        """Computes steps for ever; rests while there is nothing to do."""
        while True:
            admitted = self._admit()
            if not self.running:
                self._work.clear()
                await self._work.wait()
                continue
            await self._step(admitted)

    def _admit(self) -> list[Sequence]:
        """Drops what is over, then fills the free places; gives the newcomers, which this step prefills."""
        self.running = [s for s in self.running if not s.finished and not s.aborted]
        admitted: list[Sequence] = []
        while self.waiting and len(self.running) < self.max_sequences:
            sequence = self.waiting.popleft()
            if sequence.aborted:
                continue
            sequence.scheduled_ns = time.monotonic_ns()
            self._look_up(sequence)
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def _look_up(self, sequence: Sequence) -> None:
        """Finds how much of the prompt is in the prefix cache and puts the rest there."""
        blocks = [hash((sequence.salt, sequence.prompt[:end])) for end in range(BLOCK, len(sequence.prompt) + 1, BLOCK)]
        known = next((i for i, block in enumerate(blocks) if block not in self._cache), len(blocks))
        # the last prompt token is always computed, or there would be nothing to predict the first answer token from
        sequence.cached = min(known, (len(sequence.prompt) - 1) // BLOCK) * BLOCK
        sequence.created = (len(blocks) - known) * BLOCK
        self._cache.update(blocks)

    async def _step(self, admitted: list[Sequence]) -> None:
        batch = list(self.running)
        prefill = {s.name: len(s.prompt) - s.cached for s in admitted}
        takes_s = self.step_s + self.prefill_s_per_token * sum(prefill.values())
        started_ns = time.monotonic_ns()
        decode = {s.name: 1 for s in batch if s.name not in prefill}
        self.under_way = Step(started_ns, started_ns + round(takes_s * 1e9), prefill, decode)
        await asyncio.sleep(takes_s)
        now = time.monotonic_ns()
        for sequence in batch:
            self._say(sequence, now)
        self.counters.prompt_computed += sum(prefill.values())
        self.counters.prompt_cached += sum(s.cached for s in admitted)
        self.counters.count(sum(prefill.values()), len(batch))
        self.steps.append(Step(started_ns, now, prefill, decode))
        # A real engine takes far longer per step than its server per chunk; with no time per step, wait for the server,
        # unless a slow reader holds it up: then tokens gather and leave in one chunk, as vLLM's do.
        while any(s.awaits_its_server for s in batch):  # noqa: ASYNC110 - one turn of the loop is mostly enough
            await asyncio.sleep(0)

    def _say(self, sequence: Sequence, now: int) -> None:
        sequence.said += 1
        sequence.first_token_ns = sequence.first_token_ns or now
        sequence.last_token_ns = now
        if sequence.finished and not sequence.aborted:
            self.counters.finished[sequence.finish_reason] += 1
        sequence.news.set()


def sequences_for(
    *,
    model: str,
    request_id: str,
    prompts: list[tuple[int, ...]],
    choices: int,
    length: int,
    finish_reason: str,
    streamed: bool,
    salt: str,
    news: asyncio.Event,
    silent_every: int | None,
) -> list[Sequence]:
    """The sequences of one request, prompt by prompt and choice by choice, named after it as vLLM names them."""
    return [
        Sequence(
            name=f"{choice}_{request_id}" if choices > 1 else f"{request_id}-{number}",
            prompt=prompt,
            answer=answer(model, prompt, choice, length, silent_every),
            finish_reason=finish_reason,
            streamed=streamed,
            salt=salt,
            news=news,
        )
        for number, prompt in enumerate(prompts)
        for choice in range(choices)
    ]


def exposition(batch: Batch, model: str) -> str:
    """The page /metrics shows: the vllm:* series of use to a proxy, in the Prometheus text format."""
    counters = batch.counters
    engine = f'engine="0",model_name="{model}"'
    computed, cached = counters.prompt_computed, counters.prompt_cached
    page = _Page()
    page.add("num_requests_running", "gauge", "Number of requests in model execution batches.")
    page.value(engine, sum(not s.finished and not s.aborted for s in batch.running))
    page.add("num_requests_waiting", "gauge", "Number of requests waiting to be processed.")
    page.value(engine, len(batch.waiting))
    page.add("num_preemptions_total", "counter", "Cumulative number of preemption from the engine.")
    page.value(engine, counters.preemptions)
    page.add("prompt_tokens_total", "counter", "Number of prefill tokens processed.")
    page.value(engine, computed + cached)
    page.add("prompt_tokens_by_source_total", "counter", "Number of prompt tokens by source.")
    for source, count in {"local_compute": computed, "local_cache_hit": cached, "external_kv_transfer": 0}.items():
        page.value(f'{engine},source="{source}"', count)
    page.add("prompt_tokens_cached_total", "counter", "Number of cached prompt tokens (local + external).")
    page.value(engine, cached)
    page.add("generation_tokens_total", "counter", "Number of generation tokens processed.")
    page.value(engine, counters.generated)
    page.add("request_success_total", "counter", "Count of successfully processed requests.")
    for reason, count in counters.finished.items():
        page.value(f'engine="0",finished_reason="{reason}",model_name="{model}"', count)
    page.add("iteration_tokens_total", "histogram", "Histogram of number of tokens per engine_step.")
    bounds = [*map(float, ITERATION_BUCKETS), "+Inf"]
    for bound, count in zip(bounds, [*counters.step_buckets, counters.steps], strict=True):
        page.value(f'engine="0",le="{bound}",model_name="{model}"', count, "_bucket")
    page.value(engine, counters.steps, "_count")
    page.value(engine, counters.step_tokens, "_sum")
    return page.text()


class _Page:
    """Lines of a metrics page."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._name = ""

    def add(self, name: str, kind: str, meaning: str) -> None:
        self._name = f"vllm:{name}"
        self._lines += [f"# HELP {self._name} {meaning}", f"# TYPE {self._name} {kind}"]

    def value(self, labels: str, value: int, suffix: str = "") -> None:
        self._lines.append(f"{self._name}{suffix}{{{labels}}} {float(value)}")

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"
