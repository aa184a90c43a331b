"""How many tokens of a prompt the engine computes in one step, at most, found out from the steps that prompts took.

The flag is max_num_batched_tokens, 2048 or 8192 by default and told nowhere. Waiting makes a prompt take more steps
than its chunks, nothing makes it take fewer: the least size that prompts seldom contradict is believed.
"""

from math import floor

SIZES = tuple(2**power for power in range(8, 15))
"""Tokens."""
UNEVEN = 0.5
"""Of a step: by so much may steps that are read off the arrival of tokens be too few without contradicting."""
CONTRADICTED = 0.2
"""Part of the prompts longer than a size that may take fewer steps than it allows; tokens arrive unevenly."""
FADE = 0.99
"""What a prompt leaves of the counts: about the last hundred."""


class ChunkSize:
    """Of one engine. tokens: None until a prompt was read; too few rather than too many while all were short."""

    def __init__(self) -> None:
        self.tokens: int | None = None
        self._told = [0.0] * len(SIZES)
        self._against = [0.0] * len(SIZES)

    def learn(self, tokens: int, steps: float) -> None:
        """Takes in a prompt: the tokens that were computed, the steps from its sending to its first token."""
        if tokens <= SIZES[0]:
            self.tokens = self.tokens or SIZES[0]
            return
        chunks = max(1, floor(steps + UNEVEN))
        for place, size in enumerate(SIZES):
            if tokens <= size:
                break
            self._told[place] = FADE * self._told[place] + 1
            self._against[place] = FADE * self._against[place] + (tokens > chunks * size)
        self._choose()

    def _choose(self) -> None:
        self.tokens = SIZES[-1]
        for size, against, told in zip(SIZES, self._against, self._told, strict=True):
            if against <= CONTRADICTED * told:
                self.tokens = size
                break
