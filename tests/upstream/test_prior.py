"""
What a backend's weights start from.
"""

import json
from pathlib import Path

import pytest

from proxy.accounting.weights import Weights
from proxy.upstream.prior import Priors
from tests.upstream.test_hub_cache import downloaded
from tests.upstream.test_model_files import LLAMA

NAME = "owner/twice-as-deep"
DEEP = LLAMA | {"num_hidden_layers": 64}


def priors() -> Priors:
    return Priors("b", [], weights_file=None, config_file=None)


def test_a_folder_and_a_name_on_the_hub_give_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The engine says what it was started with: a folder of this machine, or a name that its hub cache knows.
    """
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = downloaded(tmp_path / "hub", NAME, "abc", main=True)
    cached.write_text(json.dumps(DEEP))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps(DEEP))

    by_name, by_folder = priors().for_model(NAME), priors().for_model(str(tmp_path / "folder"))

    assert isinstance(by_name, Weights)
    assert by_name == by_folder != priors().at_start()


def test_a_model_that_is_not_here_changes_nothing_and_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Weighed as Llama 3.1 8B, with the setting that cures it in the log.
    """
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    caplog.set_level("INFO")

    assert priors().for_model(NAME) is None
    assert NAME in caplog.text
    assert "Set model_config_file" in caplog.text
