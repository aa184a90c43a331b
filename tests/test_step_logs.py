"""
What the proxy's own log says of the engines' step logs: each reason why figures are not of grade A, once.
"""

import asyncio
import logging
import stat
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.accounting.flight import Flight
from proxy.accounting.group import Group
from proxy.accounting.steps import Computed
from proxy.app.step_logs import WHOLE_AFTER, StepLogs
from proxy.settings import Backend, Settings
from tests.accounting.flights import ms, stream
from tests.accounting.scripted import group, opened, read, step


class Watched:
    """The step log of one backend, and what was said of it."""

    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        self.group: Group = group()
        settings = Settings(backends=(Backend(url="http://127.0.0.1:8000", name="b"),), step_log=Path("/run/steps"))
        settlement: Any = SimpleNamespace(lock=threading.Lock())
        self._logs = StepLogs(settings, {"b": self.group}, settlement)
        self._log = log

    def told(self, *numbers: int) -> None:
        """Steps of 10 ms, the n-th of which ends after n times 10 ms."""
        for number in numbers:
            self.group.stepped(step(number, number * 10 - 10, number * 10, Computed("r", number, 0, 1)))

    def said(self, at_s: float) -> list[tuple[str, str]]:
        """What a look says then: how loud, and the words."""
        self._log.clear()
        self._logs.look("b", ms(at_s * 1000))
        return [(record.levelname, record.getMessage()) for record in self._log.records]


@pytest.fixture
def watched(caplog: pytest.LogCaptureFixture) -> Watched:
    caplog.set_level(logging.INFO, "proxy.app.step_logs")
    return Watched(caplog)


def test_that_it_is_heard_is_said_once(watched: Watched) -> None:
    assert [] == watched.said(0)
    watched.told(1, 2)
    ((level, text),) = watched.said(1)
    assert ("INFO", "b: the engine's step log is heard") == (level, text.partition(";")[0])
    assert [] == watched.said(2)


def test_that_it_is_not_there_is_said_once_a_request_was_settled(watched: Watched) -> None:
    opened(watched.group, stream("r", first=10, step=10, tokens=5))
    assert [] == watched.said(0)
    read(watched.group, 1000)
    watched.group.settle(ms(2000), force=True)
    watched.group.close_finished(ms(2000), force=True)
    ((level, text),) = watched.said(3)
    assert "WARNING" == level
    assert "no step was heard on /run/steps" in text
    assert [] == watched.said(4)


def test_that_it_has_fallen_silent_and_is_heard_again_is_said(watched: Watched) -> None:
    opened(watched.group, stream("r", first=20, step=10, tokens=400, over=False))
    watched.told(*range(1, 100))
    watched.said(1)
    read(watched.group, 3900)
    watched.group.settle(ms(4000))
    ((level, text),) = watched.said(4)
    assert ("WARNING", True) == (level, "no steps are heard any more" in text)
    assert [] == watched.said(5)

    watched.told(400)
    lost, heard = watched.said(6)
    assert ("WARNING", True) == (lost[0], lost[1].startswith("b: 300 engine steps were lost"))
    assert ("INFO", True) == (heard[0], "the engine's step log is heard" in heard[1])
    assert [] == watched.said(7)


def test_lost_steps_are_said_once_a_burst_and_when_it_is_whole_again(watched: Watched) -> None:
    watched.told(1, 2)
    watched.said(0)
    watched.told(6)
    ((level, text),) = watched.said(1)
    assert ("WARNING", True) == (level, text.startswith("b: 3 engine steps were lost"))
    watched.told(8, 12)
    assert [] == watched.said(2)
    whole = 2 + WHOLE_AFTER / 1e9
    assert [] == watched.said(whole - 0.1)
    assert [("INFO", "b: the step log is whole again; it lost 7 steps")] == watched.said(whole)
    assert [] == watched.said(whole + 1)

    watched.told(14)
    ((level, text),) = watched.said(100)
    assert ("WARNING", True) == (level, text.startswith("b: 1 engine steps were lost"))


def test_windows_that_could_not_wait_for_their_step_are_said_once(watched: Watched) -> None:
    """One that takes 13 s: the log is live all the time, and yet they are of grade B."""
    flight = Flight("r", "r", ms(0), prompt_tokens=100_000)
    opened(watched.group, flight)
    watched.told(1)
    watched.said(0)
    read(watched.group, 14_000)
    watched.group.settle(ms(12_001))
    ((level, text),) = watched.said(12)
    assert ("WARNING", True) == (level, text.startswith("b: 2 windows could not wait for the step"))
    watched.group.settle(ms(13_001))
    assert [] == watched.said(13)

    watched.group.stepped(step(2, 10, 14_001, Computed("r", 1, 99_999, 0)))
    watched.group.settle(ms(14_100))
    over = 13 + WHOLE_AFTER / 1e9
    assert [("INFO", "b: steps are told in time again; 3 windows did not wait for theirs")] == watched.said(over)
    assert "live" == watched.group.steps.state


@pytest.mark.parametrize("mode", ["0600", "660"])
def test_the_sockets_have_the_permissions_that_are_set(tmp_path: Path, mode: str) -> None:
    """Those of the file, which say who may send."""
    settings = Settings(step_log=tmp_path / "steps", step_log_mode=mode)
    settlement: Any = SimpleNamespace(lock=threading.Lock())
    logs = StepLogs(settings, {settings.backends[0].name: group()}, settlement)

    async def permissions() -> int:
        logs.open(ms(0))
        found = (tmp_path / "steps").stat().st_mode
        logs.close()
        return stat.S_IMODE(found)

    assert int(mode, 8) == asyncio.run(permissions())
