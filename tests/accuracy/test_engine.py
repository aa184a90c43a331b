"""The simulated engine does what vLLM does: it loses no work, caches, preempts, drafts, drops and counts."""

import random

import pytest

from tests.accuracy.engine import Config, Job, Run, simulate
from tests.accuracy.kv import BLOCK, Memory, Table
from tests.accuracy.page import pages
from tests.accuracy.physics import Own
from tests.accuracy.prompts import Message, Part, asked, chain
from tests.accuracy.workloads import KINDS, LONGEST_PROMPT, WORKLOADS, Demand, jobs, rate_for

USUAL = Config()


def job(row: str, prompt: int, output: int, sent: float = 1.0, text: int = 0, **more: object) -> Job:
    message = Message("user", (Part(text or ord(row), prompt),))
    return Job(row, "chat", "north", sent, prompt, output, chain((message,)), text=(message,), **more)


def run_of(*asked_for: Job, config: Config = USUAL) -> Run:
    return simulate(asked_for, Own(random.Random(1)), random.Random(2), config)


def mixed(demand: Demand, config: Config = USUAL, rate: float = 2.0, seconds: float = 10.0) -> Run:
    return simulate(jobs(demand, rate, seconds, 3), Own(random.Random(1)), random.Random(1), config, until=4 + seconds)


HABITS = [
    (Demand(), Config()),
    (Demand(several=0.5), Config()),
    (Demand(), Config(draft=3)),
    (Demand(), Config(blocks=1_600)),
    (Demand(), Config(max_sequences=2)),
    (Demand(WORKLOADS["wide"][0], "bursty", silent=0.5), Config()),
]


@pytest.mark.parametrize(("demand", "config"), HABITS)
def test_every_prompt_is_computed_and_every_token_made_once(demand: Demand, config: Config) -> None:
    """
    Positions computed are the prompts less what was cached, and one for each token after the first of an answer.
    """
    run = mixed(demand, config)
    loads = [load for step in run.steps for load in step.loads]
    strands = {load.strand for load in loads}
    fresh = sum(load.p - load.again for load in loads if load.p)
    prompts = sum(one.job.prompt - one.cached for one in strands)

    assert all(one.made == one.job.output for one in strands)
    assert sum(made.tokens for step in run.steps for made in step.made) == sum(one.made for one in strands)
    assert len(strands) == sum(one.answers for one in run.jobs)
    if not run.steps[-1].preempted:
        assert fresh == prompts
        assert all(load.again == 0 for load in loads)


def test_what_a_preemption_lost_is_computed_again_and_said_so() -> None:
    """
    With too little memory the engine preempts who came last; the positions it recomputes are marked.
    """
    run = mixed(Demand(), Config(blocks=1_600), rate=4.0)
    again = sum(load.again for step in run.steps for load in step.loads)

    assert run.steps[-1].preempted > 0
    assert again > 0
    assert sum(one.preempted for one in run.jobs) == run.steps[-1].preempted


def test_an_equal_prompt_is_found_but_for_its_last_block() -> None:
    """
    The second of two equal prompts computes what does not fill a block, and at least one token.
    """
    run = run_of(job("a", 160, 4, text=7), job("b", 160, 4, sent=5.0, text=7), job("c", 170, 4, sent=9.0, text=7))
    cached = [one.cached for one in run.jobs]

    assert cached == [0, 144, 160]


