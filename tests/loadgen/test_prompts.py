"""Texts of an exact number of tokens."""

import pytest

from loadgen.errors import PromptError
from loadgen.prompts import OPENER, UNIQUE_WORDS, Vocabulary, calibrate, error_of_long_prompt, prompt

TEMPLATE = 11


class Counter:
    """A tokenizer that splits words of more than `longest` letters, behind a chat template; counts how often asked."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.calls = 0

    def __call__(self, text: str) -> int:
        self.calls += 1
        return TEMPLATE + sum(-(-len(word) // self.longest) for word in text.split())


@pytest.mark.parametrize("longest", [2, 4, 7, 99])
@pytest.mark.parametrize("tokens", [12, 13, 15, 16, 17, 100, 4_000])
def test_a_prompt_costs_exactly_what_was_asked(longest: int, tokens: int) -> None:
    """Under tokenizers that know few or many of the words, from the shortest prompt to a long one."""
    count = Counter(longest)
    vocabulary = calibrate(count)

    assert count(prompt(vocabulary, tokens, index=5, salt="run")) == tokens
    assert error_of_long_prompt(vocabulary, count, 4_000) == 0


def test_a_tokenizer_that_knows_english_is_asked_twice() -> None:
    """Where counting costs a request, calibrating must not cost hundreds."""
    count = Counter(99)

    calibrate(count)

    assert count.calls == 2


def test_every_prompt_of_a_run_begins_with_its_own_words() -> None:
    """All differ within the first words, so no prefix cache block of 16 tokens is shared."""
    vocabulary = calibrate(Counter(99))
    beginnings = {tuple(prompt(vocabulary, 40, k, "run").split()[: 1 + UNIQUE_WORDS]) for k in range(5_000)}

    assert len(beginnings) == 5_000


def test_the_next_run_has_other_texts() -> None:
    """A cache that still holds the last run does not help; the same run is the same text in every worker."""
    vocabulary = calibrate(Counter(99))

    assert prompt(vocabulary, 40, 3, "run a") == prompt(vocabulary, 40, 3, "run a")
    assert prompt(vocabulary, 40, 3, "run a").split()[:16] != prompt(vocabulary, 40, 3, "run b").split()[:16]


def test_a_prompt_shorter_than_the_template_is_refused() -> None:
    """No text, however short, could cost that little."""
    vocabulary = Vocabulary(12, ("a", "b"))

    assert prompt(vocabulary, 12, 0, "run") == OPENER
    with pytest.raises(PromptError, match="11 tokens is shorter than the template, 12 tokens"):
        prompt(vocabulary, 11, 0, "run")


def test_a_tokenizer_without_whole_words_is_refused() -> None:
    """A byte tokenizer has no word of one token; saying so beats wrong lengths."""
    with pytest.raises(PromptError, match="only 0 of the words tried"):
        calibrate(Counter(1))


def test_words_that_merge_across_spaces_are_noticed() -> None:
    """The check counts a long text as it will be sent."""
    vocabulary = calibrate(Counter(99))

    assert error_of_long_prompt(vocabulary, lambda text: TEMPLATE + len(text.split()) - 3, 100) == -3
