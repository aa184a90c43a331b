"""How much context a stranger's tokens read, from the mean of their lengths and from how our own prompts are spread.

Of strangers the engine tells sums and numbers, and so a mean request. A mean token of a prompt reads another context
than half of that: long prompts have more of the tokens, and one that stands on a cached beginning reads it, too. How
far the two are apart shows in our own prompts, of which all is known.
"""

from typing import NamedTuple

from proxy.accounting.flight import Flight

LOOKS_FADE = 0.8
"""What a look leaves of the sums that make a stranger's mean request: about the last five count."""
OWN_FADE = 0.98
"""What a request leaves of the sums of our own: about the last fifty count."""
ENOUGH = 5.0
"""Own requests. Of fewer nothing is said, and prompts are taken to be all alike and new."""
ALIKE = 0.5
"""What a token of a prompt has before it in the mean, as part of the prompt, if all are alike and nothing is cached."""


class Context(NamedTuple):
    """Tokens that a stranger's token has before it, in the mean: one of a prompt, and one that is made."""

    prefill: float
    decode: float


class UsualContext:
    """Mean context of strangers, by fading sums."""

    def __init__(self) -> None:
        self._read = self._made = self._arrived = 0.0
        self._computed = self._before = self._lengths = self._requests = 0.0

    def closed(self, flight: Flight) -> None:
        """An own request is over."""
        if flight.first is None or not flight.decodes:
            return
        prompt, computed = flight.prompt / flight.prompts, flight.computed / flight.sequences
        self._computed = OWN_FADE * self._computed + computed
        self._before = OWN_FADE * self._before + computed * (prompt - computed / 2)
        self._lengths = OWN_FADE * self._lengths + prompt
        self._requests = OWN_FADE * self._requests + 1

    def learn(self, read: float, made: float, arrived: float | None) -> Context | None:
        """Takes in tokens read and made by strangers and how many came; None while nothing can be told."""
        if arrived is None:
            return None
        self._read = LOOKS_FADE * self._read + read
        self._made = LOOKS_FADE * self._made + made
        self._arrived = LOOKS_FADE * self._arrived + arrived
        if self._arrived < 1:
            return None
        prompt, made = self._read / self._arrived, self._made / self._arrived
        return Context(self._spread * prompt, prompt + made / 2)

    @property
    def _spread(self) -> float:
        """What a mean token of our own prompts has before it, as part of their mean length."""
        if self._requests < ENOUGH or not self._computed:
            return ALIKE
        return self._before / self._computed / (self._lengths / self._requests)
