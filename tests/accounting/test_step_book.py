"""What the engine's own log says of a window: who was in its steps, with what, and whether it knows all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting import step_book
from proxy.accounting.activity import Span, Work
from proxy.accounting.engine_log import BREATH, LINGERS
from proxy.accounting.flight import Flight, Outcome
from proxy.accounting.step_book import LOOKS_BACK, REMEMBERED_STEPS, SILENCE, StepBook
from proxy.accounting.steps import Computed, EngineStep
from tests.accounting.flights import WEIGHTS, ms, silent, stream
from tests.accounting.scripted import book_of, group, opened, read, request_id_of, step


def decode(name: str, before: int = 100) -> Computed:
    return Computed(name, before, 0, 1)


def flight(row: str, *, request_id: str | None = None, sequences: int = 1) -> Flight:
    return Flight(row, request_id or row, ms(0), sequences)


def seen(
    book: StepBook, flights: Sequence[Flight], start: float = 0, end: float = 1000
) -> tuple[dict[str, Work], Work | None]:
    """Each flight's work between two milliseconds, and the strangers' if there were any."""
    found = book.activity(Span(ms(start), ms(end)), flights, WEIGHTS)
    assert found.logged
    works = {flight.row: work for flight, work in zip(found.flights, found.works, strict=True)}
    return works, found.strangers[0] if found.strangers else None


def test_the_features_of_one_step() -> None:
    """A chunk of prompt behind a cached prefix beside a decode: P, PC, D, C and half a step each."""
    flights = [flight("p"), flight("d")]
    book = book_of([step(1, 0, 10, Computed("p", 1000, 50, 0), decode("d", 500))], flights)

    works, stranger = seen(book, flights)

    assert stranger is None
    assert works["p"].prefill == 50
    assert works["p"].prefill_context == sum(range(1000, 1050))
    assert (works["d"].decode, works["d"].decode_context) == (1, 500)
    assert (0.5, 0.5) == (works["p"].steps, works["d"].steps)
    assert (ms(10), ms(10)) == (works["p"].present_ns, works["d"].present_ns)


def test_drafted_positions_read_the_context_once() -> None:
    """Four positions behind 100 tokens are one reading of 103: keys and values are streamed once a step."""
    flights = [flight("d")]
    works, _ = seen(book_of([step(1, 0, 10, Computed("d", 100, 0, 4))], flights), flights)

    assert (4, 103) == (works["d"].decode, works["d"].decode_context)


def test_an_answer_computed_anew_is_work_like_a_prompts() -> None:
    """After a preemption: 100 prompt tokens and 49 of the answer in one chunk, and the next position beside it."""
    flights = [flight("d")]
    works, _ = seen(book_of([step(1, 0, 10, Computed("d", 0, 100, 50, 149))], flights), flights)

    assert (149, sum(range(149))) == (works["d"].prefill, works["d"].prefill_context)
    assert (1, 149) == (works["d"].decode, works["d"].decode_context)
    assert (50, 2) == (works["d"].output_tokens - 1, works["d"].tokens)


def test_tokens_are_the_prompts_and_the_answers() -> None:
    """For plain token share: cached ones too, and the first of the answer, which takes no position."""
    flights = [flight("r")]
    steps = [step(1, 0, 10, Computed("r", 60, 40, 0)), *(step(n, n * 10 - 10, n * 10, decode("r")) for n in (2, 3))]

    works, _ = seen(book_of(steps, flights), flights)

    assert (103, 3) == (works["r"].tokens, works["r"].output_tokens)


def test_sequences_of_one_request_are_joined() -> None:
    """n = 3: three names of the engine are one request's work."""
    flights = [flight("n", request_id="R", sequences=3), flight("other")]
    held = [decode(f"R/{child}") for child in range(3)]

    works, stranger = seen(book_of([step(1, 0, 10, *held, decode("other"))], flights), flights)

    assert stranger is None
    assert (3, 0.75) == (works["n"].decode, works["n"].steps)


def test_the_same_request_id_twice_is_two_rows() -> None:
    """Each takes as many names as it has sequences, the older one first."""
    flights = [flight("old", request_id="R"), flight("new", request_id="R")]
    steps = [step(1, 0, 10, decode("R/a")), step(2, 10, 20, decode("R/a"), decode("R/b"))]

    works, stranger = seen(book_of(steps, flights), flights)

    assert stranger is None
    assert (1.5, 0.5) == (works["old"].steps, works["new"].steps)


