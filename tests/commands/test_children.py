"""
What a command starts, it ends, and a process that fails says why.
"""

import sys
from pathlib import Path

import pytest

from proxy.commands.children import ChildFailed, Children, port_near
from tests.engine.real import free_port

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_everything_ends_with_the_block(tmp_path: Path) -> None:
    """
    However the block is left, its processes are gone.
    """
    children = Children()
    started = [children.start(name, SLEEPER, tmp_path / name) for name in ("a", "b")]
    assert [None, None] == [child.ended for child in started]

    children.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)

    assert all(child.ended is not None for child in started)


def test_a_process_that_dies_shows_the_end_of_its_log(tmp_path: Path) -> None:
    """
    Waiting for it ends at once, with its own last words.
    """
    with Children() as children:
        child = children.start("engine", [sys.executable, "-c", "raise SystemExit('no memory')"], tmp_path / "log")
        with pytest.raises(ChildFailed, match="no memory"):
            child.wait_for(f"http://127.0.0.1:{free_port()}/", timeout_s=30, waiting=lambda _: None)


def test_a_busy_port_is_passed_over() -> None:
    """
    The wanted port if it is free, else another.
    """
    import socket

    wanted = free_port()
    assert wanted == port_near(wanted)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", wanted))
        taken.listen()
        assert port_near(wanted) not in (wanted, 0)
