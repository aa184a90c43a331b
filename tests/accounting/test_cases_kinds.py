"""The case rules of attribution, one by one: what kinds of requests there are, and what kinds of servers.

Each rule holds with the engine's step log and, where it can be seen there too, from token times alone.
Rules about who waits, leaves and comes again: test_cases.py.
"""

from dataclasses import replace
from itertools import permutations

import pytest

from proxy.accounting.activity import Activity, Span, Work
from proxy.accounting.engine_view import EngineView
from proxy.accounting.flight import Flight
from proxy.accounting.reconstruction import reconstruct
from proxy.accounting.step_clock import ONE_BY_ONE, Pace
from proxy.accounting.steps import Computed
from proxy.accounting.unseen import Drafts, EngineCounters
from proxy.accounting.weights import Weights
from tests.accounting.flights import WEIGHTS, ms
from tests.accounting.scripted import Engine, Outcome, book_of, opened, paid

both = pytest.mark.parametrize("logged", [True, False], ids=["step log", "token times"])


def works(
    engine: Engine, *, logged: bool, weights: Weights = WEIGHTS, until: float | None = None, pace: Pace = ONE_BY_ONE
) -> dict[str, Work]:
    """The work of each request in a whole script, or up to a time in milliseconds."""
    span = Span(ms(0), ms(engine.at if until is None else until))
    flights = list(engine.flights.values())
    found: Activity
    if logged:
        found = book_of(engine.steps, flights).activity(span, flights, weights)
    else:
        found = reconstruct(span, flights, weights=weights, pace=pace)
    return {flight.row: work for flight, work in zip(found.flights, found.works, strict=True)}


def drafting(accepted: int = 3, steps: int = 20) -> Engine:
    """Two streams in steps of 30 ms: one decodes plainly, one drafts three tokens a step of which some are kept."""
    engine = Engine(step_ms=30)
    for row in ("plain", "drafts"):
        engine.send(row, prompt=100)
    engine.run(Computed("plain", 0, 100, 0), Computed("drafts", 0, 100, 0))
    engine.token("plain", "drafts")
    for _ in range(steps):
        engine.run(Computed("plain", 0, 0, 1), Computed("drafts", 0, 0, 4))
        engine.reached["drafts"] -= 3 - accepted
        engine.token("plain")
        engine.token("drafts", each=1 + accepted)
    engine.end("plain", "drafts")
    return engine


def test_rejected_drafts_are_charged_as_the_log_tells_them() -> None:
    """Speculative decoding with the step log: three drafted and one more are four positions, accepted or not."""
    for accepted in (0, 3):
        found = works(drafting(accepted), logged=True)

        assert (20, 80) == (found["plain"].decode, found["drafts"].decode)
        assert found["plain"].steps == pytest.approx(found["drafts"].steps)


def test_rejected_drafts_are_charged_as_the_counters_tell_them() -> None:
    """Speculative decoding from token times: positions a token and tokens a step come from two looks at the engine."""
    engine = drafting(accepted=1)
    del engine.flights["plain"]
    view = EngineView()
    view.scraped(EngineCounters(ms(0), 1, 0, 0, 0, drafts=Drafts(5, 15, 5)), ms(0), [], reached=None)
    view.scraped(EngineCounters(ms(630), 1, 0, 41, 100, drafts=Drafts(25, 75, 25)), ms(630), [], reached=None)

    (found,) = works(engine, logged=False, pace=view.pace).values()

    assert view.pace == Pace(tokens_per_step=2.0, positions_per_token=2.0)
    assert (found.decode, found.tokens) == (pytest.approx(80), pytest.approx(141))
    assert found.steps == pytest.approx(21)


def test_the_fewer_drafts_are_accepted_the_dearer_is_a_token() -> None:
    """The user's figure is joules per accepted token: the same steps, half of the tokens, twice the price."""

    def per_token(accepted: int) -> float:
        engine = drafting(accepted)
        outcome = paid(engine, logged=True)
        return outcome.uj("drafts") / (engine.flights["drafts"].completion_tokens or 0)

    assert per_token(1) == pytest.approx(per_token(3) * 81 / 41, rel=0.02)


