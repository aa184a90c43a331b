"""One request as the relay saw it: when it was sent, when its tokens came, how many they were.

A flight only remembers; `activity` turns what it remembers into work. A chunk is not a token: a tick is
the running token count at the arrival of a chunk, and tokens are spread over the time between ticks.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Literal

from proxy.accounting.prefix_chain import Chain
from proxy.accounting.ticks import Ticks
from proxy.accounting.units import MILLISECOND, Nanoseconds

Outcome = Literal["ok", "error", "aborted", "partial"]
"""ok: complete; error: refused, nothing was computed; aborted: client left; partial: backend broke off."""
ABORT_TAIL = Nanoseconds(250 * MILLISECOND)
"""The engine drops a request 40 to 160 ms after its client has left; the step log shows who paid for that."""


@dataclass(slots=True)
class Flight:
    """The facts of one request to one backend; mutable until `ended` is set.

    row: unique key of this attempt; request_id: what the client sees, which may repeat.
    engine_id: what the engine makes the names of its sequences from, where that is not the request_id.
    sequences: n times the number of prompts; the engine holds so many in its batch. prompts: how many there are;
    token counts of the prompt are their sum, each counted once.
    prompt_estimate: tokens guessed from the body's size, used until the engine says.
    silent: the answer comes in one piece, so token times are unknown.
    rough: a stream without running counts; until its end its ticks count chunks, of which a chunk may hold many tokens.
    metered_work: whether the endpoint does any work on the GPU (tokenising does not).
    decodes: whether it makes tokens (embeddings do not).
    cached_tokens: hits as the engine said; of several sequences it tells those of one alone.
    begins: when the first token of each sequence came, where there are several and their stream tells them apart.
    scheduled: when the engine took it up, as the engine said; scheduled_guess: inferred meanwhile.
    lag: nanoseconds by which its tokens are expected to arrive later than they are made; its start is put off alike.
    prefix: names of the prompts' pieces; only until they are looked up, or the end.
    cached_part: fraction of the prompt guessed to be in the engine's cache; reread_part: guessed to be there for the
    second and later answers to the same prompt.
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
    cached_part: float = 0.0
    reread_part: float = 0.0
    prefix: tuple[Chain, ...] = ()
    scheduled: Nanoseconds | None = None
    scheduled_guess: Nanoseconds | None = None
    engine_id: str | None = None
    lag: int = 0
    first: Nanoseconds | None = None
    last: Nanoseconds | None = None
    ended: Nanoseconds | None = None
    outcome: Outcome | None = None
    ticks: Ticks = field(default_factory=Ticks)
    begins: list[Nanoseconds] = field(default_factory=list)

    def tick(self, at: Nanoseconds, tokens: int) -> None:
        """Notes that `tokens` completion tokens were there at `at`; a count that does not grow is no tick."""
        if self.completion_tokens is not None and tokens <= self.completion_tokens:
            return
        if self.first is None:
            self.first = at
        self.last = at
        self.completion_tokens = tokens
        self.ticks.add(at, tokens)

    def begun(self, at: Nanoseconds, sequences: int) -> None:
        """Notes that so many of its sequences had their first token at `at`."""
        self.begins += [at] * (min(sequences, self.sequences) - len(self.begins))

    def begun_by(self, instant: Nanoseconds) -> int:
        """Sequences known to have had their first token at an instant; all at once where nothing tells them apart."""
        if self.first is None or self.first > instant:
            return 0
        return bisect_right(self.begins, instant) if self.begins else self.sequences

    def made_by(self, instant: Nanoseconds) -> int:
        """Completion tokens known to have been there at an instant; those before the last tick kept count as there."""
        if self.ended is not None and self.ended <= instant:
            return self.completion_tokens or 0
        return self.ticks.made_by(instant)

    def end(self, at: Nanoseconds, outcome: Outcome) -> None:
        """Closes the flight; only the first call counts."""
        self.prefix = ()
        if self.ended is None:
            self.ended = at
            self.outcome = outcome

    def forget_before(self, instant: Nanoseconds) -> None:
        """Drops ticks that no unsettled window needs; the last one not after `instant` stays as the burst's start."""
        self.ticks.forget_before(instant)

    @property
    def prompt(self) -> int:
        """Prompt tokens, as the engine said or else as guessed."""
        return self.prompt_estimate if self.prompt_tokens is None else self.prompt_tokens

    @property
    def hits_told(self) -> int | None:
        """Hits of the whole request as the engine said; of several sequences it tells one's, which is not enough."""
        return self.cached_tokens if self.sequences == 1 else None

    @property
    def cached(self) -> int:
        """Prompt tokens found in the cache when each prompt was read first, as the engine said or else as guessed."""
        told = self.cached_tokens
        if told is not None and self.sequences == 1:
            return told
        guess = self._part(self.cached_part)
        if told is None:
            return guess
        # Of several prompts one's hits are told, of several answers to one prompt what a later one found.
        if self.prompts == self.sequences:
            return max(guess, told)
        return min(guess, told) if self.prompts == 1 else guess

    @property
    def uncached(self) -> int:
        """Prompt tokens that were not found in the cache, each prompt counted once."""
        new = self.prompt - self.cached
        return new if new > 0 else 0

    @property
    def start(self) -> Nanoseconds:
        """When its work began, on the clock of its tokens' arrival: as the engine said, as guessed, or when sent."""
        known = self.scheduled_guess if self.scheduled is None else self.scheduled
        known = self.sent if known is None else known
        latest = self.first if self.first is not None else self.ended
        if latest is not None and known + self.lag >= latest:
            return max(known, Nanoseconds(latest - MILLISECOND))
        return Nanoseconds(known + self.lag)

    @property
    def read(self) -> int:
        """Prompt tokens as the engine counts them, cached ones too: each prompt once for each answer to it."""
        return self.prompt * self.sequences // self.prompts

    @property
    def computed(self) -> int:
        """Prompt tokens the engine had to compute: it reads a prompt once for each answer to it.

        The second answer finds what the first has put into the cache: with vLLM 0.32 n=3 on 1500 new tokens computes
        1500 + 2 * 28 (a started block is never found), and tells 1472 cached tokens.
        """
        if self.sequences == 1 and self.cached_tokens is not None:
            told = self.prompt - self.cached_tokens
            return told if told > 0 else 0
        again = self.sequences // self.prompts - 1
        return self.uncached + again * max(0, self.prompt - self._reread) if again else self.uncached

    @property
    def _reread(self) -> int:
        if self.cached_tokens is not None and self.prompts == 1:
            return self.cached_tokens
        return max(self.cached, self._part(self.reread_part))

    def _part(self, part: float) -> int:
        """Tokens in a part of the prompt that was found: the last one of each prompt is always computed."""
        return max(0, min(int(self.prompt * part), self.prompt - self.prompts)) if part else 0

    @property
    def refused(self) -> bool:
        """It ended without a token and without prompt work: nothing was scheduled."""
        return self.outcome == "error" and self.first is None

    @property
    def told_by_its_tokens(self) -> bool:
        """Whether its tokens say all that the engine did for it, and for all its sequences alike."""
        silent = self.silent or self.rough
        return self.metered_work and not silent and not self.begins and self.outcome != "error"

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
        first, last, made = self.first, self.last, self.completion_tokens
        if self.silent or first is None or last is None or made is None or made < 2 * self.sequences:
            return None
        return Nanoseconds(round((last - first) / (made / self.sequences - 1)))
