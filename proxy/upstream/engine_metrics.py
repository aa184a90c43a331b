"""Reads the few counters accounting needs from a vLLM /metrics page."""

import re

from proxy.accounting.units import Nanoseconds
from proxy.accounting.unseen import EngineCounters

_SERIES = {
    "running": rb"vllm:num_requests_running",
    "waiting": rb"vllm:num_requests_waiting",
    "generation": rb"vllm:generation_tokens_total",
    "prompt": rb"vllm:prompt_tokens_total",
}
_VALUE = rb" ([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)(?= |\r?$)"
_LINE = {
    name: re.compile(rb"^" + series + rb"(?:\{[^}]*\})?" + _VALUE, re.MULTILINE) for name, series in _SERIES.items()
}
_COMPUTED, _CACHED = (
    re.compile(rb'^vllm:prompt_tokens_by_source_total\{[^}]*source="' + source + rb'"[^}]*\}' + _VALUE, re.MULTILINE)
    for source in (b"local_compute", b"local_cache_hit")
)


def _sum(pattern: re.Pattern[bytes], page: bytes) -> float | None:
    """Sum over engines of a data-parallel server; None where the series is absent."""
    values = [float(value) for value in pattern.findall(page)]
    return sum(values) if values else None


def read_counters(page: bytes, at: Nanoseconds) -> EngineCounters | None:
    """The counters of one scrape, or None if this is not vLLM's page.

    prompt_tokens_total includes cached tokens, so the count by source is preferred where it exists.
    """
    found = {name: _sum(pattern, page) for name, pattern in _LINE.items()}
    computed = _sum(_COMPUTED, page)
    prompt = computed if computed is not None else found["prompt"]
    running, waiting, generation = found["running"], found["waiting"], found["generation"]
    if prompt is None or running is None or waiting is None or generation is None:
        return None
    return EngineCounters(at, running, waiting, generation, prompt, _sum(_CACHED, page))
