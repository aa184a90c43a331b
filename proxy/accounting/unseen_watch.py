"""Finds traffic that did not come through here: look after look, what the engine counted beyond what is ours.

That somebody else is there shows in the sequences it holds or in the first tokens it gave; how much they did, in its
token counts; how many they were, in their tokens per step of the engine.
"""

from dataclasses import dataclass

from proxy.accounting.activity import Span
from proxy.accounting.step_clock import ONE_BY_ONE
from proxy.accounting.unseen import EngineCounters, SeenTokens, UnseenTraffic, pace_between
from proxy.accounting.usual_context import UsualContext

TOKENS_UNDER_WAY = 3
"""Tokens per running sequence that may be counted by the engine and not yet have arrived here."""
ESTIMATE_MARGIN = 1.5
"""A prompt whose tokens are only estimated may have so many times more."""
SOMEBODY = 0.5
"""Sequences."""
OWED_FADE = 0.8
"""What a look leaves of the tokens that strangers read as of late; so many may be owed."""


@dataclass(frozen=True, slots=True)
class Excess:
    """What the engine counted beyond ours; what was carried is in it. arrived: None where it counts no first tokens."""

    read: float = 0.0
    made: float = 0.0
    arrived: float | None = None

    def less_pending(self, seen: SeenTokens, early: SeenTokens) -> "tuple[Excess, Excess]":
        """(strangers', what own requests may explain): the latter waits, so a stranger's is only late.

        early: ours that the engine may count after this look; so many firsts it may lack.
        """
        read = min(max(0.0, self.read), ESTIMATE_MARGIN * seen.pending)
        if self.arrived is None:
            return Excess(self.read - read, self.made), Excess(read)
        arrived = max(-early.firsts, min(self.arrived, seen.pending_firsts))
        return Excess(self.read - read, self.made, max(0.0, self.arrived - arrived)), Excess(read, 0.0, arrived)

    def carried(self, pending: "Excess", early: SeenTokens, slack: float, most: float) -> "Excess":
        """What stays for the next comparison, bounded but for what is pending or early."""
        read = pending.read + max(-slack - early.prompt, min(most, self.read))
        return Excess(read, max(-slack - early.completion, min(most, self.made)), pending.arrived)


