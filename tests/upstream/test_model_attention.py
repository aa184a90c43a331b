"""
What attention caches, computes and leaves out is read from each family's own keys.
"""

import pytest

from proxy.upstream.model_attention import attention_of, full_layers, window_of
from tests.upstream import published_models as models
from tests.upstream.published_models import shape_of


def test_latent_attention_caches_one_vector_per_token() -> None:
    """DeepSeek-V3: 512 latent and 64 rotary numbers per layer, in 16 bits; a cache of heads would be 28 times that."""
    attention = attention_of(models.DEEPSEEK_V3)

    assert attention.cached == 576
    assert shape_of(models.DEEPSEEK_V3).kv_bytes_per_token == 61 * 576 * 2
    assert attention.parameters == 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168


def test_latent_attention_computes_in_two_ways() -> None:
    """Prompts per head with 192 and 128 numbers; decode positions in the latent space with 576 and 512."""
    shape = shape_of(models.DEEPSEEK_V3)

    assert shape.attention_flops == 61 * 2 * 128 * (192 + 128)
    assert shape.absorbed_flops == 61 * 2 * 128 * (576 + 512)
    assert shape_of(models.LLAMA_8B).absorbed_flops == 0


def test_queries_of_a_small_latent_model_are_not_compressed() -> None:
    """q_lora_rank is null in DeepSeek-V2-Lite."""
    assert attention_of(models.DEEPSEEK_V2_LITE).parameters == (
        2048 * 16 * 192 + 2048 * 576 + 512 * 16 * 256 + 16 * 128 * 2048
    )


@pytest.mark.parametrize(
    ("config", "window", "windowed"),
    [
        (models.LLAMA_8B, None, 0.0),
        (models.MISTRAL_7B, 4096, 1.0),
        (models.MISTRAL_7B | {"sliding_window": None}, None, 0.0),
        (models.QWEN_7B, None, 0.0),
        (models.QWEN_7B | {"use_sliding_window": True, "max_window_layers": 21}, 131072, 0.25),
        (models.QWEN_7B | {"use_sliding_window": True}, None, 0.0),
        (models.PHI_3_MINI, 2047, 1.0),
        (models.GEMMA_2_9B, 4096, 0.5),
        (models.GEMMA_3_27B["text_config"], 1024, 52 / 62),
        (models.GEMMA_3_4B["text_config"] | {"sliding_window_pattern": 2}, 1024, 0.5),
        (models.GPT_OSS_20B, 128, 0.5),
        (models.GPT_OSS_20B | {"layer_types": ["full_attention"] * 24}, None, 0.0),
        (models.LLAMA_4_SCOUT["text_config"], 8192, 0.75),
        (models.LLAMA_8B | {"sliding_window": 4096, "sliding_window_pattern": "LLLG"}, 4096, 0.75),
    ],
)
def test_windows(config: dict[str, object], window: int | None, windowed: float) -> None:
    """Length and part of the layers, by name, by pattern, by family, or all of them."""
    assert window_of(config) == (window, pytest.approx(windowed))


def test_linear_layers_cache_no_tokens() -> None:
    """Every fourth layer of Qwen3-Next has keys and values, whether by interval or by name."""
    by_name = models.QWEN_NEXT_80B | {
        "full_attention_interval": None,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 12,
    }

    assert full_layers(models.QWEN_NEXT_80B) == full_layers(by_name) == 12
    assert shape_of(by_name) == shape_of(models.QWEN_NEXT_80B)
    assert shape_of(by_name).kv_bytes_per_token == 12 * 2 * 2 * 256 * 2
