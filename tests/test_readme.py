"""
The README is true: its commands run, its tables are complete.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.settings import Settings, load_settings
from tests.engine.simulated import SimulatedEngine
from tests.live import LiveProxy, assert_law

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveProxy]:
    """A proxy in front of a simulated engine; the real one is exercised by tests/real and by the demo."""
    with (
        SimulatedEngine(step_s=0.002) as engine,
        LiveProxy(backends=[engine.url], ledger=tmp_path_factory.mktemp("readme") / "ledger.db") as proxy,
    ):
        yield proxy


def here(text: str, proxy: LiveProxy) -> str:
    """The README's text with this run's ports."""
    return text.replace("http://127.0.0.1:8080", proxy.url).replace("http://127.0.0.1:9464", proxy.admin)


def run(command: list[str], proxy: LiveProxy) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "JOULEPROXY_LEDGER": proxy.ledger}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def runnable(block: str) -> str:
    """A shell block without what other tests run: the set-up commands, and the proxy itself."""
    kept = [line for line in block.splitlines() if not re.match(r"deploy/|jouleproxy serve", line)]
    return "\n".join(kept)


@pytest.mark.parametrize("block", [b for b in blocks("sh") if runnable(b)], ids=lambda block: block.split("\n")[0][:40])
def test_every_shell_block_runs(block: str, proxy: LiveProxy) -> None:
    """
    What the README tells people to type works as it stands.
    """
    shown = run(["bash", "-euo", "pipefail", "-c", here(runnable(block), proxy)], proxy)

    assert shown.strip()
    assert "error" not in shown.lower()
    assert_law(proxy.balance())


def test_the_python_block_runs(proxy: LiveProxy) -> None:
    """
    The OpenAI client gets its answer and its joules.
    """
    (block,) = blocks("python")

    joules, status, request_id = run([sys.executable, "-c", here(block, proxy)], proxy).split()[:3]

    assert float(joules) > 0
    assert status == "provisional"
    assert proxy.settled(request_id)["outcome"] == "ok"


def test_the_curl_of_the_first_request_is_settled(proxy: LiveProxy) -> None:
    """
    The example's own request id is found with the energy of a complete answer.
    """
    block = next(block for block in blocks("sh") if "my-first" in block)

    shown = run(["bash", "-euc", here(block, proxy)], proxy)

    assert re.search(r"^: energy \{.*\}\ndata: \[DONE\]$", shown, re.MULTILINE)
    assert '"status":"settled"' in shown


def test_the_settings_file_is_accepted(tmp_path: Path) -> None:
    """
    The TOML example is a valid configuration.
    """
    file = tmp_path / "jouleproxy.toml"
    file.write_text(blocks("toml")[0])

    settings = load_settings(file)

    assert ["llama-a", "llama-b"] == [backend.name for backend in settings.backends]
    assert ["search"] == [tenant.name for tenant in settings.tenants]


def test_every_setting_is_in_the_readme() -> None:
    """
    A setting nobody can find does not exist.
    """
    assert [] == [name for name in Settings.model_fields if f"`JOULEPROXY_{name.upper()}`" not in README]


WITHOUT_SERIES = {
    "jouleproxy_meter_counter_power_ratio",  # this meter tells no power
    "jouleproxy_step_log_up",  # no step log here
    "jouleproxy_step_log_lost_steps_total",
    "jouleproxy_weights_error_ratio",  # nothing was predicted yet
}


def test_every_metric_is_in_the_readme_and_no_other(proxy: LiveProxy) -> None:
    """
    The metrics table lists what the admin listener shows.
    """
    shown = {re.sub(r"_created$", "", name) for name in re.findall(r"^# TYPE (\S+)", proxy.metrics(), re.MULTILINE)}
    named = set(re.findall(r"`(jouleproxy_[a-z_]+)`", README))

    assert shown - named == set()
    assert named - shown <= WITHOUT_SERIES


def test_set_up_commands_exist() -> None:
    """
    The two commands of the first screen are there and executable; test_demo.py and CI run them.
    """
    for name in ("deploy/demo", "deploy/test", ".ci/run"):
        assert os.access(REPOSITORY / name, os.X_OK), name
