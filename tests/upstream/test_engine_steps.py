"""
The engine's own count of its steps.
"""

from proxy.upstream.engine_steps import read_steps

PAGE = b"""# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{engine="0",le="+Inf",model_name="m"} 12.0
vllm:iteration_tokens_total_count{engine="0",model_name="m"} 12.0
vllm:iteration_tokens_total_sum{engine="0",model_name="m"} 99.0
vllm:iteration_tokens_total_count{engine="1",model_name="m"} 1.5e+03
"""


def test_steps_of_all_engines_are_summed() -> None:
    """A data-parallel server has a series for each."""
    assert read_steps(PAGE) == 1512.0


def test_a_page_that_does_not_tell() -> None:
    """Is not zero steps."""
    assert read_steps(b"vllm:num_requests_running 1.0\n") is None
