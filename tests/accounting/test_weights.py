"""
The prior follows a model's bytes and FLOPs; context and experts are counted as they are really read.
"""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.gpus import CPU, H100, gpu_named
from proxy.accounting.weights import LLAMA_8B, ModelShape, Weights, roofline_prior

PLAIN = roofline_prior(LLAMA_8B)
QWEN_30B_A3B = ModelShape(
    *(3.04e9, 61.06e9, 98_304, 786_432),
    head_parameters=0.31e9,
    expert_bytes=57.98e9,
    touched=8 / 128,
)
MIXTURE = roofline_prior(QWEN_30B_A3B)

windows = st.builds(
    lambda window, windowed: replace(PLAIN, window=window, windowed=windowed),
    st.integers(1, 300),
    st.sampled_from([0.0, 0.25, 0.5, 52 / 62, 1.0]),
)
weights_drawn = st.one_of(st.just(PLAIN), windows)


def test_llama_on_an_h100_is_as_measured() -> None:
    """Research, section 3.6: 3.1-3.3 J per empty step, 6.9 ms, 0.018 J per prompt token, 18 µJ per context token."""
    assert PLAIN.step == pytest.approx(3.112, rel=1e-3)
    assert PLAIN.step_s == pytest.approx(6.91e-3, rel=1e-3)
    assert PLAIN.prefill == pytest.approx(0.0177, rel=2e-3)
    assert PLAIN.decode == 2 * PLAIN.prefill
    assert PLAIN.context == pytest.approx(1.835e-5, rel=1e-4)
    assert PLAIN.attention == pytest.approx(1.5 * 5.77e-7, rel=1e-3)
    assert PLAIN.token_s == 30e-6
    assert (PLAIN.experts, PLAIN.touched, PLAIN.window, PLAIN.windowed) == (0.0, 1.0, None, 0.0)


def test_a_prior_without_experts_or_windows_needs_none_named() -> None:
    """The seven weights of a dense model are enough."""
    short = Weights(1.0, 0.0, 2.0, 0.0, 10.0, step_s=0.01, token_s=0.0)

    assert short.fixed(0) == short.fixed(1) == short.fixed(1e6) == 10.0
    assert short.context_of(123.5) == 123.5


@given(weights_drawn, st.integers(0, 1000), st.integers(0, 400))
def test_context_of_a_prompt_is_the_sum_over_its_tokens(weights: Weights, before: int, tokens: int) -> None:
    """The closed form equals adding up position by position."""
    one_by_one = sum(weights.context_of(before + i) for i in range(tokens))

    assert weights.prefill_context(before, tokens) == pytest.approx(one_by_one, rel=1e-12)


@given(st.sampled_from([replace(PLAIN, window=w, windowed=f) for w in (1, 7, 128) for f in (0.0, 0.5, 1.0)]), st.data())
def test_the_closed_form_is_exact(weights: Weights, data: st.DataObject) -> None:
    """To the last bit where the part of the layers is a binary fraction."""
    before, tokens = data.draw(st.integers(0, 2**20)), data.draw(st.integers(0, 200))

    assert weights.prefill_context(before, tokens) == sum(weights.context_of(before + i) for i in range(tokens))


@given(weights_drawn, st.floats(0, 1e5), st.floats(0, 1e4), st.floats(0, 1e4))
def test_the_parts_of_a_prompt_add_up(weights: Weights, before: float, first: float, second: float) -> None:
    """However a prompt is cut, in whole tokens or not, nothing is lost and nothing is negative."""
    parts = weights.prefill_context(before, first) + weights.prefill_context(before + first, second)
    whole = weights.prefill_context(before, first + second)

    assert parts == pytest.approx(whole, rel=1e-6, abs=1e-3)
    assert weights.prefill_context(before, first) >= -1e-6 * (1 + before) ** 2


@given(weights_drawn, st.floats(0, 1e6), st.floats(0, 1e6))
def test_context_grows_and_never_exceeds_the_length(weights: Weights, one: float, other: float) -> None:
    """More tokens before a position never mean fewer tokens read."""
    low, high = sorted((one, other))

    assert 0 <= weights.context_of(low) <= weights.context_of(high) * (1 + 1e-12)
    assert weights.context_of(high) <= high


def test_a_window_caps_the_layers_that_have_it() -> None:
    """With 1024 tokens on five layers in six, 13,312 tokens of context are read like 3,072."""
    gemma = replace(PLAIN, window=1024, windowed=5 / 6)

    assert gemma.context_of(1000) == 1000
    assert gemma.context_of(1024) == 1024
    assert gemma.context_of(13_312) == pytest.approx(3072)
    assert replace(gemma, windowed=1.0).context_of(1e6) == 1024


def test_a_long_prompt_takes_no_loop() -> None:
    """Ten million tokens at once, exactly."""
    assert PLAIN.prefill_context(0, 10**7) == 10**7 * (10**7 - 1) // 2


def test_a_lonely_token_touches_few_experts() -> None:
    """Qwen3-30B-A3B: 8 of 128 experts, so a step with one token costs a fraction of one with a thousand."""
    assert MIXTURE.fixed(1) == MIXTURE.step + MIXTURE.experts * 8 / 128
    assert MIXTURE.fixed(1) < 0.15 * MIXTURE.fixed(1000)
    assert MIXTURE.fixed(1000) == pytest.approx(MIXTURE.step + MIXTURE.experts)
    assert MIXTURE.fixed(0) == MIXTURE.step


