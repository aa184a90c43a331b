"""Fixtures for all tests: a simulated vLLM for each test that wants one, and one real vLLM for the whole run."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.engine.real import EngineNotInstalled, RealEngine, interpreter
from tests.engine.simulated import SimulatedEngine
from tests.gpu.machine import no_gpu

# the same examples in every run, and no verdict on how fast a shared machine happens to be
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

NOT_UNIT = (
    *("accuracy", "real", "relay", "stores", "test_conservation.py", "test_demo.py", "test_main.py", "test_readme.py"),
    *("engine/test_real.py", "grafana/test_prometheus.py", "loadgen/test_chat.py"),
    *("steplog/test_real_vllm.py", "commands/test_calibrate.py"),
    "test_shared_gpu.py",
)
"""Tests that start servers or commands, or simulate minutes; all others are the unit part: deploy/test -m unit."""


LEFT_OUT = pytest.StashKey[str]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the unit part; leaves out what needs a GPU where there is none, unless -m asks for it by name."""
    slow = tuple(str(Path(__file__).parent / name) for name in NOT_UNIT)
    on_gpu = [item for item in items if item.get_closest_marker("gpu") is not None]
    for item in items:
        if item not in on_gpu and not str(item.path).startswith(slow):
            item.add_marker(pytest.mark.unit)
    asked = "gpu" in re.findall(r"\w+", config.option.markexpr)
    if on_gpu and not asked and (why := no_gpu()) is not None:
        items[:] = [item for item in items if item not in on_gpu]
        config.hook.pytest_deselected(items=on_gpu)
        config.stash[LEFT_OUT] = f"{len(on_gpu)} gpu tests are left out: {why}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says at the end what was left out."""
    if LEFT_OUT in config.stash:
        terminalreporter.write_line(config.stash[LEFT_OUT])


@pytest.fixture
def simulated_engine() -> Iterator[SimulatedEngine]:
    """A simulated vLLM that takes no time; tests that need other flags make their own."""
    with SimulatedEngine() as engine:
        yield engine


@pytest.fixture(scope="session")
def real_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    """The real vLLM server with the tiny model, started once per run; tests must leave it as it is."""
    _require_engine()
    with RealEngine(tmp_path_factory.mktemp("vllm") / "server.log") as engine:
        yield engine


@pytest.fixture
def private_real_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    """A real vLLM server of the test's own, which it may kill; costs its start of half a minute every time."""
    _require_engine()
    with RealEngine(tmp_path_factory.mktemp("vllm-private") / "server.log") as engine:
        yield engine


def _require_engine() -> None:
    try:
        interpreter()
    except EngineNotInstalled as error:
        pytest.fail(str(error), pytrace=False)
