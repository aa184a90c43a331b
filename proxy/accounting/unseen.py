"""Traffic of the same engine that did not come through here, read off the engine's own counters.

The engine counts tokens; the relay counts tokens; what the engine has in excess is somebody else's.
Arrival is a little later than generation, so small differences are carried, not charged.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import add
from typing import NamedTuple

from proxy.accounting.activity import Span
from proxy.accounting.step_clock import Pace
from proxy.accounting.units import Nanoseconds
from proxy.accounting.usual_context import Context


class Drafts(NamedTuple):
    """Speculative decoding since the engine started: sequence-steps that drafted, tokens drafted, tokens accepted."""

    steps: float
    drafted: float
    accepted: float


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """One scrape of an engine's /metrics page; cumulative counts since the engine started.

    computed_prompt_tokens leaves cached ones out; cached_prompt_tokens is None where the engine does not tell them.
    cache_capacity_tokens: what its prefix cache has room for, 0 if it keeps none; None where it does not tell.
    drafts: None where it does not speculate.
    running and waiting are gauges at `at`: sequences in the batch, requests in the queue.
    steps: those that gave somebody a token; of several engines the mean. firsts: sequences whose prompt has been read.
    engines: data-parallel ones on the page. blur: by which the instant may be off, for the page took its time.
    """

    at: Nanoseconds
    running: float
    waiting: float
    generation_tokens: float
    computed_prompt_tokens: float
    cached_prompt_tokens: float | None = None
    cache_capacity_tokens: float | None = None
    drafts: Drafts | None = None
    steps: float | None = None
    firsts: float | None = None
    engines: int = 1
    blur: int = 0

    @property
    def prompt_tokens(self) -> float:
        """Prompt tokens read, computed or found in the cache: what can be compared before hits are known by request."""
        return self.computed_prompt_tokens + (self.cached_prompt_tokens or 0.0)


class SeenTokens(NamedTuple):
    """The relay's own cumulative counts at the same instant; prompt tokens with cached ones, as the engine counts them.

    uncounted: how many open flights may have more tokens than these counts hold. sequences: open ones, sent here.
    pending: prompt tokens that the engine may have read already and that are not in these counts; pending_firsts: of
    so many sequences. firsts: sequences whose prompt is in them. computed: prompt tokens without those found in the
    cache, as far as that is known.
    """

    prompt: int
    completion: int
    uncounted: int
    sequences: int = 0
    pending: int = 0
    firsts: int = 0
    pending_firsts: int = 0
    computed: int = 0

    def plus(self, other: "SeenTokens") -> "SeenTokens":
        """Both counts together."""
        return SeenTokens(*map(add, self, other))

    def less(self, certain: "SeenTokens") -> "SeenTokens":
        """What of these counts the engine may not have counted yet."""
        prompt, completion = self.prompt - certain.prompt, self.completion - certain.completion
        return SeenTokens(max(0, prompt), max(0, completion), 0, firsts=max(0, self.firsts - certain.firsts))


class Piece(NamedTuple):
    """Work of strangers, even in its span: tokens, sequences in the batch, and the engine's steps if they are known.

    reading: of the sequences those that read a prompt.
    """

    span: Span
    prompt: float
    decode: float
    sequences: float
    steps: float | None = None
    reading: float = 0.0


@dataclass(frozen=True, slots=True)
class UnseenTraffic:
    """Tokens in `span` that nobody here asked for.

    prompt: tokens computed; decode: tokens after the first. sequences: in the batch, in the mean; held: at the start
    and at the end. steps: of the engine in the span; arrived: sequences that got their first token in it; context: of
    one of them while it decodes, in the mean. None where the engine does not tell.
    pieces: where in the span all this was; without any it is spread evenly.
    """

    span: Span
    prompt: float
    decode: float
    sequences: float
    held: tuple[float, float] | None = None
    steps: float | None = None
    arrived: float | None = None
    context: Context | None = None
    pieces: tuple[Piece, ...] = ()

    def within(self, window: Span) -> Iterator[Piece]:
        """What of it falls into a window."""
        for piece in self.pieces or (Piece(self.span, self.prompt, self.decode, self.sequences, self.steps),):
            inside = piece.span.within(window)
            if inside is not None:
                part = inside.length / piece.span.length
                steps = None if piece.steps is None else piece.steps * part
                yield Piece(inside, piece.prompt * part, piece.decode * part, piece.sequences, steps, piece.reading)


def pace_between(before: EngineCounters, now: EngineCounters) -> Pace | None:
    """Tokens a step and positions a token between two looks; None where nothing was drafted.

    In a step each sequence computes one position more than was drafted for it, and gains one token more than was
    accepted.
    """
    if before.drafts is None or now.drafts is None or now.drafts.steps <= before.drafts.steps:
        return None
    steps = now.drafts.steps - before.drafts.steps
    drafted = now.drafts.drafted - before.drafts.drafted
    accepted = now.drafts.accepted - before.drafts.accepted
    return Pace((steps + accepted) / steps, (steps + drafted) / (steps + accepted))
