"""Makes a model folder without weights, in the shape of a real Llama, for `vllm serve --load-format dummy`.

    python -m tests.gpu.dummy_model FOLDER [--size 8b]

The engine fills in random weights of the right shape and type, so a step costs what it costs with real ones, while the
answers mean nothing. The tokenizer has a word for every number, since the load asks with token numbers. Needs nothing
but Python. Power depends a little on the data: quote joules per token with the words `random weights`.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

VOCABULARY = 128_256
BEGIN, END = 0, 1


class Shape(NamedTuple):
    """Sizes of a Llama, as its published config.json gives them."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    tied: bool


SHAPES = {
    "tiny": Shape(64, 160, 2, 2, 1, 32, False),
    "1b": Shape(2048, 8192, 16, 32, 8, 64, True),
    "8b": Shape(4096, 14336, 32, 32, 8, 128, False),
}
"""Llama 3.2 1B and Llama 3.1 8B; tiny: to rehearse on a CPU."""


def config(size: str) -> dict[str, Any]:
    """The config.json."""
    shape = SHAPES[size]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
    }


def tokenizer() -> dict[str, Any]:
    """The tokenizer.json: word `w17` for token 17."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(VOCABULARY)}, "unk_token": "w2"},
    }


def make(folder: Path, size: str) -> Path:
    """Writes the folder and gives its path."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": f"w{BEGIN}", "eos_token": f"w{END}"}
    files = {"config.json": config(size), "tokenizer.json": tokenizer(), "tokenizer_config.json": about}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def main() -> None:
    """Makes the folder that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--size", choices=sorted(SHAPES), default="8b")
    given = parser.parse_args()
    print(make(given.folder, given.size))


if __name__ == "__main__":
    main()
