"""Workloads as joint bins of input and output length, and a deterministic plan of requests made of them."""

import csv
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from loadgen.errors import WorkloadError

WORKLOADS = Path(__file__).parent / "workloads"


@dataclass(frozen=True, slots=True)
class Bin:
    """All requests of a trace with input in [input_from, input_to) and output in [output_from, output_to) tokens.

    Sums are whole numbers, so the totals of a trace survive binning exactly. The sums of squares and of products
    make any quadratic model of energy exact for the whole workload.
    """

    input_from: int
    input_to: int
    output_from: int
    output_to: int
    count: int
    input_tokens: int
    output_tokens: int
    input_squares: int
    output_squares: int
    products: int

    @property
    def label(self) -> str:
        """Name of the bin in tables and files."""
        return f"in {self.input_from}-{self.input_to} out {self.output_from}-{self.output_to}"

    @property
    def mean_input(self) -> Fraction:
        """Mean input tokens, exact."""
        return Fraction(self.input_tokens, self.count)

    @property
    def mean_output(self) -> Fraction:
        """Mean output tokens, exact."""
        return Fraction(self.output_tokens, self.count)


COLUMNS = tuple(field.name for field in fields(Bin))


@dataclass(frozen=True, slots=True)
class Planned:
    """One request to send: its bin and the lengths asked for, in tokens."""

    bin: Bin
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """A bin table: its name, its file's comments (source, licence), and the factor its lengths are scaled by."""

    name: str
    bins: tuple[Bin, ...]
    notes: tuple[str, ...] = ()
    scale: Fraction = Fraction(1)

    @property
    def count(self) -> int:
        """Requests in the trace behind the table."""
        return sum(b.count for b in self.bins)

    @property
    def mean_input(self) -> float:
        """Mean input tokens of a request, after scaling."""
        return float(self.scale * sum(b.input_tokens for b in self.bins) / self.count)

    @property
    def mean_output(self) -> float:
        """Mean output tokens of a request, after scaling."""
        return float(self.scale * sum(b.output_tokens for b in self.bins) / self.count)

    def fit(self, max_model_len: int) -> "Workload":
        """Scale every length by one factor so that the largest bin fits a context of `max_model_len` tokens.

        The factor is 1 where everything fits already. Two tokens stay free for the rounding of input and output.
        """
        if max_model_len < 4:
            raise WorkloadError(f"a context of {max_model_len} tokens is too small for any request")
        largest = max(b.mean_input + b.mean_output for b in self.bins)
        return replace(self, scale=min(Fraction(1), Fraction(max_model_len - 2) / largest))

    def plan(self, requests: int, seed: int) -> list[Planned]:
        """Deal `requests` to the bins in proportion to their counts; the seed decides the order only.

        Largest-remainder allocation: each bin gets its share rounded down, and the requests left over go to the
        largest remainders. Within a bin the lengths are the bin's mean, rounded so that the bin's sum stays exact.
        Planning as many requests as the trace has gives the trace's total tokens exactly.
        """
        planned = [p for b, n in zip(self.bins, shares([b.count for b in self.bins], requests), strict=True)
                   for p in self._of_bin(b, n)]  # fmt: skip
        random.Random(f"order {seed}").shuffle(planned)
        return planned

    def _of_bin(self, cell: Bin, requests: int) -> Iterator[Planned]:
        inputs = spread(self.scale * cell.mean_input, requests)
        outputs = spread(self.scale * cell.mean_output, requests)
        for input_tokens, output_tokens in zip(inputs, outputs, strict=True):
            yield Planned(cell, max(1, input_tokens), max(1, output_tokens))


def shares(counts: Sequence[int], total: int) -> list[int]:
    """Split `total` in proportion to `counts` by largest remainder; whole numbers that add up to `total`."""
    whole = sum(counts)
    if total < 1 or whole < 1:
        raise WorkloadError(f"cannot plan {total} requests from a table of {whole}")
    dealt = [total * count // whole for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda i: (-(total * counts[i] % whole), i))
    for i in by_remainder[: total - sum(dealt)]:
        dealt[i] += 1
    return dealt


def spread(mean: Fraction, n: int) -> list[int]:
    """Whole numbers, each `mean` rounded up or down, whose sum is round(n * mean)."""
    cuts = [round(i * mean) for i in range(n + 1)]
    return [high - low for low, high in pairwise(cuts)]


def workload_names() -> list[str]:
    """The workloads shipped here, as given to --workload."""
    return sorted(path.stem.replace("_", "-") for path in WORKLOADS.glob("*.csv"))


def load_workload(name: str) -> Workload:
    """A shipped workload by its name, or any bin table by its path. Raises WorkloadError."""
    path = WORKLOADS / f"{name.replace('-', '_')}.csv"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        raise WorkloadError(f"no workload {name!r}: give a file or one of {', '.join(workload_names())}")
    with path.open(encoding="utf-8", newline="") as file:
        return read_table(file, path.stem.replace("_", "-"))


def read_table(lines: Iterable[str], name: str) -> Workload:
    """Read a bin table: '#' comments, one header line with the names of Bin's fields, one line per bin."""
    notes: list[str] = []
    bins: list[Bin] = []
    header: list[str] | None = None
    for number, line in enumerate(lines, start=1):
        if line.startswith("#"):
            notes.append(line.lstrip("#").strip())
        elif line.strip():
            row = next(csv.reader([line]))
            if header is None:
                header = _header(row, f"{name}, line {number}")
            else:
                bins.append(_bin(header, row, f"{name}, line {number}"))
    if not bins:
        raise WorkloadError(f"{name}: no bins in the table")
    return Workload(name, tuple(bins), tuple(notes))


def _header(row: list[str], where: str) -> list[str]:
    header = [column.strip() for column in row]
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise WorkloadError(f"{where}: the header lacks {', '.join(missing)}")
    return header


def _bin(header: list[str], row: list[str], where: str) -> Bin:
    if len(row) != len(header):
        raise WorkloadError(f"{where}: {len(row)} values under {len(header)} columns")
    values = dict(zip(header, row, strict=True))
    try:
        cell = Bin(**{column: int(values[column]) for column in COLUMNS})
    except ValueError as error:
        raise WorkloadError(f"{where}: not a whole number: {error}") from error
    if cell.count < 1:
        raise WorkloadError(f"{where}: a bin holds at least one request, not {cell.count}")
    for what, low, mean, high in (
        ("input", cell.input_from, cell.mean_input, cell.input_to),
        ("output", cell.output_from, cell.mean_output, cell.output_to),
    ):
        if not low <= mean < high:
            raise WorkloadError(f"{where}: mean {what} of {float(mean):.1f} tokens lies outside [{low}, {high})")
    return cell
