"""What each request did in a stretch of time: the features of the attribution rule.

    P   uncached prompt tokens computed            PC  sum over them of the context each read
    D   decode positions                           C   sum over decode steps of the context read: once in a step,
                                                       however many drafted positions it holds
    S   sum over engine steps that hold the request of (its sequences / sequences in the step)

`step_book` fills them from the engine's own step log, `reconstruction` from token times.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from proxy.accounting.flight import Flight
from proxy.accounting.units import Nanoseconds


@dataclass(frozen=True, slots=True)
class Span:
    """The half-open time [start, end)."""

    start: Nanoseconds
    end: Nanoseconds

    def within(self, other: "Span") -> "Span | None":
        """The part inside `other`, or None where they do not meet."""
        start, end = self.start, self.end
        if start < other.start:
            start = other.start
        if end > other.end:
            end = other.end
        return Span(start, end) if end > start else None

    @property
    def length(self) -> int:
        """Nanoseconds."""
        return self.end - self.start


@dataclass(slots=True)
class Work:
    """Work of one request in one stretch of time; all figures are expectations, hence floats.

    experts: sum over steps of the request's part of the experts streamed (mixtures of experts only).
    tokens: prompt tokens (cached ones too) and completion tokens that fall in it, for plain token share.
    output_tokens: the completion tokens among them. present_ns: time in the engine times sequences.
    """

    prefill: float = 0.0
    prefill_context: float = 0.0
    decode: float = 0.0
    decode_context: float = 0.0
    steps: float = 0.0
    experts: float = 0.0
    tokens: float = 0.0
    output_tokens: float = 0.0
    present_ns: float = 0.0

    def add(self, other: "Work") -> None:
        """Takes in what another sequence did."""
        self.prefill += other.prefill
        self.prefill_context += other.prefill_context
        self.decode += other.decode
        self.decode_context += other.decode_context
        self.steps += other.steps
        self.experts += other.experts
        self.tokens += other.tokens
        self.output_tokens += other.output_tokens
        self.present_ns += other.present_ns

    def add_part(self, other: "Work", part: float) -> None:
        """Takes in a part of what energy is predicted from; tokens and time are left as they are."""
        self.prefill += part * other.prefill
        self.prefill_context += part * other.prefill_context
        self.decode += part * other.decode
        self.decode_context += part * other.decode_context
        self.steps += part * other.steps
        self.experts += part * other.experts


@dataclass(slots=True)
class Activity:
    """Who did what in a window: each flight's work, in the flights' order, and that of strangers.

    strangers: traffic of the same engine that did not come through here. covered_ns: time in which something ran,
    covered: the same in spans that do not meet. logged: taken from the engine's step log, not inferred.
    clocked: streams show the engine's steps all the time.
    """

    flights: list[Flight] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    strangers: list[Work] = field(default_factory=list)
    covered_ns: int = 0
    logged: bool = False
    covered: tuple[Span, ...] = ()
    clocked: bool = False

    def total(self) -> Work:
        """Sum over everybody."""
        whole = Work()
        for work in (*self.works, *self.strangers):
            whole.add(work)
        return whole


def union(times: Iterable[tuple[Nanoseconds, Nanoseconds]]) -> tuple[Span, ...]:
    """Everything from a start to its end, in order and without overlap."""
    found: list[Span] = []
    begun = reached = Nanoseconds(0)
    for start, end in sorted(times):
        if reached > begun and start <= reached:
            reached = max(reached, end)
        elif end > start:
            if reached > begun:
                found.append(Span(begun, reached))
            begun, reached = start, end
    return (*found, Span(begun, reached)) if reached > begun else ()


def presence(flight: Flight, start: Nanoseconds, end: Nanoseconds) -> tuple[Nanoseconds, Nanoseconds] | None:
    """From when until when the engine held the flight within [start, end); None where it did not, or refused it.

    Asked of every request for every window: hence no Span, which takes longer to make.
    """
    over = flight.ended
    if over is not None and over < end:
        end = over
    if end <= start or not flight.metered_work or flight.refused:
        return None
    first = flight.first
    if first is None or first > start:
        begun = flight.start
        if begun > start:
            start = begun
    return (start, end) if end > start else None
