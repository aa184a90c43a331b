"""Makes the plugin importable as it lies in deploy/steplog, without vLLM and without installing it."""

import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[2] / "deploy" / "steplog"
if str(PLUGIN) not in sys.path:
    sys.path.insert(0, str(PLUGIN))

Receiver = Callable[[], socket.socket]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is sent by itself, however short it is; tests of holding set their own time."""
    monkeypatch.setattr("jouleproxy_steplog.steps.HOLD_NS", 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the steps go."""
    return tmp_path / "steps.sock"


@pytest.fixture
def listen(path: Path) -> Iterator[Receiver]:
    """Binds a receiving socket at the path, as the proxy does; may be called again after closing it."""
    opened: list[socket.socket] = []

    def bind() -> socket.socket:
        path.unlink(missing_ok=True)
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.setblocking(False)
        receiver.bind(str(path))
        opened.append(receiver)
        return receiver

    yield bind
    for receiver in opened:
        receiver.close()
