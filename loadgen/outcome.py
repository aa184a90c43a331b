"""What became of each request, and what a set of them sums up to."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. Times are ns after the run's start; None is what was not heard from the server."""

    request_id: str
    bin: str
    input_asked: int
    input_got: int | None
    output_asked: int
    output_got: int | None
    due_ns: int
    sent_ns: int
    first_ns: int | None
    last_ns: int | None
    energy_uj: int | None
    """Provisional: the settled figure is in the proxy's ledger under the same request id."""
    grade: str | None
    estimated: bool | None
    error: str | None

    @property
    def ttft_ns(self) -> int | None:
        """From sending to the first content."""
        return None if self.first_ns is None else self.first_ns - self.sent_ns

    @property
    def tpot_ns(self) -> float | None:
        """Mean time per output token after the first; undefined for fewer than two tokens."""
        if self.first_ns is None or self.last_ns is None or self.output_got is None or self.output_got < 2:
            return None
        return (self.last_ns - self.first_ns) / (self.output_got - 1)

    @property
    def lateness_ns(self) -> int:
        """From due to sent: the generator's own fault, or its --max-in-flight."""
        return self.sent_ns - self.due_ns

    @property
    def mismatched(self) -> bool:
        """Whether an answered request had other lengths than asked for."""
        return self.error is None and (self.input_got, self.output_got) != (self.input_asked, self.output_asked)


def to_json(outcome: Outcome) -> dict[str, Any]:
    """Plain values, for a JSON line or a message between processes."""
    return asdict(outcome)


def from_json(values: dict[str, Any]) -> Outcome:
    """The opposite of `to_json`; unknown keys are ignored, a missing one is a KeyError."""
    return Outcome(**{field.name: values[field.name] for field in fields(Outcome)})


def json_lines(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """One JSON object per outcome, with the line end."""
    return (json.dumps(to_json(outcome)) + "\n" for outcome in outcomes)


def read_outcomes(lines: Iterable[str]) -> list[Outcome]:
    """Outcomes of a JSONL file written by `json_lines`."""
    return [from_json(json.loads(line)) for line in lines if line.strip()]


def percentile(values: Sequence[Number], percent: float) -> Number | None:
    """Nearest rank: the smallest value that `percent` % do not exceed; None when there are none."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def three_digits(value: float) -> float:
    """`value` rounded to three significant digits, so that a histogram has at most 900 keys per decade."""
    if value <= 0:
        return 0.0
    return round(value, 2 - math.floor(math.log10(value)))


@dataclass(frozen=True, slots=True)
class Summary:
    """A set of requests. Times in ns, energies in microjoules; None where nothing was heard."""

    label: str
    requests: int
    failed: int
    mismatched: int
    input_asked: int
    input_got: int
    output_asked: int
    output_got: int
    ttft_ns: tuple[float | None, float | None]
    """p50, p95."""
    tpot_ns: tuple[float | None, float | None]
    """p50, p95."""
    lateness_ns: tuple[int | None, int | None, int | None]
    """p50, p99, largest."""
    energy_reported: int
    """How many of the requests came with an energy."""
    energy_uj: int | None
    request_energy_uj: tuple[int | None, int | None]
    """p50, p95 of the energy of one request."""
    output_with_energy: int
    """Output tokens of the requests that came with an energy."""

    @property
    def joules_per_output_token(self) -> float | None:
        """Over the requests that came with an energy."""
        if self.energy_uj is None or not self.output_with_energy:
            return None
        return self.energy_uj / 1e6 / self.output_with_energy

    @property
    def mean_energy_uj(self) -> float | None:
        """Mean of one request, over those that came with an energy."""
        return None if self.energy_uj is None else self.energy_uj / self.energy_reported


def summarise(label: str, outcomes: Sequence[Outcome]) -> Summary:
    """Sum up; failed requests count as requests and as asked, and give no times and no tokens."""
    answered = [o for o in outcomes if o.error is None]
    ttft = [o.ttft_ns for o in answered if o.ttft_ns is not None]
    tpot = [o.tpot_ns for o in answered if o.tpot_ns is not None]
    lateness = [o.lateness_ns for o in outcomes]
    energy = [o.energy_uj for o in outcomes if o.energy_uj is not None]
    return Summary(
        label=label,
        requests=len(outcomes),
        failed=len(outcomes) - len(answered),
        mismatched=sum(o.mismatched for o in outcomes),
        input_asked=sum(o.input_asked for o in outcomes),
        input_got=sum(o.input_got or 0 for o in answered),
        output_asked=sum(o.output_asked for o in outcomes),
        output_got=sum(o.output_got or 0 for o in answered),
        ttft_ns=(percentile(ttft, 50), percentile(ttft, 95)),
        tpot_ns=(percentile(tpot, 50), percentile(tpot, 95)),
        lateness_ns=(percentile(lateness, 50), percentile(lateness, 99), max(lateness, default=None)),
        energy_reported=len(energy),
        energy_uj=sum(energy) if energy else None,
        request_energy_uj=(percentile(energy, 50), percentile(energy, 95)),
        output_with_energy=sum(o.output_got or 0 for o in outcomes if o.energy_uj is not None),
    )


def by_bin(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Outcomes by the label of their bin, smallest input first."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.bin, []).append(outcome)
    return dict(sorted(groups.items(), key=lambda group: _edges(group[0])))


def _edges(label: str) -> list[int]:
    return [int(word) for word in label.replace("-", " ").split() if word.isdigit()]
