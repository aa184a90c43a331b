"""Receives what the plugin in deploy/steplog reports: the only file of the proxy that knows its socket.

The proxy binds the socket, one path for each backend, and the engine's processes send to it; either may start first
and may end at any time. Times are CLOCK_MONOTONIC, which all processes of one kernel share.
"""

import asyncio
import errno
import logging
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

from proxy.accounting.steps import EngineStep
from proxy.errors import ConfigurationError
from proxy.upstream.step_datagrams import NotAStep, parse

LARGEST_BYTES = 4 << 20
BUFFER_BYTES = 4 << 20
"""Asked for; the kernel gives what net.core.rmem_max allows."""
MOST_AT_ONCE = 32
"""Datagrams taken before the event loop gets its turn."""
MOST_PROCESSES = 256
"""Engine processes whose numbering is remembered; older ones have ended long ago."""
AHEAD_NS = 1_000_000_000
"""A step cannot have ended later than now; so much is left to clocks that are not quite one."""
_log = logging.getLogger(__name__)


class StepLog:
    """The receiving end at one path. It must be opened and closed in the event loop that `on_step` shall run in.

    bad: datagrams that were no step. refused: steps with times that cannot be: one from the future would make all
    before it look told, for ever. lost: steps that a process reported around but not itself, because it had to
    drop them; a process that was never heard before is not asked about its past.
    """

    def __init__(
        self,
        path: Path,
        on_step: Callable[[EngineStep], None],
        *,
        mode: int = 0o600,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """mode: who may send: the file's permissions, for an engine that runs as another user. clock: in ns."""
        self.path = path
        self.bad = 0
        self.refused = 0
        self.lost = 0
        self._clock = clock
        self._on_step = on_step
        self._mode = mode
        self._socket: socket.socket | None = None
        self._inode: tuple[int, int] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._buffer = memoryview(bytearray(LARGEST_BYTES))
        self._last: dict[tuple[int, int], tuple[int, int]] = {}
        """By engine and boot, latest last: the number, and what was dropped up to it."""

    def open(self) -> None:
        """Binds the path and listens from now on; raises ConfigurationError, which says why it cannot."""
        _remove_stale(self.path)
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            receiver.setblocking(False)
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            before = os.umask(0o177)  # nobody else may send in the moment before chmod
            try:
                receiver.bind(str(self.path))
            finally:
                os.umask(before)
            self.path.chmod(self._mode)
            self._inode = _inode(self.path)
        except OSError as error:
            receiver.close()
            raise ConfigurationError(f"step log {self.path}: {error.strerror or error}") from error
        self._socket = receiver
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(receiver, self._drain)

    def close(self) -> None:
        """Stops listening and removes the socket's file, unless another has taken its place. May be called twice."""
        if self._socket is None or self._loop is None:
            return
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        if self._inode is not None and _inode(self.path) == self._inode:
            self.path.unlink(missing_ok=True)

    def _drain(self) -> None:
        """Takes what has come; the event loop calls again when there is more."""
        for _ in range(MOST_AT_ONCE):
            if self._socket is None:  # on_step may close
                return
            try:
                size = self._socket.recv_into(self._buffer, 0, socket.MSG_TRUNC)
            except BlockingIOError:
                return
            except OSError as error:
                _log.warning("step log %s: %s", self.path, error)
                return
            self._take(size)

    def _take(self, size: int) -> None:
        try:
            if size > LARGEST_BYTES:
                raise NotAStep(f"{size} bytes are too many")
            steps = parse(self._buffer[:size])
        except NotAStep as error:
            self.bad += 1
            if _is_telling(self.bad):
                _log.warning("step log %s: %d datagrams were no steps; the latest: %s", self.path, self.bad, error)
            return
        latest = self._clock() + AHEAD_NS
        for step in steps:
            if self._socket is None:
                return
            if not step.start < step.end <= latest:
                self._refuse(step, latest)
                continue
            self._count_lost(step)
            self._on_step(step)

    def _refuse(self, step: EngineStep, latest: int) -> None:
        self.refused += 1
        if _is_telling(self.refused):
            why = "ends in the future" if step.end > latest else "does not end after its start"
            text = (
                "step log %s: %d steps were refused; the latest, of engine %d, %s: is its monotonic clock another one?"
            )
            _log.warning(text, self.path, self.refused, step.engine, why)

    def _count_lost(self, step: EngineStep) -> None:
        key = (step.engine, step.boot)
        last = self._last.pop(key, None)
        if last is None:
            _log.info("step log %s: engine %d reports its steps", self.path, step.engine)
            if len(self._last) >= MOST_PROCESSES:
                del self._last[next(iter(self._last))]
        else:
            number, dropped = last
            # what was dropped had a number, so the gap tells of it again
            self.lost += max(step.number - number - 1, step.dropped - dropped, 0)
        self._last[key] = (step.number, step.dropped)


def _is_telling(count: int) -> bool:
    """The first of each power of two: a sender of nonsense must not fill the log."""
    return count & (count - 1) == 0


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _remove_stale(path: Path) -> None:
    """Removes a socket's file that a receiver left behind; raises ConfigurationError for anything else there."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(f"step log {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(kind):
        raise ConfigurationError(f"step log {path}: there is a file that is no socket; name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:
                raise ConfigurationError(f"step log {path}: {error.strerror or error}") from error
        else:
            raise ConfigurationError(f"step log {path}: another process listens there; name another path")
    path.unlink(missing_ok=True)