def test_a_name_nobody_knows_is_a_stranger() -> None:
    """Also one that came before its request was sent."""
    first, later = flight("r"), flight("late")
    book = book_of([step(1, 0, 10, decode("r"), decode("late"), decode("x"))], [first])
    book.opened(later)
    book.take(step(2, 10, 20, decode("late")))

    works, stranger = seen(book, [first, later])

    assert {"r"} == set(works)
    assert stranger is not None
    assert 3 == stranger.decode


def test_the_likeliest_reading_of_a_name_that_was_sent_is_taken() -> None:
    """A name may stand for several request ids: those never sent are passed over."""
    book = StepBook(lambda name: ("never-sent", name, "x"))
    flights = [flight("x"), flight("r")]
    for one in flights:
        book.opened(one)
    book.take(step(1, 0, 10, decode("r")))

    assert {"r"} == set(seen(book, flights)[0])


def test_a_settled_request_is_a_stranger_in_later_steps() -> None:
    """What the engine still logs of it is charged to nobody who is there."""
    gone, other = flight("gone"), flight("other")
    book = book_of([step(1, 0, 10, decode("gone"), decode("other"))], [gone, other])
    book.closed(gone)
    book.take(step(2, 10, 20, decode("gone"), decode("other"), decode("gone/2")))

    works, stranger = seen(book, [other], start=10)

    assert (1 / 3, 2 / 3) == (pytest.approx(works["other"].steps), pytest.approx(stranger.steps if stranger else 0))


def test_steps_that_cross_a_border_are_split_by_time() -> None:
    """A step of 100 ms of which 30 lie in the window gives it three tenths of all."""
    flights = [flight("r")]
    book = book_of([step(1, 70, 170, Computed("r", 0, 1000, 0))], flights)

    works, _ = seen(book, flights, 100, 200)
    assert works["r"].prefill == pytest.approx(700)
    assert works["r"].steps == pytest.approx(0.7)
    assert works["r"].prefill + seen(book, flights, 0, 100)[0]["r"].prefill == pytest.approx(1000)


def sequence(name: str, before: int, prefill: int, decode: int, recomputed: int) -> Computed:
    """No more is computed again than is computed."""
    return Computed(name, before, prefill, decode, min(recomputed, prefill + decode))


steps_drawn = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.integers(1, 300),
        st.lists(
            st.builds(
                sequence,
                st.sampled_from(["a", "b", "b/2", "c", "stranger"]),
                st.integers(0, 5000),
                st.integers(0, 2000),
                st.integers(0, 5),
                st.sampled_from([0, 0, 0, 1, 2005]),
            ),
            min_size=1,
            max_size=5,
            unique_by=lambda one: one.name,
        ),
    ),
    max_size=12,
)
cuts_drawn = st.lists(st.integers(1, 4999), max_size=8, unique=True).map(sorted)


def laid_out(drawn: list[tuple[int, int, list[Computed]]]) -> list[EngineStep]:
    at, found = 0, []
    for number, (pause, length, held) in enumerate(drawn, 1):
        found.append(step(number, at + pause, at + pause + length, *held))
        at += pause + length
    return found


def with_pauses(steps: list[EngineStep]) -> Iterator[EngineStep]:
    """Each step with the pause before it, where that is its own: a breath, or somebody goes on over it."""
    for before, one in zip([None, *steps], steps, strict=False):
        names = {each.name for each in before.sequences} if before else set()
        if before and (one.start - before.end < BREATH or any(each.name in names for each in one.sequences)):
            yield one._replace(start=before.end)
        else:
            yield one