@both
def test_n_answers_hold_n_places_and_read_the_prompt_as_the_engine_does(logged: bool) -> None:
    """n = 2: twice the decode and two thirds of the steps beside a single one; the second answer finds the prompt."""
    engine = Engine()
    engine.send("pair", prompt=1600, cached=1584, sequences=2)
    engine.flights["pair"].cached_part = 0.0
    engine.send("single", prompt=1600)
    # the first of the two computes all of it, the second what lies beyond the last whole block
    engine.run(Computed("pair/0", 0, 1600, 0), Computed("single", 0, 1600, 0))
    engine.reached["pair/1"] = 1584
    engine.run(Computed("pair/1", 1584, 16, 0))
    engine.token("pair", "single")
    for _ in range(30):
        engine.run(Computed("pair/0", 0, 0, 1), Computed("pair/1", 0, 0, 1), Computed("single", 0, 0, 1))
        engine.token("pair", "single")
    engine.end("pair", "single")

    found = works(engine, logged=logged)

    assert (1616, 1600) == (pytest.approx(found["pair"].prefill), pytest.approx(found["single"].prefill))
    assert (60, 30) == (pytest.approx(found["pair"].decode), pytest.approx(found["single"].decode))
    assert found["pair"].decode_context == pytest.approx(2 * found["single"].decode_context, rel=1e-3)
    assert found["pair"].steps == pytest.approx(2 * found["single"].steps, rel=0.1)


@both
def test_several_prompts_in_one_request_cost_what_as_many_requests_cost(logged: bool) -> None:
    """Two prompts of one body are two sequences of the engine."""

    def script(together: bool) -> Engine:
        engine = Engine()
        names = ("both/0", "both/1") if together else ("x", "y")
        if together:
            engine.send("both", prompt=600, sequences=2, prompts=2)
        else:
            engine.send("x", prompt=300)
            engine.send("y", prompt=300)
        rows = ("both",) if together else ("x", "y")
        engine.run(*(Computed(name, 0, 300, 0) for name in names))
        engine.token(*rows)
        for _ in range(20):
            engine.run(*(Computed(name, 0, 0, 1) for name in names))
            engine.token(*rows)
        return engine

    whole = works(script(together=True), logged=logged)["both"]
    one, two = works(script(together=False), logged=logged).values()

    for name in ("prefill", "prefill_context", "decode", "decode_context", "steps"):
        assert getattr(whole, name) == pytest.approx(getattr(one, name) + getattr(two, name), rel=1e-6), name


@both
def test_embeddings_and_reranking_have_prefill_only(logged: bool) -> None:
    """Three documents in one request make no token: nothing of the bill is decode."""
    engine = Engine()
    flight = engine.send("embed", prompt=900, sequences=3, prompts=3, silent=True, decodes=False)
    engine.run(*(Computed(f"embed/{n}", 0, 300, 0) for n in range(3)))
    engine.end("embed")
    flight.completion_tokens = 0

    bill = paid(engine, logged=logged).bills["embed"]

    assert (0, 1_000_000) == (bill.decode_uj, bill.energy_uj)
    assert bill.prefill_uj > bill.shared_uj


@both
def test_adapters_of_one_base_model_share_the_fixed_part(logged: bool) -> None:
    """LoRA: two model names in the same steps pay half of them each, and each model's sum is its request's."""
    engine = Engine()
    engine.send("base")
    engine.send("tuned")
    engine.run(Computed("base", 0, 100, 0), Computed("tuned", 0, 100, 0))
    engine.token("base", "tuned")
    engine.decode("base", "tuned", times=30)
    engine.end("base", "tuned")

    outcome = paid(engine, logged=logged, models=["llama", "llama-lora"])

    assert abs(outcome.uj("base") - outcome.uj("tuned")) < 10
    by_phase = outcome.group.tallies.energy_by_model_phase
    assert outcome.uj("tuned") == sum(uj for (model, _), uj in by_phase.items() if model == "llama-lora")


