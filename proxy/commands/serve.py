"""`jouleproxy serve`: the two listeners, from start to a clean end."""

import asyncio
import logging
import signal
import socket
import threading

import uvloop
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import proxy
from proxy.app import Service, collector
from proxy.commands.listener import Server, listen, make_server
from proxy.errors import ConfigurationError
from proxy.settings import Settings, multiprocess_warning
from proxy.stores.engines import database_url, shown_url

_log = logging.getLogger(__name__)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def banner(service: Service, traffic: str, admin: str) -> Table:
    """What runs and what measures it, for a person. Holds no secret: it goes to logs."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("jouleproxy", proxy.__version__)
    table.add_row("traffic", f"{traffic}   point OpenAI clients at {traffic}/v1")
    table.add_row("admin", f"{admin}   /metrics  /energy/balance  /energy/requests/ID  /readyz")
    for name, member in service.pool.members.items():
        models = ", ".join(sorted(member.models or ())) or "models not known yet"
        state = "up" if member.up and member.models else "[red]down[/]"
        table.add_row("backend", f"{escape(name)}   {state}   {escape(models)}")
        for meter in service.meters[name]:
            mark = "[black on yellow] ESTIMATED, no sensor [/] " if meter.estimated else ""
            table.add_row("meter", f"{mark}{meter.kind}   {escape(f'{meter.gpu}   {meter.description}')}")
    for name, path in service.step_logs.paths.items():
        table.add_row("step log", escape(f"{name}   {path}   grade A once it is heard"))
    table.add_row("policy", service.settings.policy)
    table.add_row("ledger", escape(shown_url(database_url(service.settings.ledger))))
    return table


async def _serve(settings: Settings, console: Console) -> int:
    failures: list[BaseException] = []
    servers: list[Server] = []

    def stop(error: BaseException | None = None) -> None:
        if error is not None:
            _log.error("stopping: %s: %s", type(error).__name__, error, exc_info=error)
            failures.append(error)
        for server in servers:
            server.force_exit = server.should_exit and error is None
            server.should_exit = True

    service = Service(settings, on_failure=stop)
    try:
        traffic_socket = listen(settings.host, settings.port, "traffic")
        admin_socket = listen(settings.admin_host, settings.admin_port, "admin")
    except ConfigurationError:
        await service.stop()
        raise
    traffic = make_server(service.traffic(), settings.log_level)
    admin = make_server(service.admin(), settings.log_level)
    servers.append(traffic)
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop)
    await service.start()
    collector.calm()
    console.print(banner(service, _address(traffic_socket), _address(admin_socket)))
    # A loop and a thread of its own: rendering metrics takes time that streams must not wait for.
    thread = threading.Thread(target=lambda: asyncio.run(admin.serve([admin_socket])), name="admin", daemon=True)
    thread.start()
    try:
        await traffic.serve([traffic_socket])
    finally:
        await service.stop()
        admin.should_exit = True
        await asyncio.to_thread(thread.join, 5.0)
    return 1 if failures else 0


def serve(settings: Settings, console: Console) -> int:
    """Serves until SIGINT or SIGTERM; the exit status. Raises ConfigurationError before anything runs."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    warning = multiprocess_warning()
    if warning:
        _log.warning(warning)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, console))
