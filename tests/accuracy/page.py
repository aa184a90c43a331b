"""The engine's /metrics page after each of its steps, as vLLM writes it; accounting reads it by its own means."""

from collections.abc import Iterator
from dataclasses import dataclass

from proxy.accounting.units import Nanoseconds
from proxy.accounting.unseen import EngineCounters
from proxy.upstream.engine_metrics import read_counters
from tests.accuracy.engine import Config, Run
from tests.accuracy.kv import BLOCK

LABELS = 'engine="0",model_name="m"'
FIGURES = {
    "running": "num_requests_running",
    "waiting": "num_requests_waiting",
    "steps": "iteration_tokens_total_count",
    "firsts": "time_to_first_token_seconds_count",
    "generation": "generation_tokens_total",
    "prompt": "prompt_tokens_total",
    "preempted": "num_preemptions_total",
    "drafts": "spec_decode_num_drafts_total",
    "drafted": "spec_decode_num_draft_tokens_total",
    "accepted": "spec_decode_num_accepted_tokens_total",
}


@dataclass(slots=True)
class Counts:
    """Gauges and cumulative counts. As vLLM does, a sequence's prompt is counted when its first token is made."""

    running: int = 0
    waiting: int = 0
    steps: int = 0
    firsts: int = 0
    generation: int = 0
    prompt: int = 0
    computed: int = 0
    cached: int = 0
    preempted: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0

    def page(self, config: Config) -> bytes:
        """The lines that matter, among vLLM's own."""
        lines = [
            f"vllm:{series}{{{LABELS}}} {float(getattr(self, name))}"
            for name, series in FIGURES.items()
            if config.draft or not series.startswith("spec_decode")
        ]
        for source, tokens in (("local_compute", self.computed), ("local_cache_hit", self.cached)):
            lines.append(f'vllm:prompt_tokens_by_source_total{{{LABELS},source="{source}"}} {float(tokens)}')
        told = f'block_size="{BLOCK}",enable_prefix_caching="True",engine="0",num_gpu_blocks="{config.blocks}"'
        return "\n".join([*lines, f"vllm:cache_config_info{{{told}}} 1.0", ""]).encode()


def pages(run: Run, every_s: float, late_s: float) -> Iterator[EngineCounters]:
    """A look every `every_s` seconds; a step shows `late_s` after its end."""
    counts, number, at = Counts(), 0, 0.5
    while at < run.end:
        while number < len(run.steps) and run.steps[number].end <= at - late_s:
            _add(counts, run, number)
            number += 1
        found = read_counters(counts.page(run.config), Nanoseconds(round(at * 1e9)))
        assert found is not None
        yield found
        at += every_s


def _add(counts: Counts, run: Run, number: int) -> None:
    step = run.steps[number]
    counts.running, counts.waiting = step.running, step.waiting
    counts.preempted = step.preempted
    # A step that gives nobody anything, only chunks of prompts, is not counted.
    counts.steps += bool(step.made)
    for one in step.made:
        counts.generation += one.tokens
        if one.first:
            job, cached = one.strand.job, one.strand.cached
            counts.firsts += 1
            counts.prompt += job.prompt
            counts.computed += job.prompt - cached
            counts.cached += cached
    drafted = {id(load.strand): load.d - 1 for load in step.loads if load.d > 1}
    counts.drafts += len(drafted)
    counts.drafted += sum(drafted.values())
    counts.accepted += sum(one.tokens - 1 for one in step.made if id(one.strand) in drafted)
