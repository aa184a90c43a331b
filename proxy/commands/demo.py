"""`jouleproxy demo`: a real vLLM, the proxy and a minute of real traffic's bins, on this machine, and what it cost."""

import contextlib
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.text import Text

import loadgen
from loadgen.outcome import read_outcomes
from proxy.accounting.units import joules
from proxy.commands.children import Child, ChildFailed, Children, port_near
from proxy.commands.demo_table import Run, summary
from proxy.commands.progress import Stage

ENGINE_READY_S = 900.0
SETTLED_S = 60.0
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TORCH_COMPILE_DISABLE": "1"}
CPU_FLAGS = [
    "--dtype",
    "bfloat16",
    "--enforce-eager",
    "--block-size",
    "32",
    "--max-num-seqs",
    "64",
    "--kv-cache-memory-bytes",
    "67108864",
]
"""Flags for the CPU build: no compilation, small cache, the smallest block so that prefixes are found."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line says. vllm: the `vllm` executable; model: folder or hub name."""

    vllm: str
    model: str
    served_name: str
    folder: Path
    rate_per_s: float
    duration_s: float
    once: bool
    on_cpu: bool
    meter: str
    port: int
    admin_port: int
    engine_port: int


def demo(options: DemoOptions, console: Console) -> int:
    """Runs the demo; 0 when everything held. Ends whatever it started, also after Ctrl-C."""
    folder = options.folder / datetime.now().strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    # A closed terminal must not leave servers behind, and a background job may have been born deaf to Ctrl-C.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)
    # A socket's path has room for a hundred characters only, and the folder's may be longer.
    with tempfile.TemporaryDirectory(prefix="jouleproxy-") as sockets, Children() as children:
        try:
            return _run(options, folder, Path(sockets) / "steps", children, console)
        except KeyboardInterrupt:
            console.print("\nstopping …")
            return 130


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _run(options: DemoOptions, folder: Path, steps: Path, children: Children, console: Console) -> int:
    engine_url = f"http://127.0.0.1:{port_near(options.engine_port)}"
    url = f"http://127.0.0.1:{port_near(options.port)}"
    admin = f"http://127.0.0.1:{port_near(options.admin_port)}"
    stage = Stage(console)
    engine = children.start(
        "vLLM", _engine_command(options, engine_url), folder / "vllm.log", _engine_environment(options, steps)
    )
    with stage.run(f"vLLM serves {options.served_name} at {engine_url}"):
        engine.wait_for(f"{engine_url}/health", timeout_s=ENGINE_READY_S, waiting=stage.tell)
    with stage.run("warm-up, straight to vLLM and not metered"):
        _warm_up(engine_url, options.served_name, stage)
    command = [*_proxy_command(options, engine_url, url, admin, folder), "--step-log", str(steps)]
    proxy = children.start("jouleproxy", command, folder / "proxy.log")
    with stage.run(f"jouleproxy at {url}, admin at {admin}"):
        proxy.wait_for(f"{admin}/readyz", timeout_s=60, waiting=stage.tell)
    _say_meters(admin, console)
    outcomes = folder / "outcomes.jsonl"
    load = children.start("locust", _load_command(options, url, outcomes), folder / "locust.log")
    console.print(f"  load: bins of the Azure conversation trace, {options.rate_per_s:g} requests/s")
    with stage.run(f"{options.duration_s:.0f} s of load", options.duration_s):
        _watch_load(load, outcomes, admin, stage)
    console.print(_scaling(load))
    with stage.run("settled records"):
        run = _collect(outcomes, admin, stage)
    console.print()
    console.print(summary(run))
    problems = run.problems()
    for problem in problems:
        console.print(f"[bold red]✗[/] {problem}")
    console.print(_pointer(url, admin, options.served_name, folder))
    if not options.once:
        _keep_running(engine, proxy, console)
    return 1 if problems else 0


def _warm_up(engine_url: str, model: str, stage: Stage) -> None:
    """The first answers of a new server take seconds (kernels are chosen and built); they would hide all others."""
    began = time.monotonic()
    for words in (1, 100, 500):
        prompt = "warm up " * words
        body = {"model": model, "prompt": [prompt] * 4, "max_tokens": 16, "ignore_eos": True}
        httpx.post(f"{engine_url}/v1/completions", json=body, timeout=300)
        stage.tell(time.monotonic() - began)


def _engine_command(options: DemoOptions, url: str) -> list[str]:
    host, port = url.removeprefix("http://").split(":")
    command = [options.vllm, "serve", options.model, "--served-model-name", options.served_name]
    command += ["--host", host, "--port", port, "--enable-prompt-tokens-details"]
    return command + (CPU_FLAGS if options.on_cpu else [])


