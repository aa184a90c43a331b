"""One request as the relay saw it: when it was sent, when its tokens came, how many they were.

A flight only remembers; `activity` turns what it remembers into work. A chunk is not a token: a tick is
the running token count at the arrival of a chunk, and tokens are spread over the time between ticks.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from proxy.accounting.units import Nanoseconds

Outcome = Literal["ok", "error", "aborted", "partial"]
"""ok: complete; error: refused, nothing was computed; aborted: client left; partial: backend broke off."""


class Tick(NamedTuple):
    """At the instant `at` the request had `tokens` completion tokens in all, over all its sequences."""

    at: Nanoseconds
    tokens: int


@dataclass(slots=True)
class Flight:
    """The facts of one request to one backend; mutable until `ended` is set.

    row: unique key of this attempt; request_id: what the client sees, which may repeat.
    sequences: n times the number of prompts; the engine holds so many in its batch. prompts: how many there are;
    token counts of the prompt are their sum, each counted once.
    prompt_estimate: tokens guessed from the body's size, used until the engine says.
    silent: the answer comes in one piece, so token times are unknown.
    rough: a stream without running counts; until its end its ticks count chunks, of which a chunk may hold many tokens.
    metered_work: whether the endpoint does any work on the GPU (tokenising does not).
    decodes: whether it makes tokens (embeddings do not).
    scheduled: when the engine took it up, as the engine said; scheduled_guess, cached_guess: inferred meanwhile.
    """

    row: str
    request_id: str
    sent: Nanoseconds
    sequences: int = 1
    prompts: int = 1
    prompt_estimate: int = 0
    silent: bool = False
    rough: bool = False
    metered_work: bool = True
    decodes: bool = True
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    cached_guess: int = 0
    scheduled: Nanoseconds | None = None
    scheduled_guess: Nanoseconds | None = None
    first: Nanoseconds | None = None
    last: Nanoseconds | None = None
    ended: Nanoseconds | None = None
    outcome: Outcome | None = None
    ticks: deque[Tick] = field(default_factory=deque)

    def tick(self, at: Nanoseconds, tokens: int) -> None:
        """Notes that `tokens` completion tokens were there at `at`; a count that does not grow is no tick."""
        if self.completion_tokens is not None and tokens <= self.completion_tokens:
            return
        if self.first is None:
            self.first = at
        self.last = at
        self.completion_tokens = tokens
        self.ticks.append(Tick(at, tokens))

    def end(self, at: Nanoseconds, outcome: Outcome) -> None:
        """Closes the flight; only the first call counts."""
        if self.ended is None:
            self.ended = at
            self.outcome = outcome

    def forget_before(self, instant: Nanoseconds) -> None:
        """Drops ticks that no unsettled window needs; the last one not after `instant` stays as the burst's start."""
        while len(self.ticks) > 1 and self.ticks[1].at <= instant:
            self.ticks.popleft()

    @property
    def prompt(self) -> int:
        """Prompt tokens, as the engine said or else as guessed."""
        return self.prompt_estimate if self.prompt_tokens is None else self.prompt_tokens

    @property
    def cached(self) -> int:
        """Prompt tokens found in the cache, as the engine said or else as guessed."""
        return self.cached_guess if self.cached_tokens is None else self.cached_tokens

    @property
    def uncached(self) -> int:
        """Prompt tokens that were not found in the cache, each prompt counted once."""
        return max(0, self.prompt - self.cached)

    @property
    def start(self) -> Nanoseconds:
        """When its work began: as the engine said, as guessed, or else when it was sent."""
        known = self.scheduled_guess if self.scheduled is None else self.scheduled
        return self.sent if known is None else known

    @property
    def read(self) -> int:
        """Prompt tokens as the engine counts them, cached ones too: each prompt once for each answer to it."""
        return self.prompt * self.sequences // self.prompts

    @property
    def computed(self) -> int:
        """Prompt tokens the engine had to compute: it reads a prompt once for each answer to it."""
        return self.uncached * self.sequences // self.prompts

    @property
    def refused(self) -> bool:
        """It ended without a token and without prompt work: nothing was scheduled."""
        return self.outcome == "error" and self.first is None

    @property
    def uncounted(self) -> bool:
        """It runs, and the engine may have made more tokens for it than are known here."""
        return self.metered_work and self.ended is None and (self.silent or self.rough)

    def heard_after(self, instant: Nanoseconds) -> bool:
        """Whether the relay knows what this flight did up to `instant`."""
        if self.ended is not None or self.sent >= instant:
            return True
        return self.last is not None and self.last >= instant

    @property
    def ttft_ns(self) -> Nanoseconds | None:
        """Time from sending to the first token seen; unknown for silent answers."""
        return None if self.first is None or self.silent else Nanoseconds(self.first - self.sent)

    @property
    def tpot_ns(self) -> Nanoseconds | None:
        """Mean time per output token after the first, per sequence; undefined for fewer than two."""
        tokens = (self.completion_tokens or 0) / self.sequences
        if self.silent or self.first is None or self.last is None or tokens < 2:
            return None
        return Nanoseconds(round((self.last - self.first) / (tokens - 1)))
