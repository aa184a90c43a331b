"""deploy/engine: what the script says where nothing needs to be installed."""

import subprocess
import time
from pathlib import Path

import pytest

from tests.engine.real import REPOSITORY, interpreter

SCRIPT = REPOSITORY / "deploy" / "engine"


def engine(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the script from another folder."""
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False, cwd="/")


def test_it_names_the_python_of_the_environment_it_is_told() -> None:
    assert engine("python").stdout == f"{REPOSITORY}/.venv-vllm/bin/python\n"
    assert engine("python", "--dir", "/some where").stdout == "/some where/bin/python\n"


@pytest.mark.parametrize("arguments", [(), ("fly",), ("install", "now"), ("python", "--dir")])
def test_what_it_does_not_understand_it_answers_with_its_usage(arguments: tuple[str, ...]) -> None:
    answer = engine(*arguments)
    assert (answer.returncode, answer.stdout.count("deploy/engine ")) == (2, 3)


def test_it_does_not_serve_what_is_not_installed(tmp_path: Path) -> None:
    answer = engine("serve", "--dir", tmp_path)
    assert (answer.returncode, answer.stderr) == (1, f"engine: no vLLM in {tmp_path}: run deploy/engine install\n")


@pytest.mark.real
def test_a_second_install_has_nothing_to_do() -> None:
    interpreter()
    assert engine("install").returncode == 0
    started = time.monotonic()
    answer = engine("install")
    assert "is ready in" in answer.stderr
    assert time.monotonic() - started < 0.3
