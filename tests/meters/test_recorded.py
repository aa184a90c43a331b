"""Replays: time from the clock given, exact microjoules, and errors that name the line."""

from pathlib import Path

import pytest

from proxy.accounting.samples import Sample
from proxy.accounting.units import SECOND, Microjoules, Nanoseconds
from proxy.errors import ConfigurationError, MeterLost
from proxy.meters.recorded import RecordedMeter, read_recording

RECORDING = "seconds,joules,watts\n10.0,100.0,50\n10.5,125.000001,\n12.0,200,51.5\n"


class Replay:
    """A recording and the clock it is replayed on."""

    def __init__(self, path: Path) -> None:
        self.now = 7 * SECOND
        self.meter = RecordedMeter(path, clock=lambda: self.now)

    def at(self, seconds_later: float) -> Sample:
        self.now = 7 * SECOND + round(seconds_later * SECOND)
        return self.meter.read()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "h100.csv"
    file.write_text(RECORDING)
    return file


@pytest.mark.parametrize(
    ("seconds_later", "at_s", "counter", "power_w"),
    [
        (0, 7.0, 100_000_000, 50.0),
        (0.49, 7.0, 100_000_000, 50.0),
        (0.5, 7.5, 125_000_001, None),
        (1.99, 7.5, 125_000_001, None),
        (2, 9.0, 200_000_000, 51.5),
        (99, 9.0, 200_000_000, 51.5),
    ],
)
def test_a_reading_is_the_latest_sample_that_has_been_by_now(
    path: Path, seconds_later: float, at_s: float, counter: int, power_w: float | None
) -> None:
    """
    With the time at which it was recorded, counted from the first row; the last row is never missed.
    """
    expected = Sample(Nanoseconds(round(at_s * SECOND)), Microjoules(counter), power_w)

    assert expected == Replay(path).at(seconds_later)


def test_the_end_is_an_error_and_not_a_standstill(path: Path) -> None:
    """
    Once the last sample was given and its moment is over.
    """
    replay = Replay(path)
    replay.at(2)

    assert replay.at(2).counter == 200_000_000
    with pytest.raises(MeterLost, match="recording ended"):
        replay.at(2.01)


def test_it_says_what_it_replays(path: Path) -> None:
    """
    A sensor's own readings are no estimate; each opening starts an epoch.
    """
    meter, again = RecordedMeter(path), RecordedMeter(path, gpu="GPU-aa11")

    assert (meter.kind, meter.estimated, meter.gpu, again.gpu) == ("recorded", False, "h100", "GPU-aa11")
    assert meter.description == "recorded: replays h100.csv, 3 samples over 2 s"
    assert meter.epoch != again.epoch


@pytest.mark.parametrize(
    "text", ["joules,seconds\n1,0\n2,1\n", "seconds,joules\r\n0,1\r\n1,2\r\n", "seconds,joules\n0,1\n\n1,2"]
)
def test_column_order_line_ends_and_blank_lines_do_not_matter(tmp_path: Path, text: str) -> None:
    """
    As spreadsheets write them.
    """
    (tmp_path / "r.csv").write_text(text)

    assert [sample.counter for sample in read_recording(tmp_path / "r.csv")] == [1_000_000, 2_000_000]


def test_a_recorded_reset_stays_one(tmp_path: Path) -> None:
    """
    Joules may fall: that is what was seen.
    """
    (tmp_path / "r.csv").write_text("seconds,joules\n0,50\n1,3\n")

    assert [sample.counter for sample in read_recording(tmp_path / "r.csv")] == [50_000_000, 3_000_000]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header must be seconds,joules or seconds,joules,watts, not nothing"),
        ("0,1\n1,2\n", "line 1: the header must be"),
        ("seconds,joules,volts\n", "line 1: the header must be"),
        ("seconds,joules,joules\n", "line 1: the header must be"),
        ("seconds,joules\n", "a header but no rows"),
        ("seconds,joules\n0,1\n1,two\n", "line 3: joules is not a number: 'two'"),
        ("seconds,joules\n0,1\n\n1,\n", "line 4: joules is not a number: ''"),
        ("seconds,joules\n0,1\n1,nan\n", "line 3: joules must not be NaN"),
        ("seconds,joules\n0,-1\n", "line 2: joules must not be -1"),
        ("seconds,joules\ninf,1\n", "line 2: seconds must not be Infinity"),
        ("seconds,joules\n0,1\n0,2\n", "line 3: seconds must rise, and 0 does not"),
        ("seconds,joules\n0,1\n1\n", "line 3: the row has more or fewer cells"),
        ("seconds,joules\n0,1,9\n", "line 2: the row has more or fewer cells"),
        ("seconds,joules,watts\n0,1,lots\n", "line 2: watts is not a number: 'lots'"),
    ],
)
def test_a_bad_file_is_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    """
    Before anything is replayed.
    """
    (tmp_path / "bad.csv").write_text(text)

    with pytest.raises(ConfigurationError) as caught:
        RecordedMeter(tmp_path / "bad.csv")

    assert f"{tmp_path / 'bad.csv'}" in str(caught.value)
    assert message in str(caught.value)


def test_a_file_that_is_not_there_is_a_setting_to_mend(tmp_path: Path) -> None:
    """
    Named in the message.
    """
    with pytest.raises(ConfigurationError, match=r"absent\.csv"):
        RecordedMeter(tmp_path / "absent.csv")