def test_equal_prompts_in_one_step_share_their_work() -> None:
    """
    As in vLLM a block can be found from the step in which it is computed, so two answers cost one prompt.
    """
    run = run_of(job("a", 1_500, 4, answers=3))
    computed = sum(load.p for step in run.steps for load in step.loads)

    assert computed == 1_500 + 2 * (1_500 - 1_500 // BLOCK * BLOCK)
    assert run.jobs[0].told == 1_500 // BLOCK * BLOCK


def test_what_was_used_least_recently_makes_room() -> None:
    """
    A prefix that nobody asked for while others came is gone, its last blocks first.
    """
    memory = Memory(10)
    old, new = Table(range(0, 6)), Table(range(100, 106))
    assert memory.admit(old, 0, 6 * BLOCK)
    memory.release(old)
    assert memory.admit(new, 0, 6 * BLOCK)

    assert memory.found(range(0, 6), 10_000) == 4
    assert memory.used == 6


def test_memory_that_is_in_use_is_never_given_away() -> None:
    """
    Where running sequences hold everything, another one is not admitted.
    """
    memory = Memory(10)
    assert memory.admit(Table(range(0, 8)), 0, 8 * BLOCK)

    assert not memory.admit(Table(range(100, 103)), 0, 3 * BLOCK)
    assert memory.used == 8


@pytest.mark.parametrize(("demand", "config"), HABITS)
def test_the_memory_is_empty_when_all_is_done(demand: Demand, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Every block that was taken is given back, whatever was preempted, drafted or dropped.
    """
    memories: list[Memory] = []
    begin = Memory.__init__

    def remembered(self: Memory, blocks: int) -> None:
        memories.append(self)
        begin(self, blocks)

    monkeypatch.setattr(Memory, "__init__", remembered)
    mixed(Demand(demand.mix, demand.arrivals, silent=demand.silent, aborted=0.3, several=demand.several), config)

    assert [memory.used for memory in memories] == [0]


def test_the_turns_of_an_agent_are_mostly_cached() -> None:
    """
    A turn's prompt is the last one, its answer and something new: 70 to 95 % of it is there.
    """
    run = mixed(Demand((("agent", 1.0),)), rate=0.5, seconds=60.0)
    parts = sorted(one.cached / one.prompt for one in run.jobs if one.sent > 10 and one.cached)

    assert len(parts) > 50
    assert 0.7 < parts[len(parts) // 4]
    assert parts[len(parts) * 3 // 4] < 0.97


@pytest.mark.unit
def test_papers_to_be_summarized_are_as_long_as_published_ones() -> None:
    """
    Half of the prompts between 1,800 and 3,400 tokens, none beyond what the engine takes, answers of a paragraph.
    """
    asked_for = jobs(Demand(*WORKLOADS["summarization"]), 10.0, 200.0, 1)
    prompts, outputs = (sorted(getattr(one, name) for one in asked_for) for name in ("prompt", "output"))
    quarter = len(asked_for) // 4

    assert 1_800 < prompts[quarter] < prompts[3 * quarter] < 3_400
    assert prompts[-1] <= LONGEST_PROMPT
    assert 120 < outputs[len(outputs) // 2] < 220


def test_a_draft_makes_several_tokens_a_step_and_computes_those_that_fail() -> None:
    """
    With three tokens drafted of which 70 % hold, a step makes about 1 + 0.7 + 0.49 + 0.34 tokens.
    """
    run = run_of(job("a", 100, 2_000), config=Config(draft=3))
    decoding = [load for step in run.steps for load in step.loads if load.d == 4]

    assert 2_000 / len(decoding) == pytest.approx(2.53, rel=0.05)


def test_who_leaves_is_dropped_a_little_later() -> None:
    """
    The engine goes on for some steps after the client has gone, and then makes no more.
    """
    run = run_of(job("a", 100, 2_000, leaves=50), job("b", 100, 300))
    gone = next(one for one in run.jobs if one.row == "a")

    assert gone.left is not None
    assert 50 <= gone.made < 80
    assert gone.left < gone.ended < gone.left + 0.3


def test_a_full_batch_makes_requests_queue() -> None:
    """
    With room for two sequences never more are in a step, and the page shows who waits.
    """
    run = mixed(Demand(), Config(max_sequences=2), rate=4.0)

    assert max(len(step.loads) for step in run.steps) == 2
    assert max(step.waiting for step in run.steps) > 2


def test_the_page_counts_what_was_made() -> None:
    """
    The engine's own counters add up to its work, as accounting reads them off the page.
    """
    run = mixed(Demand(), Config(draft=2))
    last = list(pages(run, 1.0, 0.003))[-1]

    assert last.generation_tokens == sum(one.output for one in run.jobs)
    assert last.computed_prompt_tokens == sum(one.prompt - one.cached for one in run.jobs)
    assert last.cached_prompt_tokens == sum(one.cached for one in run.jobs)
    assert (last.running, last.waiting) == (0, 0)
    assert last.cache_capacity_tokens == 26_000 * BLOCK


def test_the_relay_reads_off_the_bodies_what_the_engine_caches() -> None:
    """
    Two turns of a conversation have the names of their common pieces in common, and no others.
    """
    system, first = Message("system", (Part(1, 400),)), Message("user", (Part(2, 900),))
    later = (system, first, Message("assistant", (Part(3, 60),)), Message("user", (Part(4, 500),)))
    a, b, other = (
        asked(prompt, stream=True, answers=1, embedding=False).prefix[0]
        for prompt in ((system, first), later, (system, Message("user", (Part(5, 900),))))
    )
    alike = sum(1 for one, two in zip(a.pieces, b.pieces, strict=False) if one == two)
    unlike = sum(1 for one, two in zip(a.pieces, other.pieces, strict=False) if one == two)

    assert alike >= len(a.pieces) - 2
    assert 400 * 3.4 / 64 - 2 < unlike < 400 * 4.8 / 64 + 2


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_reaches_the_concurrency_that_is_asked_for(name: str) -> None:
    """
    The search for the rate ends near the wanted mean number of requests under way.
    """
    demand = Demand(*WORKLOADS[name])
    rate = rate_for(demand, 4, 30.0, 1, Config())
    run = simulate(jobs(demand, rate, 30.0, 1), Own(random.Random("x")), random.Random(0), Config(), until=34)

    assert run.concurrency == pytest.approx(4, rel=0.35)
    assert {one.kind for one in run.jobs} <= set(KINDS)