@given(steps_drawn, cuts_drawn)
def test_work_is_conserved_over_any_cut_into_windows(
    drawn: list[tuple[int, int, list[Computed]]], cuts: list[int]
) -> None:
    """The sum over windows of every feature is that of the steps, however the time is cut."""
    steps, flights = laid_out(drawn), [flight("a"), flight("b", sequences=2), flight("c")]
    book = book_of(steps, flights)
    total = [0.0] * len(fields(Work))
    edges = [0, *cuts, 5000]
    for start, end in pairwise(edges):
        part = book.activity(Span(ms(start), ms(end)), flights, WEIGHTS).total()
        total = [have + getattr(part, one.name) for have, one in zip(total, fields(Work), strict=True)]
    work = Work(*total)
    held = [one for each in steps for one in each.sequences]

    chunks = [(one, max(one.prefill, min(one.recomputed, one.prefill + one.decode))) for one in held]
    assert work.prefill == pytest.approx(sum(chunk for _, chunk in chunks))
    assert work.prefill + work.decode == pytest.approx(sum(one.prefill + one.decode for one in held))
    assert work.steps == pytest.approx(len(steps))
    assert work.prefill_context == pytest.approx(sum(WEIGHTS.prefill_context(o.before, chunk) for o, chunk in chunks))
    assert work.present_ns == pytest.approx(sum(len(s.sequences) * (s.end - s.start) for s in with_pauses(steps)))
    new = sum(one.prefill + one.decode - one.recomputed for one in held)
    # A second sequence of a request finds the same cached tokens: they count once.
    cached = {request_id_of(one.name): one.before for one in reversed(held)}
    assert work.tokens == pytest.approx(new + sum(cached.values()) + len({one.name for one in held}))


@given(steps_drawn, st.integers(1, 5000), st.integers(1, 5000))
def test_nothing_is_negative_and_no_more_than_the_window_is_covered(
    drawn: list[tuple[int, int, list[Computed]]], one: int, other: int
) -> None:
    """Of any window, whatever the steps."""
    start, end = sorted((one, other + 5000))
    flights = [flight("a"), flight("b", sequences=2), flight("c")]
    found = book_of(laid_out(drawn), flights).activity(Span(ms(start), ms(end)), flights, WEIGHTS)

    assert 0 <= found.covered_ns <= ms(end - start)
    for work in [*found.works, *found.strangers]:
        assert min(getattr(work, each.name) for each in fields(Work)) >= 0
    assert (found.covered_ns > 0) == (found.total().steps > 0)


def test_a_short_pause_is_the_engines_own_work() -> None:
    """Shorter than a breath it is covered whoever was in the steps; longer only if one of them goes on."""
    breath_ms = BREATH / 1e6

    def covered(pause_ms: float, follower: str) -> float:
        book = book_of([step(1, 0, 10, decode("a")), step(2, 10 + pause_ms, 20 + pause_ms, decode(follower))])
        return book.activity(Span(ms(0), ms(1000)), [], WEIGHTS).covered_ns / 1e6

    assert covered(breath_ms - 0.5, "b") == pytest.approx(20 + breath_ms - 0.5)
    assert covered(breath_ms + 50, "b") == pytest.approx(20)
    assert covered(breath_ms + 50, "a") == pytest.approx(70 + breath_ms)


def test_a_pause_belongs_to_the_step_after_it_in_every_window() -> None:
    """Covered alike whether the border of two windows lies in it or not."""
    flights = [flight("r")]
    book = book_of([step(1, 0, 40, Computed("r", 0, 10, 0)), step(2, 160, 250, Computed("r", 10, 0, 1))], flights)

    parts = [book.activity(span(start, start + 100), flights, WEIGHTS) for start in (0, 100, 200)]

    assert [ms(100), ms(100), ms(50)] == [part.covered_ns for part in parts]
    assert [60 / 210, 100 / 210, 50 / 210] == pytest.approx([part.works[0].decode for part in parts])


def test_a_pause_that_steps_were_lost_in_belongs_to_no_step() -> None:
    """The one after it would be spread over time that is known from token times."""
    flights = [flight("r")]
    book = book_of([step(1, 0, 10, decode("r")), step(7, 1000, 1010, Computed("r", 100, 2000, 0))], flights)

    assert seen(book, flights, 1000, 1100)[0]["r"].prefill == 2000


def test_a_step_that_held_nobody_is_no_work() -> None:
    """Logged or not, it is time without anybody."""
    flights = [flight("r")]
    book = book_of([step(1, 0, 20), step(2, 20, 200, Computed("r", 0, 1, 0))], flights)

    works, stranger = seen(book, flights)

    assert (1, None) == (works["r"].steps, stranger)
    assert book.activity(span(0, 20), flights, WEIGHTS).works == []
    assert book.covers(span(0, 200), flights)


