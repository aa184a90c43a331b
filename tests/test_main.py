"""
The command line reads like a finished tool, and every mistake gets one sentence.
"""

import subprocess
import sys
from pathlib import Path

import pytest

SUBCOMMANDS = ("serve", "demo", "meters", "calibrate", "report")


def jouleproxy(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "proxy", *arguments],
        cwd=cwd or Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_lists_every_subcommand() -> None:
    """
    The first screen says what the tool is and what it can do.
    """
    shown = jouleproxy("--help").stdout

    assert "how many joules it cost" in " ".join(shown.replace("\n", " ").split())
    assert all(name in shown for name in SUBCOMMANDS)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_option_has_help(name: str) -> None:
    """
    No option stands there without a word.
    """
    shown = jouleproxy(name, "--help")
    lines = [line.strip("│ ") for line in shown.stdout.splitlines() if line.lstrip("│ *").startswith("--")]

    assert shown.returncode == 0
    assert lines
    assert [] == [line for line in lines if len(line.split()) < 3]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["serve", "--workers", "4"], "one process must see all requests"),
        (["serve", "--backend", "127.0.0.1:8000"], "looks like http://127.0.0.1:8000"),
        (["serve", "--meter", "magic"], "'magic' is no meter"),
        (["serve", "--meter", "a[b]c"], "'a[b]c' is no meter"),
        (["serve", "--meter", "nvml"], "nvml"),
        (["serve", "--policy", "fair"], "policy"),
        (["serve", "--config", "missing.toml"], "does not exist"),
        (["serve", "--ledger", "mysql://x/y"], "ledger"),
        (["serve", "-b", "http://127.0.0.1:1", "-b", "http://127.0.0.1:2"], "count twice"),
        (["calibrate", "--meter", "modelled"], "--allow-estimated"),
        (["calibrate", "--meter", "modelled", "--allow-estimated", "-b", "http://127.0.0.1:1"], "cannot be reached"),
        (["calibrate", "--backend", "127.0.0.1:9"], "looks like http://127.0.0.1:8000"),
        (["calibrate", "--config", "missing.toml"], "does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gets_a_sentence_and_status_2(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    """
    No traceback; the message names what is wrong.
    """
    done = jouleproxy(*arguments, cwd=tmp_path)

    assert 2 == done.returncode
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