@both
@pytest.mark.parametrize("policy", ["weighted", "tokens", "time"])
def test_tensor_and_pipeline_parallel_sum_the_ledgers_of_all_gpus(logged: bool, policy: str) -> None:
    """Two meters of one group: each request pays what it pays to the one and to the other, to the microjoule."""
    engine = Engine()
    engine.send("short", prompt=50)
    engine.send("long", prompt=2500)
    engine.run(Computed("short", 0, 50, 0), Computed("long", 0, 2500, 0))
    engine.token("short", "long")
    engine.decode("short", "long", times=15)
    engine.end("short")
    engine.decode("long", times=17)
    engine.end("long")

    def run(*meters: str) -> Outcome:
        return paid(engine, logged=logged, meters=meters, policy=policy)  # type: ignore[arg-type]

    first, second, together = run("g0"), run("g1"), run("g0", "g1")

    for row, bill in together.bills.items():
        assert bill.energy_uj == first.uj(row) + second.uj(row) > 0
        assert bill.prefill_uj == first.bills[row].prefill_uj + second.bills[row].prefill_uj
        assert bill.token_share_uj == first.bills[row].token_share_uj + second.bills[row].token_share_uj
    for name in ("g0", "g1"):
        alone = (first if name == "g0" else second).group.meters[name].accounts
        assert together.group.meters[name].accounts == alone


def test_data_parallel_engines_share_no_step() -> None:
    """With the step log: one alone on engine 0 pays whole steps, two on engine 1 pay half of theirs."""
    left, right = Engine(rank=0), Engine(rank=1, at=3.0, step_ms=9.0)
    left.send("alone")
    for row in ("one", "two"):
        right.send(row)
    left.run(Computed("alone", 0, 100, 0))
    left.token("alone")
    left.decode("alone", times=20)
    right.run(Computed("one", 0, 100, 0), Computed("two", 0, 100, 0))
    right.token("one", "two")
    right.decode("one", "two", times=20)
    flights = [*left.flights.values(), *right.flights.values()]
    steps = sorted([*left.steps, *right.steps], key=lambda one: one.end)

    found = book_of(steps, flights).activity(Span(ms(0), ms(300)), flights, WEIGHTS)

    assert {"alone": 21, "one": 10.5, "two": 10.5} == {
        flight.row: pytest.approx(work.steps) for flight, work in zip(found.flights, found.works, strict=True)
    }
    assert found.covered_ns == ms(210)


def test_data_parallel_engines_of_one_page_share_no_step_either() -> None:
    """From token times: nobody says which engine has whom, but two engines have half of the sequences each."""
    left, right = Engine(rank=0), Engine(rank=1)
    rows = [f"r{number}" for number in range(8)]
    for engine, part in ((left, rows[:4]), (right, rows[4:])):
        for row in part:
            engine.send(row)
        engine.run(*(Computed(row, 0, 100, 0) for row in part))
        engine.token(*part)
        engine.decode(*part, times=20)
    flights = [*left.flights.values(), *right.flights.values()]

    def steps(engines: int) -> float:
        found = reconstruct(Span(ms(0), ms(210)), flights, weights=WEIGHTS, engines=engines)
        return sum(work.steps for work in found.works)

    assert steps(1) == pytest.approx(21, rel=0.05)
    assert steps(2) == pytest.approx(42, rel=0.05)
    assert steps(16) == pytest.approx(8 * 21, rel=0.05)


@both
def test_data_parallel_engines_of_one_group_are_paid_from_one_ledger(logged: bool) -> None:
    """Alike on two engines they pay alike, and together all of it."""
    left, right = Engine(rank=0), Engine(rank=1)
    for engine, row in ((left, "a"), (right, "b")):
        engine.send(row)
        engine.prefill(row, 100)
        engine.decode(row, times=39)
        engine.end(row)

    outcome = paid(left, right, logged=logged)

    assert outcome.uj("a") == pytest.approx(20_000_000, abs=10)
    assert outcome.uj("b") == pytest.approx(20_000_000, abs=10)


@both
def test_prefill_and_decode_servers_are_groups_of_their_own(logged: bool) -> None:
    """The same request id in both: the prompt is paid where it was computed, tokens handed over cost no prefill."""
    first, second = Engine(), Engine()
    first.send("at-p", request_id="R", prompt=3000)
    first.run(Computed("R", 0, 3000, 0), ms_each=170)
    first.token("at-p")
    first.end("at-p")
    second.send("at-d", request_id="R", prompt=3000, cached=2999)
    second.run(Computed("R", 2999, 1, 0))
    second.token("at-d")
    for _ in range(99):
        second.run(Computed("R", 2999, 0, 1))
        second.token("at-d")
    second.end("at-d")

    prefill = paid(first, logged=logged).bills["at-p"]
    decode = paid(second, logged=logged).bills["at-d"]

    assert prefill.flight.request_id == decode.flight.request_id
    assert (0, 17_000_000) == (prefill.decode_uj, prefill.energy_uj)
    assert decode.prefill_uj < decode.energy_uj / 500
    assert decode.energy_uj == 100_000_000