class UnseenWatch:
    """Compares scrape after scrape; one per backend. usual: their context, which our own requests teach, too."""

    def __init__(self) -> None:
        self._engine: EngineCounters | None = None
        self._seen = SeenTokens(0, 0, 0)
        self._carried = Excess()
        self.usual = UsualContext()
        self._owed = self._lately = 0.0

    def compare(
        self, engine: EngineCounters, seen: SeenTokens, certain: SeenTokens | None = None
    ) -> UnseenTraffic | None:
        """The excess since the last conclusive scrape; None when there is none or it cannot be told yet.

        certain: the least of `seen` that the engine had counted by then; None where there is no doubt.

        While a flight is open whose tokens can neither be known nor be inferred from the engine's steps, only the
        running sequences can be compared; where they say nothing, the comparison waits for its end. A counter that
        fell means the engine restarted: comparison starts anew.
        """
        before, seen_before, certain = self._engine, self._seen, certain or seen
        if before is None or _restarted(before, engine):
            # Only what the engine has surely counted is in what it counted before: the rest may come in the next.
            sure = seen._replace(prompt=certain.prompt, completion=certain.completion, firsts=certain.firsts)
            self._start_at(engine, sure, Excess())
            return None
        if engine.at <= before.at:
            return None
        if seen.uncounted and engine.steps is None:
            return self._by_sequences(before, engine, seen)
        early = seen.less(certain)
        excess, pending = self._excess(before, engine, seen).less_pending(seen, early)
        held = (_strangers_held(before, seen_before), _strangers_held(engine, seen))
        slack = TOKENS_UNDER_WAY * (1 + engine.running)
        nobody = excess.arrived is not None and max(excess.arrived, *held) < SOMEBODY
        if nobody or max(0.0, excess.made) + max(0.0, excess.read) <= slack:
            # Carried both ways, but bounded: an engine that counts otherwise must not hide a stranger for ever, and
            # what it makes for those who left before it noticed must not add up to one.
            most = slack if nobody else float("inf")
            self._start_at(engine, seen, excess.carried(pending, early, slack, most))
            return None
        self._start_at(engine, seen, excess.carried(pending, early, slack, 0.0))
        return self._found(before, engine, excess, held, seen.computed - seen_before.computed)

    def _excess(self, before: EngineCounters, engine: EngineCounters, seen: SeenTokens) -> Excess:
        made = engine.generation_tokens - before.generation_tokens - (seen.completion - self._seen.completion)
        read = engine.prompt_tokens - before.prompt_tokens - (seen.prompt - self._seen.prompt)
        arrived = _moved(before.firsts, engine.firsts)
        if arrived is not None:
            arrived += (self._carried.arrived or 0.0) - (seen.firsts - self._seen.firsts)
        return Excess(read + self._carried.read, made + self._carried.made, arrived)

    def _found(
        self, before: EngineCounters, engine: EngineCounters, excess: Excess, held: tuple[float, float], ours: int
    ) -> UnseenTraffic | None:
        """ours: prompt tokens that were computed for our own requests."""
        read, decode, arrived = max(0.0, excess.read), max(0.0, excess.made), excess.arrived
        steps = _moved(before.steps, engine.steps)
        per_step = (pace_between(before, engine) or ONE_BY_ONE).tokens_per_step
        if arrived is not None:
            read = read if arrived >= SOMEBODY else 0.0
            decode = max(0.0, decode - arrived)
            if steps is not None:
                decode = min(decode, steps * per_step * (max(held) + arrived))
        if not read and not decode and arrived is not None:
            return None  # whoever is there gets tokens: a sequence too many at the end of our own is not somebody's
        context = self.usual.learn(read, decode, arrived)
        mean = decode / per_step / steps if steps else sum(held) / 2
        return UnseenTraffic(
            Span(before.at, engine.at),
            prompt=self._computed(before, engine, ours, read),
            decode=decode,
            sequences=mean or sum(held) / 2 or 1.0,
            held=held,
            steps=steps,
            arrived=None if arrived is None else max(arrived, held[1] - held[0]),
            context=context,
        )

    def _computed(self, before: EngineCounters, now: EngineCounters, ours: int, read: float) -> float:
        """Of the prompt tokens that strangers read between two looks those that were computed.

        Two guesses, each wrong in its own way, and their mean: what is left of all that was computed without ours,
        which may have been counted before a look and heard of after it; and the part that is computed of everybody's
        prompts. What that gives too much or too little is owed at the next looks: the first guess is right in sum. Not
        more is owed than they read lately: hits that nobody tells would make it grow for ever.
        """
        everybody = now.prompt_tokens - before.prompt_tokens
        if now.cached_prompt_tokens is None or everybody <= 0:
            return read
        computed = now.computed_prompt_tokens - before.computed_prompt_tokens
        owed = self._owed + computed - ours
        found = max(0.0, min(read, (owed + read * min(1.0, computed / everybody)) / 2))
        self._lately = OWED_FADE * self._lately + read
        self._owed = max(-self._lately, min(self._lately, owed - found))
        return found

    def _by_sequences(self, before: EngineCounters, engine: EngineCounters, seen: SeenTokens) -> UnseenTraffic | None:
        """While tokens cannot be compared: more running sequences than were sent from here are a stranger's."""
        excess = min(engine.running - seen.sequences, before.running - self._seen.sequences)
        made = engine.generation_tokens - before.generation_tokens
        if excess < 1 or made <= 0:
            return None
        self._start_at(engine, seen, Excess())
        return UnseenTraffic(Span(before.at, engine.at), 0.0, made * excess / engine.running, excess)

    def _start_at(self, engine: EngineCounters, seen: SeenTokens, carried: Excess) -> None:
        self._engine, self._seen, self._carried = engine, seen, carried


def _moved(before: float | None, now: float | None) -> float | None:
    return None if before is None or now is None or now < before else now - before


def _strangers_held(engine: EngineCounters, seen: SeenTokens) -> float:
    """Sequences in the batch that were not sent from here; of those that queue as many in proportion."""
    everybody = engine.running + engine.waiting
    return max(0.0, everybody - seen.sequences) * engine.running / everybody if everybody else 0.0


def _restarted(before: EngineCounters, now: EngineCounters) -> bool:
    return (
        now.generation_tokens < before.generation_tokens or now.computed_prompt_tokens < before.computed_prompt_tokens
    )
