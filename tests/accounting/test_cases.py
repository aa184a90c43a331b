"""The case rules of attribution, one by one: who waits, who finds, who loses, who leaves, who comes again.

Each rule holds with the engine's step log and, where it can be seen there too, from token times alone.
Rules about what kinds of requests and servers there are: test_cases_kinds.py.
"""

import pytest

from proxy.accounting.activity import Span
from proxy.accounting.flight import Flight
from proxy.accounting.steps import Computed
from proxy.accounting.unseen import EngineCounters
from tests.accounting.flights import WEIGHTS, divided, ms, stream, window
from tests.accounting.scripted import Engine, book_of, group, opened, paid, read

both = pytest.mark.parametrize("logged", [True, False], ids=["step log", "token times"])


@both
def test_queued_requests_pay_nothing_while_they_wait(logged: bool) -> None:
    """One that waited half a second for its place pays what one pays that was sent when the place was free."""
    engine = Engine()
    engine.send("runs")
    engine.prefill("runs", 100)
    queued = engine.send("queued")
    engine.decode("runs", times=50)
    queued.scheduled = ms(engine.at)
    engine.send("fresh")
    engine.run(Computed("queued", 0, 100, 0), Computed("fresh", 0, 100, 0), Computed("runs", 0, 0, 1))
    engine.token("queued", "fresh", "runs")
    engine.decode("runs", "queued", "fresh", times=20)
    engine.end("runs", "queued", "fresh")

    outcome = paid(engine, logged=logged)

    assert outcome.uj("queued") == pytest.approx(outcome.uj("fresh"), rel=1e-6)
    assert outcome.uj("queued") < outcome.uj("runs") / 2


def test_what_queues_at_an_engine_that_runs_nothing_leaves_the_energy_idle() -> None:
    """From token times: the engine says that one waits and none runs. The idle account pays, not the queue."""
    target = group()
    bill = opened(target, Flight("queued", "queued", ms(0), prompt_estimate=1000))
    read(target, 500)
    target.scraped(EngineCounters(ms(500), 0, 1, 0, 0), ms(500))

    target.settle(ms(20_000))

    assert (0, 50_000_000) == (bill.energy_uj, target.meters["m"].accounts.idle)


def test_what_queues_beside_a_silent_log_leaves_the_energy_idle() -> None:
    """With the step log: whoever is in no step is not there."""
    engine = Engine()
    engine.send("runs")
    engine.prefill("runs", 100)
    engine.end("runs")
    engine.send("queued")
    engine.rest(200)
    engine.prefill("queued", 100)
    engine.end("queued")

    outcome = paid(engine, logged=True)

    assert outcome.group.meters["m"].accounts.requests == pytest.approx(2_000_000, rel=1e-3)


@both
def test_cached_prefix_tokens_cost_no_prefill(logged: bool) -> None:
    """Of two equal prompts the one found in the cache pays for the rest of it only."""
    engine = Engine()
    engine.send("fresh", prompt=4000)
    engine.send("hit", prompt=4000, cached=3900)
    engine.run(Computed("fresh", 0, 4000, 0), Computed("hit", 3900, 100, 0), ms_each=245)
    engine.token("fresh", "hit")
    engine.decode("fresh", "hit", times=30)
    engine.end("fresh", "hit")

    fresh, hit = paid(engine, logged=logged).bills.values()

    assert hit.prefill_uj * 20 < fresh.prefill_uj
    assert hit.decode_uj == pytest.approx(fresh.decode_uj, rel=0.05)


@both
def test_cached_prefix_tokens_count_as_context(logged: bool) -> None:
    """New tokens behind a cached prefix read it: prefill and decode cost more than the same without a prefix."""
    engine = Engine()
    engine.send("behind", prompt=30_100, cached=30_000)
    engine.send("alone", prompt=100)
    engine.run(Computed("behind", 30_000, 100, 0), Computed("alone", 0, 100, 0))
    engine.token("behind", "alone")
    engine.decode("behind", "alone", times=30)
    engine.end("behind", "alone")

    behind, alone = paid(engine, logged=logged).bills.values()

    assert behind.prefill_uj > 1.5 * alone.prefill_uj
    assert behind.decode_uj > 5 * alone.decode_uj


