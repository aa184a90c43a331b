"""
How much of a prompt is cached is guessed when it is sent, from what was sent before, and the guess gets better.
"""

import pytest

from proxy.accounting.cache_guess import RATIO_FADE, CacheGuess
from proxy.accounting.flight import Flight, Outcome
from proxy.accounting.prefix_chain import Chain, Quote
from proxy.accounting.unseen import EngineCounters
from tests.accounting.flights import ms


def chain(*path: int, quotes: tuple[Quote, ...] = ()) -> Chain:
    """A prompt of ten units a step, and half a unit more; it has about a third of a usual one's weight."""
    names = tuple(b"%r %d" % (path[: number // 10 + 1], number) for number in range(10 * len(path)))
    return Chain(names, 10 * len(path) + 0.5, b"end of %r" % (path,), quotes)


def sent(guess: CacheGuess, *chains: Chain, row: str = "r", n: int = 1) -> Flight:
    flight = Flight(row, row, ms(0), n * len(chains), len(chains), prefix=chains)
    guess.opened(flight)
    return flight


def over(
    guess: CacheGuess,
    flight: Flight,
    told: float | None,
    *,
    tokens: int = 1000,
    made: int = 10,
    outcome: Outcome = "ok",
    ended: float = 1,
) -> None:
    """Its end, where the engine told that part of its prompt to have been cached."""
    flight.prompt_tokens, flight.completion_tokens = tokens, made
    flight.cached_tokens = None if told is None else round(told * tokens)
    flight.tick(ms(0.5), made)
    flight.end(ms(ended), outcome)
    guess.finished(flight)


def page(prompt: float = 0, capacity: float | None = None) -> EngineCounters:
    return EngineCounters(ms(0), 0, 0, 0, prompt, 0, capacity)


def test_a_new_prompt_is_guessed_to_be_new_and_a_repeated_one_to_be_cached() -> None:
    """
    From the second time on, and while the first still runs.
    """
    guess = CacheGuess()

    assert sent(guess, chain(1, 2), row="a").cached_part == 0.0
    assert sent(guess, chain(1, 2), row="b").cached_part == pytest.approx(20 / 20.5)
    assert sent(guess, chain(1, 3), row="c").cached_part == pytest.approx(10 / 20.5)
    assert sent(guess, row="without a name").cached_part == 0.0


def test_prompts_of_one_request_share_their_beginnings() -> None:
    """
    The second of two prompts that begin alike finds the first one's beginning.
    """
    assert sent(CacheGuess(), chain(1, 2), chain(1, 3)).cached_part == pytest.approx(10 / 41)


def test_the_names_of_a_prompt_are_kept_as_long_as_it_runs() -> None:
    """
    The flight gives them away at once, and after its end nothing holds them but the cache itself.
    """
    guess = CacheGuess()
    flight = sent(guess, chain(1))
    assert flight.prefix == ()
    assert list(guess._opened) == ["r"]

    over(guess, flight, 0.0)
    assert guess._opened == {}


def test_an_engine_that_never_finds_anything_teaches_the_guess_to_be_zero() -> None:
    """
    Repeated prompts, and the engine tells no hits: it runs without prefix caching and does not say so.
    """
    guess = CacheGuess()
    guesses = []
    for number in range(80):
        flight = sent(guess, chain(1, 2, 3, 4, 5, 6, 7), row=str(number))
        guesses.append(flight.cached_part)
        over(guess, flight, 0.0)

    assert guesses[1] > 0.9
    assert guesses[10] < 0.65
    assert guesses[-1] < 0.05
    assert sent(guess, chain(1), n=2).reread_part < 0.05


def test_an_engine_that_says_so_needs_no_lesson() -> None:
    """
    A cache of no tokens: nothing is guessed, nor that a second answer finds what the first has read.
    """
    guess = CacheGuess()
    guess.scraped(page(capacity=0.0))
    sent(guess, chain(1, 2), row="a")
    flight = sent(guess, chain(1, 2), row="b", n=2)

    assert (flight.cached_part, flight.reread_part) == (0.0, 0.0)


def test_an_answer_sent_back_is_guessed_to_be_cached() -> None:
    """
    A second turn: the first prompt, the engine's own answer, and something new.
    """
    guess = CacheGuess()
    over(guess, sent(guess, chain(1), row="first"), 0.0)
    second = sent(guess, chain(1, 2, 3, quotes=(Quote(chain(1).end, 10.5, 20.5),)), row="second")

    assert second.cached_part == pytest.approx(20.5 / 30.5)


def test_answers_that_a_template_changes_are_judged_apart() -> None:
    """
    Their reasoning is left out, so they are never found again; what was a prompt before still is.
    """
    guess = CacheGuess()
    for number in range(250):
        over(guess, sent(guess, chain(number), row="first"), 0.0)
        second = chain(number, 2, 3, quotes=(Quote(chain(number).end, 10.5, 20.5),))
        flight = sent(guess, second, row="second")
        guessed = flight.cached_part
        over(guess, flight, 10.5 / 30.5)

    assert guessed == pytest.approx(10.5 / 30.5, rel=0.02)


def test_what_several_sequences_tell_teaches_nothing() -> None:
    """
    It is the hits of one of them.
    """
    guess = CacheGuess()
    for number in range(30):
        over(guess, sent(guess, chain(1, 2), row=str(number), n=4), 0.0)

    assert sent(guess, chain(1, 2), row="r").cached_part > 0.9


def test_without_a_word_of_the_engine_a_scrape_teaches() -> None:
    """
    An engine without --enable-prompt-tokens-details: the guess that its counters corrected is what was told.
    """
    guess = CacheGuess()
    for number in range(200):
        flight = sent(guess, chain(1, 2, 3), row=str(number))
        guessed = flight.cached_part
        flight.cached_part = 0.3
        over(guess, flight, None)
    assert guessed == pytest.approx(0.3, rel=0.05)

    for number in range(80):
        over(guess, sent(guess, chain(1, 2, 3), row=str(number)), None)
    assert sent(guess, chain(1, 2, 3)).cached_part == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("outcome", ["error", "aborted"])
def test_what_was_never_computed_is_not_in_the_cache(outcome: Outcome) -> None:
    """
    Refused, or gone while it queued: the next one to send it finds what was there before, and no more.
    """
    guess = CacheGuess()
    over(guess, sent(guess, chain(1), row="before"), 0.0)
    flight = sent(guess, chain(1, 2, 3), row="gone")
    flight.end(ms(9), outcome)
    flight.scheduled_guess = None if outcome == "error" else ms(9)
    guess.finished(flight)

    assert sent(guess, chain(1, 2, 3)).cached_part == pytest.approx(10 / 30.5)


def test_an_engine_that_began_anew_has_nothing_cached() -> None:
    """
    Its counters fell.
    """
    guess = CacheGuess()
    guess.scraped(page(1000))
    sent(guess, chain(1, 2), row="a")
    guess.scraped(page(1010))
    assert sent(guess, chain(1, 2), row="b").cached_part > 0.9
    guess.scraped(page(20))

    assert sent(guess, chain(1, 2), row="c").cached_part == 0.0


def test_the_room_is_what_the_engine_says_in_its_own_tokens() -> None:
    """
    Here a unit is 50 tokens, as finished requests tell: a cache of 1600 tokens has room for 32 units, not 100.
    """
    guess = CacheGuess()
    for number in range(600):
        over(guess, sent(guess, chain(number), row=str(number)), 0.0, tokens=525)
    guess.scraped(page(capacity=1600))
    over(guess, sent(guess, chain(-2, -3), row="a"), 0.0, tokens=1025)
    over(guess, sent(guess, chain(-4, -5), row="b"), 0.0, tokens=1025)

    assert sent(guess, chain(-2, -3), row="c").cached_part == pytest.approx(10 / 20.5, abs=0.06)
    guess.scraped(page(capacity=None))
    assert len(guess._cache) <= 33


def test_a_small_prompt_teaches_less_than_a_large_one() -> None:
    """
    A health probe of one word is shorter than the engine's blocks and never found.
    """
    guess = CacheGuess()
    tiny = Chain((b"tiny",), 1.2, b"end of tiny")
    for number in range(10):
        over(guess, sent(guess, tiny, row=str(number)), 0.0, tokens=19)

    assert sent(guess, chain(1), chain(1)).cached_part > 0.4


def test_it_remembers_about_twenty_requests() -> None:
    """
    After a change of the engine it takes some requests, not some hundreds, to learn anew.
    """
    assert 10 < 1 / (1 - RATIO_FADE) < 40
