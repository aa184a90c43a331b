"""
What a backend's weights start from.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from proxy.accounting.model_shape import LLAMA_8B
from proxy.accounting.weights import Weights, roofline_prior
from proxy.ports import Meter
from proxy.upstream.prior import Priors
from proxy.upstream.weights_file import write_weights
from tests.upstream.test_hub_cache import downloaded
from tests.upstream.test_model_files import LLAMA
from tests.upstream.test_weights_file import ABOUT

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


def board(description: str) -> Meter:
    """A meter of a board that calls itself so."""
    return cast(Meter, SimpleNamespace(kind="nvml", description=description))


def test_a_board_that_is_not_known_is_weighed_as_an_h100_and_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    """
    With its name and the way to better weights; a known one, or a processor, needs no word.
    """
    host = cast(Meter, SimpleNamespace(kind="rapl", description="package-0"))
    for known in (board("NVIDIA H100 80GB HBM3"), host):
        Priors("b", [known], weights_file=None, config_file=None).at_start()
    assert caplog.text == ""

    strange = Priors("b", [board("Frobnicator 9000")], weights_file=None, config_file=None).at_start()

    assert strange == roofline_prior(LLAMA_8B)
    assert "Frobnicator 9000" in caplog.text
    assert "jouleproxy calibrate" in caplog.text


@pytest.mark.parametrize(("here", "warned"), [("NVIDIA A100-SXM4-80GB", True), ("NVIDIA H100 80GB HBM3", False)])
def test_weights_of_another_board_are_taken_with_a_warning(
    tmp_path: Path, here: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """
    They are what the settings say; but that they belong elsewhere is no secret, and they give way to the meter sooner.
    """
    file = tmp_path / "weights.toml"
    write_weights(file, roofline_prior(LLAMA_8B), ABOUT)

    taken = Priors("b", [board(here)], weights_file=file, config_file=None).at_start()

    assert taken == roofline_prior(LLAMA_8B)
    assert ("was calibrated on" in caplog.text) is warned
    assert taken.measured is not warned
