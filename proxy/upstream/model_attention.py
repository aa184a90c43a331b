"""Attention of a decoder, read from its config.json: what a layer holds, caches and computes, and which layers do.

Known: grouped heads, DeepSeek's latent attention (MLA), windows on some layers, layers with linear attention.
"""

from dataclasses import dataclass

from proxy.upstream.model_keys import Config, count, first, kind, layers_of, size

_PATTERN = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "llama4_text": 4}
"""Every so manieth layer sees the whole context, the others a window, where the file names no layers."""

_TYPES = {"full_attention", "sliding_attention", "chunked_attention", "linear_attention"}


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer: parameters, numbers cached per token, FLOPs per pair in a prompt, and at a decode position (MLA)."""

    parameters: int
    cached: int
    flops: int
    absorbed: int


def attention_of(config: Config) -> Attention:
    """One layer of full or windowed attention. Raises KeyError or ValueError."""
    hidden, heads = size(config["hidden_size"]), size(config["num_attention_heads"])
    if config.get("kv_lora_rank") is not None:
        return _latent_attention(config, hidden, heads)
    kv_heads, dim = config.get("num_key_value_heads"), config.get("head_dim")
    kv_heads = size(heads if kv_heads is None else kv_heads)
    dim = size(hidden // heads if dim is None else dim)
    return Attention(2 * hidden * (heads + kv_heads) * dim, 2 * kv_heads * dim, 4 * heads * dim, 0)


def _latent_attention(config: Config, hidden: int, heads: int) -> Attention:
    """MLA: one latent vector and one rotary key per token are cached. Prompts are attended with keys and values
    unpacked per head, decode positions in the latent space (DeepSeek-V2 report, section 2.1; vLLM does the same).
    """
    latent, rotary = size(config["kv_lora_rank"]), size(config["qk_rope_head_dim"])
    plain, value = size(config["qk_nope_head_dim"]), size(config["v_head_dim"])
    key = plain + rotary
    rank = config.get("q_lora_rank")
    queries = hidden * heads * key if rank is None else size(rank) * (hidden + heads * key)
    parameters = queries + hidden * (latent + rotary) + latent * heads * (plain + value) + heads * value * hidden
    return Attention(parameters, latent + rotary, 2 * heads * (key + value), 2 * heads * (2 * latent + rotary))


def linear_attention(config: Config) -> int:
    """Parameters of a gated delta layer (Qwen3-Next): query, key, value, gate and output; it caches no tokens."""
    hidden = size(config["hidden_size"])
    keys = size(config["linear_num_key_heads"]) * size(config["linear_key_head_dim"])
    heads = size(config["linear_num_value_heads"])
    values = heads * size(config["linear_value_head_dim"])
    return hidden * (2 * keys + 3 * values + 2 * heads)


def _layer_types(config: Config) -> list[str]:
    """What each layer is, where the file names them. Raises ValueError for a type that is not known here."""
    given = config.get("layer_types")
    types = [str(name) for name in given][: layers_of(config)] if isinstance(given, list) else []
    if unknown := set(types) - _TYPES:
        raise ValueError(f"layers of type {', '.join(sorted(unknown))}")
    return types


def full_layers(config: Config) -> int:
    """Layers that cache keys and values: all but those with linear attention."""
    layers = layers_of(config)
    kinds = _layer_types(config)
    if kinds:
        return size(layers - kinds.count("linear_attention"))
    interval = config.get("full_attention_interval")
    return layers if interval is None else size(layers // size(interval))


def window_of(config: Config) -> tuple[int | None, float]:
    """Length of the window and the fraction of caching layers that have it; chunks count as windows, at most so long.

    A family with a pattern keeps it where a file gives the window alone; others have it on every layer.
    """
    given = first(config, "sliding_window", "attention_chunk_size")
    if given is None or config.get("use_sliding_window") is False:
        return None, 0.0
    window, layers, kinds = size(given), full_layers(config), _layer_types(config)
    pattern = first(config, "sliding_window_pattern", "_sliding_window_pattern") or _PATTERN.get(kind(config))
    if kinds:
        short = kinds.count("sliding_attention") + kinds.count("chunked_attention")
    elif isinstance(pattern, str):
        short = sum(pattern[layer % len(pattern)] == "L" for layer in range(layers))
    elif isinstance(pattern, int):
        short = layers - layers // size(pattern)
    elif config.get("use_sliding_window"):
        short = layers - min(layers, count(config.get("max_window_layers")))
    else:
        short = layers
    return (window, short / layers) if short else (None, 0.0)
