"""How much of a prompt one engine has in its prefix cache, guessed when it is sent from what was sent before.

The engine says it in a stream's last chunk only, long after the stream's first windows have been divided.
"""

from typing import NamedTuple

from proxy.accounting.flight import Flight
from proxy.accounting.guesses import MOST_RATIO
from proxy.accounting.prefix_cache import Match, PrefixCache
from proxy.accounting.prefix_chain import TOKENS_PER_UNIT, Chain
from proxy.accounting.prefix_entries import Held
from proxy.accounting.unseen import EngineCounters

RATIO_FADE = 0.95
"""What a request leaves of the sums that make a ratio: the latest twenty or so count."""
USUAL_UNITS = 64.0
"""A prompt of a thousand tokens. Smaller ones teach less: what is shorter than the engine's blocks is never found."""
DEFAULT_ROOM, MOST_ROOM = 1 << 16, 1 << 18
"""Units held (16 tokens each): a million tokens while the engine does not say; at most four, in about 40 MB."""


class _Ratio:
    """A ratio of fading sums: what was told to what was guessed. The first belief weighs so many usual requests."""

    def __init__(self, start: float, weight: float = 1.0) -> None:
        self._told, self._guessed = start * weight, weight

    def learn(self, told: float, guessed: float, weight: float) -> None:
        """One request more; of nothing guessed nothing is learnt. weight: 1 for a request of the usual size or more."""
        if guessed > 0:
            fade = RATIO_FADE**weight
            self._told = fade * self._told + weight * told
            self._guessed = fade * self._guessed + weight * guessed

    @property
    def value(self) -> float:
        """Told for each guessed."""
        return self._told / self._guessed


class _Opened(NamedTuple):
    """What was looked up for a request: its chains, what of each was found and where it was put, and the guess.

    sent: the part that was found because it stood in an earlier prompt; made: because it is the engine's own answer
    to one. guess: the part that the flight was given.
    """

    chains: tuple[Chain, ...]
    looked_up: list[tuple[Match, Held]]
    units: float
    sent: float
    made: float
    guess: float


class CacheGuess:
    """Guesses at sending how much of a prompt one engine has in its cache, and learns how good such guesses are.

    A template that leaves out an answer's reasoning, say, makes all after it new: so answers are judged apart.
    """

    def __init__(self) -> None:
        self._cache = PrefixCache(DEFAULT_ROOM)
        self._capacity: float | None = None
        self._sent, self._made = _Ratio(1.0), _Ratio(1.0, weight=0.25)  # nobody knows what a template does to answers
        self._tokens_per_unit = _Ratio(TOKENS_PER_UNIT)
        self._opened: dict[str, _Opened] = {}
        self._before: EngineCounters | None = None

    def opened(self, flight: Flight) -> None:
        """A request is about to be sent: sets its guess, and takes over the names of its prompts' pieces."""
        chains, flight.prefix = flight.prefix, ()
        cache = self._cache
        if not cache.room:
            return
        if flight.sequences > flight.prompts:
            flight.reread_part = min(1.0, self._sent.value)
        # One after the other: prompts of one request share their beginnings, too.
        looked_up, units, sent, made = [], 0.0, 0.0, 0.0
        for chain in chains:
            one = cache.look_up(chain)
            _, prompt, answer = one[0]
            units, sent, made = units + chain.length, sent + prompt, made + answer
            looked_up.append(one)
        if not units:
            return
        sent, made = sent / units, made / units
        guess = min(1.0, sent * self._sent.value + made * self._made.value) if sent or made else 0.0
        flight.cached_part = guess
        self._opened[flight.row] = _Opened(chains, looked_up, units, sent, made, guess)

    def finished(self, flight: Flight) -> None:
        """It is over: what it used is the newest in the cache, and its guess is compared with what was told."""
        opened = self._opened.pop(flight.row, None)
        if opened is None:
            return
        chains, looked_up = opened.chains, opened.looked_up
        if flight.refused or (flight.first is None and flight.scheduled_guess == flight.ended is not None):
            for chain, (match, _) in zip(chains, looked_up, strict=True):
                self._cache.drop(chain, beyond=match.pieces)
            return
        if flight.prompt_tokens:
            self._learn(flight, flight.prompt_tokens, opened)
            self._fit()
        made = flight.completion_tokens
        units = round(made / (len(chains) * self._tokens_per_unit.value)) if made else 0
        for chain, (_, held) in zip(chains, looked_up, strict=True):
            self._cache.answered(chain, held, units)

    def _learn(self, flight: Flight, prompt: int, opened: _Opened) -> None:
        _, _, units, sent, made, guess = opened
        weight = min(1.0, units / USUAL_UNITS)
        self._tokens_per_unit.learn(prompt / units, 1.0, weight)
        if not (sent or made) or (flight.hits_told is None and flight.cached_part == guess):
            return  # nothing was guessed, or neither the answer nor a scrape has said anything
        told = flight.cached / prompt
        self._sent.learn(min(told, sent * (1.0 if made else MOST_RATIO)), sent, weight)
        self._made.learn(min(max(0.0, told - sent), made), made, weight)

    def scraped(self, counters: EngineCounters) -> None:
        """The engine's page says how large its cache is (0 where it has none), and shows a restart."""
        if self._before is not None and counters.prompt_tokens < self._before.prompt_tokens:
            self._cache.clear()
        self._before = counters
        self._capacity = counters.cache_capacity_tokens
        self._fit()

    def _fit(self) -> None:
        if self._capacity is not None:
            self._cache.room = min(MOST_ROOM, round(self._capacity / self._tokens_per_unit.value))
