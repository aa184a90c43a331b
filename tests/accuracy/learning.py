"""What a server's weights are after minutes of other traffic: those it is judged with have not seen the judged run.

A proxy in front of a server that has run for a while has learnt its weights from the meter; one that has just been
started has the prior. Both are shown: `weighted` has seen five minutes of bursts of the mix under another seed, on a
board with another gain; `weighted-cold` begins with the prior.
"""

import random
from functools import lru_cache

from proxy.accounting.weights import Weights, roofline_prior
from tests.accuracy.engine import Config, simulate
from tests.accuracy.physics import made
from tests.accuracy.policies import by_group
from tests.accuracy.sensor import Board, samples
from tests.accuracy.view import Told
from tests.accuracy.workloads import LEAD_S, WORKLOADS, Demand, jobs, rate_for

CONCURRENCY = 12.0
OTHER = 1_000_003
"""Added to the seed."""


@lru_cache(maxsize=32)
def learnt(physics_name: str, board: Board, seed: int, log: bool, seconds: float, noise: float) -> Weights:
    """The weights a group ends with after so many seconds.

    log: whether it hears the engine's step log. noise: relative, of each step's time and energy.
    """
    physics, other = made(physics_name, seed), seed + OTHER
    mix, _ = WORKLOADS["mixed"]
    demand = Demand(mix, "bursty")
    rate = rate_for(demand, CONCURRENCY, seconds, other, Config(), physics_name)
    asked = jobs(demand, rate, seconds, other)
    draws = random.Random(f"learning {physics_name} {seed}")
    run = simulate(asked, physics, draws, until=LEAD_S + seconds, noise=noise)
    readings, _ = samples(run, board, random.Random(f"learning {board.name} {seed}"))
    prior = roofline_prior(physics.shape)
    _, group = by_group(run, readings, prior, "weighted", other, Told(log=log), board.grade)
    return group.divider.fit.weights
