"""Finds a model's config.json and reads the model's shape from it, for the prior of the energy weights."""

import json
import logging
from pathlib import Path
from typing import Any

from proxy.accounting.model_shape import ModelShape
from proxy.upstream.model_config import decoder_shape

_log = logging.getLogger(__name__)
_DECODERS = ("text_config", "llm_config", "language_config")
"""Where models of several senses keep their decoder's keys."""
_ABOUT_ALL = ("tie_word_embeddings", "quantization_config")
"""What such models may say of the decoder beside it."""


def shape_from_config(config: dict[str, Any], kv_cache_dtype: str = "auto") -> ModelShape | None:
    """The shape of a decoder from Hugging Face's keys; None where they are missing or make no sense.

    kv_cache_dtype: the engine's --kv-cache-dtype (label cache_dtype of vllm:cache_config_info).
    """
    beside = {key: config[key] for key in _ABOUT_ALL if config.get(key) is not None}
    for told in (config, *(beside | _object(config.get(key)) for key in _DECODERS)):
        try:
            return decoder_shape(told, kv_cache_dtype)
        except (KeyError, TypeError, ValueError):
            continue
    return None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def read_shape(path: Path, kv_cache_dtype: str = "auto") -> ModelShape | None:
    """The shape of the model in a folder, or of a config.json; None, and a line in the log, where none can be read."""
    try:
        file = path / "config.json" if path.is_dir() else path
        config = json.loads(file.read_text()) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        config = None
    shape = shape_from_config(_object(config), kv_cache_dtype)
    if shape is None:
        _log.info(
            "%s tells no shape of a decoder; its requests are weighed as if it were Llama 3.1 8B. "
            "Set model_config_file to the model's config.json.",
            path,
        )
    return shape
