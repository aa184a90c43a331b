"""
A model's shape is read from its config.json; what says nothing gives nothing.
"""

import json
from pathlib import Path

import pytest

from proxy.accounting.weights import LLAMA_8B
from proxy.upstream.model_files import read_shape, shape_from_config

LLAMA = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}


def test_llama_8b_has_the_shape_of_llama_8b() -> None:
    """The formula gives the published size of the model, within the norms it leaves out."""
    shape = shape_from_config(LLAMA)

    assert shape is not None
    assert shape.weight_bytes == pytest.approx(LLAMA_8B.weight_bytes, rel=1e-3)
    assert shape.kv_bytes_per_token == LLAMA_8B.kv_bytes_per_token
    assert shape.attention_flops == LLAMA_8B.attention_flops


def test_tied_embeddings_are_stored_once() -> None:
    """Input and output share one matrix."""
    tied, untied = shape_from_config(LLAMA | {"tie_word_embeddings": True}), shape_from_config(LLAMA)

    assert tied is not None
    assert untied is not None
    assert untied.weight_bytes - tied.weight_bytes == 4096 * 128256 * 2


def test_own_head_size_and_heads_without_groups() -> None:
    """head_dim is believed; without num_key_value_heads every head has its own."""
    shape = shape_from_config(LLAMA | {"head_dim": 64, "num_key_value_heads": None})

    assert shape is not None
    assert shape.kv_bytes_per_token == 2 * 32 * 32 * 64 * 2


@pytest.mark.parametrize("broken", [{}, {"hidden_size": "x"}, LLAMA | {"vocab_size": None}])
def test_a_config_without_a_shape(broken: dict[str, object]) -> None:
    """Not a dense decoder: the default prior stays."""
    assert shape_from_config(broken) is None


def test_folder_or_file(tmp_path: Path) -> None:
    """Both name the same model."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))

    assert read_shape(tmp_path) == read_shape(tmp_path / "config.json") == shape_from_config(LLAMA)


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "\x00"])
def test_no_model_there(tmp_path: Path, text: str | None) -> None:
    """A name of a hub, a broken file or a file of something else."""
    if text is not None:
        (tmp_path / "config.json").write_text(text)

    assert read_shape(tmp_path) is None
    assert read_shape(tmp_path / "org" / "model") is None
