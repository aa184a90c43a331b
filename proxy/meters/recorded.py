"""Replays recorded readings from a CSV: for tests, demos, and studies of real recordings.

Columns: seconds (rising; the first row is the start), joules (cumulative; may fall where the counter was
reset) and optionally watts. A header names them, in any order.
"""

import csv
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

from proxy.accounting.samples import Sample
from proxy.accounting.units import Microjoules, Nanoseconds
from proxy.errors import ConfigurationError, MeterLost
from proxy.ports import MeterKind

_REQUIRED = {"seconds", "joules"}
_COLUMNS = _REQUIRED | {"watts"}


class RecordedMeter:
    """The recording starts when it is opened, on the clock given; every opening is an epoch."""

    kind: MeterKind = "recorded"
    estimated = False

    def __init__(self, path: Path, *, gpu: str | None = None, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._samples = read_recording(path)
        self._times = [sample.at for sample in self._samples]
        self._clock = clock
        self._start = clock()
        self._ended = False
        self.gpu = path.stem if gpu is None else gpu
        self.name = f"recorded:{path}"
        self.epoch = f"recorded:{uuid.uuid4()}"
        length_s = self._times[-1] / 1e9
        self.description = f"recorded: replays {path.name}, {len(self._samples)} samples over {length_s:g} s"

    def read(self) -> Sample:
        """The latest sample at or before now; its time is the recorded one on this clock.

        Raises MeterLost once the recording has ended and its last sample was given.
        """
        elapsed = self._clock() - self._start
        if self._ended and elapsed > self._times[-1]:
            raise MeterLost("recording ended")
        sample = self._samples[bisect_right(self._times, elapsed) - 1]
        self._ended = sample.at == self._times[-1]
        return Sample(Nanoseconds(self._start + sample.at), sample.counter, sample.power_w)

    def close(self) -> None:
        """Holds nothing."""


def read_recording(path: Path) -> list[Sample]:
    """All samples, timed from the first row on; raises ConfigurationError with the file and the line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines, strict=True)
            _check_header(path, rows.fieldnames or ())
            samples = _samples(rows, path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    if not samples:
        raise ConfigurationError(f"{path}: the recording has a header but no rows")
    return samples


def _check_header(path: Path, names: Sequence[str]) -> None:
    if not _REQUIRED <= set(names) <= _COLUMNS or len(set(names)) < len(names):
        found = ",".join(names) or "nothing"
        raise ConfigurationError(
            f"{path}, line 1: the header must be seconds,joules or seconds,joules,watts, not {found}"
        )


def _samples(rows: "csv.DictReader[str]", path: Path) -> list[Sample]:
    samples: list[Sample] = []
    first_s = Decimal(0)
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        if None in row or None in row.values():
            raise ConfigurationError(f"{where}: the row has more or fewer cells than the header")
        at_s = _cell(row, "seconds", where)
        first_s = first_s if samples else at_s
        at = Nanoseconds(round((at_s - first_s) * 1_000_000_000))
        if samples and at <= samples[-1].at:
            raise ConfigurationError(f"{where}: seconds must rise, and {at_s} does not")
        counter = Microjoules(round(_cell(row, "joules", where, least=Decimal(0)) * 1_000_000))
        power_w = float(_cell(row, "watts", where, least=Decimal(0))) if row.get("watts", "").strip() else None
        samples.append(Sample(at, counter, power_w))
    return samples


def _cell(row: dict[str, str], column: str, where: str, *, least: Decimal | None = None) -> Decimal:
    try:
        value = Decimal(row[column].strip())
    except InvalidOperation:
        raise ConfigurationError(f"{where}: {column} is not a number: {row[column]!r}") from None
    if not value.is_finite() or (least is not None and value < least):
        raise ConfigurationError(f"{where}: {column} must not be {value}")
    return value
