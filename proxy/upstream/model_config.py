"""Counts the parameters of a decoder from the keys of Hugging Face's config.json, part by part.

Known: attention with grouped heads, DeepSeek's latent attention (MLA), sliding windows on some layers, layers with
linear attention; gated and plain MLPs, mixtures of experts on some layers, shared experts. Left out: norms and biases,
well below a percent, and vision towers and draft layers, which are no part of a decoder's step.
"""

from dataclasses import dataclass

from proxy.accounting.model_shape import ModelShape
from proxy.upstream.model_attention import attention_of, full_layers, linear_attention, window_of
from proxy.upstream.model_keys import Config, completed, count, first, kind, layers_of, size
from proxy.upstream.quantisation import PLAIN_BITS, precision_of

_TIED = ("gemma", "cohere", "gpt2", "opt", "falcon", "bert")
"""Families whose input and output embeddings are one matrix unless the file says otherwise."""
_PLAIN_MLP = ("phi", "phi-msft", "gpt2", "gpt_neox", "opt", "falcon", "starcoder2", "nemotron", "bert", "roberta")
"""Model types whose MLP has two matrices; all others have a gate as third."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """How many parameters each part of a decoder has, over all layers; used: of the experts, those one token meets."""

    attention: int
    mlp: int
    experts: int
    used: int
    embedding: int
    head: int
    tied: bool

    @property
    def total(self) -> int:
        """As stored: a shared embedding once."""
        return self.attention + self.mlp + self.experts + self.embedding + (0 if self.tied else self.head)

    @property
    def active(self) -> int:
        """Those that one token is multiplied with: the input embedding is looked up, not multiplied."""
        return self.attention + self.mlp + self.used + self.head


def decoder_shape(config: Config, kv_cache_dtype: str = "auto") -> ModelShape:
    """The shape of the decoder that a flat config describes. Raises KeyError or ValueError where it describes none."""
    config = completed(config)
    counted = count_parameters(config)
    attention, layers = attention_of(config), full_layers(config)
    precision = precision_of(config, kv_cache_dtype)
    window, windowed = window_of(config)
    stored_bits = (
        counted.attention * precision.attention
        + counted.mlp * precision.mlp
        + (counted.embedding + (0 if counted.tied else counted.head)) * PLAIN_BITS
    )
    expert_bytes = counted.experts * precision.experts / 8
    return ModelShape(
        active_parameters=counted.active,
        weight_bytes=stored_bits / 8 + expert_bytes,
        kv_bytes_per_token=layers * attention.cached * precision.cached / 8,
        attention_flops=layers * attention.flops,
        head_parameters=counted.head,
        expert_bytes=expert_bytes,
        touched=counted.used / counted.experts if counted.experts else 1.0,
        window=window,
        windowed=windowed,
        absorbed_flops=layers * attention.absorbed,
        arithmetic=precision.arithmetic,
    )


def count_parameters(config: Config) -> Parameters:
    """Parameters by part. Raises KeyError or ValueError."""
    config = completed(config)
    if any(key.startswith(("mamba", "ssm")) for key in config) or config.get("is_encoder_decoder"):
        raise ValueError("state-space layers or an encoder")
    layers, full = layers_of(config), full_layers(config)
    linear = (layers - full) * linear_attention(config) if full < layers else 0
    mlp, experts, used = _mlps(config, layers)
    embedding = size(config["vocab_size"]) * size(config["hidden_size"])
    tied = config.get("tie_word_embeddings")
    return Parameters(
        attention=full * attention_of(config).parameters + linear,
        mlp=mlp,
        experts=experts,
        used=used,
        embedding=embedding,
        head=embedding,
        tied=kind(config).startswith(_TIED) if tied is None else bool(tied),
    )


def _mlps(config: Config, layers: int) -> tuple[int, int, int]:
    """Parameters of what every token passes (dense MLPs, shared experts, routers), of all experts, of those used."""
    hidden = size(config["hidden_size"])
    matrices = 2 if kind(config) in _PLAIN_MLP else 3
    wide = size(config["intermediate_size"])
    number = first(config, "num_experts", "num_local_experts", "n_routed_experts")
    experts = count(number)
    if not experts:
        return layers * matrices * hidden * wide, 0, 0
    chosen = size(first(config, "num_experts_per_tok", "experts_per_token"))
    if chosen > experts:
        raise ValueError("a token goes to more experts than there are")
    each = matrices * hidden * size(first(config, "moe_intermediate_size", "intermediate_size"))
    mixed = sum(_is_mixture(config, layer) for layer in range(layers))
    dense = matrices * hidden * size(first(config, "intermediate_size_mlp", "intermediate_size"))
    beside = hidden * experts + _shared(config, matrices * hidden, each)
    return (layers - mixed) * dense + mixed * beside, mixed * experts * each, mixed * chosen * each


def _shared(config: Config, per_width: int, each: int) -> int:
    """Parameters of the experts that every token passes, per layer."""
    if kind(config) == "llama4_text":
        return each
    width = count(config.get("shared_expert_intermediate_size"))
    return per_width * width if width else each * count(config.get("n_shared_experts"))


def _is_mixture(config: Config, layer: int) -> bool:
    """Whether a layer has experts; the keys are those of Qwen, DeepSeek and Llama 4."""
    chosen = config.get("moe_layers")
    if isinstance(chosen, list) and chosen:
        return layer in chosen
    if layer in (config.get("mlp_only_layers") or ()) or layer < count(config.get("first_k_dense_replace")):
        return False
    frequency = config.get("moe_layer_freq")
    if isinstance(frequency, list):
        return bool(frequency[layer]) if layer < len(frequency) else False
    step = first(config, "decoder_sparse_step", "interleave_moe_layer_step")
    step, frequency = (1 if given is None else size(given) for given in (step, frequency))
    return (layer + 1) % step == 0 and layer % frequency == 0
