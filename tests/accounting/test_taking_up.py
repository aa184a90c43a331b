"""When the engine took a prompt up, read off the streams beside it."""

from array import array
from dataclasses import replace
from random import Random

import pytest

from proxy.accounting.engine_view import CROWD, EngineView
from proxy.accounting.flight import Flight
from proxy.accounting.step_clock import ONE_BY_ONE, Pace
from proxy.accounting.taking_up import TakingUp
from proxy.accounting.units import MILLISECOND
from tests.accounting.flights import WEIGHTS, ms
from tests.accounting.scripted import Engine, decoding


def reads(engine: Engine, row: str, tokens: int, *, chunks: int, waits: float = 0.0) -> float:
    """A prompt that waited amid a step is read in slow steps; streams go on after it. Gives when it was taken up."""
    streams = [one for one, flight in engine.flights.items() if flight.first is not None and flight.ended is None]
    engine.send(row, prompt=tokens).sent = ms(engine.at - waits)
    began, engine.step_ms = engine.at, 40.0
    engine.prefill(row, tokens, *streams, steps=chunks)
    engine.step_ms = 10.0
    engine.end(row)
    engine.decode(*streams, times=5)
    return began


def guessed(engine: Engine, *, taking_up: TakingUp | None = None, pace: Pace = ONE_BY_ONE) -> None:
    """Asks once about all that has been sent."""
    (taking_up or TakingUp()).guess(list(engine.flights.values()), pace)


@pytest.mark.parametrize("streams", [1, 2, 5])
@pytest.mark.parametrize("chunks", [1, 2, 5])
@pytest.mark.parametrize("waits", [0.5, 3, 7.5])
def test_a_prompt_that_awaits_the_end_of_a_step_is_taken_up_at_it(waits: float, chunks: int, streams: int) -> None:
    """Its own first token came a whole number of steps after it."""
    engine = decoding(streams)
    began = reads(engine, "prompt", 2048 * chunks, chunks=chunks, waits=waits)
    guessed(engine)

    assert engine.flights["prompt"].start == pytest.approx(ms(began), abs=MILLISECOND / 10)


def test_without_a_stream_beside_it_nothing_is_guessed() -> None:
    """Neither of the first prompt of all, nor of one whose neighbour began later than itself."""
    engine = decoding(1)
    guessed(engine)

    assert engine.flights["d0"].scheduled_guess is None


def test_nothing_is_guessed_before_the_stream_beside_it_has_gone_on() -> None:
    """As long as it has no token from after the prompt's, it may be one that stalls; it is asked again."""
    engine = decoding(1)
    engine.send("prompt", prompt=500).sent = ms(engine.at - 4)
    engine.at += 40
    engine.token("prompt")
    guessed(engine)
    assert engine.flights["prompt"].scheduled_guess is None

    engine.token("d0")
    guessed(engine)
    assert engine.flights["prompt"].start == ms(engine.at - 40)


def test_what_the_engine_says_goes_first() -> None:
    """A queue time that it told is not a guess."""
    engine = decoding(1)
    reads(engine, "prompt", 500, chunks=1, waits=5)
    engine.flights["prompt"].scheduled = ms(engine.at - 1000)
    guessed(engine)

    assert engine.flights["prompt"].scheduled_guess is None


def test_a_prompt_is_not_taken_up_before_it_was_sent() -> None:
    """However unevenly the stream's tokens come."""
    engine = decoding(1)
    engine.send("prompt", prompt=500).sent = ms(engine.at + 2)
    engine.prefill("prompt", 500, "d0")
    engine.decode("d0", times=5)
    guessed(engine)

    assert engine.flights["prompt"].start >= engine.flights["prompt"].sent


def test_a_prompt_that_awaits_others_is_read_in_as_few_steps_as_its_chunks() -> None:
    """Once it is known how many tokens a step computes: before that, the steps of others are taken for its own."""
    engine, taking_up = decoding(1), TakingUp()
    for number in range(30):
        reads(engine, f"early{number}", 2048 * (1 + number % 3), chunks=1 + number % 3, waits=5)
    guessed(engine, taking_up=taking_up)
    engine.send("late", prompt=1000)
    engine.prefill("early0", 6000, "d0", steps=3)
    began = engine.at
    engine.prefill("late", 1000, "d0")
    engine.decode("d0", times=5)
    guessed(engine)
    assert engine.flights["late"].start < ms(began - 20)

    engine.flights["late"].scheduled_guess = None
    guessed(engine, taking_up=taking_up)
    assert engine.flights["late"].start == ms(began)


def test_tokens_that_come_unevenly_move_it_by_little() -> None:
    """By less than the steps beside it, in most cases: a prompt makes its step long, which shows."""
    off = []
    for seed in range(50):
        draws, engine = Random(seed), decoding(3)
        began = reads(engine, "prompt", 1500, chunks=1, waits=draws.uniform(1, 9))
        for flight in engine.flights.values():
            times = [at + draws.gauss(0, 3) * MILLISECOND for at in flight.ticks.times]
            flight.ticks.times[:] = array("q", map(round, sorted(times)))
        engine.flights["prompt"].first = engine.flights["prompt"].ticks.times[0]
        guessed(engine)
        off.append(abs(engine.flights["prompt"].start - ms(began)) / MILLISECOND)

    assert sorted(off)[40] < 8


@pytest.mark.parametrize(("sequences", "tokens_per_step"), [(1, 2.0), (3, 1.0), (2, 2.5)])
def test_a_stream_that_gains_several_tokens_a_step_shows_steps_all_the_same(
    sequences: int, tokens_per_step: float
) -> None:
    """Several answers to one prompt, and drafted tokens."""
    engine = decoding(1)
    began = reads(engine, "prompt", 3000, chunks=2, waits=5)
    stream = engine.flights["d0"]
    gains = sequences * tokens_per_step
    stream.sequences = sequences
    stream.ticks.tokens[:] = array("q", (round(gains * made) for made in stream.ticks.tokens))
    guessed(engine, pace=replace(ONE_BY_ONE, tokens_per_step=tokens_per_step))

    assert engine.flights["prompt"].start == pytest.approx(ms(began), abs=2 * MILLISECOND)


def test_of_an_answer_in_one_piece_nobody_knows_its_first_token() -> None:
    """Nor of an embedding, nor of what does no work: all that is left as it is."""
    engine = decoding(1)
    silent = engine.send("silent", silent=True)
    silent.first = ms(engine.at + 30)
    tokenize = Flight("t", "t", ms(engine.at), metered_work=False, first=ms(engine.at + 30))
    engine.flights["t"] = tokenize
    engine.decode("d0", times=10)
    guessed(engine)

    assert silent.scheduled_guess is None
    assert tokenize.scheduled_guess is None


@pytest.mark.parametrize("experts", [0.0, 2.0], ids=["dense", "mixture"])
@pytest.mark.parametrize("others", [2, 2 * CROWD], ids=["few", "crowd"])
def test_in_a_crowd_only_the_experts_of_a_mixture_are_worth_asking_for(others: int, experts: float) -> None:
    """There the place of a prompt within a second decides little, and a thousand a second would be asked about."""
    engine = decoding(1)
    reads(engine, "prompt", 1500, chunks=1, waits=5)
    for number in range(others):
        engine.send(f"waiting{number}")
    EngineView().taken_up(list(engine.flights.values()), replace(WEIGHTS, experts=experts, touched=0.1))

    assert (engine.flights["prompt"].scheduled_guess is None) == (others > CROWD and not experts)
