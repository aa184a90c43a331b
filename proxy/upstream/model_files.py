"""Reads a model's shape from its config.json, for the prior of the energy weights."""

import json
from pathlib import Path
from typing import Any

from proxy.accounting.weights import ModelShape

BYTES_BF16 = 2


def shape_from_config(config: dict[str, Any]) -> ModelShape | None:
    """The shape of a dense decoder from Hugging Face's keys; None where they are missing.

    Parameters: attention 2*h*heads*dim + 2*h*kv*dim, MLP 3*h*intermediate, per layer; plus embeddings, twice
    when they are not tied. Weights count two bytes each.
    """
    try:
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads, wide = int(config["num_attention_heads"]), int(config["intermediate_size"])
        vocabulary = int(config["vocab_size"])
    except (KeyError, TypeError, ValueError):
        return None
    kv_heads = int(config.get("num_key_value_heads") or heads)
    dim = int(config.get("head_dim") or hidden // heads)
    per_layer = 2 * hidden * heads * dim + 2 * hidden * kv_heads * dim + 3 * hidden * wide
    embeddings = vocabulary * hidden
    stored = layers * per_layer + embeddings * (1 if config.get("tie_word_embeddings") else 2)
    return ModelShape(
        active_parameters=layers * per_layer + embeddings,
        weight_bytes=stored * BYTES_BF16,
        kv_bytes_per_token=2 * layers * kv_heads * dim * BYTES_BF16,
        attention_flops=4 * layers * heads * dim,
    )


def read_shape(path: Path) -> ModelShape | None:
    """The shape of the model in a folder, or of a config.json; None where there is none to read."""
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return shape_from_config(config) if isinstance(config, dict) else None
