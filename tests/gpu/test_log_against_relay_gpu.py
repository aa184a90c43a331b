"""The step log against token times alone, as in tests/real, on a GPU's meter; and what the log costs the engine."""

import asyncio
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import pytest

from proxy.accounting.flight import Flight
from proxy.settings import Backend
from tests.engine.real import EngineFailed, RealEngine
from tests.gpu.arithmetic import interval
from tests.gpu.engine import Served, started
from tests.gpu.load import Load
from tests.gpu.machine import SERVE, URL, Gpu
from tests.gpu.page import Note, Say
from tests.gpu.plan import Plan
from tests.gpu.steps import StepReceiver, series
from tests.real import test_log_against_relay as log_against_relay
from tests.real.test_log_against_relay import Books, ask, ids, settled

pytestmark = pytest.mark.gpu

CLIENTS, REQUESTS = 12, 120
BAR = 0.05
"""The project's bar for a real vLLM."""
OVERHEAD_BAR, TOLD = 0.01, 0.02
STREAMS = 64


class GpuBooks(Books):
    """Two sets of books over the counter of a GPU."""

    gpu: Gpu

    def __init__(self, engine: RealEngine, folder: Path, step_log: Path) -> None:
        super().__init__(engine, folder, step_log)
        backend = Backend(url=engine.url, step_log=step_log, gpus=(self.gpu.uuid,))
        self._settings = self._settings.model_copy(update={"meter": "nvml", "backends": (backend,)})


@pytest.fixture
def step_log(served: Served) -> Path:
    """The socket of the server under measurement."""
    if served.step_log is None:
        pytest.fail("this server tells no steps: JOULEPROXY_GPU_STEP_LOG must name its socket", pytrace=False)
    return served.step_log


@pytest.fixture
def logging_engine(served: Served, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Served:
    """The server under measurement, for the books of tests/real, which then read the GPU's counter."""
    monkeypatch.setattr(GpuBooks, "gpu", gpu, raising=False)
    monkeypatch.setattr(log_against_relay, "Books", GpuBooks)
    return served


books = log_against_relay.books
"""The fixture of tests/real, over the two above."""


def load(served: Served, url: str) -> list[str]:
    """Chat, long prompts and agents' turns, a dozen at a time."""
    number = random.Random(5)
    agent = ids(served.fits(3000, 0.4), "agent")
    asked: list[tuple[list[int], int]] = []
    for turn in range(REQUESTS):
        kind = number.choice(("chat", "chat", "long", "agent"))
        if kind == "chat":
            asked.append((ids(number.randint(30, served.fits(600, 0.3)), turn), number.randint(60, 250)))
        elif kind == "long":
            asked.append((ids(number.randint(served.fits(2000, 0.3), served.fits(6000, 0.6)), turn), 30))
        else:
            asked.append((agent + ids(number.randint(40, 120), turn), number.randint(40, 120)))
    with ThreadPoolExecutor(CLIENTS) as clients:
        return list(clients.map(lambda one: ask(url, *one, model=served.model), asked))


@pytest.mark.usefixtures("warm")
def test_the_relay_alone_comes_near_to_the_step_log(books: Books, served: Served, note: Note, say: Say) -> None:
    """
    Token counts are equal, and energies differ by at most 5 % of the sum: the project's bar for real vLLM.
    """
    say(f"log against relay: {REQUESTS} requests")
    pairs = settled(books, len(load(served, books.url)))
    total = sum(logged.energy_uj for logged, _ in pairs)
    error = sum(abs(logged.energy_uj - inferred.energy_uj) for logged, inferred in pairs) / total
    shares = sorted(inferred.energy_uj / logged.energy_uj - 1 for logged, inferred in pairs if logged.energy_uj)
    wrong = [logged.flight for logged, _ in pairs if not counts_agree(books, logged.flight)]
    figures = {
        "requests": len(pairs),
        "joules": total / 1e6,
        "weighted_error": error,
        "median_share": shares[len(shares) // 2],
        "wrong_counts": len(wrong),
    }
    note(figures, [round(share, 4) for share in shares])
    say(f"log against relay: weighted error {100 * error:.2f} %")
    assert {"A"} == {logged.grade for logged, _ in pairs}
    assert {"B"} == {inferred.grade for _, inferred in pairs}
    assert not wrong
    assert error <= BAR


def counts_agree(books: Books, flight: Flight) -> bool:
    """Whether the step log counted the prompt and answer tokens that the relay was told of."""
    computed: dict[str, list[int]] = cast(Any, books.group).computed
    named = [tokens for name, tokens in computed.items() if flight.request_id in name]
    decoded = (flight.completion_tokens or 0) - flight.sequences
    return [sum(column) for column in zip(*named, strict=True)] == [flight.computed, decoded]


@pytest.fixture
def plain(served: Served, gpu: Gpu, folder: Path) -> Iterator[Served]:
    """A second server, beside the first, that tells no steps."""
    if os.environ.get(URL) is not None:
        pytest.fail(f"a second server is needed: {SERVE} must say how to start it, and {URL} must not be set")
    try:
        with started(folder, gpu.memory_gb, None) as found:
            yield found
    except EngineFailed as failure:
        pytest.fail(f"a second server did not start beside the first: {failure}", pytrace=False)


@pytest.mark.usefixtures("warm")
def test_the_step_log_costs_nothing(served: Served, plain: Served, plan: Plan, note: Note, say: Say) -> None:
    """
    Tokens per second with the step log heard are not provably more than 1 % below those without, told to within 2 %.

    Two servers on the same GPU, of which one works at a time; pairs of stretches, every second pair turned round.
    They are different processes, so a difference of some tenths of a percent need not be the plugin's.
    """
    assert served.step_log is not None

    async def rate(server: Served) -> float:
        held = (STREAMS, 64, 300, server.fits(900))
        async with Load(server, server.url) as clients, clients.held(*held, stream=False):
            await asyncio.sleep(plan.settle_s / 2)
            began, before = time.monotonic(), series(server.page(), "generation_tokens_total")
            await asyncio.sleep(plan.window_s)
            ended, after = time.monotonic(), series(server.page(), "generation_tokens_total")
        return (after - before) / (ended - began)

    losses, rates = [], []
    with StepReceiver(served.step_log) as heard:
        for pair in range(plan.pairs):
            turn = (served, plain) if pair % 2 == 0 else (plain, served)
            by_server = {server.url: asyncio.run(rate(server)) for server in turn}
            rates.append([by_server[served.url], by_server[plain.url]])
            losses.append(1 - rates[-1][0] / rates[-1][1])
            say(f"step log overhead: {100 * losses[-1]:+.2f} %")
        lost, told = heard.lost, len(heard.curve().times)
    loss = interval(losses)
    figures = {
        "with_tokens_per_s": fmean(row[0] for row in rates),
        "without_tokens_per_s": fmean(row[1] for row in rates),
        "loss_percent": f"{100 * loss.mean:.2f} ± {100 * loss.half:.2f} (n = {loss.n})",
        "steps_heard": told,
        "steps_lost": lost,
    }
    note(figures, rates)
    assert told > 0
    assert loss.half <= TOLD, "too noisy to tell"
    assert loss.low <= OVERHEAD_BAR