def test_steps_of_several_engines_cover_their_union() -> None:
    """Two engines that run at the same time make no more time than there is."""
    book = book_of([step(1, 0, 50, decode("a")), step(1, 30, 80, decode("b"), engine=1)])

    found = book.activity(Span(ms(0), ms(200)), [], WEIGHTS)

    assert (ms(80), 2) == (found.covered_ns, found.total().steps)


def span(start: float, end: float) -> Span:
    return Span(ms(start), ms(end))


def test_without_a_log_nothing_is_covered() -> None:
    """Nor heard, nor known."""
    book = StepBook(request_id_of)

    assert (False, False, False) == (book.heard, book.knows(span(0, 10), []), book.covers(span(0, 10), []))


def test_a_log_from_the_first_step_on_covers_all_before_it_too() -> None:
    """Step 1 is the first the engine ever made."""
    book = book_of([step(1, 500, 510, decode("a"))])

    assert book.heard
    assert book.covers(span(0, 510), [])
    assert book.knows(span(0, 510), [])
    assert not book.knows(span(0, 511), [])


def test_a_log_joined_in_the_middle_covers_nothing_before() -> None:
    """The proxy came later than the engine: what ran until now is known from token times only."""
    book = book_of([step(77, 500, 510, decode("a")), step(78, 510, 600, decode("a"))])

    assert not book.covers(span(400, 510), [])
    assert book.covers(span(500, 600), [])


def test_a_lost_step_uncovers_the_time_between_its_neighbours() -> None:
    """And no other."""
    book = book_of([step(1, 0, 10, decode("a")), step(3, 20, 30, decode("a")), step(4, 30, 40, decode("a"))])

    assert book.covers(span(0, 10), [])
    assert not book.covers(span(5, 15), [])
    assert not book.covers(span(12, 18), [])
    assert book.covers(span(20, 40), [])


def test_an_engine_that_starts_anew_counts_from_one_again() -> None:
    """The old process could not tell its last steps any more: between the two all is known from token times only."""
    steps = [step(9, 0, 10, decode("a"), boot=1), step(1, 50, 60, decode("a"), boot=2)]
    book = book_of(steps)

    assert 0 == book.lost
    assert book.covers(span(0, 10), [])
    assert not book.covers(span(0, 11), [])
    assert not book.covers(span(49, 60), [])
    assert book.covers(span(50, 60), [])


def test_an_engine_that_starts_anew_may_lose_its_first_steps_too() -> None:
    """It counts from one, and says that it had to drop those before the first one heard."""
    book = book_of([step(9, 0, 10, decode("a"), boot=1), step(5, 50, 60, decode("a"), boot=2)._replace(dropped=4)])

    assert 4 == book.lost
    assert not book.covers(span(40, 50), [])
    assert book.covers(span(50, 60), [])


def rolling(*, until: int = 60, listening: bool = True) -> tuple[StepBook, Flight, Flight]:
    """A process far in its numbers that finishes a request beside the one that has come for it, in turns of 10 ms."""
    book = StepBook(request_id_of)
    if listening:
        book.listens(ms(0))
    draining, taken = flight("old"), flight("new")
    book.opened(draining)
    book.opened(taken)
    for turn in range(until):
        at = turn * 10
        book.take(step(5000 + turn, at, at + 10, decode("old", turn), boot=1))
        if turn >= 20:
            book.take(step(turn - 19, at + 3, at + 9, decode("new", turn), boot=2))
    return book, draining, taken


def test_two_processes_of_one_rank_lose_nothing_and_both_are_paid_for() -> None:
    """A rolling restart: both tell of steps in turns, each with numbers of its own."""
    book, draining, taken = rolling()

    works, stranger = seen(book, [draining, taken])

    assert (0, None) == (book.lost, stranger)
    assert (60, 40) == (works["old"].decode, works["new"].decode)
    assert book.covers(span(0, 599), [draining, taken])
    assert book.knows(span(0, 599), [draining, taken])


