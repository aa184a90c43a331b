"""Fixtures for all tests: a simulated vLLM for each test that wants one, and one real vLLM for the whole run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.engine.real import EngineNotInstalled, RealEngine, interpreter
from tests.engine.simulated import SimulatedEngine

# the same examples in every run, and no verdict on how fast a shared machine happens to be
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

NOT_UNIT = (
    *("accuracy", "real", "relay", "stores", "test_conservation.py", "test_demo.py", "test_main.py", "test_readme.py"),
    *("engine/test_real.py", "grafana/test_prometheus.py", "loadgen/test_chat.py"),
)
"""Tests that start servers or commands, or simulate minutes; all others are the unit part: deploy/test -m unit."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the unit part."""
    slow = tuple(str(Path(__file__).parent / name) for name in NOT_UNIT)
    for item in items:
        if not str(item.path).startswith(slow):
            item.add_marker(pytest.mark.unit)


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
