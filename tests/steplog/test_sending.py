"""
Datagrams on their way to the proxy: the engine never waits, and what could not be sent is counted.
"""

import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from jouleproxy_steplog import sending
from jouleproxy_steplog.sending import MOST_AT_ONCE, MOST_COMING, MOST_WAITING, MOST_WAITING_BYTES, Sender

from tests.steplog.conftest import Receiver


def taken(receiver: socket.socket) -> list[bytes]:
    """What lies in the receiver's queue."""
    datagrams = []
    while True:
        try:
            datagrams.append(receiver.recv(1 << 20))
        except BlockingIOError:
            return datagrams


def numbered(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last)]


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """All that is logged."""
    caplog.set_level(logging.INFO)
    return caplog


def test_what_is_sent_arrives_at_once_and_in_order(path: Path, listen: Receiver) -> None:
    receiver, sender = listen(), Sender(str(path))
    for datagram in numbered(0, 5):
        sender.send(datagram, 1)
        assert taken(receiver) == [datagram]
    assert sender.dropped == 0


def test_what_is_dropped_is_counted_in_steps(path: Path) -> None:
    sender = Sender(str(path))
    for steps in (1, 3, 20):
        sender.send(b"x", steps)
    assert sender.dropped == 24


def test_a_receiver_that_is_behind_gets_the_rest_with_the_next_step(path: Path, listen: Receiver) -> None:
    """The kernel queues few (net.unix.max_dgram_qlen); the others wait in order."""
    receiver, sender = listen(), Sender(str(path))
    for datagram in numbered(0, 100):
        sender.send(datagram, 1)
    arrived = taken(receiver)
    sender_waits = 100 - len(arrived)
    while sender_waits > 0:
        sender.send(b"next", 1)
        arrived += taken(receiver)
        sender_waits = 100 - len(arrived)
    assert [datagram for datagram in arrived if datagram != b"next"] == numbered(0, 100)
    assert sender.dropped == 0


def test_what_waits_is_bounded_and_the_oldest_are_dropped(path: Path, listen: Receiver) -> None:
    receiver, sender = listen(), Sender(str(path))
    total = MOST_WAITING + 500
    for datagram in numbered(0, total):
        sender.send(datagram, 1)
    queued = taken(receiver)
    assert len(sender._waiting) == MOST_WAITING
    assert sender.dropped == total - len(queued) - MOST_WAITING
    sender.send(b"last", 1)
    assert taken(receiver)[0] == b"%d" % (len(queued) + sender.dropped)


def test_what_waits_is_bounded_in_bytes_too(path: Path, listen: Receiver) -> None:
    """Hundreds of datagrams of large batches would be tens of megabytes of the engine's memory."""
    receiver, sender = listen(), Sender(str(path))
    large = bytes(60_000)
    for _ in range(200):
        sender.send(large, 7)
    kept = len(sender._waiting)
    assert MOST_WAITING_BYTES - len(large) < kept * len(large) <= MOST_WAITING_BYTES
    assert sender.dropped == 7 * (200 - kept - len(taken(receiver)))

    arrived = 0
    while sender._waiting:
        sender.send(b"", 1)
        arrived += len(taken(receiver))
    assert arrived >= kept
    assert sender._bytes == 0


