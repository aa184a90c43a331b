"""Traffic of the same engine that did not come through here, read off the engine's own counters.

The engine counts tokens; the relay counts tokens; what the engine has in excess is somebody else's.
Arrival is a little later than generation, so small differences are carried, not charged.
"""

from dataclasses import dataclass

from proxy.accounting.activity import Span
from proxy.accounting.units import Nanoseconds

TOKENS_UNDER_WAY = 8
"""Tokens per running sequence that may be counted by the engine and not yet have arrived here."""


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """One scrape of an engine's /metrics page; cumulative counts since the engine started.

    computed_prompt_tokens leaves cached ones out. running is a gauge: sequences in the batch at `at`.
    """

    at: Nanoseconds
    running: float
    waiting: float
    generation_tokens: float
    computed_prompt_tokens: float


@dataclass(frozen=True, slots=True)
class SeenTokens:
    """The relay's own cumulative counts at the same instant.

    uncounted: how many open flights may have more tokens than these counts hold.
    """

    prompt: int
    completion: int
    uncounted: int


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

        While a flight is open whose tokens are in the engine's count but not in ours, the comparison waits for
        its end. A counter that fell means the engine restarted: comparison starts anew.
        """
        before = self._engine
        if before is None or engine.generation_tokens < before.generation_tokens:
            self._start_at(engine, seen, 0.0, 0.0)
            return None
        if seen.uncounted:
            return None
        made = engine.generation_tokens - before.generation_tokens - (seen.completion - self._seen.completion)
        read = engine.computed_prompt_tokens - before.computed_prompt_tokens - (seen.prompt - self._seen.prompt)
        decode, prompt = made + self._carried_decode, read + self._carried_prompt
        slack = TOKENS_UNDER_WAY * (1 + engine.running)
        if max(0.0, decode) + max(0.0, prompt) <= slack:
            self._start_at(engine, seen, min(prompt, slack), min(decode, slack))
            return None
        self._start_at(engine, seen, min(0.0, prompt), min(0.0, decode))
        span = Span(before.at, engine.at)
        return UnseenTraffic(span, max(0.0, prompt), max(0.0, decode), max(1.0, engine.running))

    def _start_at(self, engine: EngineCounters, seen: SeenTokens, prompt: float, decode: float) -> None:
        self._engine, self._seen = engine, seen
        self._carried_prompt, self._carried_decode = prompt, decode
