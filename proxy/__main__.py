"""The command line: `jouleproxy` or `python -m proxy`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import proxy
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
            "--backend", "-b", help="URL of a vLLM server; may be given again. Default: http://127.0.0.1:8000"
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


def _fail(message: str) -> None:
    _err.print(f"[bold red]error:[/] {message}", soft_wrap=True)
    raise typer.Exit(2)


def main() -> None:
    """Runs the command line; our own errors become one sentence and exit status 2."""
    try:
        app()
    except JouleproxyError as error:
        _err.print("[bold red]error:[/]", str(error), soft_wrap=True, markup=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