def test_eight_tokens_touch_two_in_five_experts() -> None:
    """1 - (1 - 1/16)^8 = 0.403."""
    assert (MIXTURE.fixed(8) - MIXTURE.step) / MIXTURE.experts == pytest.approx(0.403, abs=5e-4)


@given(st.floats(0, 1e5), st.floats(0, 1e5))
def test_the_fixed_part_grows_ever_slower_and_levels_off(one: float, other: float) -> None:
    """Concave and bounded: each further token touches fewer experts that were not touched yet."""
    low, high = sorted((one, other))
    middle = MIXTURE.fixed((low + high) / 2)

    assert MIXTURE.fixed(low) <= MIXTURE.fixed(high) <= MIXTURE.step + MIXTURE.experts
    assert middle >= (MIXTURE.fixed(low) + MIXTURE.fixed(high)) / 2 - 1e-9


def test_a_full_mixture_costs_as_much_as_a_dense_model_of_its_bytes() -> None:
    """The streaming is the same once every expert is touched."""
    dense = roofline_prior(replace(QWEN_30B_A3B, expert_bytes=0.0, touched=1.0))

    assert MIXTURE.fixed(1e6) == pytest.approx(dense.step, rel=1e-12)
    assert MIXTURE.step_s < dense.step_s
    assert (MIXTURE.prefill, MIXTURE.decode, MIXTURE.context) == (dense.prefill, dense.decode, dense.context)


def test_prompts_do_not_pay_for_the_output_head() -> None:
    """Only positions that are sampled pass it."""
    with_head = roofline_prior(replace(LLAMA_8B, head_parameters=0.53e9))

    assert with_head.decode == PLAIN.decode
    assert with_head.prefill == pytest.approx(PLAIN.prefill * 7.5 / 8.03)


def test_latent_attention_weighs_by_its_arithmetic() -> None:
    """DeepSeek-V3 reads 70 kB per context token and does 17 MFLOP with it: the FLOPs cost more than the bytes."""
    latent = ModelShape(36.6e9, 671e9, 70_272, 4_997_120, absorbed_flops=16_990_208)
    weights = roofline_prior(latent)

    assert weights.context == pytest.approx(0.14e-9 * 70_272 + 1.1e-12 * 16_990_208)
    assert weights.context > 2 * roofline_prior(replace(latent, absorbed_flops=0.0)).context


def test_quantised_weights_move_fewer_bytes_for_the_same_flops() -> None:
    """Four bits stored and multiplied as bf16: the step shrinks to nearly a quarter, the work per token stays."""
    narrow = roofline_prior(replace(LLAMA_8B, weight_bytes=LLAMA_8B.weight_bytes / 4))

    assert narrow.step < 0.27 * PLAIN.step
    assert (narrow.prefill, narrow.decode, narrow.token_s) == (PLAIN.prefill, PLAIN.decode, PLAIN.token_s)


def test_fp8_shrinks_flops_less_than_bytes() -> None:
    """On a chip that has it; attention stays in 16 bits."""
    fp8 = roofline_prior(replace(LLAMA_8B, weight_bytes=LLAMA_8B.weight_bytes / 2, arithmetic="fp8"))
    ampere = gpu_named("NVIDIA A100-SXM4-80GB")

    assert 0.5 < fp8.prefill / PLAIN.prefill < 0.9
    assert fp8.token_s == PLAIN.token_s / 2
    assert fp8.attention == PLAIN.attention
    assert ampere is not None
    assert roofline_prior(replace(LLAMA_8B, arithmetic="fp8"), ampere) == roofline_prior(LLAMA_8B, ampere)


def test_tensor_parallelism_only_sums() -> None:
    """Four GPUs stream the same bytes and do the same FLOPs, faster; only the launches' static power is four times."""
    four = roofline_prior(LLAMA_8B, H100, gpus=4)

    assert (four.prefill, four.decode, four.context) == (PLAIN.prefill, PLAIN.decode, PLAIN.context)
    assert four.step - PLAIN.step == pytest.approx(3 * 125 * 0.2e-3)
    assert four.token_s == PLAIN.token_s / 4
    assert PLAIN.step_s / 4 < four.step_s < PLAIN.step_s / 3


def test_two_b200_on_llama_70b_are_near_the_public_fit() -> None:
    """ML.ENERGY v3: 26.9 J per empty step and 0.259 J per sequence, at some hundred tokens of context; within a fifth.

    The slope is d + c * context with prompts of as many tokens as answers, read once.
    """
    b200 = gpu_named("NVIDIA B200")
    assert b200 is not None
    weights = roofline_prior(ModelShape(70.6e9, 141.1e9, 327_680, 2_621_440), b200, gpus=2)

    assert weights.step == pytest.approx(26.9, rel=0.2)
    assert weights.decode + 500 * weights.context == pytest.approx(0.259, rel=0.2)


def test_arithmetic_weighs_more_on_a_cpu() -> None:
    """Against a step's bytes, a token's FLOPs cost more than on an H100."""
    cpu = roofline_prior(LLAMA_8B, CPU)

    assert cpu.prefill / cpu.step > 1.2 * PLAIN.prefill / PLAIN.step
    assert cpu.step_s > 10 * PLAIN.step_s


def test_every_weight_is_a_finite_number() -> None:
    """Also of a mixture with windows; nothing is negative."""
    weights = roofline_prior(replace(QWEN_30B_A3B, window=128, windowed=0.5))

    assert weights.roofline is not None
    for told in (weights, weights.roofline):
        for entry in fields(told):
            value = getattr(told, entry.name)
            assert value is weights.roofline or 0 <= value < 1e6
