"""Requests to run: kinds of requests, mixes of kinds, arrivals, and the rate that reaches a wanted concurrency.

chat      lengths of the Azure conversation trace of 2023; some have one of a few system prompts in common
long      retrieval: about 3k tokens in, a short answer
agent     sessions: each turn's prompt is the last one, its answer and something new, so most of it is cached
code      lengths of the Azure code trace of 2023: long prompts, very short answers
mooncake  requests of the Mooncake trace in their order, with the prefixes that they really shared
burstgpt  lengths of BurstGPT's first night
summarization  lengths of arXiv papers and their summaries: long prompts as they really are
embed     embeddings: a prompt and no answer
Every kind is a tenant of its own in a mix, so that a bias against a kind of work shows; else tenants are drawn.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, pairwise
from typing import NamedTuple

from tests.accuracy import traces
from tests.accuracy.engine import Config, Job, simulate
from tests.accuracy.physics import made
from tests.accuracy.prompts import Message, Part, Prompt, chain

LEAD_S = 4.0
"""Quiet time before the first request, in which idle power is learnt."""
LONGEST_PROMPT = 12_000
"""Tokens; many of those fit into the engine's memory at once."""
Mix = tuple[tuple[str, float], ...]
SYSTEM_PROMPTS = ((256, 4), (768, 3))
"""System prompts that clients have in common: of how many tokens, and how many different ones there are."""


class Turn(NamedTuple):
    """One request of a session, and the pause before it is sent."""

    prompt: Prompt
    output: int
    think_s: float = 0.0


