"""How many steps an engine has made, by its own count.

vLLM counts in `vllm:iteration_tokens_total` the steps that gave a token: one that only computed a piece of a prompt is
not among them (AsyncLLM makes iteration statistics of steps with outputs alone).
"""

import re

_STEPS = re.compile(rb"^vllm:iteration_tokens_total_count(?:\{[^}]*\})? ([0-9.eE+]+)", re.MULTILINE)


def read_steps(page: bytes) -> float | None:
    """Steps since the engines of a /metrics page started, summed; None where the page does not tell."""
    found = _STEPS.findall(page)
    return sum(map(float, found)) if found else None
