"""The command line: `jouleproxy` or `python -m proxy`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

import proxy
from proxy.commands.report import report
from proxy.errors import JouleproxyError

app = typer.Typer(
    name="jouleproxy",
    help="An OpenAI-compatible proxy in front of vLLM that says for every request how many joules it cost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file; default: ./jouleproxy.toml if there")
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jouleproxy {proxy.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the subcommand."""


@app.command()
def serve(
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            "-b",
            help="URL of a vLLM server; several need the TOML file, each with its gpus. Default: http://127.0.0.1:8000",
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Traffic address. Default: 127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Traffic port. Default: 8080")] = None,
    admin_host: Annotated[str | None, typer.Option(help="Admin address. Default: 127.0.0.1")] = None,
    admin_port: Annotated[int | None, typer.Option(help="Admin port: /metrics, /energy. Default: 9464")] = None,
    meter: Annotated[
        str | None,
        typer.Option(help="auto, nvml, rapl, modelled[:idle_w=W,core_w=W], recorded:FILE.csv. Default: auto"),
    ] = None,
    step_log: Annotated[
        Path | None, typer.Option(help="Unix socket for vLLM's step log (grade A); see the README. Default: none")
    ] = None,
    weights_file: Annotated[
        Path | None, typer.Option(help="What `jouleproxy calibrate` wrote. Default: a roofline of model and GPU")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="weighted, tokens, output-tokens, time. Default: weighted")] = None,
    ledger: Annotated[str | None, typer.Option(help="Database URL. Default: sqlite:///jouleproxy.db")] = None,
    config: ConfigFile = None,
    workers: Annotated[int, typer.Option(hidden=True)] = 1,
) -> None:
    """Run the proxy: clients on one port, operators on another.

    Every option is also a setting: environment `JOULEPROXY_<NAME>` or a key in the TOML file. The README lists all.
    """
    if workers != 1:
        _fail(
            "--workers is not offered: one process must see all requests of a GPU to divide its energy. "
            "Run one proxy per vLLM server instead; Prometheus adds them up."
        )
    from proxy.commands.serve import serve as run
    from proxy.settings import load_settings

    given: dict[str, Any] = {
        "backends": ",".join(backend) if backend else None,
        "host": host,
        "port": port,
        "admin_host": admin_host,
        "admin_port": admin_port,
        "meter": meter,
        "step_log": step_log,
        "weights_file": weights_file,
        "policy": policy,
        "ledger": ledger,
    }
    raise typer.Exit(run(load_settings(config, **given), _out))


@app.command()
def meters(
    seconds: Annotated[float, typer.Option(help="How long to watch each usable meter.", min=0.0, max=60.0)] = 1.0,
) -> None:
    """Show which meters this machine has, what they read now, and why the others are missing."""
    from proxy.commands.meters import meters as run

    raise typer.Exit(run(seconds, _out))


@app.command()
def calibrate(
    backend: Annotated[
        str | None,
        typer.Option("--backend", "-b", help="URL of the vLLM server, or a backend's name in the settings."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model name. Default: the first one it serves")] = None,
    meter: Annotated[str | None, typer.Option(help="As for serve.")] = None,
    gpu: Annotated[list[str] | None, typer.Option(help="UUID of a GPU the server runs on; repeat for several.")] = None,
    minutes: Annotated[float, typer.Option(min=0.05, max=60, help="How long it may take, all in all.")] = 2.5,
    output: Annotated[Path, typer.Option("--output", "-o", help="The weights file to write.")] = Path("weights.toml"),
    step_log: Annotated[Path | None, typer.Option(help="Socket that the plugin of deploy/steplog sends to.")] = None,
    config: ConfigFile = None,
    allow_estimated: Annotated[
        bool, typer.Option("--allow-estimated", help="Take a meter that measures nothing; the file says so.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before the load starts.")] = False,
) -> None:
    """Learn what one unit of work costs on an idle vLLM server, by a short designed load straight to it.

    Backend, meter, GPUs and key come from the settings of `serve` where they are not given. Exit status: 0 the file is
    written, 1 the load ran and nothing was written, 2 it could not start, 130 interrupted.
    """
    from proxy.commands.calibrate import CalibrateOptions
    from proxy.commands.calibrate import calibrate as run
    from proxy.settings import load_settings

    options = CalibrateOptions(
        backend=backend,
        model=model,
        meter=meter,
        gpus=tuple(gpu or ()),
        minutes=minutes,
        output=output,
        step_log=step_log,
        allow_estimated=allow_estimated,
        yes=yes,
    )
    raise typer.Exit(run(load_settings(config), options, _out))


app.command()(report)


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="Folder or hub name that vLLM serves; `deploy/demo` makes a tiny one.")],
    vllm: Annotated[str, typer.Option(help="The vllm executable.")] = "vllm",
    served_name: Annotated[str | None, typer.Option(help="Name clients use. Default: the model's folder name")] = None,
    rate: Annotated[float, typer.Option(min=0.01, help="Requests per second.")] = 2.0,
    duration: Annotated[float, typer.Option(min=1, help="Seconds of load.")] = 60.0,
    once: Annotated[bool, typer.Option("--once", help="End after the table instead of running until Ctrl-C.")] = False,
    meter: Annotated[str, typer.Option(help="As for serve.")] = "auto",
    port: Annotated[int, typer.Option(help="Traffic port; another is taken if it is busy.")] = 8080,
    admin_port: Annotated[int, typer.Option(help="Admin port; another is taken if it is busy.")] = 9464,
    engine_port: Annotated[int, typer.Option(help="vLLM's port; another is taken if it is busy.")] = 8000,
    folder: Annotated[Path, typer.Option(help="Where each run puts its ledger and logs.")] = Path(".demo/runs"),
    cpu: Annotated[
        bool | None, typer.Option("--cpu/--gpu", help="Flags for vLLM's CPU build. Default: cpu without an NVIDIA GPU")
    ] = None,
) -> None:
    """Start a real vLLM and the proxy, replay a minute of real traffic's bins, and show what it cost.

    `deploy/demo` in the repository installs everything first and then runs this.
    """
    from proxy.commands.demo import DemoOptions
    from proxy.commands.demo import demo as run

    options = DemoOptions(
        vllm=vllm,
        model=model,
        served_name=served_name or Path(model).name,
        folder=folder,
        rate_per_s=rate,
        duration_s=duration,
        once=once,
        on_cpu=not Path("/dev/nvidia0").exists() if cpu is None else cpu,
        meter=meter,
        port=port,
        admin_port=admin_port,
        engine_port=engine_port,
    )
    raise typer.Exit(run(options, _out))


def _fail(message: str) -> None:
    _say(message)
    raise typer.Exit(2)


def _say(message: str) -> None:
    """An error in words; square brackets in it are its own."""
    _err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


def main() -> None:
    """Runs the command line; our own errors become one sentence and exit status 2."""
    try:
        app()
    except JouleproxyError as error:
        _say(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