@both
def test_the_request_that_computed_a_shared_prefix_pays_for_it(logged: bool) -> None:
    """A later one that finds the prefix takes nothing off the first one's bill, and owes it nothing."""
    engine = Engine()
    engine.send("first", prompt=2000)
    engine.prefill("first", 2000)
    engine.end("first")
    engine.rest(190)
    engine.send("second", prompt=2000, cached=1984)
    engine.prefill("second", 16)
    engine.end("second")
    shared = paid(engine, logged=logged)
    del engine.flights["second"], engine.steps[1:]

    assert shared.uj("first") == paid(engine, logged=logged).uj("first") > 0
    assert shared.bills["second"].prefill_uj < shared.bills["first"].prefill_uj / 10


def preempted() -> Engine:
    """Two alike, of which one is thrown out after ten tokens and has to compute all of its 1010 tokens again."""
    engine = Engine()
    engine.send("stays", prompt=1000)
    engine.send("loses", prompt=1000)
    engine.run(Computed("stays", 0, 1000, 0), Computed("loses", 0, 1000, 0))
    engine.token("stays", "loses")
    engine.decode("stays", "loses", times=9)
    engine.decode("stays", times=5)
    engine.reached["loses"] = 0
    engine.run(Computed("stays", 1000, 0, 1), Computed("loses", 0, 1000, 10, recomputed=1009))
    engine.token("stays", "loses")
    engine.decode("stays", "loses", times=20)
    engine.end("stays", "loses")
    return engine


def test_recomputed_tokens_are_charged_to_the_request_whose_they_are() -> None:
    """Preemption with the step log: prompt and answer are read anew by the one that lost them, and by nobody else."""
    engine = preempted()
    flights = list(engine.flights.values())
    activity = book_of(engine.steps, flights).activity(Span(ms(0), ms(engine.at)), flights, WEIGHTS)
    # 1000 prompt tokens twice, and the nine positions of the answer that were lost with them
    assert [("loses", 2009), ("stays", 1000)] == [
        (flight.row, work.prefill) for flight, work in zip(activity.flights, activity.works, strict=True)
    ]

    stays, loses = paid(engine, logged=True).bills.values()
    assert loses.prefill_uj > 1.8 * stays.prefill_uj


def test_recomputed_tokens_that_nobody_tells_of_lose_no_energy() -> None:
    """Preemption from token times: the engine only falls silent for a while, and all is still paid by somebody."""
    outcome = paid(preempted(), logged=False)

    accounts = outcome.group.meters["m"].accounts
    assert accounts.unattributed == 0
    assert accounts.requests == pytest.approx(36_000_000, rel=0.02)


def leaver() -> Engine:
    """Two alike, of which one's client leaves after 200 ms; the engine goes on with it for another 100 ms."""
    engine = Engine()
    engine.send("stays")
    engine.send("left")
    engine.run(Computed("stays", 0, 100, 0), Computed("left", 0, 100, 0))
    engine.token("stays", "left")
    engine.decode("stays", "left", times=19)
    engine.end("left", outcome="aborted")
    for _ in range(10):
        engine.run(Computed("stays", 0, 0, 1), Computed("left", 0, 0, 1))
        engine.token("stays")
    engine.decode("stays", times=20)
    engine.end("stays")
    return engine


def test_aborted_requests_pay_until_the_engine_drops_them() -> None:
    """With the step log: 30 steps were held in common although the client saw only 20 of them."""
    outcome = paid(leaver(), logged=True)

    assert outcome.uj("left") == pytest.approx(outcome.uj("stays") - 20_000_000, rel=0.02)


def test_aborted_requests_pay_up_to_the_abort_where_the_engine_says_no_more() -> None:
    """From token times: 20 steps were held in common, the other one pays for what came after."""
    outcome = paid(leaver(), logged=False)

    assert outcome.uj("left") == pytest.approx(10_000_000, rel=0.05)
    assert outcome.uj("stays") == pytest.approx(40_000_000, rel=0.05)


