"""`jouleproxy calibrate`: a short designed load on an otherwise idle vLLM, and a weights file of what it taught."""

import asyncio
import random
import re
import signal
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import proxy
from proxy.accounting.calibration import Calibrated, calibrated
from proxy.accounting.weights import Weights
from proxy.app import monotonic
from proxy.app.build import meters_of
from proxy.commands.calibration.course import Course, Ran
from proxy.commands.calibration.server import CalibrationFailed, Card, Server
from proxy.commands.calibration.summary import show, verdict
from proxy.errors import ConfigurationError, RequestError
from proxy.ports import Meter
from proxy.settings import Backend, Settings
from proxy.upstream.client import EngineClient
from proxy.upstream.prior import Priors
from proxy.upstream.weights_file import Calibration, write_weights

QUIET_S = 2.0
NOTHING_WRITTEN, INTERRUPTED = 1, 130
LEAST_RISE = 1.15
"""Of power by work, below which somebody else must be at work as well."""


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """What the command line says; None where it does not, and the settings decide.

    backend: URL, or the name of one in the settings. minutes: of the whole run.
    """

    backend: str | None
    model: str | None
    meter: str | None
    gpus: tuple[str, ...]
    minutes: float
    output: Path
    step_log: Path | None
    allow_estimated: bool
    yes: bool


def calibrate(settings: Settings, options: CalibrateOptions, console: Console) -> int:
    """The exit status: 0 the file is written; 1 the load ran and nothing was written; 130 interrupted.

    Raises ConfigurationError or RequestError for what keeps it from starting.
    """
    backend = chosen(settings, options)
    meters = meters_of(backend, settings)
    try:
        return _with_meters(settings, backend, options, meters, console)
    finally:
        for meter in meters:
            meter.close()


def chosen(settings: Settings, options: CalibrateOptions) -> Backend:
    """The backend with what the options say in place of the settings. Raises ConfigurationError."""
    wanted = options.backend
    if wanted is None and len(settings.backends) > 1:
        names = ", ".join(backend.name for backend in settings.backends)
        raise ConfigurationError(f"the settings name several backends: choose one with --backend ({names})")
    named = [one for one in settings.backends if wanted in (None, one.name, one.url, one.url + "/v1", one.url + "/")]
    try:
        found = named[0] if named else Backend(url=str(wanted))
    except ValueError as error:
        raise ConfigurationError(f"--backend: it looks like http://127.0.0.1:8000, not {wanted!r}") from error
    step_log = options.step_log or found.step_log or settings.step_log
    given = {"meter": options.meter, "gpus": options.gpus or None, "step_log": step_log}
    return found.model_copy(update={name: value for name, value in given.items() if value is not None})


def _with_meters(
    settings: Settings, backend: Backend, options: CalibrateOptions, meters: Sequence[Meter], console: Console
) -> int:
    estimated = any(meter.estimated for meter in meters)
    if estimated and not options.allow_estimated:
        raise ConfigurationError(
            f"{meters[0].description}: weights learnt from it would describe that model and no machine. "
            "Use a meter that measures (`jouleproxy meters` lists them), or --allow-estimated to try the command out"
        )
    card = asyncio.run(_checked(settings, backend, options))
    prior, shape = _prior(backend, card, meters)
    console.print(_plan(backend, card, meters, shape, options, estimated=estimated))
    if not options.yes and not _agreed(console, options.minutes):
        return INTERRUPTED
    log, mode = backend.step_log, int(settings.step_log_mode, 8)
    course = Course(prior, meters, log, mode, options.minutes, random.Random(), monotonic, console)
    try:
        ran = asyncio.run(_interruptible(_run(settings, backend, card, course)))
    except (asyncio.CancelledError, KeyboardInterrupt):
        console.print("stopped; nothing was written")
        return INTERRUPTED
    except (CalibrationFailed, RequestError) as error:
        console.print(f"[bold red]✗[/] {escape(str(error))}; nothing was written", soft_wrap=True)
        return NOTHING_WRITTEN
    return _concluded(ran, prior, card, backend, meters, options.output, console)


def _client(settings: Settings, backend: Backend) -> EngineClient:
    key = backend.api_key.get_secret_value() if backend.api_key else None
    return EngineClient(
        backend.url, backend.name, connect_timeout_s=settings.connect_timeout_s, answer_timeout_s=120.0, api_key=key
    )


async def _checked(settings: Settings, backend: Backend, options: CalibrateOptions) -> Card:
    engine = _client(settings, backend)
    try:
        server = Server(engine, backend.url, monotonic)
        card = await server.card(options.model)
        await server.quiet(min(QUIET_S, options.minutes * 6))
        return card
    finally:
        await engine.close()


