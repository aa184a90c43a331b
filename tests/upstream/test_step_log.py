"""
The proxy's end of the step log: datagrams become steps, and neither garbage nor restarts can hurt it.
"""

import asyncio
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proxy.accounting.steps import EngineStep
from proxy.accounting.units import Nanoseconds
from proxy.errors import ConfigurationError
from proxy.upstream.step_log import AHEAD_NS, MOST_AT_ONCE, StepLog
from tests.upstream.datagrams import STEP, datagram, single


def numbered(number: int, *, dropped: int = 0, boot: int = 77, engine: int = 0) -> bytes:
    return datagram(STEP._replace(number=number, dropped=dropped, boot=boot, engine=engine))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "steps.sock"


@contextmanager
def sender(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as plugin:
        plugin.connect(str(path))
        plugin.setblocking(False)
        yield plugin


async def settle(log: StepLog, steps: list[EngineStep], count: int) -> None:
    """Lets the event loop run until so many steps or bad datagrams were taken."""
    async with asyncio.timeout(10):
        while len(steps) + log.refused + log.bad < count:  # noqa: ASYNC110  (what is waited for is the plain callback of the log)
            await asyncio.sleep(0)


def heard(path: Path, *datagrams: bytes) -> tuple[StepLog, list[EngineStep]]:
    """A log that has taken these."""
    steps: list[EngineStep] = []
    log = StepLog(path, steps.append)

    async def listen() -> None:
        log.open()
        with sender(path) as plugin:
            for number, each in enumerate(datagrams, 1):
                plugin.send(each)
                await settle(log, steps, number)
        log.close()

    asyncio.run(listen())
    return log, steps


def permissions(path: Path) -> tuple[bool, int]:
    """Whether it is a socket, and who may use it."""
    mode = path.stat().st_mode
    return stat.S_ISSOCK(mode), stat.S_IMODE(mode)


def test_steps_arrive_in_order_and_nothing_is_lost(path: Path) -> None:
    log, steps = heard(path, *(numbered(n) for n in range(3, 50)))
    assert [step.number for step in steps] == [*range(3, 50)]
    assert (log.lost, log.bad) == (0, 0)


def test_several_steps_come_in_one_datagram(path: Path) -> None:
    first, *more = (STEP._replace(number=number) for number in range(5, 9))
    log, steps = heard(path, datagram(first, *more))
    assert [step.number for step in steps] == [5, 6, 7, 8]
    assert (log.lost, log.bad) == (0, 0)


def test_an_engine_with_the_plugin_of_before_is_heard(path: Path) -> None:
    """One step a datagram; the engine's environment is not always updated together with the proxy."""
    log, steps = heard(path, single(STEP), datagram(STEP._replace(number=STEP.number + 1)))
    assert (steps[0], steps[1].number, log.lost, log.bad) == (STEP, STEP.number + 1, 0, 0)


def test_more_than_one_turn_of_the_loop_is_taken(path: Path) -> None:
    steps: list[EngineStep] = []
    log = StepLog(path, steps.append)

    async def flood() -> None:
        log.open()
        with sender(path) as plugin:
            for number in range(MOST_AT_ONCE + 20):
                while True:
                    try:
                        plugin.send(numbered(number))
                        break
                    except BlockingIOError:  # the queue is full
                        await asyncio.sleep(0)
        await settle(log, steps, MOST_AT_ONCE + 20)
        log.close()

    asyncio.run(flood())
    assert log.lost == 0


def test_a_gap_in_the_numbers_is_counted_as_lost(path: Path) -> None:
    log, _ = heard(path, numbered(10), numbered(11), numbered(15))
    assert log.lost == 3


def test_what_the_engine_dropped_is_counted_once(path: Path) -> None:
    """Dropped steps have numbers; a sender that gives them none is believed too."""
    log, _ = heard(path, numbered(10, dropped=1), numbered(13, dropped=3), numbered(14, dropped=8))
    assert log.lost == 2 + 5


def test_each_process_counts_for_itself(path: Path) -> None:
    """Replicas interleave, and a restarted engine begins anew; neither is a gap."""
    log, steps = heard(
        path,
        *(numbered(n, engine=e) for n in (1, 2) for e in (0, 1)),
        numbered(1, boot=78),
        numbered(2, boot=78),
    )
    assert (log.lost, len(steps)) == (0, 6)


def test_garbage_is_counted_and_the_next_step_is_heard(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log, steps = heard(path, b"garbage", numbered(1), b"", b"garbage", numbered(2))
    assert (log.bad, [step.number for step in steps], log.lost) == (3, [1, 2], 0)
    assert [r.levelname for r in caplog.records].count("WARNING") == 2


def test_a_step_from_the_future_is_refused(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It would make all that is not told yet look told; the clocks of a machine agree to a second."""
    now = time.monotonic_ns()
    ends = [now - 1, now + AHEAD_NS // 2, now + 10 * AHEAD_NS, now + 20 * AHEAD_NS, now + 30 * AHEAD_NS, now]
    steps = [STEP._replace(number=n, start=Nanoseconds(now - 99), end=Nanoseconds(e)) for n, e in enumerate(ends, 1)]
    log, heard_of = heard(path, datagram(*steps))
    assert [step.number for step in heard_of] == [1, 2, 6]
    assert (log.refused, log.lost, log.bad) == (3, 3, 0)
    assert [text for text in caplog.messages if "refused" in text] == [
        f"step log {path}: {n} steps were refused; the latest, of engine 1, ends in the future: "
        "is its monotonic clock another one?"
        for n in (1, 2)
    ]


def test_a_step_that_takes_no_time_is_refused(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its energy could be put nowhere."""
    log, steps = heard(path, datagram(STEP, STEP._replace(number=6, end=STEP.start)))
    assert ([step.number for step in steps], log.refused) == ([5], 1)
    assert "does not end after its start" in caplog.text


def test_the_clock_that_steps_are_held_against_may_be_another(path: Path) -> None:
    """That of a test."""
    steps: list[EngineStep] = []
    log = StepLog(path, steps.append, clock=lambda: STEP.end - AHEAD_NS - 1)

    async def listen() -> None:
        log.open()
        with sender(path) as plugin:
            plugin.send(datagram(STEP))
            await settle(log, steps, 1)
        log.close()

    asyncio.run(listen())
    assert (steps, log.refused) == ([], 1)


@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_the_owner_or_whoever_is_let_in_may_send_and_the_file_goes_with_the_log(path: Path, mode: int) -> None:
    async def listen() -> tuple[bool, int]:
        log = StepLog(path, lambda step: None, mode=mode)
        log.open()
        found = permissions(path)
        log.close()
        log.close()
        return found

    assert asyncio.run(listen()) == (True, mode)
    assert not path.exists()


def test_by_default_only_the_owner_may_send(path: Path) -> None:
    async def listen() -> tuple[bool, int]:
        log = StepLog(path, lambda step: None)
        log.open()
        found = permissions(path)
        log.close()
        return found

    assert asyncio.run(listen()) == (True, 0o600)


def test_a_socket_left_behind_by_a_killed_proxy_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as killed:
        killed.bind(str(path))
    assert path.exists()
    _, steps = heard(path, numbered(1))
    assert len(steps) == 1


def refusal(path: Path) -> str:
    """Why the log does not open."""

    async def listen() -> None:
        StepLog(path, lambda step: None).open()

    with pytest.raises(ConfigurationError) as refused:
        asyncio.run(listen())
    return str(refused.value)


def test_a_path_somebody_listens_at_is_refused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        assert "another process listens there" in refusal(path)
    assert path.exists()


def test_a_socket_of_another_kind_in_use_is_refused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen()
        assert str(path) in refusal(path)
    assert path.exists()


def test_a_file_that_is_no_socket_is_refused_and_kept(path: Path) -> None:
    path.write_text("precious")
    assert "no socket" in refusal(path)
    assert path.read_text() == "precious"


def test_no_folder_is_made(path: Path) -> None:
    assert "No such file or directory" in refusal(path.parent / "missing" / "steps.sock")


def test_a_path_too_long_for_a_socket_is_refused(path: Path) -> None:
    assert "too long" in refusal(path.with_name("x" * 120))


def test_the_file_of_a_successor_is_left_alone(path: Path) -> None:
    """Somebody has removed the file, and another proxy listens there now."""

    def replace() -> None:
        path.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as successor:
            successor.bind(str(path))

    async def listen() -> None:
        log = StepLog(path, lambda step: None)
        log.open()
        replace()
        log.close()

    asyncio.run(listen())
    assert path.exists()


def test_closing_from_within_a_step_is_safe(path: Path) -> None:
    steps: list[EngineStep] = []

    async def listen() -> None:
        def take(step: EngineStep) -> None:
            steps.append(step)
            log.close()

        log = StepLog(path, take)
        log.open()
        with sender(path) as plugin:
            plugin.send(numbered(1))
            plugin.send(numbered(2))
            await settle(log, steps, 1)

    asyncio.run(listen())
    assert len(steps) == 1


def test_the_umask_is_put_back(path: Path) -> None:
    before = os.umask(0o022)
    try:
        heard(path)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
