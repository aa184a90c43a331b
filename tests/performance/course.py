"""Runs: every system under every load, in an order that turns round each time, on the same two cores."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.engine.real import free_port
from tests.performance.native import program
from tests.performance.pinned import Pinned, Ready, wait_until
from tests.performance.systems import DIRECT, Place, System
from tests.performance.workloads import Workload

MEASURED, BESIDE = 0, 1
"""Cores: of the system, of engine and client."""


class ClientFailed(Exception):
    """The load client ended with an error."""


@dataclass(frozen=True, slots=True)
class Run:
    """One system under one load once. said: what client.c printed. cpu_s, memory_bytes: None for no system."""

    system: str
    workload: str
    said: dict[str, Any]
    cpu_s: float | None
    memory_bytes: int | None


@contextmanager
def engine() -> Iterator[int]:
    """A running mock engine's port."""
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        Pinned([program("engine"), str(port)], BESIDE, Path(folder) / "engine.log", {}) as running,
    ):
        wait_until(Ready(port), running)
        yield port


@contextmanager
def started(system: System, engine_port: int) -> Iterator[tuple[Pinned, int]]:
    """The system in front of the engine, and its port."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(port, free_port(), engine_port, Path(folder))
        with Pinned(system.command(place), MEASURED, Path(folder) / "log", system.environment) as running:
            wait_until(Ready(port), running)
            yield running, port


def load(port: int, workload: Workload, *, seconds: int, warm: int) -> dict[str, Any]:
    """What the client says. Raises ClientFailed."""
    settings = {**workload.settings, "seconds": seconds, "warm": warm}
    command = ["taskset", "-c", str(BESIDE), program("client"), str(port)]
    command += [f"{name}={value}" for name, value in settings.items()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ClientFailed(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run_once(system: System | None, workload: Workload, engine_port: int, *, seconds: int, warm: int) -> Run:
    """One system, newly started, under one load; None for the engine alone."""
    if system is None:
        return Run(DIRECT, workload.name, load(engine_port, workload, seconds=seconds, warm=warm), None, None)
    with started(system, engine_port) as (running, port):
        before = running.cpu_s()
        said = load(port, workload, seconds=seconds, warm=warm)
        cpu_s, memory = running.cpu_s() - before, running.memory_bytes()
    return Run(system.name, workload.name, said, cpu_s, memory)


def in_turn(systems: Sequence[System | None], rounds: int) -> Iterator[System | None]:
    """A B C, C B A, A B C: what drifts with time meets all alike."""
    for number in range(rounds):
        yield from systems if number % 2 == 0 else reversed(systems)


def enough_cores() -> bool:
    """Whether the system can have a core of its own."""
    return (os.cpu_count() or 1) >= 2