MOE = replace(WEIGHTS, step=0.0, experts=10.0, touched=0.25, prefill=0.0, attention=0.0, decode=0.0, context=0.0)


def test_a_mixture_of_experts_shares_what_the_step_touched() -> None:
    """With the step log: over all orders of arrival, each pays the experts that it is the first to touch."""
    engine = Engine(step_ms=100)
    tokens = {"one": 1, "two": 2, "many": 9}
    for row, count in tokens.items():
        engine.send(row, prompt=count)
    engine.run(*(Computed(row, 0, count, 0) for row, count in tokens.items()))
    engine.token(*tokens)
    engine.end(*tokens)
    owed = dict.fromkeys(tokens, 0.0)
    orders = list(permutations(tokens))
    for order in orders:
        spared = 1.0
        for row in order:
            owed[row] += spared * (1 - 0.75 ** tokens[row]) / len(orders)
            spared *= 0.75 ** tokens[row]

    found = works(engine, logged=True, weights=MOE)
    outcome = paid(engine, logged=True, weights=MOE)

    assert {row: work.experts for row, work in found.items()} == pytest.approx(owed)
    whole = sum(owed.values())
    assert whole == pytest.approx(1 - 0.75**12)
    for row, part in owed.items():
        assert outcome.uj(row) == pytest.approx(10_000_000 * part / whole, abs=2)


@both
def test_sliding_windows_cap_the_context(logged: bool) -> None:
    """All layers see 1000 tokens back: 20,000 tokens of context cost what 1000 cost, and half the layers half."""

    def context(length: int, weights: Weights) -> tuple[float, float]:
        engine = Engine()
        engine.send("r", prompt=length + 16, cached=length)
        engine.run(Computed("r", length, 16, 0))
        engine.token("r")
        engine.decode("r", times=50)
        found = works(engine, logged=logged, weights=weights)["r"]
        return found.prefill_context / found.prefill, found.decode_context / found.decode

    all_layers = replace(WEIGHTS, window=1000, windowed=1.0)
    half = replace(WEIGHTS, window=1000, windowed=0.5)

    assert context(20_000, all_layers) == pytest.approx((1000, 1000))
    assert context(20_000, half) == pytest.approx([(1000 + full) / 2 for full in context(20_000, WEIGHTS)])
    assert context(500, all_layers) == pytest.approx(context(500, WEIGHTS))


def test_a_request_of_the_wrong_group_is_a_stranger() -> None:
    """Two backends: a step log knows only the requests that were sent to its own server."""
    engine = Engine()
    engine.send("here")
    engine.run(Computed("here", 0, 100, 0), Computed("elsewhere", 0, 100, 0))
    engine.token("here")
    engine.end("here")
    other = Engine().send("elsewhere")
    outcome = paid(engine, logged=True)
    bill = opened(paid(Engine(), logged=True).group, other)

    assert outcome.group.meters["m"].accounts.unattributed == pytest.approx(500_000, rel=1e-3)
    assert 0 == bill.energy_uj


def test_work_for_nobody_is_not_lost() -> None:
    """Start-up, graph capture, a request that makes nothing: time in the engine without work is unattributed."""
    flight = Flight("empty", "empty", ms(0), prompt_tokens=0, silent=True, decodes=False)
    flight.end(ms(100), "ok")
    engine = Engine(at=100)
    engine.flights["empty"] = flight

    weightless = replace(WEIGHTS, step=0.0)
    accounts = paid(engine, logged=False, weights=weightless).group.meters["m"].accounts

    assert (0, 10_000_000) == (accounts.requests, accounts.unattributed)


def test_every_sequence_of_a_beam_search_is_its_requests() -> None:
    """With the step log: the engine makes new ones all the time, more than were asked for."""
    engine = Engine()
    engine.send("beam")
    engine.run(Computed("beam/0", 0, 100, 0))
    engine.token("beam")
    for number in range(1, 20):
        engine.run(Computed(f"beam/{number}", 99 + number, 0, 1))
        engine.token("beam")
    engine.end("beam")

    outcome = paid(engine, logged=True)

    assert (20_000_000, 0) == (outcome.uj("beam"), outcome.group.meters["m"].accounts.unattributed)
