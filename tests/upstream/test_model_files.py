"""
A model's shape is read from its config.json; what says nothing gives nothing.
"""

import json
import logging
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


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"hidden_size": "x"},
        *(LLAMA | {key: value} for key in LLAMA for value in (0, -1, "8", 1.5, True, [], {}, float("inf"), 10**400)),
        *(LLAMA | {key: None} for key in LLAMA if key != "num_key_value_heads"),
        LLAMA | {"head_dim": 0},
        LLAMA | {"hidden_size": 16},
        {"text_config": {}},
        {"text_config": [LLAMA]},
        {"text_config": LLAMA | {"num_attention_heads": 0}},
    ],
)
def test_a_config_without_a_shape(broken: dict[str, object]) -> None:
    """Not a dense decoder, or nonsense: the default prior stays, and nothing is raised."""
    assert shape_from_config(broken) is None


def test_a_decoder_inside_a_larger_model() -> None:
    """A model of several senses tells its decoder's sizes in text_config, and the tying beside it."""
    inside = {"model_type": "large", "text_config": LLAMA}

    assert shape_from_config(inside) == shape_from_config(LLAMA)
    assert shape_from_config(inside | {"tie_word_embeddings": True}) == shape_from_config(
        LLAMA | {"tie_word_embeddings": True}
    )


def test_folder_or_file(tmp_path: Path) -> None:
    """Both name the same model."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))

    assert read_shape(tmp_path) == read_shape(tmp_path / "config.json") == shape_from_config(LLAMA)


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "\x00", "[" * 200_000])
def test_no_model_there(tmp_path: Path, text: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """A name of a hub, a broken file or a file of something else; the log says so in one line."""
    caplog.set_level(logging.INFO)
    if text is not None:
        (tmp_path / "config.json").write_text(text)

    assert read_shape(tmp_path) is None
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert f"{tmp_path} tells no shape" in caplog.text
    assert read_shape(tmp_path / "org" / "model") is None


@pytest.mark.parametrize("name", ["x" * 300, "a\x00b", ".."], ids=["too long", "with a null", "another folder"])
def test_a_root_that_is_no_path(tmp_path: Path, name: str) -> None:
    """An engine may call its root what it likes."""
    assert read_shape(tmp_path / name) is None


def test_what_is_said_beside_the_decoder_holds_for_it() -> None:
    """A multimodal model tells its quantisation at the top; the decoder's own word goes first."""
    section = {"quant_method": "fp8"}
    inside = shape_from_config({"quantization_config": section, "text_config": LLAMA})

    assert inside == shape_from_config(LLAMA | {"quantization_config": section})
    assert inside is not None
    assert inside.arithmetic == "fp8"
    assert shape_from_config(
        {"quantization_config": section, "text_config": LLAMA | {"quantization_config": None}}
    ) == shape_from_config(LLAMA)


@pytest.mark.parametrize("key", ["text_config", "llm_config", "language_config"])
def test_names_of_the_decoder_inside(key: str) -> None:
    """Families call it differently; a vision tower beside it changes nothing."""
    tower = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304}

    assert shape_from_config({key: LLAMA, "vision_config": tower}) == shape_from_config(LLAMA)


def test_the_engines_cache_format_reaches_the_shape(tmp_path: Path) -> None:
    """A cache in fp8 halves the bytes read per context token."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    plain, narrow = read_shape(tmp_path), read_shape(tmp_path, "fp8")

    assert plain is not None
    assert narrow is not None
    assert narrow.kv_bytes_per_token == plain.kv_bytes_per_token / 2