def test_what_the_old_process_tells_late_fills_the_time_before_the_new_one() -> None:
    """Its steps come together every 20 ms, so that it seems to have ended until it speaks again."""
    book = book_of([step(9, 0, 10, decode("a"), boot=1), step(1, 50, 60, decode("b"), boot=2)])
    assert not book.covers(span(20, 30), [])

    book.take(step(10, 10, 55, decode("a"), boot=1))
    assert book.covers(span(20, 30), [])
    assert 0 == book.lost


def test_steps_lost_in_a_rolling_restart_are_counted_once() -> None:
    """Those of either process, by its own numbers."""
    book, _, _ = rolling()
    book.take(step(5063, 600, 610, decode("old"), boot=1))
    book.take(step(43, 600, 610, decode("new"), boot=2))

    assert 3 + 2 == book.lost


def test_a_proxy_that_comes_into_a_rolling_restart_counts_no_loss() -> None:
    """Both were at work before, and nobody listened to their first steps; either may be heard first."""
    for first, second in ((1, 2), (2, 1)):
        book = StepBook(request_id_of)
        book.listens(ms(100))
        numbers = {1: 5000, 2: 300}
        for turn in range(30):
            for boot in (first, second):
                at = 100 + turn * 10
                book.take(
                    step(numbers[boot] + turn, at, at + 10, decode("ab"[boot - 1]), boot=boot)._replace(dropped=9)
                )

        assert 0 == book.lost
        assert book.covers(span(110, 400), [])
        # the one that has made fewer steps is there to stay
        assert [2] == [boot for (_, boot), log in book._logs.items() if log.replaced is None]


def test_a_process_that_has_ended_holds_no_window_of_the_one_after_it() -> None:
    """Neither for its successor's requests, nor, after a moment, for those of which no step was told yet."""
    book, draining, taken = rolling()
    draining.end(ms(600), "ok")
    waiting, last = flight("waiting"), 600 + int(LINGERS / ms(1))
    for turn in range(60, 300):
        book.take(step(turn - 19, turn * 10, turn * 10 + 10, decode("new", turn), boot=2))

    assert book.knows(span(600, 700), [draining, taken])
    assert not book.knows(span(600, 700), [draining, taken, waiting])
    assert book.knows(span(last, last + 100), [draining, taken, waiting])


def test_a_process_that_has_ended_is_forgotten_once_it_holds_no_request() -> None:
    """However many there were, and what is told of later windows stays the same."""
    book = StepBook(request_id_of)
    for boot in range(1, 200):
        held = flight(f"r{boot}")
        book.opened(held)
        for number in range(1, 11):
            at = boot * 1000 + number * 10
            book.take(step(number, at, at + 10, decode(held.row, number), boot=boot))
        book.forget_before(ms(boot * 1000 + 60))
        assert book.covers(span(boot * 1000 + 60, boot * 1000 + 110), [held])
        if boot > 10:
            book.closed(held)

    assert {*range(1, 11), 196, 197, 198, 199} == {boot for _, boot in book._logs}
    assert 0 == book.lost


def test_a_log_that_falls_silent_while_tokens_come_is_broken() -> None:
    """Then token times count, until it is heard again."""
    book = book_of([step(1, 0, 100, decode("a"))])
    ticking = stream("a", first=50, step=50, tokens=2 + int(SILENCE / ms(50)) + 2)

    assert not book.covers(span(100, 200), [ticking])
    assert not book.heard

    book.take(step(2, 1000, 1010, decode("a")))
    assert book.heard
    assert book.covers(span(1000, 1010), [ticking])


def test_a_log_that_is_silent_because_nothing_runs_is_whole() -> None:
    """Tokens that arrive shortly after the last step are that step's."""
    book = book_of([step(1, 0, 100, decode("a"))])

    assert book.covers(span(100, 200), [])
    assert book.covers(span(100, 200), [stream("a", first=90, step=10, tokens=3)])
    assert book.heard


def two_engines() -> tuple[StepBook, Flight, Flight]:
    """One has told up to 100 ms, the other up to 50, each of a request of its own."""
    ahead, behind = flight("a"), flight("b")
    steps = [step(1, 0, 100, decode("a")), step(1, 0, 50, decode("b"), engine=1)]
    return book_of(steps, [ahead, behind]), ahead, behind


