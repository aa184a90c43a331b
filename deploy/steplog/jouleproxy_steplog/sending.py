"""The wire to jouleproxy: datagrams to a Unix socket, never waiting for anybody."""

import errno
import logging
import os
import socket
import threading
import time
from collections import deque

from jouleproxy_steplog.telling import tell

MOST_WAITING, MOST_WAITING_BYTES = 500, 4 << 20
"""Datagrams, and their sizes together, kept for a receiver that is behind: some seconds of steps."""
MOST_COMING = 16
"""Datagrams that may come while the thread of a rest sends others, which takes a millisecond or two."""
MOST_AT_ONCE = 64
"""Datagrams sent in one go, so that a long queue does not hold up a step."""
BUFFER_BYTES = 4 << 20
"""Asked for, so that the largest batch fits into a datagram; the kernel gives what net.core.wmem_max allows."""
QUIET_S = 60.0
"""Between two lines in the log that say the same."""
PATIENCE_S, PAUSE_S = 10.0, 0.01
"""How long, and how often, the last steps before a rest are offered to a receiver that is behind."""
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
_GONE = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE)


class Sender:
    """A connected datagram socket, and what waits for room in it.

    Linux queues few datagrams for a receiver (net.unix.max_dgram_qlen, often 10), so a receiver that is busy for a
    moment leaves some waiting here; they go first with the next one.

    The engine's thread sends, and after its rest begins a second one as well. Whichever has the lock does; the engine's
    never waits for it, but leaves what it has to the other.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._coming: deque[tuple[bytes, int]] = deque()
        """What the engine's thread has given; only it appends, and only who has the lock takes away."""
        self._turned_away = 0
        """Steps that found no room there; only the engine's thread counts them, as only the lock's owner the others."""
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._bytes = self._dropped = 0
        self._lock = threading.Lock()
        self._drain: threading.Thread | None = None
        self._until = 0.0
        self._heard: bool | None = None
        """What the log says; None before its first line."""
        self._complained = -QUIET_S

    def __del__(self) -> None:
        """A scheduler that goes takes its socket with it."""
        self._close()

    def send(self, datagram: bytes, steps: int) -> None:
        """Sends so many steps, after those that wait, or keeps or drops them.

        It waits for nothing, neither for room nor for the other thread. Handing a datagram to the kernel takes some
        microseconds, and up to MOST_AT_ONCE of them may go when a receiver that was behind has room again.
        """
        if len(self._coming) < MOST_COMING:
            self._coming.append((datagram, steps))
        else:
            self._turned_away += steps
        self._flush_if_free()

    @property
    def dropped(self) -> int:
        """Steps thrown away, because nobody listens or too much waits."""
        return self._dropped + self._turned_away

    def rest(self) -> None:
        """Says that no step may follow for long: sends what waits, and the rest of it by a thread that then ends."""
        if not self._left:
            return
        self._flush_if_free()
        self._until = time.monotonic() + PATIENCE_S
        if self._left and (self._drain is None or not self._drain.is_alive()):
            self._drain = threading.Thread(target=self._send_the_rest, name="jouleproxy-steplog", daemon=True)
            self._drain.start()

    def _send_the_rest(self) -> None:
        # looked at without the lock: what comes while it is held here is seen by the next look
        while self._left and time.monotonic() < self._until:
            with self._lock:
                self._flush()
            time.sleep(PAUSE_S)

    @property
    def _left(self) -> bool:
        return bool(self._waiting or self._coming)

    def _flush_if_free(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                self._flush()
            finally:
                self._lock.release()

    def _flush(self) -> None:
        """Sends what waits until the receiver's queue is full; drops all of it when there is no receiver."""
        self._take_in()
        for _ in range(min(len(self._waiting), MOST_AT_ONCE)):
            try:
                self._put(self._waiting[0][0])
                if not self._heard:
                    self._tell_heard()
            except OSError as error:
                if error.errno in _FULL:
                    return
                if error.errno != errno.EMSGSIZE:
                    self._lose_receiver(error)
                    return
                self._drop_oldest()
            else:
                self._take_oldest()

    def _take_in(self) -> None:
        while self._coming:
            one = self._coming.popleft()
            self._waiting.append(one)
            self._bytes += len(one[0])
        while len(self._waiting) > MOST_WAITING or self._bytes > MOST_WAITING_BYTES:
            self._drop_oldest()

    def _take_oldest(self) -> int:
        datagram, steps = self._waiting.popleft()
        self._bytes -= len(datagram)
        return steps

    def _drop_oldest(self) -> None:
        self._dropped += self._take_oldest()

    def _put(self, datagram: bytes) -> None:
        """Hands it to the kernel; a receiver that has been replaced is looked for once."""
        if self._socket is not None:
            try:
                self._socket.send(datagram)
                return
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                self._close()
        self._socket = self._connected()
        self._socket.send(datagram)

    def _connected(self) -> socket.socket:
        fresh = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            fresh.setblocking(False)
            fresh.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            fresh.connect(self._path)
        except BaseException:
            fresh.close()
            raise
        return fresh

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _lose_receiver(self, error: OSError) -> None:
        self._close()
        while self._waiting:
            self._drop_oldest()
        now = time.monotonic()
        # a receiver that comes and goes gets one pair of lines a minute
        if self._heard is not False and now - self._complained >= QUIET_S:
            self._heard, self._complained = False, now
            text = "steps are not reported: nobody takes them at %s (%s)%s"
            tell(logging.WARNING, text, self._path, error.strerror or error, _hint(error))

    def _tell_heard(self) -> None:
        self._heard = True
        tell(logging.INFO, "steps are reported to %s", self._path)


def _hint(error: OSError) -> str:
    if error.errno not in (errno.EACCES, errno.EPERM):
        return ""
    return (
        f": user {os.getuid()} may not write to that socket, or not enter its folder; where the proxy runs as another "
        "user, its setting JOULEPROXY_STEP_LOG_MODE says who may write, as 0660 does for a common group"
    )
