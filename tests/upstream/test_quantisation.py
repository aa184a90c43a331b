"""
Quantised checkpoints move fewer bytes; what they multiply is another matter.
"""

from typing import Any

import pytest

from proxy.upstream.quantisation import Precision, precision_of
from tests.upstream import published_models as models
from tests.upstream.published_models import shape_of


def compressed(bits: int, kind: str, inputs: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    """A compressed-tensors section with one group."""
    weights = {"num_bits": bits, "type": kind} | more
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": weights, "input_activations": inputs, "targets": ["Linear"]}},
        "ignore": ["lm_head"],
    }


@pytest.mark.parametrize(
    ("section", "bits", "arithmetic"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4.125, "bf16"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8.0, "bf16"),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, 4.25, "bf16"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, 8.0, "fp8"),
        ({"quant_method": "fbgemm_fp8"}, 8.0, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 8.0, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5, "fp4"),
        ({"quant_method": "modelopt_fp4"}, 4.5, "fp4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5, "bf16"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8.0, "int8"),
        (compressed(8, "float", {"num_bits": 8, "type": "float"}), 8.0, "fp8"),
        (compressed(8, "int", {"num_bits": 8, "type": "int"}), 8.0, "int8"),
        (compressed(4, "int", None, group_size=128), 4.125, "bf16"),
        (compressed(4, "float", {"num_bits": 4, "type": "float"}, group_size=16), 4.5, "fp4"),
        ({"quant_method": "a new one", "bits": 3}, 3.0, "bf16"),
        ({"quant_method": "a new one"}, 16.0, "bf16"),
        ({"quant_method": "gptq", "bits": "four"}, 16.0, "bf16"),
        ({"quant_method": "compressed-tensors", "config_groups": []}, 16.0, "bf16"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": None}}}, 16.0, "bf16"),
    ],
    ids=str,
)
def test_bits_per_weight_and_what_is_multiplied(section: dict[str, Any], bits: float, arithmetic: str) -> None:
    """Scales beside the weights count; weight-only formats are multiplied as bf16."""
    precision = precision_of({"quantization_config": section})

    assert (precision.attention, precision.mlp, precision.experts) == (bits, bits, bits)
    assert precision.arithmetic == arithmetic
    assert precision.cached == 16


@pytest.mark.parametrize("nothing", [{}, {"quantization_config": None}, {"quantization_config": "gptq"}])
def test_a_checkpoint_that_is_not_quantised(nothing: dict[str, Any]) -> None:
    """Everything in 16 bits."""
    assert precision_of(nothing) == Precision()


def test_only_the_experts_of_gpt_oss_are_quantised() -> None:
    """Its published files are 13.8 GB: experts in 4.25 bits, attention, embeddings and head in 16."""
    precision = precision_of(models.GPT_OSS_20B)

    assert (precision.attention, precision.mlp, precision.experts) == (16, 16, 4.25)
    assert shape_of(models.GPT_OSS_20B).weight_bytes == pytest.approx(13.76e9, rel=0.01)


def test_attention_that_is_left_out_by_pattern() -> None:
    """Lists of single layers, which are exceptions, do not count."""
    fp8 = {"quant_method": "fp8"}
    pattern = precision_of({"quantization_config": fp8 | {"ignore": ["re:.*self_attn.*", "lm_head"]}})
    single = precision_of({"quantization_config": fp8 | {"ignore": ["model.layers.0.self_attn.q_proj"]}})

    assert (pattern.attention, pattern.mlp) == (16, 8)
    assert (single.attention, single.mlp) == (8, 8)


def test_bytes_shrink_and_embeddings_stay() -> None:
    """DeepSeek-V3 in fp8 takes about 672 GB, of which the two embeddings are in 16 bits."""
    shape = shape_of(models.DEEPSEEK_V3)
    plain = shape_of({key: value for key, value in models.DEEPSEEK_V3.items() if key != "quantization_config"})

    assert shape.arithmetic == "fp8"
    assert shape.weight_bytes == plain.weight_bytes / 2 + 129280 * 7168 * 2
    assert shape.expert_bytes == plain.expert_bytes / 2
    assert shape.active_parameters == plain.active_parameters


@pytest.mark.parametrize(
    ("section", "dtype", "bits"),
    [
        ({}, "auto", 16),
        ({}, "fp8", 8),
        ({}, "fp8_e4m3", 8),
        ({}, "FP8_E5M2", 8),
        ({}, "int8_per_token_head", 8),
        ({}, "nvfp4", 4.5),
        ({}, "bfloat16", 16),
        ({}, "something new", 16),
        ({"kv_cache_scheme": {"num_bits": 8, "type": "float"}}, "auto", 8),
        ({"kv_cache_scheme": {"num_bits": 8, "type": "float"}}, "bfloat16", 16),
        ({"kv_cache_scheme": {"num_bits": "8"}}, "auto", 16),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}, "auto", 8),
    ],
)
def test_bits_of_the_cache(section: dict[str, Any], dtype: str, bits: float) -> None:
    """The engine's setting goes first, then what the checkpoint asks for."""
    config = models.LLAMA_8B | {"quantization_config": section}

    assert precision_of(config, dtype).cached == bits
    assert shape_of(config, dtype).kv_bytes_per_token == 131_072 * bits / 16
