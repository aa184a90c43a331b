"""What the GPU tests share: the GPU, the server on it, the independent reader; started once for all of them."""

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.real import EngineFailed
from tests.gpu import machine
from tests.gpu.edges import Reader
from tests.gpu.engine import Served, serving
from tests.gpu.load import Load
from tests.gpu.machine import Gpu, Missing
from tests.gpu.page import Note, Say
from tests.gpu.plan import MINUTES, Plan
from tests.gpu.plan import plan as planned
from tests.live import LiveProxy


@pytest.fixture(scope="session")
def say() -> Say:
    """Prints a line of progress with the seconds since the first."""
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"gpu: {time.monotonic() - began:5.0f} s  {text}", file=sys.__stderr__, flush=True)

    return say


@pytest.fixture(scope="session")
def plan() -> Plan:
    """How long things take: JOULEPROXY_GPU_MINUTES, by default 10."""
    return planned(float(os.environ.get(MINUTES, "10")))


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    """The GPU under measurement; without one the test fails and says what is missing."""
    try:
        return machine.chosen()
    except Missing as missing:
        why = str(missing)
    pytest.fail(f"GPU tests cannot run here: {why}", pytrace=False)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder with a path short enough for a socket."""
    made = Path(tempfile.mkdtemp(prefix="jp-gpu-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def served(gpu: Gpu, folder: Path, say: Say) -> Iterator[Served]:
    """The vLLM under measurement."""
    say(f"{gpu.name}; waiting for vLLM")
    try:
        with serving(folder, gpu.memory_gb) as found:
            say(f"vLLM {found.vllm} serves {found.model} at {found.url}")
            yield found
        return
    except (Missing, EngineFailed) as failure:
        why = str(failure)
    pytest.fail(f"GPU tests cannot run here: {why}", pytrace=False)


@pytest.fixture(scope="session")
def reader(gpu: Gpu, folder: Path) -> Iterator[Reader]:
    """The independent reader of the GPU's counter."""
    with Reader(gpu.uuid, folder / "edges.txt") as found:
        yield found


@pytest.fixture(scope="session")
def warm(served: Served, plan: Plan, say: Say) -> None:
    """The board at its working temperature: leakage grows with it, so a cold board's figures are too low."""
    say(f"warming the board up for {plan.warm_s:g} s")

    async def work() -> None:
        async with Load(served, served.url) as load, load.held(64, 64, 200, served.fits(600), stream=False):
            await asyncio.sleep(plan.warm_s)

    asyncio.run(work())


@pytest.fixture
def proxy(served: Served, gpu: Gpu, folder: Path) -> Iterator[LiveProxy]:
    """`jouleproxy serve --meter nvml` in front of the server, with a ledger of its own."""
    lines = ["[[backends]]", f'url = "{served.url}"', f'gpus = ["{gpu.uuid}"]']
    if served.step_log is not None:
        lines.append(f'step_log = "{served.step_log}"')
    ledger = Path(tempfile.mkdtemp(dir=folder)) / "ledger.db"
    with LiveProxy(backends=[served.url], ledger=ledger, meter="nvml", config="\n".join(lines) + "\n") as found:
        yield found


@pytest.fixture(scope="session")
def about(gpu: Gpu, served: Served) -> dict[str, Any]:
    """What the page of results says of the machine."""
    return machine.facts(gpu) | {"model": served.model, "vllm": served.vllm, "torch": machine.torch_version()}


@pytest.fixture
def note(about: dict[str, Any], record_property: Callable[[str, object], None]) -> Note:
    """Takes figures for the page of results, and raw data for the file beside it."""
    record_property("machine", about)

    def note(figures: dict[str, Any], raw: object) -> None:
        record_property("figures", figures)
        record_property("raw", raw)

    return note
