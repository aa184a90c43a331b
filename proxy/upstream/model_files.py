"""Reads a model's shape from its config.json, for the prior of the energy weights."""

import json
import logging
from pathlib import Path
from typing import Any

from proxy.accounting.weights import ModelShape

_log = logging.getLogger(__name__)
BYTES_BF16 = 2
LARGEST = 10**8
"""No size in a config reaches this; what is larger is no size."""


def shape_from_config(config: dict[str, Any]) -> ModelShape | None:
    """The shape of a dense decoder from Hugging Face's keys; None where they are missing or make no sense.

    Models of several senses have the decoder's keys in `text_config`.
    """
    nested = config.get("text_config")
    for told in (config, {"tie_word_embeddings": config.get("tie_word_embeddings")} | _object(nested)):
        try:
            return _dense(told)
        except (KeyError, ValueError):
            continue
    return None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dense(config: dict[str, Any]) -> ModelShape:
    """Parameters: attention 2*h*heads*dim + 2*h*kv*dim, MLP 3*h*intermediate, per layer; plus embeddings, twice
    when they are not tied. Weights count two bytes each. Raises KeyError or ValueError.
    """
    hidden, layers = _size(config["hidden_size"]), _size(config["num_hidden_layers"])
    heads, wide = _size(config["num_attention_heads"]), _size(config["intermediate_size"])
    vocabulary = _size(config["vocab_size"])
    kv_heads, dim = config.get("num_key_value_heads"), config.get("head_dim")
    kv_heads = _size(heads if kv_heads is None else kv_heads)
    dim = _size(hidden // heads if dim is None else dim)
    per_layer = 2 * hidden * heads * dim + 2 * hidden * kv_heads * dim + 3 * hidden * wide
    embeddings = vocabulary * hidden
    stored = layers * per_layer + embeddings * (1 if config.get("tie_word_embeddings") else 2)
    return ModelShape(
        active_parameters=layers * per_layer + embeddings,
        weight_bytes=stored * BYTES_BF16,
        kv_bytes_per_token=2 * layers * kv_heads * dim * BYTES_BF16,
        attention_flops=4 * layers * heads * dim,
    )


def _size(value: object) -> int:
    """A whole number above 0; raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < LARGEST:
        raise ValueError(f"{value!r} is no size")
    return value


def read_shape(path: Path) -> ModelShape | None:
    """The shape of the model in a folder, or of a config.json; None, and a line in the log, where none can be read."""
    try:
        file = path / "config.json" if path.is_dir() else path
        config = json.loads(file.read_text()) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        config = None
    shape = shape_from_config(_object(config))
    if shape is None:
        _log.info("%s tells no shape of a dense decoder; its requests are weighed as if it were Llama 3.1 8B", path)
    return shape
