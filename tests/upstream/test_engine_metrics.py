"""
A few counters are read from vLLM's page; what is not its page gives nothing instead of zeros.
"""

import pytest

from proxy.accounting.units import Nanoseconds
from proxy.accounting.unseen import EngineCounters
from proxy.upstream.engine_metrics import read_counters
from tests.engine.batch import Batch, exposition

AT = Nanoseconds(7)
PAGE = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:generation_tokens_total{engine="0",model_name="m"} 1.5e+03
vllm:prompt_tokens_total{engine="0",model_name="m"} 900.0
"""
BY_SOURCE = b"""vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 600.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_cache_hit"} 300.0
"""


def test_reads_the_page() -> None:
    """Gauges and counters of one engine."""
    assert read_counters(PAGE, AT) == EngineCounters(AT, 3.0, 2.0, 1500.0, 900.0)


def test_cached_tokens_are_left_out_where_they_are_told_apart() -> None:
    """prompt_tokens_total has them in; the count by source does not."""
    found = read_counters(PAGE + BY_SOURCE, AT)

    assert found is not None
    assert found.computed_prompt_tokens == 600.0


def test_engines_of_a_data_parallel_server_add_up() -> None:
    """One page, several engines."""
    found = read_counters(PAGE + PAGE.replace(b'engine="0"', b'engine="1"'), AT)

    assert found == EngineCounters(AT, 6.0, 4.0, 3000.0, 1800.0, engines=2)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html>not here</html>",
        PAGE.replace(b"generation_tokens_total", b"generation_tokens_created"),
        PAGE.replace(b" 3.0\n", b" NaN\n"),
        PAGE.replace(b" 3.0\n", b" 1.2.3\n"),
        PAGE.replace(b" 3.0\n", b" e\n"),
        PAGE.replace(b" 3.0\n", b" -1\n"),
        b"\xff\x00" * 100,
    ],
)
def test_what_cannot_be_read_is_none(page: bytes) -> None:
    """A missing or broken series is not zero, and nothing on a page stops the proxy."""
    assert read_counters(page, AT) is None


def test_line_ends_and_timestamps_do_not_matter() -> None:
    """Both are allowed by the format."""
    expected = read_counters(PAGE, AT)

    assert read_counters(PAGE.replace(b"\n", b"\r\n"), AT) == expected
    assert read_counters(PAGE.replace(b".0\n", b".0 1700000000000\n"), AT) == expected


def test_reads_what_the_simulated_engine_writes() -> None:
    """The page that other tests go by is one of vLLM's."""
    batch = Batch(prefill_s_per_token=0, step_s=0, max_sequences=1)
    batch.counters.generated, batch.counters.prompt_computed, batch.counters.prompt_cached = 5, 4, 3

    assert read_counters(exposition(batch, "m").encode(), AT) == EngineCounters(AT, 0.0, 0.0, 5.0, 4.0, 3.0, steps=0.0)


def test_steps_and_first_tokens_are_the_counts_of_their_histograms() -> None:
    """Of two engines both step for themselves, so steps are their mean; first tokens add up."""
    one = (
        PAGE
        + b"""vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="m"} 7.0
vllm:iteration_tokens_total_count{engine="0",model_name="m"} 20.0
vllm:iteration_tokens_total_sum{engine="0",model_name="m"} 900.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 4.0
"""
    )
    two = one.replace(b'engine="0"', b'engine="1"').replace(b" 20.0", b" 30.0")

    for page, expected in ((one, (20.0, 4.0)), (one + two, (25.0, 8.0)), (PAGE, (None, None))):
        found = read_counters(page, AT)
        assert found is not None
        assert (found.steps, found.firsts) == expected


CACHE = (
    b'vllm:cache_config_info{_block_size_resolved="True",block_size="32",effective_attention_block_size="64",'
    b'enable_prefix_caching="True",engine="0",kv_cache_size_tokens="%s",mamba_block_size="None",'
    b'num_cpu_blocks="None",num_gpu_blocks="8192"} 1.0\n'
)


@pytest.mark.parametrize(
    ("lines", "tokens"),
    [
        (b"", None),
        (CACHE % b"262000", 262_000),
        (CACHE % b"None", 8192 * 32),
        (CACHE.replace(b"kv_cache_size_tokens", b"other") % b"1", 8192 * 32),
        ((CACHE % b"None").replace(b'"8192"', b'"None"'), None),
        ((CACHE % b"1000").replace(b'_caching="True"', b'_caching="False"'), 0),
        (CACHE % b"1000" + (CACHE % b"500").replace(b'engine="0"', b'engine="1"'), 1500),
    ],
    ids=["not told", "tokens", "blocks", "older", "not yet known", "off", "two engines"],
)
def test_the_cache_has_room_for_so_many_tokens(lines: bytes, tokens: float | None) -> None:
    """As the engine's settings say; none at all where prefix caching is off."""
    found = read_counters(PAGE + lines, AT)

    assert found is not None
    assert found.cache_capacity_tokens == tokens
