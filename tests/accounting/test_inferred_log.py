"""A step log is made from the tokens of all streams: what was in each step, and when it ran."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from proxy.accounting.activity import Span, Work
from proxy.accounting.flight import ABORT_TAIL, Flight
from proxy.accounting.inferred_log import MOST_WAITING, InferredLog
from proxy.accounting.power_curve import Done
from proxy.accounting.step_work import whole_of
from proxy.accounting.steps import Computed
from proxy.accounting.ticks import Ticks
from proxy.accounting.units import SECOND, Nanoseconds
from proxy.accounting.weights import Weights
from tests.accounting.flights import WEIGHTS, ms, silent
from tests.accounting.scripted import Engine, decoding

ALWAYS = ms(1_000_000)


def inferred(
    flights: Sequence[Flight],
    *,
    until: Nanoseconds = ALWAYS,
    log: InferredLog | None = None,
    weights: Weights = WEIGHTS,
    blind: Sequence[Span] = (),
) -> list[Done]:
    """The steps that are known once a window up to there has been divided."""
    log = log or InferredLog()
    log.extend(until, flights, weights, blind)
    return [done for done, _ in log.curve(weights).parts(0, ALWAYS)]


def of(engine: Engine, **options: object) -> list[Done]:
    """The same of a script."""
    return inferred(list(engine.flights.values()), **options)  # type: ignore[arg-type]


def uneven(engine: Engine, spread_ms: float, seed: int = 1) -> Engine:
    """The script, its tokens arriving unevenly."""
    random = Random(seed)
    for flight in engine.flights.values():
        ticks, at = Ticks(), Nanoseconds(0)
        for then, tokens in flight.ticks:
            at = max(Nanoseconds(at + 1000), Nanoseconds(then + round(random.gauss(0, spread_ms) * 1e6)))
            ticks.add(at, tokens)
        flight.ticks, flight.first = ticks, ticks[0].at
        flight.last = at
    return engine


def same(found: Work, known: Work) -> bool:
    """Whether energy is predicted alike; a stream counts its context with the token that it has just got."""
    contexts = found.decode_context == pytest.approx(known.decode_context, rel=0.3)
    return contexts and (found.prefill, found.decode, found.steps, found.prefill_context) == pytest.approx(
        (known.prefill, known.decode, known.steps, known.prefill_context)
    )


def test_steps_of_streams_are_told_one_by_one() -> None:
    """Each with its start, its end, and a position of every stream; the first holds their prompts."""
    engine = decoding(3)
    found = of(engine)

    assert [(one.step.start, one.step.end) for one in found] == [(one.start, one.end) for one in engine.steps]
    assert all(same(one.work, whole_of(known, WEIGHTS)) for one, known in zip(found, engine.steps, strict=True))


def test_contexts_grow_with_the_tokens() -> None:
    """Exactly what each position reads: the prompt and the tokens before it."""
    engine = Engine()
    engine.send("a", prompt=700)
    engine.prefill("a", 700)
    engine.decode("a", times=20)

    assert [one.work.decode_context for one in of(engine)] == [0, *range(701, 721)]


@pytest.mark.parametrize("waits", [1.0, 5.0, 9.0])
def test_a_prompt_is_in_the_step_before_its_first_token(waits: float) -> None:
    """Also when it came amid the step before."""
    engine = decoding(3)
    engine.send("prompt", prompt=1500).sent = ms(engine.at - waits)
    engine.step_ms = 55.0
    engine.prefill("prompt", 1500, "d0", "d1", "d2")
    engine.step_ms = 10.0
    engine.decode("d0", "d1", "d2", "prompt", times=20)
    found = of(engine)

    assert [one.work.prefill for one in found] == [300, *[0] * 20, 1500, *[0] * 20]
    assert found[21].step.start == ms(210)


def chunked(engine: Engine, row: str, *sizes: int) -> None:
    """A prompt read in chunks beside d0 and d1, in steps as long as their tokens make them."""
    engine.send(row, prompt=sum(sizes))
    for size in sizes:
        engine.run(
            Computed(row, 0, size, 0), Computed("d0", 100, 0, 1), Computed("d1", 100, 0, 1), ms_each=10 + size * 0.03
        )
        engine.token("d0", "d1")
    engine.token(row)


def test_a_long_prompt_fills_the_budget_of_each_step_but_the_last() -> None:
    """2048 positions a step less the decodes, once prompts have told the budget."""
    engine, sizes = decoding(2), (2046, 2046, 500)
    for number in range(4):
        chunked(engine, f"before{number}", 2046, 400)
        engine.end(f"before{number}")
        engine.decode("d0", "d1", times=20)
    chunked(engine, "prompt", *sizes)
    engine.decode("d0", "d1", "prompt", times=20)
    found = [one.work for one in of(engine) if one.work.prefill]

    assert [one.prefill for one in found[-3:]] == pytest.approx([2046, 2046, 500])
    assert sum(one.prefill_context for one in found[-3:]) == pytest.approx(WEIGHTS.prefill_context(0, sum(sizes)))


def test_prompts_that_share_a_step_are_read_in_turn() -> None:
    """The second begins in what the first leaves; their sum is in the step that both were in."""
    engine = decoding(2)
    chunked(engine, "before", 2046, 400)
    engine.end("before")
    engine.decode("d0", "d1", times=20)
    engine.send("one", prompt=1500)
    engine.send("two", prompt=1000)
    beside = Computed("d0", 100, 0, 1), Computed("d1", 100, 0, 1)
    engine.run(Computed("one", 0, 1500, 0), Computed("two", 0, 546, 0), *beside, ms_each=71)
    engine.token("d0", "d1", "one")
    engine.run(Computed("two", 546, 454, 0), *beside, Computed("one", 1500, 0, 1), ms_each=24)
    engine.token("d0", "d1", "one", "two")
    engine.decode("d0", "d1", "one", "two", times=20)
    found = [one.work for one in of(engine) if one.work.prefill]

    assert [one.prefill for one in found[-2:]] == [2046, 454]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("streams", [2, 6])
def test_tokens_that_arrive_unevenly_show_the_same_steps(streams: int, seed: int) -> None:
    """By nearly as much as a step takes: none is lost or invented, and ends are nearer than the tokens tell."""
    engine = decoding(streams)
    rows = [f"d{number}" for number in range(streams)]
    engine.send("prompt", prompt=1500)
    engine.step_ms = 55.0
    engine.prefill("prompt", 1500, *rows)
    engine.step_ms = 10.0
    engine.decode(*rows, "prompt", times=30)
    found = of(uneven(engine, 5.0, seed))

    assert len(found) == len(engine.steps)
    assert [one.work.decode for one in found] == [len(one.sequences) for one in engine.steps[:0]] + [
        whole_of(one, WEIGHTS).decode for one in engine.steps
    ]
    assert sum(one.work.prefill for one in found[20:24]) == pytest.approx(1500)
    errors = [one.step.end - known.end for one, known in zip(found, engine.steps, strict=True)]
    assert sum(error**2 for error in errors) / len(errors) < (3.5e6) ** 2


def test_windows_one_after_the_other_tell_what_all_at_once_does() -> None:
    """Although ticks of divided windows are forgotten, and requests that are over with them."""
    engine = decoding(3)
    engine.end("d0")
    engine.decode("d1", "d2", times=30)
    whole = of(engine)
    log = InferredLog()
    for until in range(100, 900, 100):
        flights = [one for one in engine.flights.values() if one.ended is None or ms(until - 100) <= one.ended]
        heard = [_heard(flight, ms(until)) for flight in flights]
        parts = inferred(heard, until=ms(until), log=log)
        for flight in engine.flights.values():
            flight.forget_before(ms(until))

    assert [(one.step, one.work) for one in parts] == [(one.step, one.work) for one in whole]


def _heard(flight: Flight, instant: Nanoseconds) -> Flight:
    """What is known of it at an instant."""
    known, ticks = replace(flight), Ticks()
    for at, tokens in flight.ticks:
        if at <= instant:
            ticks.add(at, tokens)
    known.ticks = ticks
    if flight.ended is not None and flight.ended > instant:
        known.ended = None
    return known


def test_two_tokens_in_one_chunk_are_two_steps() -> None:
    """Where no other stream shows the first of them, both are in one stretch; nothing is lost."""
    flight = Flight("a", "a", ms(0), prompt_tokens=100, cached_tokens=0)
    flight.tick(ms(10), 1)
    for number in range(1, 20):
        flight.tick(ms(10 + 20 * number), 1 + 2 * number)
    flight.end(ms(400), "ok")
    found = inferred([flight])

    assert [one.work.steps for one in found] == [1, *[2] * 19]
    assert sum(one.work.decode for one in found) == 38


def test_a_stream_that_misses_steps_is_laid_beside_the_others_again() -> None:
    """As one that is preempted: later tokens are not taken for those of earlier steps."""
    engine = decoding(4)
    engine.decode("d1", "d2", "d3", times=1)
    engine.decode("d0", "d1", "d2", "d3", times=20)
    log = InferredLog()
    flights = list(engine.flights.values())
    inferred([_heard(flight, ms(210)) for flight in flights], until=ms(210), log=log)
    found = inferred(flights, log=log)

    assert [one.work.decode for one in found[-21:]] == [3, *[4] * 20]


def test_steps_wait_for_the_first_token_of_whoever_may_be_in_them() -> None:
    """What a prompt had in them is not known before."""
    engine = decoding(3)
    engine.send("prompt", prompt=1500)
    engine.decode("d0", "d1", "d2", times=30)

    assert len(of(engine)) == 21


def test_a_prompt_alone_has_the_steps_that_it_must_have_had() -> None:
    """Nobody shows them: one stretch from when it came, with a step for each 2048 tokens."""
    engine = Engine()
    engine.rest(1000)
    engine.send("a", prompt=5000)
    engine.step_ms = 150.0
    engine.prefill("a", 5000)
    engine.step_ms = 10.0
    engine.decode("a", times=20)
    first = of(engine)[0]

    assert (first.step.start, first.step.end) == (ms(1000), ms(1150))
    assert (first.work.prefill, first.work.steps) == (5000, 3)


def test_nothing_runs_between_requests() -> None:
    """A step begins with the prompt in it, not with the end of the one before."""
    engine = Engine()
    for row in "ab":
        engine.send(row)
        engine.prefill(row, 100)
        engine.decode(row, times=20)
        engine.end(row)
        engine.rest(500)
    log = InferredLog()
    of(engine, log=log)

    assert not log.curve(WEIGHTS).busy(ms(200), ms(700))
    assert log.curve(WEIGHTS).busy(ms(710), ms(900))


@pytest.mark.parametrize(
    "other",
    [
        silent("other", sent=95, ended=150),
        Flight("other", "other", ms(95), prompt_tokens=50, rough=True),
        Flight("other", "other", ms(95), 3, prompt_tokens=50),
    ],
    ids=["silent", "rough", "several"],
)
def test_steps_are_left_out_that_may_hold_what_does_not_tell_its_tokens(other: Flight) -> None:
    """From when it was sent until it is over."""
    if other.ended is None:
        other.end(ms(150), "ok")
    found = inferred([*decoding(3).flights.values(), other])

    assert {one.step.end for one in found if one.step.end <= ms(150) + ABORT_TAIL} == {ms(10 * n) for n in range(1, 10)}


def test_steps_are_left_out_while_strangers_run() -> None:
    """What they had in them nobody here knows."""
    found = of(decoding(3), blind=[Span(ms(95), ms(145))])

    assert [one.step.end for one in found] == [ms(10 * n) for n in (*range(1, 10), *range(16, 22))]


def test_a_client_that_leaves_before_its_first_token_hides_the_steps() -> None:
    """Until the engine has dropped it."""
    engine = decoding(3)
    engine.send("gone", prompt=5000).sent = ms(100)
    engine.flights["gone"].end(ms(120), "aborted")
    engine.decode("d0", "d1", "d2", times=40)
    found = of(engine)

    assert not [one for one in found if ms(100) < one.step.end <= ms(120) + ABORT_TAIL]
    assert [one for one in found if one.step.end > ms(380)]


def test_experts_that_a_step_streams_follow_its_tokens() -> None:
    """As in a log of the engine's own."""
    weights = replace(WEIGHTS, experts=2.0, touched=0.1)
    engine = decoding(3)

    assert [one.work.experts for one in of(engine, weights=weights)] == pytest.approx(
        [whole_of(one, weights).experts for one in engine.steps]
    )


def test_old_steps_are_forgotten() -> None:
    """All that ended before an instant."""
    log, engine = InferredLog(), decoding(2)
    of(engine, log=log)
    log.forget_before(ms(100))

    assert log.curve(WEIGHTS).since == ms(100)
    assert SECOND > log.curve(WEIGHTS).blur > 0


def test_steps_do_not_wait_without_end() -> None:
    """Where some prompt is always on its way, it begins anew with what runs then."""
    log, engine = InferredLog(), decoding(2)
    engine.send("never", prompt=100)
    engine.decode("d0", "d1", times=MOST_WAITING + 100)
    assert len(of(engine, log=log)) == 21
    engine.end("never", outcome="aborted")
    of(engine, log=log)
    for flight in engine.flights.values():
        flight.forget_before(ms(engine.at))
    engine.decode("d0", "d1", times=60)  # of which the first may still hold what was aborted

    assert len(of(engine, log=log)) > 21 + 30