def elsewhere(call: Callable[..., None], *arguments: object) -> None:
    """Runs something in another thread, which must not take long."""
    thread = threading.Thread(target=call, args=arguments, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "it waits"


def test_the_engine_does_not_wait_for_the_thread_that_sends_the_rest(path: Path, listen: Receiver) -> None:
    """What comes meanwhile goes with what that thread sends next, in order; too much of it is counted as dropped."""
    receiver, sender = listen(), Sender(str(path))
    with sender._lock:
        for number, datagram in enumerate(numbered(0, MOST_COMING + 3)):
            elsewhere(sender.send, datagram, 1)
            assert sender.dropped == max(0, number + 1 - MOST_COMING)
        elsewhere(sender.rest)
    arrived: list[bytes] = []
    deadline = time.monotonic() + 10
    while len(arrived) < MOST_COMING and time.monotonic() < deadline:
        arrived += taken(receiver)
    assert arrived == numbered(0, MOST_COMING)
    assert sender.dropped == 3


def test_a_long_queue_is_sent_in_pieces(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no step waits for a thousand calls of the system."""
    sender, sent = Sender(str(path)), []
    full = OSError(errno.EAGAIN, "full")

    def refuse(datagram: bytes) -> None:
        raise full

    monkeypatch.setattr(sender, "_put", refuse)
    for datagram in numbered(0, MOST_WAITING):
        sender.send(datagram, 1)
    monkeypatch.setattr(sender, "_put", sent.append)
    sender.send(b"more", 1)
    assert len(sent) == MOST_AT_ONCE
    assert sender.dropped == 1


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM])
def test_a_system_without_room_is_asked_again(path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    sender, sent = Sender(str(path)), []

    def refuse(datagram: bytes) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(sender, "_put", refuse)
    sender.send(b"1", 1)
    monkeypatch.setattr(sender, "_put", sent.append)
    sender.send(b"2", 1)
    assert (sent, sender.dropped) == ([b"1", b"2"], 0)


def test_without_a_receiver_everything_is_dropped_and_said_once(path: Path, log: pytest.LogCaptureFixture) -> None:
    sender = Sender(str(path))
    for datagram in numbered(0, 50):
        sender.send(datagram, 1)
    assert (sender.dropped, len(sender._waiting)) == (50, 0)
    assert [record.getMessage() for record in log.records] == [
        f"steps are not reported: nobody takes them at {path} (No such file or directory)"
    ]


def test_a_socket_of_somebody_elses_is_said_to_be_a_matter_of_permissions(
    path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """The proxy runs as another user, and its socket is its own alone."""

    class Refused(socket.socket):
        def connect(self, address: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", address)

    monkeypatch.setattr(socket, "socket", Refused)
    sender = Sender(str(path))
    for _ in range(3):
        sender.send(b"x", 1)
    (text,) = log.messages
    assert text.startswith(f"steps are not reported: nobody takes them at {path} (Permission denied): user ")
    assert "JOULEPROXY_STEP_LOG_MODE" in text


def test_a_path_that_can_be_no_socket_is_dropped_as_well(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path / ("x" * 200), tmp_path, tmp_path / "file"):
        sender = Sender(str(path))
        sender.send(b"1", 1)
        assert sender.dropped == 1
    assert (tmp_path / "file").read_text() == "precious"


def test_a_receiver_that_comes_late_gets_what_comes_then(
    path: Path, listen: Receiver, log: pytest.LogCaptureFixture
) -> None:
    sender = Sender(str(path))
    sender.send(b"1", 1)
    receiver = listen()
    sender.send(b"2", 1)
    assert (taken(receiver), sender.dropped) == ([b"2"], 1)
    assert log.messages[-1] == f"steps are reported to {path}"


def test_a_receiver_that_restarts_is_found_again_without_a_loss(
    path: Path, listen: Receiver, log: pytest.LogCaptureFixture
) -> None:
    first, sender = listen(), Sender(str(path))
    sender.send(b"1", 1)
    first.close()
    second = listen()
    sender.send(b"2", 1)
    assert (taken(second), sender.dropped) == ([b"2"], 0)
    assert log.messages == [f"steps are reported to {path}"]


def test_between_two_receivers_steps_are_dropped_and_both_is_said(
    path: Path, listen: Receiver, log: pytest.LogCaptureFixture
) -> None:
    first, sender = listen(), Sender(str(path))
    sender.send(b"1", 1)
    first.close()  # its file stays, as after kill -9
    sender.send(b"2", 1)
    second = listen()
    sender.send(b"3", 1)
    assert (taken(second), sender.dropped) == ([b"3"], 1)
    assert [message.partition(" to ")[0].partition(":")[0] for message in log.messages] == [
        "steps are reported",
        "steps are not reported",
        "steps are reported",
    ]


def test_what_waits_for_a_receiver_that_ends_is_dropped(path: Path, listen: Receiver) -> None:
    first, sender = listen(), Sender(str(path))
    for datagram in numbered(0, 400):
        sender.send(datagram, 1)
    waiting = len(sender._waiting)
    assert waiting > 0
    first.close()
    path.unlink()
    sender.send(b"after", 1)
    assert (len(sender._waiting), sender.dropped) == (0, waiting + 1)


def test_a_receiver_that_comes_and_goes_does_not_fill_the_log(
    path: Path, listen: Receiver, log: pytest.LogCaptureFixture
) -> None:
    sender = Sender(str(path))
    for _ in range(20):
        receiver = listen()
        sender.send(b"1", 1)
        receiver.close()
        sender.send(b"2", 1)
    assert len(log.messages) <= 4


@pytest.mark.parametrize("room", [MOST_WAITING_BYTES, 1 << 30])
def test_a_datagram_too_large_to_keep_or_for_the_system_is_dropped_and_the_next_is_sent(
    path: Path, listen: Receiver, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(sending, "MOST_WAITING_BYTES", room)
    receiver, sender = listen(), Sender(str(path))
    sender.send(bytes(64 << 20), 1)
    sender.send(b"small", 1)
    assert (taken(receiver), sender.dropped) == ([b"small"], 1)


def test_the_largest_real_batch_fits_into_a_datagram(path: Path, listen: Receiver) -> None:
    """A thousand sequences with names as long as they get."""
    receiver, sender = listen(), Sender(str(path))
    largest = bytes(48 + 1024 * (16 + 257))
    sender.send(largest, 1)
    assert (taken(receiver), sender.dropped) == ([largest], 0)


def test_when_the_engine_rests_what_waits_is_still_sent(path: Path, listen: Receiver) -> None:
    """No step follows that could take it along; a thread does, and ends."""
    receiver, sender = listen(), Sender(str(path))
    for datagram in numbered(0, 300):
        sender.send(datagram, 1)
    assert sender._waiting
    sender.rest()
    sender.rest()
    arrived: list[bytes] = []
    receiver.setblocking(True)
    receiver.settimeout(10)
    while len(arrived) < 300:
        arrived.append(receiver.recv(100))
    assert arrived == numbered(0, 300)
    assert threads() == 1
    deadline = time.monotonic() + 10
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == 0


def threads() -> int:
    return sum(thread.name == "jouleproxy-steplog" for thread in threading.enumerate())


def test_when_nothing_waits_a_rest_starts_nothing(path: Path, listen: Receiver) -> None:
    receiver, sender = listen(), Sender(str(path))
    sender.send(b"1", 1)
    sender.rest()
    assert (threads(), taken(receiver)) == (0, [b"1"])
