"""uvicorn as the proxy runs it: without its signal handlers, and with a short way for pieces of a stream."""

import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from proxy.asgi import DIRECT, Direct
from proxy.errors import ConfigurationError

GRACE_S = 10
"""Seconds that open answers get to end after the first signal."""


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: the service ends in its own order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Protocol(HttpToolsProtocol):
    """uvicorn's own, offering DIRECT: a message and a coroutine for every token cost more than its bytes do."""

    def on_headers_complete(self) -> None:
        """The application is about to be called."""
        super().on_headers_complete()
        if self.cycle is not None:
            self.scope["extensions"] = {DIRECT: {"write": direct(self.cycle)}}


def direct(cycle: RequestResponseCycle) -> Direct:
    """Writes to this exchange's client."""

    def write(body: bytes) -> bool:
        if not cycle.chunked_encoding or cycle.flow.write_paused or cycle.disconnected or not body:
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    return write


def listen(host: str, port: int, what: str) -> socket.socket:
    """A listening socket. Raises ConfigurationError, naming the flag for another port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        flag = "--port" if what == "traffic" else "--admin-port"
        raise ConfigurationError(
            f"the {what} listener cannot use {host}:{port} ({error.strerror}); choose another with {flag}"
        ) from error
    listener.setblocking(False)
    return listener


def make_server(app: object, level: str) -> Server:
    """A server for an application; the sockets are given to it when it serves."""
    return Server(
        uvicorn.Config(
            app,  # type: ignore[arg-type]
            http=Protocol,
            log_config=None,
            log_level=level,
            access_log=False,
            server_header=False,
            date_header=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
