"""Text of exactly n tokens under a tokenizer that is only known by how many tokens it counts.

A text is one fixed opening word and then words that each cost exactly one token after a space. The opening word is
counted together with the chat template around the text, so no assumption is made about how either is split.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadgen.errors import PromptError

OPENER = "So"
ENOUGH_WORDS = 64
FEWEST_WORDS = 16
UNIQUE_WORDS = 4

COMMON_TEXT = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water room mother area
money story fact month lot right study book eye job word business issue side kind head house service friend father
power hour game line end member law car city community name president team minute idea body information back parent
face others level office door health person art war history party result change morning reason research girl guy
moment air teacher force education foot boy age policy process music market sense nation plan college interest death
experience effect use class control field role effort rate heart drug show leader light
"""
SYLLABLES = tuple(c + v for c in "bcdfghklmnprstvwz" for v in "aeiou")
"""For tokenizers that do not know English."""

CountTokens = Callable[[str], int]
"""Tokens of a prompt whose only user message is this text, chat template included."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words of one token each after a space, and what template and opening word cost together."""

    overhead: int
    words: tuple[str, ...]


def calibrate(count_tokens: CountTokens) -> Vocabulary:
    """Find the words by counting texts; two counts where the tokenizer knows English. Raises PromptError."""
    overhead = count_tokens(OPENER)
    words: list[str] = []
    for candidates in (COMMON_TEXT.split(), SYLLABLES):
        _keep_single(count_tokens, overhead, candidates, words)
        if len(words) >= ENOUGH_WORDS:
            break
    if len(words) < FEWEST_WORDS:
        raise PromptError(f"only {len(words)} of the words tried are one token each under this server's tokenizer")
    return Vocabulary(overhead, tuple(words))


def _keep_single(count_tokens: CountTokens, overhead: int, candidates: Sequence[str], kept: list[str]) -> None:
    """Append the candidates of one token each. No word costs less than one token, so a text that costs as many
    tokens as it has words has only such words; other texts are halved."""
    if len(kept) >= ENOUGH_WORDS:
        return
    if count_tokens(" ".join((OPENER, *candidates))) - overhead == len(candidates):
        kept.extend(candidates)
    elif len(candidates) > 1:
        half = len(candidates) // 2
        _keep_single(count_tokens, overhead, candidates[:half], kept)
        _keep_single(count_tokens, overhead, candidates[half:], kept)


def prompt(vocabulary: Vocabulary, tokens: int, index: int, salt: str) -> str:
    """A text that costs exactly `tokens`. Raises PromptError below the vocabulary's overhead.

    After the opening word come four words that spell `index`, so no two prompts of a run share their first block of
    a prefix cache (16 tokens or more), and then words drawn by `salt` and `index`: with a new salt in each run the
    cache left by the run before does not help either.
    """
    wanted = tokens - vocabulary.overhead
    if wanted < 0:
        raise PromptError(f"a prompt of {tokens} tokens is shorter than the template, {vocabulary.overhead} tokens")
    words = vocabulary.words
    unique = [words[index // len(words) ** place % len(words)] for place in range(UNIQUE_WORDS)]
    drawn = random.Random(f"{salt} {index}").choices(words, k=max(0, wanted - UNIQUE_WORDS))
    return " ".join((OPENER, *unique[:wanted], *drawn))


def error_of_long_prompt(vocabulary: Vocabulary, count_tokens: CountTokens, tokens: int) -> int:
    """Counted minus asked tokens of one prompt; other than 0 if this tokenizer joins words across spaces."""
    return count_tokens(prompt(vocabulary, tokens, 0, "check")) - tokens
