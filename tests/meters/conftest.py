"""A scripted NVML: builds the stand-in library, and runs scenarios against it with the real pynvml.

pynvml keeps the library it has loaded for the life of the process, so scenarios run in one child whose
loader finds the stand-in first: tests in this process never see it. This file is the child's program too.
"""

import json
import os
import runpy
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = "JOULEPROXY_NVML_SCRIPT"


class Machine:
    """The scripted driver and the clock of one scenario."""

    def __init__(self, script: Path) -> None:
        self._script = script
        self._log = Path(f"{script}.log")
        self._log.write_text("")
        self._gpus: dict[str, dict[str, int]] = {}
        self._init = 0
        self._now_ms = 0
        self.now = 1_000_000_000
        self.step = 0
        self.drive()

    def clock(self) -> int:
        """Monotonic nanoseconds; every look takes `step`."""
        self.now += self.step
        return self.now

    def drive(self, *, init: int | None = None, now_ms: int | None = None) -> None:
        """Changes what the driver answers, or scripted time."""
        self._init = self._init if init is None else init
        self._now_ms = self._now_ms if now_ms is None else now_ms
        columns = ("code", "base_mj", "power_mw", "counter", "power", "fields")
        lines = [f"init {self._init}", f"now_ms {self._now_ms}"]
        for uuid, gpu in self._gpus.items():
            lines.append(" ".join(["gpu", uuid, *(str(gpu[column]) for column in columns)]))
        self._script.write_text("\n".join([*lines, ""]))

    def gpu(self, uuid: str, **changes: int) -> None:
        """Adds a GPU, or changes what it answers; see the columns of the stand-in's script."""
        fresh = {"code": 0, "base_mj": 0, "power_mw": 0, "counter": 0, "power": 0, "fields": 0}
        self._gpus[uuid] = self._gpus.get(uuid, fresh) | changes
        self.drive()

    def calls(self) -> list[str]:
        """What the library was asked since the last look."""
        asked = self._log.read_text().split()
        self._log.write_text("")
        return asked


def serve_scenarios(script: Path) -> None:
    """The child's loop: a line names a file and a function of it, the answer is a line of JSON."""
    files: dict[str, dict[str, Any]] = {}
    for line in sys.stdin:
        path, name = line.rstrip("\n").split("\t")
        try:
            if path not in files:
                files[path] = runpy.run_path(path)
            answer = {"value": files[path][name](Machine(script))}
        except BaseException:
            answer = {"failure": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


@pytest.fixture(scope="session")
def stand_in_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a freshly built libnvidia-ml.so.1."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.fail("there is no C compiler 'cc' for the NVML stand-in: install gcc")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("nvml_stand_in.c")
    flags = ["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
    command = [compiler, *flags, "-o", str(folder / "libnvidia-ml.so.1"), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="session")
def beside_stand_in(stand_in_library: Path) -> Iterator[Callable[[Callable[[Any], Any]], Any]]:
    """Runs a module-level function(machine) in the child and gives what it returned, through JSON."""
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(stand_in_library),
        "PYTHONPATH": str(ROOT),
        SCRIPT: str(stand_in_library / "script"),
    }
    child = subprocess.Popen(
        [sys.executable, "-W", "error", __file__],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(scenario: Callable[[Any], Any]) -> Any:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"{scenario.__code__.co_filename}\t{scenario.__name__}\n")
        child.stdin.flush()
        answer = json.loads(child.stdout.readline() or '{"failure": "the child ended"}')
        assert "failure" not in answer, answer["failure"]
        return answer["value"]

    with child:
        yield run
        child.communicate()


if __name__ == "__main__":
    serve_scenarios(Path(os.environ[SCRIPT]))
