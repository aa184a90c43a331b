"""SIGKILL at any moment: the law holds in the tables, and what was acknowledged is in them."""

import json
import random
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection, create_engine, text

from proxy.stores import open_store
from proxy.stores.engines import database_url
from tests.stores.examples import imbalances, law_broken

KILLS = 10
REPOSITORY = Path(__file__).parents[2]


def killed_under_load(url: str, seed: int) -> dict[str, int]:
    """Runs a poster, kills it after a random time, and returns what it had acknowledged."""
    dice = random.Random(seed)
    command = [sys.executable, "-m", "tests.stores.poster", url, str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as poster:
        assert poster.stdout is not None
        lines = [poster.stdout.readline() for _ in range(dice.randrange(1, 12))]
        try:
            poster.wait(timeout=dice.uniform(0, 0.06))
        except subprocess.TimeoutExpired:
            poster.kill()
        lines += poster.stdout.readlines()
        assert poster.wait() == -9, "the poster ended by itself"
    acknowledged: dict[str, int] = {}
    for line in lines:
        if line.endswith("\n"):
            acknowledged |= json.loads(line)
    return acknowledged


def energies(connection: Connection) -> dict[str, int]:
    return {str(row): int(uj) for row, uj in connection.execute(text("SELECT row, energy_uj FROM requests"))}


def counter_and_booked(connection: Connection) -> tuple[int, int]:
    counter = connection.execute(text("SELECT last_counter_uj FROM meters")).scalar_one()
    return int(counter), int(connection.execute(text("SELECT sum(meter_uj) FROM accounts")).scalar_one())


def test_after_every_kill_the_law_holds_and_no_acknowledged_row_is_missing(url: str) -> None:
    """Several processes in turn, each continuing the books of the one killed before it."""
    acknowledged: dict[str, int] = {}
    engine = create_engine(database_url(url))
    for seed in range(KILLS):
        acknowledged |= killed_under_load(url, seed)
        with engine.connect() as connection:
            assert law_broken(connection) == []
            found = energies(connection)
            counter, booked = counter_and_booked(connection)
        assert counter == booked, "the counter to continue from is that of what is booked"
        assert acknowledged.keys() <= found.keys()
        assert [row for row, uj in acknowledged.items() if found[row] < uj] == []
    engine.dispose()
    assert len(acknowledged) > 100

    with closing(open_store(url)) as ledger:
        assert imbalances(ledger) == [(0, 0)]
        assert {row.state for row in ledger.requests(None, 10**6)} == {"settled"}