def test_every_engine_must_have_told_in_which_a_request_may_be() -> None:
    """Its own one, or any while nobody knows which it is in."""
    book, ahead, behind = two_engines()

    assert book.knows(span(0, 50), [ahead, behind])
    assert not book.knows(span(0, 51), [ahead, behind])
    assert not book.knows(span(0, 51), [ahead, flight("new")])
    assert not book.knows(span(0, 101), [ahead])


def test_a_request_whose_engine_has_not_told_so_far_uncovers_the_window() -> None:
    """A step may go on that holds it: whatever is known of other engines."""
    book, ahead, behind = two_engines()

    assert book.covers(span(40, 100), [ahead])
    assert book.covers(span(40, 50), [ahead, behind])
    assert not book.covers(span(40, 51), [ahead, behind])
    assert not book.covers(span(40, 51), [ahead, flight("new")])
    assert not book.covers(span(100, 101), [ahead])


def test_what_can_be_in_no_step_uncovers_no_window() -> None:
    """A request without work, one that was refused, sent later or answered; and nobody at all."""
    book, ahead, answered = two_engines()
    answered.end(ms(200), "ok")
    refused = flight("refused")
    refused.end(ms(90), "error")
    tokenise = Flight("tokenise", "tokenise", ms(0), metered_work=False)

    assert book.covers(span(50, 100), [ahead, answered, refused, tokenise, Flight("later", "later", ms(100))])
    assert book.covers(span(150, 200), [answered, refused, tokenise])
    assert book.covers(span(200, 300), [])


@pytest.mark.parametrize("outcome", ["aborted", "partial"])
def test_a_request_broken_off_long_after_the_last_step_may_have_been_in_another(outcome: Outcome) -> None:
    """Shortly after it the engine had only to notice."""
    for after, covered in ((SILENCE / 1e6 - 1, True), (SILENCE / 1e6 + 100, False)):
        book, _, gone = two_engines()
        gone.end(ms(50 + after), outcome)
        assert book.covers(span(40, 80), [gone]) == covered


def test_children_of_one_request_that_have_finished_uncover_no_window() -> None:
    """They were in another engine, which has nothing to do since; the others' engine tells on."""
    one = flight("R", sequences=2)
    book = book_of([step(1, 0, 50, decode("R/0")), step(1, 0, 100, decode("R/1"), engine=1)], [one])

    assert book.covers(span(50, 100), [one])
    assert not book.covers(span(50, 101), [one])


def test_an_engine_that_has_nothing_to_do_need_not_tell() -> None:
    """Its request is over before the window's end, or was sent after it, or was never there."""
    book, ahead, behind = two_engines()
    assert book.knows(span(0, 100), [ahead])

    behind.end(ms(50), "ok")
    assert book.knows(span(0, 100), [ahead, behind, Flight("later", "later", ms(100))])


def test_a_request_that_does_no_work_is_waited_for_in_no_engine() -> None:
    """Tokenising is in no step."""
    book, ahead, _ = two_engines()

    assert book.knows(span(0, 100), [ahead, Flight("tokenise", "tokenise", ms(0), metered_work=False)])


def test_what_is_settled_is_forgotten() -> None:
    """What ends before any sensor may have looked takes no room: steps, beginnings and holes."""
    book = StepBook(request_id_of)
    for number in range(1, 1001):
        # every tenth step is lost
        if number % 10:
            book.take(step(number, number * 10, number * 10 + 10, decode(f"s{number}")))
            book.curve(span(0, number * 10), WEIGHTS)
            book.forget_before(ms(number * 10 - 100))
            (log,) = book._logs.values()
            assert len(log.steps) <= 12 + LOOKS_BACK / ms(10)
            assert len(log._works) <= len(log.steps)
            assert len(book._holes) <= 3 + LOOKS_BACK / ms(100)
            assert len(book._begun) <= 12 + LOOKS_BACK / ms(10)


def test_forgetting_changes_no_later_window() -> None:
    """The same activity of what is still to be divided."""
    flights = [flight("a")]
    steps = [step(n, n * 10 - 10, n * 10, decode("a", n)) for n in range(1, 101)]
    whole, trimmed = book_of(steps, flights), book_of(steps, flights)
    trimmed.forget_before(ms(505))

    assert trimmed.activity(span(505, 1000), flights, WEIGHTS) == whole.activity(span(505, 1000), flights, WEIGHTS)


