"""Sizes of published models as their config.json gives them, and what their makers say they add up to.

Only keys that bear on the count are kept. Totals and active parameters in billions are from the model cards and
technical reports; `counts` says which embeddings the maker counts as active: none of them, the output head, or both.
"""

from dataclasses import dataclass
from typing import Any, Literal

from proxy.accounting.model_shape import ModelShape
from proxy.upstream.model_files import shape_from_config


@dataclass(frozen=True)
class Published:
    """One model. total, active: billions of parameters; within: the relative error allowed."""

    config: dict[str, Any]
    total: float
    active: float | None = None
    counts: Literal["head", "both"] = "both"
    within: float = 0.02


def sizes(
    kind: str, hidden: int, layers: int, heads: int, kv_heads: int, wide: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    """The keys that nearly all models have."""
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": wide,
        "vocab_size": vocabulary,
        **more,
    }


LLAMA_8B = sizes("llama", 4096, 32, 32, 8, 14336, 128256, tie_word_embeddings=False, torch_dtype="bfloat16")
LLAMA_70B = sizes("llama", 8192, 80, 64, 8, 28672, 128256, tie_word_embeddings=False)
MISTRAL_7B = sizes("mistral", 4096, 32, 32, 8, 14336, 32000, sliding_window=4096, tie_word_embeddings=False)
QWEN_7B = sizes(
    *("qwen2", 3584, 28, 28, 4, 18944, 152064),
    use_sliding_window=False,
    sliding_window=131072,
    max_window_layers=28,
    tie_word_embeddings=False,
)
QWEN_HALF_B = sizes("qwen2", 896, 24, 14, 2, 4864, 151936, tie_word_embeddings=True, use_sliding_window=False)
PHI_3_MINI = sizes("phi3", 3072, 32, 32, 32, 8192, 32064, sliding_window=2047, tie_word_embeddings=False)
PHI_2 = sizes("phi", 2560, 32, 32, 32, 10240, 51200, tie_word_embeddings=False)
GEMMA_2_9B = sizes("gemma2", 3584, 42, 16, 8, 14336, 256000, head_dim=256, sliding_window=4096)
GEMMA_3_27B = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16},
}
GEMMA_3_4B = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
}
MIXTRAL = sizes("mixtral", 4096, 32, 32, 8, 14336, 32000, num_local_experts=8, num_experts_per_tok=2)
QWEN_30B_A3B = sizes(
    *("qwen3_moe", 2048, 48, 32, 4, 6144, 151936),
    head_dim=128,
    num_experts=128,
    num_experts_per_tok=8,
    moe_intermediate_size=768,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    sliding_window=None,
    use_sliding_window=False,
    tie_word_embeddings=False,
)
QWEN_235B = QWEN_30B_A3B | sizes("qwen3_moe", 4096, 94, 64, 4, 12288, 151936, moe_intermediate_size=1536)
QWEN_MOE_SHARED = sizes(
    *("qwen2_moe", 2048, 24, 16, 16, 5632, 151936),
    num_experts=60,
    num_experts_per_tok=4,
    moe_intermediate_size=1408,
    shared_expert_intermediate_size=5632,
    decoder_sparse_step=1,
)
DEEPSEEK_V3 = sizes(
    *("deepseek_v3", 7168, 61, 128, 128, 18432, 129280),
    kv_lora_rank=512,
    q_lora_rank=1536,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    first_k_dense_replace=3,
    moe_layer_freq=1,
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=8,
    moe_intermediate_size=2048,
    tie_word_embeddings=False,
    quantization_config={
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
)
DEEPSEEK_V2_LITE = sizes(
    *("deepseek_v2", 2048, 27, 16, 16, 10944, 102400),
    kv_lora_rank=512,
    q_lora_rank=None,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    first_k_dense_replace=1,
    moe_layer_freq=1,
    n_routed_experts=64,
    n_shared_experts=2,
    num_experts_per_tok=6,
    moe_intermediate_size=1408,
)
GPT_OSS_20B = sizes(
    *("gpt_oss", 2880, 24, 64, 8, 2880, 201088),
    head_dim=64,
    num_local_experts=32,
    num_experts_per_tok=4,
    sliding_window=128,
    layer_types=["sliding_attention", "full_attention"] * 12,
    tie_word_embeddings=False,
    quantization_config={
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    },
)
GPT_OSS_120B = GPT_OSS_20B | {
    "num_hidden_layers": 36,
    "num_local_experts": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
}
LLAMA_4_SCOUT = {
    "model_type": "llama4",
    "text_config": sizes(
        *("llama4_text", 5120, 48, 40, 8, 8192, 202048),
        head_dim=128,
        intermediate_size_mlp=16384,
        num_local_experts=16,
        num_experts_per_tok=1,
        interleave_moe_layer_step=1,
        attention_chunk_size=8192,
        tie_word_embeddings=False,
    ),
}
QWEN_NEXT_80B = sizes(
    *("qwen3_next", 2048, 48, 16, 2, 5120, 151936),
    head_dim=256,
    num_experts=512,
    num_experts_per_tok=10,
    moe_intermediate_size=512,
    shared_expert_intermediate_size=512,
    decoder_sparse_step=1,
    full_attention_interval=4,
    linear_num_key_heads=16,
    linear_num_value_heads=32,
    linear_key_head_dim=128,
    linear_value_head_dim=128,
)
GLM_45_AIR = sizes(
    *("glm4_moe", 4096, 46, 96, 8, 10944, 151552),
    head_dim=128,
    n_routed_experts=128,
    n_shared_experts=1,
    num_experts_per_tok=8,
    moe_intermediate_size=1408,
    first_k_dense_replace=1,
)

PUBLISHED = {
    "Llama 3.1 8B": Published(LLAMA_8B, 8.03),
    "Llama 3.1 70B": Published(LLAMA_70B, 70.6),
    "Mistral 7B v0.1": Published(MISTRAL_7B, 7.24),
    "Qwen2.5 7B": Published(QWEN_7B, 7.62),
    "Qwen2.5 0.5B": Published(QWEN_HALF_B, 0.494),
    "Phi-3 mini": Published(PHI_3_MINI, 3.82),
    "Phi-2": Published(PHI_2, 2.78),
    "Gemma 2 9B": Published(GEMMA_2_9B, 9.24),
    "Gemma 3 27B, decoder": Published(GEMMA_3_27B["text_config"], 27.0),
    "Gemma 3 4B, decoder": Published(GEMMA_3_4B["text_config"], 3.88),
    "Mixtral 8x7B": Published(MIXTRAL, 46.7, 12.9),
    "Qwen3 30B A3B": Published(QWEN_30B_A3B, 30.5, 3.3),
    "Qwen3 235B A22B": Published(QWEN_235B, 235.0, 22.0, within=0.03),
    "Qwen1.5 MoE A2.7B": Published(QWEN_MOE_SHARED, 14.3, 2.7, within=0.03),
    "DeepSeek V3": Published(DEEPSEEK_V3, 671.0, 36.6, counts="head"),
    "DeepSeek V2 Lite": Published(DEEPSEEK_V2_LITE, 15.7, 2.4, counts="head", within=0.03),
    "gpt-oss 20b": Published(GPT_OSS_20B, 20.9, 3.6, counts="head"),
    "gpt-oss 120b": Published(GPT_OSS_120B, 116.8, 5.1, counts="head"),
    "Llama 4 Scout": Published(LLAMA_4_SCOUT["text_config"], 109.0, 17.0),
    "Qwen3 Next 80B A3B": Published(QWEN_NEXT_80B, 80.0),
    "GLM 4.5 Air": Published(GLM_45_AIR, 106.0),
}


def shape_of(config: dict[str, Any], kv_cache_dtype: str = "auto") -> ModelShape:
    """The shape that is read from a config, which must have one."""
    shape = shape_from_config(config, kv_cache_dtype)
    assert shape is not None
    return shape