def _prior(backend: Backend, card: Card, meters: Sequence[Meter]) -> tuple[Weights, str]:
    """What the fit starts from, and where that comes from."""
    priors = Priors(backend.name, meters, weights_file=None, config_file=backend.model_config_file)
    if backend.model_config_file is not None:
        return priors.at_start(), f"from {backend.model_config_file}"
    own = None if card.root is None else priors.for_model(card.root)
    if own is not None:
        return own, f"from the config.json of {card.root}"
    return priors.at_start(), "of Llama 3.1 8B: no config.json of this model is here; set model_config_file"


def _plan(
    backend: Backend, card: Card, meters: Sequence[Meter], shape: str, options: CalibrateOptions, *, estimated: bool
) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("server", escape(f"{backend.url}   {card.model}, {card.max_model_len} tokens of context; it is idle"))
    for meter in meters:
        mark = "[black on yellow] ESTIMATED, no sensor [/] " if estimated else ""
        table.add_row("meter", f"{mark}{meter.kind}   {escape(f'{meter.gpu}   {meter.description}')}")
    table.add_row("prior", escape(f"roofline {shape}"))
    table.add_row("steps", escape(f"step log at {backend.step_log}" if backend.step_log else "from token times"))
    there = "   (there is one, which will be replaced)" if options.output.exists() else ""
    table.add_row("output", escape(f"{options.output}{there}"))
    return table


def _agreed(console: Console, minutes: float) -> bool:
    """Asks. Raises ConfigurationError where nobody can be asked."""
    if not sys.stdin.isatty():
        raise ConfigurationError("nobody is there to be asked: start it with --yes")
    words = f"The server will be under full load for about {minutes:g} minutes. Go on? [y/N] "
    return console.input(escape(words)).strip().lower() in ("y", "yes")


async def _interruptible(work: Coroutine[Any, Any, Ran]) -> Ran:
    """Ends by CancelledError on Ctrl-C, also in a background job, which may have been born deaf to it."""
    task = asyncio.ensure_future(work)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signum, task.cancel)
    return await task


async def _run(settings: Settings, backend: Backend, card: Card, course: Course) -> Ran:
    engine = _client(settings, backend)
    try:
        return await course.run(Server(engine, backend.url, monotonic), card)
    finally:
        await engine.close()


def _concluded(
    ran: Ran, prior: Weights, card: Card, backend: Backend, meters: Sequence[Meter], output: Path, console: Console
) -> int:
    """Fits, shows, and writes what is better than the prior; the exit status."""
    estimated = any(meter.estimated for meter in meters)
    others = (
        f"power was {ran.idle_w:.0f} W without work and {ran.busy_w:.0f} W with it: something else runs on the device"
    )
    if ran.busy_w < LEAST_RISE * ran.idle_w and not estimated:
        console.print(f"[bold red]✗[/] {others}. Nothing was written.", soft_wrap=True)
        return NOTHING_WRITTEN
    found = calibrated(ran.stretches, prior)
    show(found, ran.stretches, console)
    words = verdict(found, short=ran.timetable.short)
    if not found.helps:
        console.print(f"[bold red]✗[/] {escape(words)} Nothing was written.", soft_wrap=True)
        return NOTHING_WRITTEN
    write_weights(output, found.weights, _about(found, ran, card, backend, meters))
    console.print(f"[green]✓[/] {escape(words)}", soft_wrap=True)
    if estimated:
        console.print(
            "[black on yellow] ESTIMATED [/] no sensor: these weights describe a model of CPU time, no machine."
        )
    if ran.busy_w < LEAST_RISE * ran.idle_w:
        console.print(f"[yellow]![/] {others}", soft_wrap=True)
    words = f"written: {output}   serve takes it by JOULEPROXY_WEIGHTS_FILE, or weights_file of [[backends]]"
    console.print(words, markup=False, soft_wrap=True)
    return 0


def _about(outcome: Calibrated, ran: Ran, card: Card, backend: Backend, meters: Sequence[Meter]) -> Calibration:
    # NVML's meters describe themselves as: board, driver version, power limit, precision
    told = [re.fullmatch(r"(.+), driver ([^,]+)(?:, .*)?, ([^,]+)", meter.description) for meter in meters]
    boards = [meter.gpu if found is None else found[1] for meter, found in zip(meters, told, strict=True)]
    drivers = {found[2] for found in told if found is not None}
    return Calibration(
        written=datetime.now(UTC).replace(microsecond=0),
        model=card.model,
        gpu=boards[0] if len(boards) == 1 else f"{len(boards)} x {', '.join(dict.fromkeys(boards))}",
        driver=", ".join(sorted(drivers)) or None,
        meter=f"{meters[0].kind}, {meters[0].description if told[0] is None else told[0][3]}",
        estimated=any(meter.estimated for meter in meters),
        steps="step log" if backend.step_log is not None else "token times",
        idle_w=ran.idle_w,
        fitted=outcome.told,
        r2=outcome.r2,
        held_out_mape_percent=100 * outcome.held_out,
        prior_mape_percent=100 * outcome.held_out_prior,
        requests=ran.requests,
        seconds=round(ran.seconds, 1),
        version=proxy.__version__,
    )
