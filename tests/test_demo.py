"""
One command on a machine without a GPU: a real vLLM, real traffic's bins, and books that balance.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from proxy.stores import open_books

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """One short run of deploy/demo, with its own folder."""
    folder = tmp_path_factory.mktemp("demo")
    command = [REPOSITORY / "deploy" / "demo", "--once", "--duration", "12", "--folder", str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JOULEPROXY_")}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    return done, next(folder.iterdir())


@pytest.mark.real
def test_demo_ends_well_and_shows_its_table(demo: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """
    Exit status 0, the accounts, and every answered request settled.
    """
    done, _ = demo

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^imbalance 0 µJ$", done.stdout, re.MULTILINE)
    settled = re.search(r"settled records: (\d+) of (\d+) answered requests", done.stdout)
    assert settled is not None
    assert settled[1] == settled[2] == "24"
    assert "estimated" in done.stdout
    assert "OpenAI(base_url=" in done.stdout


@pytest.mark.real
def test_demo_leaves_books_that_balance(demo: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """
    The ledger it leaves behind holds the law, with the rows adding up to the account.
    """
    _, folder = demo
    books = open_books(f"sqlite:///{folder / 'ledger.db'}")
    try:
        (balance,) = books.balance()
        accounts = balance.accounts
        assert balance.imbalance_uj == 0
        total = accounts.requests_uj + accounts.idle_uj + accounts.unattributed_uj + accounts.unmeasured_uj
        assert total == accounts.meter_uj > 0
    finally:
        books.close()


@pytest.mark.real
def test_demo_stops_what_it_started(demo: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """
    No process of the run is left.
    """
    _, folder = demo
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "cmdline").read_bytes():
                left.append(process.name)
        except OSError:
            continue  # it ended meanwhile
    assert [] == left