def test_an_aborted_request_stays_open_for_the_tail() -> None:
    """With the step log its bill waits a quarter of a second longer than its client; else it would miss the tail."""
    engine = leaver()
    target = group()
    bill = opened(target, engine.flights["left"])
    opened(target, engine.flights["stays"])
    for one in engine.steps:
        target.stepped(one)
    read(target, 400)
    target.settle(ms(400))
    assert [] == [b for b in target.close_finished(ms(400)) if b is bill]

    read(target, 600, since_ms=500)
    target.settle(ms(20_000))
    assert bill in target.close_finished(ms(600))


def test_what_an_aborted_request_cost_is_told_apart() -> None:
    """Wasted joules: its row says aborted, and keeps what was used."""
    outcome = paid(leaver(), logged=True)
    closed = outcome.group.close_finished(ms(100_000), force=True)

    rows = {bill.flight.row: bill.flight.outcome for bill in closed if bill.energy_uj}
    assert {"left": "aborted", "stays": "ok"} == rows
    assert 1 == outcome.group.tallies.requests_by_model_outcome["m", "aborted"]


@both
def test_a_refused_request_costs_nothing(logged: bool) -> None:
    """4xx before scheduling: no step ever held it, and its neighbour pays what it pays without it."""
    engine = Engine()
    engine.send("runs")
    engine.prefill("runs", 100)
    engine.send("refused", prompt=50_000)
    engine.decode("runs", times=2)
    engine.end("refused", outcome="error")
    engine.decode("runs", times=20)
    engine.end("runs")
    outcome = paid(engine, logged=logged)
    del engine.flights["refused"]

    assert 0 == outcome.uj("refused")
    assert outcome.uj("runs") == paid(engine, logged=logged).uj("runs")


@both
def test_every_attempt_is_a_row_of_its_own(logged: bool) -> None:
    """A retry of the same request id pays for its own steps: two of three for it, one for the attempt that failed."""
    engine = Engine()
    engine.send("failed", request_id="R")
    engine.run(Computed("R/1", 0, 100, 0))
    engine.token("failed")
    engine.run(Computed("R/1", 0, 0, 1), times=9)
    engine.token("failed", each=9)
    engine.end("failed", outcome="partial")
    engine.send("again", request_id="R")
    engine.run(Computed("R/2", 0, 100, 0))
    engine.token("again")
    for _ in range(19):
        engine.run(Computed("R/2", 0, 0, 1))
        engine.token("again")
    engine.end("again")

    outcome = paid(engine, logged=logged)

    assert ["R", "R"] == [bill.flight.request_id for bill in outcome.bills.values()]
    assert outcome.uj("failed") == pytest.approx(10_000_000, rel=0.02)
    assert outcome.uj("again") == pytest.approx(20_000_000, rel=0.02)


def test_attempts_that_overlap_are_told_apart_by_their_sequences() -> None:
    """With the step log: the engine gives each attempt a name, and one request takes no more names than sequences."""
    engine = Engine()
    engine.send("one", request_id="R", prompt=100)
    engine.send("two", request_id="R", prompt=3000)
    engine.run(Computed("R/1", 0, 100, 0))
    engine.token("one")
    engine.run(Computed("R/1", 0, 0, 1), Computed("R/2", 0, 3000, 0))
    engine.token("one", "two")
    engine.end("one", "two")

    one, two = paid(engine, logged=True).bills.values()

    assert one.prefill_uj * 10 < two.prefill_uj


def test_unknown_sequences_in_the_log_pay_into_unattributed() -> None:
    """With the step log: half of each step was a stranger's, with the same work."""
    engine = Engine()
    engine.send("ours")
    engine.run(Computed("ours", 0, 100, 0), Computed("stranger", 0, 100, 0))
    engine.token("ours")
    for _ in range(19):
        engine.run(Computed("ours", 0, 0, 1), Computed("stranger", 100, 0, 1))
        engine.token("ours")
    engine.end("ours")

    outcome = paid(engine, logged=True)

    assert outcome.group.meters["m"].accounts.unattributed == pytest.approx(outcome.uj("ours"), rel=0.05)
    assert outcome.uj("ours") == pytest.approx(10_000_000, rel=0.05)


