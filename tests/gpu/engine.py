"""The vLLM under measurement: one that runs already, or one started by a command; and what it says of itself."""

import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx

from tests.engine.real import RealEngine
from tests.gpu.dummy_model import make
from tests.gpu.machine import SERVE, URL, Missing, engine_python
from tests.gpu.steps import StepCount, StepPage, StepReceiver, series

STEP_LOG = "JOULEPROXY_GPU_STEP_LOG"
SIZE = "JOULEPROXY_GPU_SIZE"
START_TIMEOUT_S = 600.0
"""Weights, compilation and graphs of a large model on a slow disk."""
MEMORY_PART = 0.4
"""Of the GPU, so that a second server has room beside the first."""
LARGE_GB = 60.0
"""From this memory on the model is the one of 8 G parameters: 16 GB of weights, and as much again for the cache."""


@dataclass(frozen=True, slots=True)
class Served:
    """A server that answers. step_log: the socket its steps are sent to, for whoever binds it; None: it tells none."""

    url: str
    model: str
    max_model_len: int
    vllm: str
    step_log: Path | None

    def page(self) -> str:
        """Its metrics page."""
        return httpx.get(f"{self.url}/metrics", timeout=30, trust_env=False).text

    def running(self) -> tuple[int, int]:
        """Sequences in the batch, and waiting."""
        page = self.page()
        return round(series(page, "num_requests_running")), round(series(page, "num_requests_waiting"))

    def fits(self, tokens: int, part: float = 0.75) -> int:
        """So many tokens, or as many as a part of the context window holds."""
        return min(tokens, int(self.max_model_len * part))

    @contextmanager
    def steps(self) -> Iterator[StepCount]:
        """Counts its steps for as long as it is open; nobody else may bind the step log then."""
        with ExitStack() as stack:
            if self.step_log is None:
                yield stack.enter_context(StepPage(self.url))
            else:
                yield stack.enter_context(StepReceiver(self.step_log))


class GpuEngine(RealEngine):
    """A server started by a command that has `{port}` in it."""

    def __init__(self, log: Path, command: str, step_log: Path | None) -> None:
        told = {} if step_log is None else {"JOULEPROXY_STEP_LOG": str(step_log)}
        super().__init__(log, environment={"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **told})
        if step_log is None:
            self._environment.pop("JOULEPROXY_STEP_LOG", None)
        self._command = shlex.split(command.replace("{port}", str(self.port)))

    def __enter__(self) -> Self:
        self.start(START_TIMEOUT_S)
        return self

    def log_tail(self, lines: int = 100) -> str:
        """What went wrong stands far above the last line: several processes end in turn."""
        return super().log_tail(lines)

    def begin(self) -> None:
        """Starts the server without waiting."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                process_group=0,
            )


def command(folder: Path, memory_gb: float | None) -> str:
    """JOULEPROXY_GPU_SERVE, else vLLM with random weights in the shape of a real model; raises Missing."""
    given = os.environ.get(SERVE)
    if given is not None:
        if "{port}" not in given:
            raise Missing(f"{SERVE} holds no {{port}}, so the server cannot be told where to listen")
        return given
    size = os.environ.get(SIZE) or ("8b" if (memory_gb or 0.0) >= LARGE_GB else "1b")
    model = make(folder / f"dummy-{size}", size)
    options = [
        *("--served-model-name", f"dummy-{size}", "--load-format", "dummy", "--dtype", "bfloat16"),
        *("--generation-config", "vllm", "--host", "127.0.0.1", "--max-model-len", "16384", "--max-num-seqs", "256"),
        *("--gpu-memory-utilization", str(MEMORY_PART), "--enable-prompt-tokens-details"),
    ]
    start = [str(engine_python()), "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--port", "{port}"]
    return shlex.join([*start, *options]).replace("'{port}'", "{port}")


def look(url: str, step_log: Path | None) -> Served:
    """What a server that answers serves."""
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        card = client.get("/v1/models").raise_for_status().json()["data"][0]
        version = client.get("/version")
    vllm = version.json().get("version", "not told") if version.is_success else "not told"
    return Served(url, card["id"], int(card["max_model_len"]), vllm, step_log)


@contextmanager
def serving(folder: Path, memory_gb: float | None) -> Iterator[Served]:
    """The server of this run: the one JOULEPROXY_GPU_ENGINE_URL names, else one started here and stopped after."""
    running = os.environ.get(URL)
    if running is not None:
        told = os.environ.get(STEP_LOG)
        yield look(running.rstrip("/"), Path(told) if told else None)
        return
    with started(folder, memory_gb, folder / "steps.sock") as served:
        yield served


@contextmanager
def started(folder: Path, memory_gb: float | None, step_log: Path | None) -> Iterator[Served]:
    """A server of one's own. Its log lies in the folder."""
    log = folder / ("engine.log" if step_log else "engine-without-step-log.log")
    with GpuEngine(log, command(folder, memory_gb), step_log) as engine:
        yield look(engine.url, step_log)
