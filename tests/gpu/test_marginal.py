"""The only physical test of the weights: what do requests of one kind add at the meter, beside a load that stays?"""

import asyncio
import time
from dataclasses import asdict, dataclass
from itertools import groupby
from statistics import fmean

import httpx
import pytest

from tests.gpu.arithmetic import Interval, Stretch, interval, marginal_j
from tests.gpu.edges import Reader
from tests.gpu.engine import Served
from tests.gpu.load import Load
from tests.gpu.page import Note, Say
from tests.gpu.plan import Plan
from tests.gpu.steps import StepPage, until
from tests.live import LiveProxy

pytestmark = pytest.mark.gpu

BACKGROUND, PROMPT, SHORTEST, LONGEST = 32, 128, 200, 800
"""Answers that always run beside, their prompt, and their lengths: random, so that they do not end together."""
FACTOR = 2.0
CACHED_PART = 0.25
TAIL = 16
"""Prompt tokens that are new behind a cached beginning."""
FRESH = 3


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests added: tokens of the prompt, whether it is cached but for its tail, of the answer; how many a second."""

    prompt: int
    cached: bool
    answer: int
    rate_per_s: float


KINDS = {
    "prefill": Kind(prompt=2048, cached=False, answer=4, rate_per_s=2.0),
    "decode": Kind(prompt=TAIL, cached=False, answer=250, rate_per_s=4.0),
    "context": Kind(prompt=12_000, cached=True, answer=200, rate_per_s=2.0),
    "cached": Kind(prompt=2048, cached=True, answer=4, rate_per_s=2.0),
}


def order(pairs: int) -> list[bool]:
    """Whether the kind is added, stretch by stretch: off on, on off, ...: a steady drift cancels in two pairs."""
    return [on for pair in range(pairs) for on in ((False, True) if pair % 2 == 0 else (True, False))]


def paired(stretches: list[tuple[bool, Stretch]]) -> list[float]:
    """Joules per added request, of each pair of neighbours one without and one with."""
    found = []
    for one, other in zip(stretches[::2], stretches[1::2], strict=True):
        by_phase = dict((one, other))
        found.append(marginal_j(by_phase[False], by_phase[True]))
    return found


class Bench:
    """A kind of requests, the load it is added to, and what both are measured with."""

    def __init__(self, kind: Kind, load: Load, reader: Reader, steps: StepPage, plan: Plan) -> None:
        self._kind, self._load, self._reader, self._steps, self._plan = kind, load, reader, steps, plan
        self._prompt = load.served.fits(kind.prompt)
        self._shared = load.fresh(self._prompt - TAIL)

    async def ask(self, *, cached: bool | None = None) -> None:
        """One request of the kind. cached: otherwise than the kind says."""
        known = self._kind.cached if cached is None else cached
        prompt = self._shared + self._load.fresh(TAIL) if known else self._load.fresh(self._prompt)
        await self._load.ask(prompt, self._load.served.fits(self._kind.answer, 0.2))

    async def alternated(self) -> list[tuple[bool, Stretch]]:
        """All stretches in order; between equal neighbours nothing changes, before others the load settles."""
        found: list[tuple[bool, Stretch]] = []
        for on, phase in groupby(order(self._plan.pairs)):
            count = len(list(phase))
            if on:
                async with self._load.offered(self._kind.rate_per_s, self.ask):
                    found += [(on, stretch) for stretch in await self._stretches(count, self._kind.rate_per_s)]
            else:
                found += [(on, stretch) for stretch in await self._stretches(count, 0.0)]
        return found

    async def _stretches(self, count: int, rate_per_s: float) -> list[Stretch]:
        await asyncio.sleep(self._plan.settle_s)
        found = []
        for _ in range(count):
            begin = time.monotonic_ns()
            await asyncio.sleep(self._plan.window_s)
            end = time.monotonic_ns()
            energy = await asyncio.to_thread(self._reader.until, end)
            steps = await asyncio.to_thread(until, self._steps, end)
            first, last = energy.within(begin, end)
            seconds = (last - first) / 1e9
            joules, number = energy.between(first, last), steps.between(first, last)
            found.append(Stretch(joules, number, seconds, rate_per_s * seconds))
        return found


def paid(proxy: LiveProxy, sent: list[str]) -> list[float]:
    """Joules that the requests paid for their own work: prefill and decode, without the share of fixed step cost."""
    for request_id in sent[-5:]:
        proxy.settled(request_id)
    found = httpx.get(f"{proxy.admin}/energy/requests", params={"limit": 100_000}, timeout=60, trust_env=False)
    records = {record["request_id"]: record for record in found.json()["requests"]}
    phases = [records[request_id]["phases"] for request_id in sent if request_id in records]
    return [phase["prefill"] + phase["decode"] for phase in phases if phase is not None]


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("name", KINDS)
def test_an_added_request_costs_what_it_pays(
    name: str, proxy: LiveProxy, served: Served, reader: Reader, plan: Plan, note: Note, say: Say
) -> None:
    """
    What a request adds at the meter and what it pays for its own work have the same sign and are within a factor of 2.

    The factor is what the weights' prior claims of itself: each may be wrong by two. The meter's figure is the mean
    over pairs of stretches, without and with the kind added, every second pair turned round; its interval is
    Student's, 95 %, and must lie above 0. Compared per step, beside answers that always run (arithmetic.marginal_j
    says why), with the proxy's prefill and decode phases alone: the equal share of a step's fixed cost is no physical
    cost of coming. The kind `cached` must add less than a quarter of what the same prompt pays uncached, in both
    figures.
    """
    kind = KINDS[name]

    async def work() -> tuple[list[tuple[bool, Stretch]], list[str], list[str]]:
        async with Load(served, proxy.url, seed=2) as added, Load(served, proxy.url, seed=3) as beside:
            bench = Bench(kind, added, reader, steps, plan)
            await bench.ask()  # puts the shared beginning into the cache
            async with beside.held(BACKGROUND, PROMPT, SHORTEST, served.fits(LONGEST), stream=True):
                added.sent.clear()
                for _ in range(FRESH):
                    await bench.ask(cached=False)
                fresh = added.sent[:]
                return await bench.alternated(), added.sent[FRESH:], fresh

    say(f"marginal: {name}")
    with StepPage(served.url) as steps:
        stretches, sent, fresh = asyncio.run(work())
    measured = interval(paired(stretches))
    pays, pays_fresh = paid(proxy, sent), fmean(paid(proxy, fresh))
    figures = {
        "measured_j": str(measured),
        "paid_j": fmean(pays),
        "ratio": fmean(pays) / measured.mean,
        "requests": len(pays),
        "fresh_paid_j": pays_fresh,
    }
    raw = {"kind": asdict(kind), "stretches": [[on, asdict(stretch)] for on, stretch in stretches]}
    note(figures, raw | {"marginal_j": paired(stretches)})
    say(f"marginal: {name} adds {measured} J, pays {fmean(pays):.4g} J")
    judge(name, measured, fmean(pays), pays_fresh)


def judge(name: str, measured: Interval, pays: float, pays_fresh: float) -> None:
    """Asserts what the test promises."""
    if name == "cached":
        assert pays < CACHED_PART * pays_fresh
        assert measured.mean < CACHED_PART * pays_fresh, f"{measured} J added, {pays_fresh:.3g} J paid uncached"
        return
    assert measured.low > 0, f"{measured} J added: too noisy to tell its sign"
    assert measured.low / FACTOR <= pays <= measured.high * FACTOR, f"{measured} J added, {pays:.3g} J paid"