class Writer:
    """Draws sessions. Every text that is new gets a number of its own."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._texts = count(100)
        self._recorded = count(rng.randrange(1_000))

    def new(self, role: str, tokens: int) -> Message:
        """A message that nobody else has."""
        return Message(role, (Part(next(self._texts), tokens),))

    def system(self, kind: int) -> Message:
        """One of the system prompts in common."""
        tokens, different = SYSTEM_PROMPTS[kind]
        return Message("system", (Part(10 * kind + self.rng.randrange(different), tokens),))

    def one(self, prompt: int, output: int) -> list[Turn]:
        """A session of one request that shares nothing."""
        return [Turn((self.new("user", prompt),), output)]

    def chat(self) -> list[Turn]:
        """A chat request."""
        means, counts = traces.conversation_bins()
        mean = self.rng.choices(means, counts)[0]
        prompt, output = (max(1, round(part * self.rng.uniform(0.8, 1.2))) for part in mean)
        if prompt < 300 or self.rng.random() > 0.3:
            return self.one(prompt, output)
        system = self.system(0)
        return [Turn((system, self.new("user", prompt - system.tokens)), output)]

    def long(self) -> list[Turn]:
        """A long prompt and a short answer."""
        return self.one(
            round(min(LONGEST_PROMPT, max(800, self.rng.lognormvariate(8.0, 0.4)))), self.rng.randint(16, 120)
        )

    def code(self) -> list[Turn]:
        """A code completion."""
        return self.one(*self.rng.choice(traces.code()))

    def summarization(self) -> list[Turn]:
        """A paper to be summarized."""
        prompt, output = self.rng.choice(traces.summarization())
        return self.one(min(LONGEST_PROMPT, prompt), output)

    def burstgpt(self) -> list[Turn]:
        """A request of BurstGPT."""
        return self.one(*self.rng.choice(traces.burstgpt())[1])

    def embed(self) -> list[Turn]:
        """An embedding."""
        return self.one(round(min(8_000, max(8, self.rng.lognormvariate(5.7, 0.9)))), 0)

    def mooncake(self) -> list[Turn]:
        """The next request of the trace; each lap through it is about other texts."""
        rows = traces.mooncake()
        number = next(self._recorded)
        row, lap = rows[number % len(rows)], number // len(rows)
        full, size = row.prompt // traces.MOONCAKE_BLOCK, traces.MOONCAKE_BLOCK
        texts = [10**6 * (1 + lap) + block for block in row.blocks]
        parts = [Part(text, size) for text in texts[:full]]
        parts += [Part(text, row.prompt - full * size) for text in texts[full:]]
        return [Turn((Message("user", tuple(parts)),), row.output)]

    def agent(self) -> list[Turn]:
        """Turns that grow; now and then the history from some place on is replaced by something shorter."""
        rng = self.rng
        history = [self.system(1)] if rng.random() < 0.5 else []
        history.append(self.new("user", round(min(10_000, max(1_000, rng.lognormvariate(8.2, 0.35))))))
        turns = []
        for number in range(AGENT_TURNS[0] + min(10, int(rng.expovariate(1 / AGENT_TURNS[1])))):
            output = rng.randint(30, 250)
            think_s = min(8.0, rng.lognormvariate(-0.2, 0.8)) if number else 0.0
            answer = self.new("assistant", output)
            turns.append(Turn((*history, Message("answer", answer.parts)), output, think_s))
            history.append(answer)
            if len(history) > 4 and rng.random() < 0.08:
                history = [*history[: rng.randrange(2, len(history))], self.new("user", rng.randint(100, 1_000))]
            history.append(self.new("user", round(min(4_000, max(20, rng.lognormvariate(5.9, 0.8))))))
            if sum(message.tokens for message in history) > 24_000:
                break
        return turns


AGENT_TURNS = (2, 4.0)
"""Fewest turns of a session, and about how many more there are."""
SECONDS_A_TURN = 4.0
"""About, with the pause before the next."""
KINDS: dict[str, Callable[[Writer], list[Turn]]] = {
    kind.__name__: kind
    for kind in (
        Writer.chat,
        Writer.long,
        Writer.agent,
        Writer.code,
        Writer.mooncake,
        Writer.burstgpt,
        Writer.embed,
        Writer.summarization,
    )
}
MIXED: Mix = (("chat", 0.5), ("long", 0.25), ("agent", 0.25))
WORKLOADS: dict[str, tuple[Mix, str]] = {
    "mixed": (MIXED, "poisson"),
    "bursty": (MIXED, "bursty"),
    "burstgpt": (MIXED, "burstgpt"),
    "chat": ((("chat", 1.0),), "poisson"),
    "long": ((("long", 1.0),), "poisson"),
    "agent": ((("agent", 1.0),), "poisson"),
    "code": ((("code", 1.0),), "bursty"),
    "mooncake": ((("mooncake", 1.0),), "mooncake"),
    "summarization": ((("summarization", 1.0),), "poisson"),
    "wide": ((("chat", 0.3), ("long", 0.15), ("agent", 0.25), ("code", 0.2), ("embed", 0.1)), "bursty"),
}
"""What is asked, and how it arrives."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What clients ask for. Fractions of the requests: unseen (bypass the proxy, whole sessions), silent (answered in
    one piece), aborted (the client leaves), several (more than one answer, n)."""

    mix: Mix = MIXED
    arrivals: str = "poisson"
    unseen: float = 0.0
    silent: float = 0.0
    aborted: float = 0.0
    several: float = 0.0


def _poisson(rate: float, rng: random.Random) -> Iterator[float]:
    at = 0.0
    while True:
        at += rng.expovariate(rate)
        yield at


def _bursty(rate: float, rng: random.Random) -> Iterator[float]:
    """Bursts of 2 to 8 within half a second, and pauses in between."""
    at = 0.0
    while True:
        at += rng.expovariate(rate / 5)
        yield from sorted(at + rng.random() * 0.5 for _ in range(rng.randint(2, 8)))


def _as_recorded(times: Sequence[float], tick_s: float, rate: float, rng: random.Random) -> Iterator[float]:
    """A recorded series, shrunk to the wanted mean rate, from a random place in it and round again."""
    loose = sorted(time + rng.random() * tick_s for time in times)
    gaps = [after - before for before, after in pairwise(loose)]
    scale = len(gaps) / sum(gaps) / rate
    at, place = 0.0, rng.randrange(len(gaps))
    while True:
        at += gaps[place % len(gaps)] * scale
        place += 1
        yield at


def _burstgpt(rate: float, rng: random.Random) -> Iterator[float]:
    return _as_recorded([at for at, _ in traces.burstgpt()], 1.0, rate, rng)


def _mooncake(rate: float, rng: random.Random) -> Iterator[float]:
    times = [row.at_s for row in traces.mooncake()]
    return _as_recorded(times, traces.MOONCAKE_TICK_S, rate, rng)


ARRIVALS: dict[str, Callable[[float, random.Random], Iterator[float]]] = {
    "poisson": _poisson,
    "bursty": _bursty,
    "burstgpt": _burstgpt,
    "mooncake": _mooncake,
}


def jobs(demand: Demand, rate: float, seconds: float, seed: int) -> list[Job]:
    """First requests of sessions that begin at `rate` per second; the turns that follow hang on them."""
    rng = random.Random(f"jobs {demand.mix} {seed}")
    writer = Writer(rng)
    kinds = [kind for kind, _ in demand.mix]
    numbers, found = count(), []
    for at in ARRIVALS[demand.arrivals](rate, random.Random(f"arrivals {demand.arrivals} {seed}")):
        if at > seconds and found:
            break
        # A mix is of requests: a kind whose sessions have several, as many as time is left for, begins less often.
        turns = min(sum(AGENT_TURNS) - 0.8, 1 + max(0.0, seconds - at) / SECONDS_A_TURN)
        often = [part / (turns if kind == "agent" else 1.0) for kind, part in demand.mix]
        kind = rng.choices(kinds, often)[0]
        tenant = kind if len(kinds) > 1 else rng.choice(("north", "south"))
        seen = rng.random() >= demand.unseen
        first, pause_s = None, 0.0
        for turn in reversed(KINDS[kind](writer)):
            row = f"r{next(numbers):05}"
            prompt = sum(message.tokens for message in turn.prompt if message.role != "answer")
            job = Job(row, kind, tenant, LEAD_S + at, prompt, turn.output, chain(turn.prompt), seen=seen)
            job.text, job.next, job.think_s = turn.prompt, first, pause_s
            _habits(job, demand, rng)
            first, pause_s = job, turn.think_s
        found += [first] if first else []
    return found


def _habits(job: Job, demand: Demand, rng: random.Random) -> None:
    """What this client does with its request. All chances are drawn every time, so that one habit moves no other."""
    silent, aborted, several = (rng.random() < part for part in (demand.silent, demand.aborted, demand.several))
    answers, patience_s, early, part = rng.randint(2, 4), rng.uniform(0.05, 1.5), rng.random() < 0.2, rng.random()
    job.silent = silent or not job.output
    if several and job.output and job.kind != "agent":
        job.answers = answers
    made = job.output * job.answers
    if aborted and made > 1:
        job.leaves, job.patience_s = 0 if early else 1 + int(part * (made - 1)), patience_s


@lru_cache
def rate_for(
    demand: Demand, concurrency: float, seconds: float, seed: int, config: Config, physics: str = "own"
) -> float:
    """Sessions per second at which about `concurrency` of these requests are under way; by bisection.

    The rows say what concurrency came out.
    """
    low, high = concurrency / 120, concurrency * 4
    rate = (low * high) ** 0.5
    for _ in range(12):
        asked = jobs(demand, rate, seconds, seed)
        found = simulate(asked, made(physics, seed), random.Random(0), config, until=LEAD_S + seconds).concurrency
        if abs(found / concurrency - 1) < 0.05:
            break
        low, high = (rate, high) if found < concurrency else (low, rate)
        # First in proportion, which is right while there is no queue; then by halves.
        guess = rate * concurrency / max(found, 1e-3)
        rate = guess if low * 1.02 < guess < high / 1.02 else (low * high) ** 0.5
    return rate