def test_tokens_the_counters_have_in_excess_pay_into_unattributed() -> None:
    """From token times: the engine made 200 tokens in a second, of which a hundred came through here."""
    target = group()
    target.scraped(EngineCounters(ms(0), 2, 0, 0, 0), ms(0))
    bill = opened(target, stream("ours", first=0.001, step=10, tokens=101, prompt=1, over=False))
    read(target, 1000)
    target.scraped(EngineCounters(ms(1000), 2, 0, 201, 1), ms(1000))

    target.settle(ms(30_000), force=True)

    accounts = target.meters["m"].accounts
    assert bill.energy_uj + accounts.unattributed == 100_000_000
    assert accounts.unattributed == pytest.approx(bill.energy_uj, rel=0.05)


@both
def test_a_long_prefill_pays_in_every_window_it_spans(logged: bool) -> None:
    """One second of prefill in chunks of 20 ms, beside a decode: in each tenth it pays about a tenth."""
    engine = Engine(step_ms=20)
    engine.send("other")
    engine.prefill("other", 100)
    engine.send("long", prompt=25_000)
    engine.prefill("long", 25_000, "other", steps=50)
    engine.end("long", "other")
    target = group()
    bills = [opened(target, flight) for flight in engine.flights.values()]
    for one in engine.steps if logged else []:
        target.stepped(one)
    read(target, 1100)
    shares = [
        share.prefill / 1e6
        for split in target.settle(ms(30_000), force=True)
        for share in split.shares
        if share.flight is bills[1].flight
    ]

    assert len(shares) == 11
    assert min(shares[1:10]) > 0.6 * max(shares)
    assert bills[1].prefill_uj > 0.7 * bills[1].energy_uj
    assert bills[0].energy_uj < bills[1].energy_uj / 3


@both
def test_a_prefill_in_one_long_step_pays_in_every_window_too(logged: bool) -> None:
    """Without chunks a step may last longer than several readings: it is spread over them by time."""
    engine = Engine()
    engine.send("long", prompt=25_000)
    engine.run(Computed("long", 0, 25_000, 0), ms_each=1000)
    engine.token("long")
    engine.end("long")

    outcome = paid(engine, logged=logged)

    assert outcome.uj("long") == 100_000_000
    assert 0 == outcome.group.meters["m"].accounts.unattributed


@both
def test_a_pause_of_the_engine_is_paid_by_those_it_holds(logged: bool) -> None:
    """It works on the host for 400 ms (a grammar, a swap) with one request in it, which pays for all of that."""
    engine = Engine()
    engine.send("r")
    engine.prefill("r", 100)
    engine.decode("r", times=9)
    engine.rest(400)
    engine.decode("r", times=10)
    engine.end("r")

    outcome = paid(engine, logged=logged)

    assert outcome.uj("r") == pytest.approx(60_000_000, rel=0.001)


def test_a_retry_after_a_refusal_pays_for_its_steps() -> None:
    """With the step log: the attempt that failed at once has the same request id, and is not there any more."""
    engine = Engine()
    engine.send("refused", request_id="R")
    engine.at += 2
    engine.end("refused", outcome="error")
    engine.send("again", request_id="R")
    engine.prefill("again", 100)
    engine.decode("again", times=19)
    engine.end("again")

    outcome = paid(engine, logged=True)

    assert 0 == outcome.uj("refused")
    assert outcome.uj("again") == pytest.approx(20_000_000, rel=0.001)


def test_tokenising_under_the_same_id_costs_nothing() -> None:
    """With the step log: the sequence is the one's that computes."""
    engine = Engine()
    engine.send("tokenise", request_id="R").metered_work = False
    engine.send("works", request_id="R")
    engine.prefill("works", 100)
    engine.decode("works", times=19)
    engine.end("works", "tokenise")

    outcome = paid(engine, logged=True)

    assert (0, 0) == (outcome.uj("tokenise"), outcome.group.meters["m"].accounts.unattributed)
    assert outcome.uj("works") == 20_000_000


def test_one_that_leaves_early_pays_no_more_of_its_prompt_than_there_was_time_for() -> None:
    """From token times: of 30,000 tokens it can have read few in 20 ms; it pays less than the one beside it."""
    gone = Flight("gone", "gone", ms(0), prompt_tokens=30_000, cached_tokens=0)
    gone.end(ms(20), "aborted")
    other = stream("other", first=0.001, tokens=50, step=10)

    by_row = {share.flight.row: share.energy for share in divided(window(0, 100), [gone, other]).shares}

    assert 0 < by_row["gone"] < by_row["other"]
