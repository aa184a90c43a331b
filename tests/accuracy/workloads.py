"""Requests to run: kinds of lengths, mixes of kinds, and arrivals that reach a wanted concurrency.

chat    lengths of the Azure conversation trace of 2023 (the joint bins that the load generator ships)
long    retrieval: about 3k tokens in, a short answer
agent   turns of about 4k tokens, of which 70-95 % are in the prefix cache
Every kind is a tenant of its own in a mix, so that a bias against a kind of work shows; else tenants are drawn.
"""

import csv
import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tests.accuracy.engine import Job, simulate
from tests.accuracy.physics import Own

BINS = Path(__file__).parents[2] / "loadgen/workloads/azure_conv_2023.csv"
LEAD_S = 4.0
"""Quiet time before the first request, in which idle power is learnt."""


class Lengths(NamedTuple):
    """Tokens of one request."""

    prompt: int
    cached: int
    output: int


@lru_cache
def _bins() -> tuple[list[tuple[float, float]], list[int]]:
    with BINS.open() as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    counts = [int(row["count"]) for row in rows]
    means = [(int(row["input_tokens"]) / n, int(row["output_tokens"]) / n) for row, n in zip(rows, counts, strict=True)]
    return means, counts


def chat(rng: random.Random) -> Lengths:
    """A turn of a conversation; nothing cached."""
    means, counts = _bins()
    prompt, output = rng.choices(means, counts)[0]
    return Lengths(max(8, round(prompt * rng.uniform(0.8, 1.2))), 0, max(2, round(output * rng.uniform(0.7, 1.3))))


def long(rng: random.Random) -> Lengths:
    """A long prompt and a short answer."""
    return Lengths(round(min(12_000, max(800, rng.lognormvariate(8.0, 0.4)))), 0, rng.randint(16, 120))


def agent(rng: random.Random) -> Lengths:
    """A turn of an agent; the cache holds whole blocks of 16 tokens."""
    prompt = round(min(16_000, max(1_000, rng.lognormvariate(8.3, 0.4))))
    return Lengths(prompt, int(prompt * rng.uniform(0.70, 0.95)) // 16 * 16, rng.randint(30, 250))


KINDS: dict[str, Callable[[random.Random], Lengths]] = {"chat": chat, "long": long, "agent": agent}
WORKLOADS: dict[str, dict[str, float]] = {
    "mixed": {"chat": 0.5, "long": 0.25, "agent": 0.25},
    "bursty": {"chat": 0.5, "long": 0.25, "agent": 0.25},
    "chat": {"chat": 1.0},
    "long": {"long": 1.0},
    "agent": {"agent": 1.0},
}


def _arrivals(rate: float, until: float, bursty: bool, rng: random.Random) -> Iterator[float]:
    """Poisson, or bursts of 2 to 8 within half a second with pauses in between."""
    at = LEAD_S
    while at < until:
        at += rng.expovariate(rate / 5 if bursty else rate)
        spread = rng.randint(2, 8) if bursty else 1
        yield from sorted(at + rng.random() * 0.5 * bursty for _ in range(spread))


def jobs(workload: str, rate: float, seconds: float, seed: int, *, unseen: float = 0.0) -> list[Job]:
    """Requests at `rate` per second. unseen: fraction that does not come through the proxy."""
    rng = random.Random(f"jobs {workload} {seed}")
    mix = WORKLOADS[workload]
    found = []
    for number, at in enumerate(_arrivals(rate, LEAD_S + seconds, workload == "bursty", rng)):
        kind = rng.choices(list(mix), list(mix.values()))[0]
        lengths = KINDS[kind](rng)
        tenant = kind if len(mix) > 1 else rng.choice(("north", "south"))
        hidden = rng.random() < unseen
        found.append(Job(f"r{number:05}", kind, tenant, at, *lengths, seen=not hidden))
    return found


@lru_cache
def rate_for(workload: str, concurrency: float, seconds: float, seed: int) -> float:
    """Requests per second at which about `concurrency` of these requests are under way; by bisection.

    Tried on the rule's own physics: another physics is a little faster or slower, and the rows say what came out.
    """
    low, high = concurrency / 60, concurrency * 2
    rate = (low * high) ** 0.5
    for _ in range(12):
        run = simulate(jobs(workload, rate, seconds, seed), Own(random.Random(0)), random.Random(0))
        found = run.concurrency
        if abs(found / concurrency - 1) < 0.04:
            break
        low, high = (rate, high) if found < concurrency else (low, rate)
        rate = (low * high) ** 0.5
    return rate
