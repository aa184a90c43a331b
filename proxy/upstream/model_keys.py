"""Values out of a model's config.json, checked: sizes, counts, and what a family leaves out."""

from typing import Any

LARGEST, MOST_LAYERS = 10**8, 10_000
"""No size in a config reaches these; what is larger is no size."""
Config = dict[str, Any]
_OMITTED: dict[str, Config] = {
    "gemma3_text": {"vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
}
"""Keys that published files leave out where they equal the class's defaults."""


def size(value: object) -> int:
    """A whole number above 0; raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < LARGEST:
        raise ValueError(f"{value!r} is no size")
    return value


def count(value: object) -> int:
    """Like `size`, where none is a number too."""
    return 0 if value is None or (value == 0 and not isinstance(value, bool)) else size(value)


def layers_of(config: Config) -> int:
    """Hidden layers of a decoder. Raises KeyError or ValueError."""
    layers = size(config["num_hidden_layers"])
    if layers > MOST_LAYERS:
        raise ValueError(f"{layers} layers")
    return layers


def completed(config: Config) -> Config:
    """With the keys that files of this family leave out."""
    return _OMITTED.get(kind(config), {}) | config


def kind(config: Config) -> str:
    """The model type, empty where the file tells none."""
    return str(config.get("model_type", ""))


def first(config: Config, *keys: str) -> Any:
    """The first of these keys that is there and not null."""
    return next((config[key] for key in keys if config.get(key) is not None), None)
