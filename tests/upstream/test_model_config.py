"""
The parameters counted from a config are those its maker publishes; its shape says where they are.
"""

import pytest

from proxy.upstream.model_config import count_parameters
from proxy.upstream.model_files import shape_from_config
from tests.upstream import published_models as models
from tests.upstream.published_models import PUBLISHED, Published, shape_of


@pytest.mark.parametrize("model", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_totals_are_the_published_ones(model: Published) -> None:
    """All parameters within 2 % (3 % where the card rounds)."""
    assert count_parameters(model.config).total / 1e9 == pytest.approx(model.total, rel=model.within)


@pytest.mark.parametrize("model", [pytest.param(m, id=name) for name, m in PUBLISHED.items() if m.active is not None])
def test_active_parameters_are_the_published_ones(model: Published) -> None:
    """What one token meets, counting the embeddings that the maker counts."""
    counted = count_parameters(model.config)
    active = counted.active + (counted.embedding if model.counts == "both" else 0)

    assert active / 1e9 == pytest.approx(model.active, rel=model.within)


def test_experts_of_mixtral() -> None:
    """Two of eight experts per token; they are nearly all of the weights."""
    shape = shape_of(models.MIXTRAL)

    assert shape.touched == 2 / 8
    assert shape.expert_bytes == 32 * 8 * 3 * 4096 * 14336 * 2
    assert 0.96 < shape.expert_bytes / shape.weight_bytes < 0.98


def test_experts_of_qwen() -> None:
    """The simulator of the accuracy bench takes 61 GB, 98,304 bytes of cache per token and 786,432 FLOPs per pair."""
    shape = shape_of(models.QWEN_30B_A3B)

    assert shape.touched == 8 / 128
    assert shape.weight_bytes == pytest.approx(61e9, rel=2e-3)
    assert (shape.kv_bytes_per_token, shape.attention_flops) == (98_304, 786_432)


def test_shared_experts_are_met_by_every_token() -> None:
    """They are streamed in every step, so they do not count among the routed ones."""
    with_shared = shape_of(models.QWEN_MOE_SHARED)
    without = shape_of(models.QWEN_MOE_SHARED | {"shared_expert_intermediate_size": 0})

    assert with_shared.expert_bytes == without.expert_bytes
    assert with_shared.weight_bytes - without.weight_bytes == 24 * 3 * 2048 * 5632 * 2
    assert with_shared.touched == 4 / 60


@pytest.mark.parametrize(
    ("more", "mixed"),
    [
        ({}, 48),
        ({"mlp_only_layers": [0, 5]}, 46),
        ({"decoder_sparse_step": 2}, 24),
        ({"first_k_dense_replace": 3}, 45),
        ({"moe_layer_freq": 2}, 24),
        ({"moe_layer_freq": [0] * 8 + [1] * 40}, 40),
        ({"decoder_sparse_step": None, "interleave_moe_layer_step": 4}, 12),
        ({"moe_layers": [1, 3]}, 2),
    ],
    ids=str,
)
def test_some_layers_have_no_experts(more: dict[str, object], mixed: int) -> None:
    """Each family says in its own key which layers are dense; those have the plain intermediate_size."""
    counted = count_parameters(models.QWEN_30B_A3B | more)

    assert counted.experts == mixed * 128 * 3 * 2048 * 768
    assert counted.used == mixed * 8 * 3 * 2048 * 768
    assert counted.mlp == mixed * 2048 * 128 + (48 - mixed) * 3 * 2048 * 6144


def test_the_output_head_is_told_apart() -> None:
    """Every decode position passes it and only the last token of a prompt does."""
    shape = shape_of(models.QWEN_HALF_B)

    assert shape.head_parameters == 896 * 151936
    assert shape.head_parameters / shape.active_parameters > 0.25


@pytest.mark.parametrize("given", [None, True])
def test_families_that_tie_their_embeddings(given: bool | None) -> None:
    """Gemma's files do not mention it because it is the default of the class."""
    counted = count_parameters(models.GEMMA_2_9B | {"tie_word_embeddings": given})

    assert counted.tied
    assert not count_parameters(models.GEMMA_2_9B | {"tie_word_embeddings": False}).tied
    assert not count_parameters(models.LLAMA_8B | {"tie_word_embeddings": None}).tied


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_plain_weights_have_sixteen_bits(key: str, dtype: str) -> None:
    """vLLM casts a float32 checkpoint down, so its weights take as many bytes as those of the others."""
    assert shape_of(models.LLAMA_8B | {key: dtype}) == shape_of(models.LLAMA_8B)


@pytest.mark.parametrize(
    "broken",
    [
        models.MIXTRAL | {"num_experts_per_tok": 9},
        models.MIXTRAL | {"num_experts_per_tok": None},
        models.MIXTRAL | {"num_local_experts": True},
        models.MIXTRAL | {"num_local_experts": -8},
        models.QWEN_30B_A3B | {"moe_layer_freq": 0},
        models.QWEN_30B_A3B | {"mlp_only_layers": 5},
        models.QWEN_30B_A3B | {"first_k_dense_replace": float("inf")},
        models.DEEPSEEK_V3 | {"v_head_dim": None},
        models.LLAMA_8B | {"num_hidden_layers": 10**7},
        models.LLAMA_8B | {"layer_types": ["full_attention"] * 16 + ["conv"] * 16},
        models.LLAMA_8B | {"layer_types": ["linear_attention"] * 32},
        models.LLAMA_8B | {"mamba_d_state": 16},
        models.LLAMA_8B | {"is_encoder_decoder": True},
        models.LLAMA_8B | {"sliding_window": -1},
        models.GEMMA_2_9B | {"sliding_window_pattern": True},
    ],
    ids=lambda broken: str(broken)[-60:],
)
def test_a_decoder_that_is_not_understood(broken: dict[str, object]) -> None:
    """Rather no shape than a wrong one, and no endless loop over layers."""
    assert shape_from_config(broken) is None