def _engine_environment(options: DemoOptions, steps: Path) -> Mapping[str, str]:
    quiet = QUIET if options.on_cpu else {"VLLM_NO_USAGE_STATS": "1"}
    return {**quiet, "JOULEPROXY_STEP_LOG": str(steps)}


def _proxy_command(options: DemoOptions, engine_url: str, url: str, admin: str, folder: Path) -> list[str]:
    command = [sys.executable, "-m", "proxy", "serve", "--backend", engine_url, "--meter", options.meter]
    command += ["--port", url.rpartition(":")[2], "--admin-port", admin.rpartition(":")[2]]
    return [*command, "--ledger", f"sqlite:///{folder / 'ledger.db'}"]


def _load_command(options: DemoOptions, url: str, outcomes: Path) -> list[str]:
    script = Path(next(iter(loadgen.__path__))) / "chat.py"
    command = [sys.executable, "-m", "locust", "-f", str(script), "--headless", "--host", url]
    command += ["--rate", str(options.rate_per_s), "--duration", str(options.duration_s)]
    return [*command, "--outcomes", str(outcomes), "--only-summary", "--progress-every", "1"]


def _say_meters(admin: str, console: Console) -> None:
    deadline = time.monotonic() + 10
    while not (backends := _get(admin, "/energy/balance")["backends"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for backend in backends:
        for meter in backend["meters"]:
            line = Text(f"  meter {meter['kind']} {meter['gpu']}: {meter['description']}")
            if meter["estimated"]:
                line.stylize("black on yellow")
            console.print(line)


def _sent(load: Child) -> str:
    """How far the load generator says it is."""
    progress = re.findall(r"sent \d+/\d+  in flight \d+", load.log.read_text(errors="replace"))
    return progress[-1].replace("  ", ", ") if progress else "measuring prompts"


def _scaling(load: Child) -> str:
    """The load generator's own words on lengths it scaled to fit the model's context; empty if it did not."""
    found = re.search(r"^lengths scaled by .*?context", load.log.read_text(errors="replace"), re.MULTILINE)
    return f"  {found.group()}; bins keep the trace's names" if found else ""


def _get(admin: str, path: str, **query: Any) -> Any:
    answer = httpx.get(admin + path, params=query, timeout=30)
    answer.raise_for_status()
    return answer.json()


def _watch_load(load: Child, outcomes: Path, admin: str, stage: Stage) -> None:
    began = time.monotonic()
    while load.ended is None:
        rows = _get(admin, "/energy/summary", by="model")["rows"]
        total = _get(admin, "/energy/balance")["total"]
        tokens = sum(row["completion_tokens"] or 0 for row in rows)
        spent = joules(total["accounts"]["requests"])
        word = f"{_sent(load)}  {spent:,.0f} J"
        word += f"  {spent / tokens:.3f} J/token" if tokens else ""
        stage.tell(time.monotonic() - began, f"{word}  imbalance {total['imbalance_microjoules']} µJ")
        time.sleep(0.5)
    if not outcomes.is_file():
        raise load.failure(f"ended with status {load.ended} before it wrote its outcomes")


def _collect(outcomes: Path, admin: str, stage: Stage) -> Run:
    """Waits until every answered request is settled, then takes the balance of that moment."""
    asked = read_outcomes(outcomes.read_text().splitlines())
    answered = {one.request_id for one in asked if one.error is None}
    began = time.monotonic()
    while True:
        records = {
            record["request_id"]: record
            for record in _get(admin, "/energy/requests", limit=100_000)["requests"]
            if record["request_id"] in answered and record["status"] == "settled"
        }
        waited = time.monotonic() - began
        if len(records) == len(answered) or waited > SETTLED_S:
            return Run(asked, records, _get(admin, "/energy/balance"))
        stage.tell(waited, f"{len(records)} of {len(answered)}")
        time.sleep(0.2)


def _pointer(url: str, admin: str, model: str, folder: Path) -> str:
    return f"""
[bold]Point any OpenAI client at it:[/]
  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="any")
  answer = client.chat.completions.with_raw_response.create(
      model="{model}", messages=[{{"role": "user", "content": "hello"}}])
  print(answer.headers["x-energy-joules"], answer.headers["x-request-id"])

  metrics  {admin}/metrics      balance  {admin}/energy/balance
  logs, outcomes and ledger of this run: {os.path.relpath(folder)}
  jouleproxy report --ledger sqlite:///{os.path.relpath(folder)}/ledger.db"""


def _keep_running(engine: Child, proxy: Child, console: Console) -> None:
    console.print("\nRunning until Ctrl-C.")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            for child in (engine, proxy):
                if child.ended is not None:
                    raise ChildFailed(f"{child.name} ended with status {child.ended}; see {child.log}")
            time.sleep(0.5)
    console.print("\nstopping …")
