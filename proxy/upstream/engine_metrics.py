"""Reads the few counters accounting needs from a vLLM /metrics page."""

import re

from proxy.accounting.units import Nanoseconds
from proxy.accounting.unseen import Drafts, EngineCounters

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
    re.compile(
        rb'^vllm:prompt_tokens_by_source_total\{[^}]*source="(?:' + source + rb')"[^}]*\}' + _VALUE, re.MULTILINE
    )
    for source in (b"local_compute", b"local_cache_hit|external_kv_transfer")
)
"""What another engine has prefilled and handed over costs no more here than a hit."""
_DRAFTS = [
    re.compile(rb"^vllm:spec_decode_num_" + name + rb"_total(?:\{[^}]*\})?" + _VALUE, re.MULTILINE)
    for name in (b"drafts", b"draft_tokens", b"accepted_tokens")
]

_STEPS, _FIRSTS = (
    re.compile(rb"^vllm:" + histogram + rb"_count(?:\{[^}]*\})?" + _VALUE, re.MULTILINE)
    for histogram in (b"iteration_tokens_total", b"time_to_first_token_seconds")
)
_CACHE = re.compile(rb"^vllm:cache_config_info\{([^}]*)\}", re.MULTILINE)
_LABEL = re.compile(rb'([a-z_]+)="([^"]*)"')


def _sum(pattern: re.Pattern[bytes], page: bytes) -> float | None:
    """Sum over engines of a data-parallel server; None where the series is absent."""
    values = [float(value) for value in pattern.findall(page)]
    return sum(values) if values else None


def _mean(pattern: re.Pattern[bytes], page: bytes) -> float | None:
    """Mean over engines of a data-parallel server; None where the series is absent."""
    values = [float(value) for value in pattern.findall(page)]
    return sum(values) / len(values) if values else None


def read_counters(page: bytes, at: Nanoseconds, *, blur: int = 0) -> EngineCounters | None:
    """The counters of one scrape, or None if this is not vLLM's page. blur: nanoseconds by which `at` may be off.

    prompt_tokens_total includes cached tokens, so the count by source is preferred where it exists.
    """
    found = {name: _sum(pattern, page) for name, pattern in _LINE.items()}
    computed = _sum(_COMPUTED, page)
    prompt = computed if computed is not None else found["prompt"]
    running, waiting, generation = found["running"], found["waiting"], found["generation"]
    if prompt is None or running is None or waiting is None or generation is None:
        return None
    cached, capacity = _sum(_CACHED, page), _cache_capacity(page)
    steps, firsts, engines = _mean(_STEPS, page), _sum(_FIRSTS, page), len(_LINE["running"].findall(page))
    return EngineCounters(
        at, running, waiting, generation, prompt, cached, capacity, _drafts(page), steps, firsts, engines, blur
    )


def _drafts(page: bytes) -> Drafts | None:
    steps, drafted, accepted = (_sum(pattern, page) for pattern in _DRAFTS)
    return None if steps is None or drafted is None or accepted is None else Drafts(steps, drafted, accepted)


def _cache_capacity(page: bytes) -> float | None:
    """Tokens the prefix cache has room for, over all engines of the page; 0 if none is kept, None if it is not told.

    Not every version names kv_cache_size_tokens; blocks times their size is the same but for hybrid models.
    """
    found: list[int] = []
    for line in _CACHE.findall(page):
        told = dict(_LABEL.findall(line))
        sizes = [told.get(name, b"") for name in (b"kv_cache_size_tokens", b"num_gpu_blocks", b"block_size")]
        whole, blocks, each = (int(size) if size.isdigit() else 0 for size in sizes)
        if told.get(b"enable_prefix_caching") == b"False":
            found.append(0)
        elif whole or blocks * each:
            found.append(whole or blocks * each)
    return float(sum(found)) if found else None
