"""Traffic of the same engine that did not come through here, read off the engine's own counters.

The engine counts tokens; the relay counts tokens; what the engine has in excess is somebody else's.
Arrival is a little later than generation, so small differences are carried, not charged.
"""

from dataclasses import dataclass
from typing import NamedTuple

from proxy.accounting.activity import Span
from proxy.accounting.units import Nanoseconds

TOKENS_UNDER_WAY = 8
"""Tokens per running sequence that may be counted by the engine and not yet have arrived here."""
ESTIMATE_MARGIN = 1.5
"""A prompt whose tokens are only estimated may have so many times more."""


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

    @property
    def prompt_tokens(self) -> float:
        """Prompt tokens read, computed or found in the cache: what can be compared before hits are known by request."""
        return self.computed_prompt_tokens + (self.cached_prompt_tokens or 0.0)


@dataclass(frozen=True, slots=True)
class SeenTokens:
    """The relay's own cumulative counts at the same instant; prompt tokens with cached ones, as the engine counts them.

    uncounted: how many open flights may have more tokens than these counts hold. sequences: open ones, sent here.
    pending: prompt tokens of open flights whose first token has not come: the engine may have read them already.
    """

    prompt: int
    completion: int
    uncounted: int
    sequences: int = 0
    pending: int = 0


@dataclass(frozen=True, slots=True)
class UnseenTraffic:
    """Tokens in `span` that nobody here asked for; spread evenly over it."""

    span: Span
    prompt: float
    decode: float
    sequences: float


class UnseenWatch:
    """Compares scrape after scrape; one per backend."""

    def __init__(self) -> None:
        self._engine: EngineCounters | None = None
        self._seen = SeenTokens(0, 0, 0)
        self._carried_prompt = 0.0
        self._carried_decode = 0.0

    def compare(self, engine: EngineCounters, seen: SeenTokens) -> UnseenTraffic | None:
        """The excess since the last conclusive scrape; None when there is none or it cannot be told yet.

        While a flight is open whose tokens are in the engine's count but not in ours, only the running sequences
        can be compared; where they say nothing, the comparison waits for its end. A counter that fell means the
        engine restarted: comparison starts anew.
        """
        before = self._engine
        if before is None or _restarted(before, engine):
            self._start_at(engine, seen, 0.0, 0.0)
            return None
        if seen.uncounted:
            return self._by_sequences(before, engine, seen)
        made = engine.generation_tokens - before.generation_tokens - (seen.completion - self._seen.completion)
        read = engine.prompt_tokens - before.prompt_tokens - (seen.prompt - self._seen.prompt)
        decode, prompt = made + self._carried_decode, read + self._carried_prompt
        slack = TOKENS_UNDER_WAY * (1 + engine.running)
        # What an own request may explain waits for its first token; it is carried, so a stranger's is only late.
        open_prompt = min(max(0.0, prompt), ESTIMATE_MARGIN * seen.pending)
        strange = prompt - open_prompt
        if max(0.0, decode) + max(0.0, strange) <= slack:
            # Carried both ways, but bounded: an engine that counts otherwise must not hide a stranger for ever.
            self._start_at(engine, seen, max(prompt, -slack), max(decode, -slack))
            return None
        self._start_at(engine, seen, open_prompt + max(-slack, min(0.0, strange)), max(-slack, min(0.0, decode)))
        span = Span(before.at, engine.at)
        computed = max(0.0, strange) * _computed_part(before, engine)
        return UnseenTraffic(span, computed, max(0.0, decode), max(1.0, engine.running))

    def _by_sequences(self, before: EngineCounters, engine: EngineCounters, seen: SeenTokens) -> UnseenTraffic | None:
        """While tokens cannot be compared: more running sequences than were sent from here are a stranger's."""
        excess = min(engine.running - seen.sequences, before.running - self._seen.sequences)
        made = engine.generation_tokens - before.generation_tokens
        if excess < 1 or made <= 0:
            return None
        self._start_at(engine, seen, 0.0, 0.0)
        return UnseenTraffic(Span(before.at, engine.at), 0.0, made * excess / engine.running, excess)

    def _start_at(self, engine: EngineCounters, seen: SeenTokens, prompt: float, decode: float) -> None:
        self._engine, self._seen = engine, seen
        self._carried_prompt, self._carried_decode = prompt, decode


def _computed_part(before: EngineCounters, now: EngineCounters) -> float:
    """Of the prompt tokens read between two scrapes, the part that was computed: a stranger's hits are not known."""
    read = now.prompt_tokens - before.prompt_tokens
    return (now.computed_prompt_tokens - before.computed_prompt_tokens) / read if read > 0 else 1.0


def _restarted(before: EngineCounters, now: EngineCounters) -> bool:
    return (
        now.generation_tokens < before.generation_tokens or now.computed_prompt_tokens < before.computed_prompt_tokens
    )
