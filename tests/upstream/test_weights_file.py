"""
What a calibration wrote is read back to the last bit; what is not sound is refused with the key and the way out.
"""

import math
import os
import re
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.terms import TERMS
from proxy.accounting.weights import LLAMA_8B, Weights, roofline_prior
from proxy.errors import ConfigurationError
from proxy.upstream.weights_file import Calibration, parse_weights, read_weights, write_weights

WEIGHTS = replace(roofline_prior(LLAMA_8B), experts=2.5, touched=1 / 16, window=1024, windowed=5 / 6)
ABOUT = Calibration(
    written=datetime(2026, 3, 1, 12, 30, 5, tzinfo=UTC),
    model="meta-llama/Llama-3.1-8B-Instruct",
    gpu="NVIDIA H100 80GB HBM3",
    driver="570.86.15",
    meter="nvml, energy counter",
    estimated=False,
    steps="step log",
    idle_w=118.4,
    fitted=("step", "prefill", "decode", "context"),
    r2=0.994,
    held_out_mape_percent=2.1,
    prior_mape_percent=9.5,
    requests=640,
    seconds=151.5,
    version="0.1.0",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file is written, with its content."""
    file = tmp_path / "weights.toml"
    write_weights(file, WEIGHTS, ABOUT)
    return file


def test_what_is_written_is_read(path: Path) -> None:
    """Weights and their story."""
    assert read_weights(path) == (WEIGHTS, ABOUT)


def test_the_file_is_for_people_too(path: Path) -> None:
    """TOML with a head that says what it is, times as RFC 3339, one key per line."""
    text = path.read_text()

    assert text.startswith("# Energy weights, written by `jouleproxy calibrate`.\n\n[about]\n")
    assert "written = 2026-03-01T12:30:05+00:00\n" in text
    assert 'gpu = "NVIDIA H100 80GB HBM3"\n' in text
    assert "\n[weights]\n" in text
    assert "window = 1024\n" in text
    assert "estimated = false\n" in text
    assert 'fitted = ["step", "prefill", "decode", "context"]\n' in text


def test_what_is_unknown_is_left_out(tmp_path: Path) -> None:
    """No driver and no window: no line for them, and None again."""
    file = tmp_path / "weights.toml"
    weights, about = roofline_prior(LLAMA_8B), replace(ABOUT, driver=None)
    write_weights(file, weights, about)

    assert re.search("^(driver|window) ", file.read_text(), re.MULTILINE) is None
    assert read_weights(file) == (weights, about)


amounts = st.floats(1e-300, 1e300)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
weights_drawn = st.builds(
    Weights,
    *[amounts] * 7,
    experts=st.floats(0, 1e300),
    touched=st.floats(0, 1),
    window=st.one_of(st.none(), st.integers(1, 10**7)),
)
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
abouts = st.builds(
    Calibration,
    written=st.datetimes(timezones=offsets).map(lambda moment: moment.replace(microsecond=0)),
    model=words,
    gpu=words,
    driver=st.one_of(st.none(), words),
    meter=words,
    estimated=st.booleans(),
    steps=words,
    idle_w=st.floats(0, 1e6),
    fitted=st.lists(st.sampled_from(TERMS), unique=True).map(tuple),
    r2=st.floats(-1e6, 1),
    held_out_mape_percent=st.floats(0, 1e6),
    prior_mape_percent=st.floats(0, 1e6),
    requests=st.integers(1, 10**9),
    seconds=st.floats(0, 1e9),
    version=words,
)


@given(weights_drawn, abouts)
def test_any_sound_weights_come_back(
    tmp_path_factory: pytest.TempPathFactory, weights: Weights, about: Calibration
) -> None:
    """Every bit of every number, and names with quotes, new lines and control characters."""
    file = tmp_path_factory.getbasetemp() / "drawn.toml"
    write_weights(file, weights, about)

    assert read_weights(file) == (weights, about)


def test_writing_leaves_nothing_else_behind(path: Path) -> None:
    """Replacing a file in one step, into a folder that is made where it is missing."""
    write_weights(path, replace(WEIGHTS, decode=1.0), ABOUT)
    write_weights(path.parent / "new" / "folder" / "w.toml", WEIGHTS, ABOUT)

    assert read_weights(path)[0].decode == 1.0
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["new", "weights.toml"]
    assert os.listdir(path.parent / "new" / "folder") == ["w.toml"]


def test_a_place_that_cannot_be_written(path: Path) -> None:
    """The old file stays and the message names the place."""
    beneath_a_file = path / "weights.toml"

    with pytest.raises(ConfigurationError, match=re.escape(f"weights file {beneath_a_file} cannot be written")):
        write_weights(beneath_a_file, WEIGHTS, ABOUT)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_weights(path, WEIGHTS, replace(ABOUT, model="\ud800"))
    assert read_weights(path) == (WEIGHTS, ABOUT)


@pytest.mark.parametrize("unsound", [replace(WEIGHTS, prefill=math.nan), replace(WEIGHTS, step=-1.0)])
def test_unsound_weights_are_not_written(path: Path, unsound: Weights) -> None:
    """What could not be read is not written in the first place."""
    with pytest.raises(ConfigurationError, match=r"weights\.(prefill|step) is"):
        write_weights(path, unsound, ABOUT)
    assert read_weights(path) == (WEIGHTS, ABOUT)


def refused(path: Path, text: str) -> str:
    """The message with which a text is refused; it names the file and the way out."""
    with pytest.raises(ConfigurationError) as caught:
        parse_weights(text, path)
    message = str(caught.value)
    assert str(path) in message
    assert message.endswith("calibrate again or leave this file out of the settings")
    return message


KEYS = [
    *(f"weights.{entry.name}" for entry in fields(Weights) if entry.name not in ("measured", "roofline")),
    *(f"about.{entry.name}" for entry in fields(Calibration)),
]


@pytest.mark.parametrize("key", [key for key in KEYS if key not in ("weights.window", "about.driver")])
def test_a_missing_key(path: Path, key: str) -> None:
    """Each is needed: a file of an older program lacks what a newer one knows."""
    text = re.sub(rf"^{key.partition('.')[2]} = .*\n", "", path.read_text(), flags=re.MULTILINE)

    assert f"{key} is missing" in refused(path, text)


@pytest.mark.parametrize("value", ["-1.0", "nan", "inf", '"1"', "true", "[1.0]", "1979-05-27"])
@pytest.mark.parametrize("key", [key for key in KEYS if key.startswith("weights.")])
def test_a_weight_that_is_no_amount(path: Path, key: str, value: str) -> None:
    """Negative, not finite, or of another type."""
    text = re.sub(rf"^{key.partition('.')[2]} = .*", f"{key.partition('.')[2]} = {value}", path.read_text(), flags=re.M)

    assert f"{key} is " in refused(path, text)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("prefill = 0", "weights.prefill is 0; it must be above 0"),
        ("step_s = 0.0", "weights.step_s is 0.0; it must be above 0"),
        ("touched = 1.5", "weights.touched is 1.5; it must be at most 1"),
        ("windowed = 2", "weights.windowed is 2; it must be at most 1"),
        ("window = 0", "weights.window is 0; it must be a whole number above 0"),
        ("window = 10.0", "weights.window is 10.0; it must be a whole number above 0"),
        ("r2 = 1.1", "about.r2 is 1.1; it must be at most 1"),
        ("r2 = nan", "about.r2 is nan; it must be a finite number"),
        ("held_out_mape_percent = -2.0", "about.held_out_mape_percent is -2.0; it must not be negative"),
        ("prior_mape_percent = -2.0", "about.prior_mape_percent is -2.0; it must not be negative"),
        ("idle_w = -1.0", "about.idle_w is -1.0; it must not be negative"),
        ("estimated = 1", "about.estimated is 1; it must be true or false"),
        ('fitted = "step"', "about.fitted is 'step'; it must be a list of names of weights: step, experts, "),
        ('fitted = ["speed"]', "about.fitted is ['speed']; it must be a list of names of weights"),
        ('steps = ""', "about.steps is ''; it must be a text"),
        ("requests = 0", "about.requests is 0; it must be a whole number above 0"),
        ("requests = true", "about.requests is True; it must be a whole number above 0"),
        ("seconds = -1", "about.seconds is -1; it must not be negative"),
        ('model = ""', "about.model is ''; it must be a text"),
        ("driver = 570", "about.driver is 570; it must be a text"),
        ('written = "yesterday"', "about.written is 'yesterday'; it must be a date and time with its offset"),
        ("written = 2026-03-01T12:30:05", "it must be a date and time with its offset"),
    ],
)
def test_values_out_of_their_range(path: Path, line: str, wanted: str) -> None:
    """The message says what stands there and what must."""
    key = line.partition(" ")[0]
    text = re.sub(rf"^{key} = .*", line, path.read_text(), flags=re.MULTILINE)

    assert wanted in refused(path, text)


def test_a_window_on_some_layers_has_a_length(path: Path) -> None:
    """Layers with a window of unknown length could not be counted."""
    text = re.sub(r"^window = .*\n", "", path.read_text(), flags=re.MULTILINE)

    assert "weights.window is missing although some layers are windowed" in refused(path, text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "about is missing"),
        ("[weights]", "about is missing"),
        ("about = 3", "about is missing"),
        ("[about", "is no TOML"),
    ],
)
def test_not_a_weights_file(path: Path, text: str, wanted: str) -> None:
    """Something else entirely."""
    assert wanted in refused(path, text)


@pytest.mark.parametrize(
    ("extra", "key"),
    [("spare = 1\n", "weights.spare"), ("[other]\n", "other"), ("[weights.x]\n", "weights.x")],
)
def test_keys_that_are_not_known(path: Path, extra: str, key: str) -> None:
    """A slip of the pen must not be passed over."""
    assert f"{key} is not known here" in refused(path, path.read_text() + extra)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Or not text: the message names it."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe")

    for name in ("nothing.toml", "binary", "."):
        with pytest.raises(ConfigurationError, match=re.escape(f"weights file {tmp_path / name} cannot be read")):
            read_weights(tmp_path / name)