def test_while_no_meter_gives_readings_only_the_latest_steps_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, beginnings and holes: what is dropped is not covered any more, what is kept is."""
    monkeypatch.setattr(step_book, "REMEMBERED_STEPS", 80)
    book = StepBook(request_id_of)
    for number in range(1, 2001):
        # every tenth step is lost
        if number % 10:
            book.take(step(number, number * 10, number * 10 + 10, decode(f"s{number}")))
            (log,) = book._logs.values()
            assert max(len(log.steps), len(book._begun)) <= 80
            assert len(book._holes) <= 12

    (log,) = book._logs.values()
    kept = log.steps[0].start / 1e6
    assert kept >= 19_000
    assert not book.covers(span(kept - 10, kept), [])
    assert book.covers(span(19_910, 19_990), [])


def test_a_dead_meter_holds_the_steps_of_no_engine() -> None:
    """A group whose meter said something once and never again, with a request that goes on."""
    target = group()
    read(target, 100)
    for number in range(1, 20_000):
        target.stepped(step(number, number * 10, number * 10 + 10, decode("a", number)))
        if number % 1000 == 0:
            target.settle(ms(number * 10))
            target.close_finished(ms(number * 10))

    assert sum(len(log.steps) for log in target.steps._logs.values()) <= REMEMBERED_STEPS
    assert len(target.steps._holes) <= 1


def test_a_lost_step_makes_the_grade_of_those_in_its_window_b() -> None:
    """Windows with a hole are divided on token times; who was in one is not grade A any more."""
    target = group()
    early = opened(target, stream("early", first=20, step=10, tokens=9))
    late = opened(target, stream("late", sent=210, first=230, step=10, tokens=9))
    for number in range(1, 32):
        if number != 5:
            name = "early" if number <= 10 else "late"
            target.stepped(step(number, number * 10 - 10, number * 10, decode(name)))
    read(target, 400)
    results = target.settle(ms(20_000), force=True)

    assert [False, True, True, True] == [one.activity is not None and one.activity.logged for one in results]
    assert ("B", "A") == (target.grade_of(early), target.grade_of(late))
    assert early.energy_uj > 8_000_000


def test_what_was_told_before_an_engine_started_anew_is_paid_all_the_same() -> None:
    """Its last request ran up to then: the windows before are divided by its steps, the one between by its tokens."""
    target = group()
    bill = opened(target, stream("r", first=20, step=10, tokens=10))
    for number in range(1, 11):
        target.stepped(step(number, number * 10 - 10, number * 10, Computed("r", number, 0, 1)))
    target.stepped(step(1, 300, 310, Computed("s", 0, 1, 0), boot=2))
    read(target, 300)
    target.settle(ms(5000), force=True)

    assert bill.energy_uj > 9_000_000


def test_a_log_that_broke_off_is_noticed_by_answers_in_one_piece_too() -> None:
    """Two seconds after the last step told, one was sent that gives no token before its end, and it was answered."""
    target = group()
    target.stepped(step(1, 0, 50, Computed("x", 0, 10, 0)))
    bill = opened(target, silent("s", sent=2000, ended=3000))
    read(target, 4000)
    target.settle(ms(20_000))

    assert ("silent", "B") == (target.steps.state, target.grade_of(bill))
    assert bill.energy_uj == pytest.approx(100_000_000, rel=0.02)


def test_one_engine_of_two_whose_log_breaks_off_leaves_its_requests_payers() -> None:
    """Two alike, each on an engine of its own, of which one tells no more after half a second: they pay alike."""
    target = group()
    bills = [opened(target, stream(row, first=20, step=10, tokens=400)) for row in ("a", "c")]
    for number in range(1, 401):
        target.stepped(step(number, number * 10, number * 10 + 10, decode("a", number)))
        if number < 50:
            target.stepped(step(number, number * 10, number * 10 + 10, decode("c", number), engine=1, boot=2))
    read(target, 4000)
    target.settle(ms(20_000))

    assert bills[0].energy_uj == pytest.approx(bills[1].energy_uj, rel=0.05)
