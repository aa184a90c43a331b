"""
The proxy ends in good order when asked once, at once when asked twice, and keeps its books either way.
"""

import contextlib
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.answers import Script
from tests.engine.simulated import SimulatedEngine
from tests.live import LiveProxy
from tests.relay.speaking import CHAT, HTTP, QUICK, chat, connection, energy_comment, until


@pytest.fixture
def engine() -> Iterator[SimulatedEngine]:
    with SimulatedEngine(step_s=0.002) as running:
        yield running


class TestSignals:
    def test_sigterm_lets_an_open_stream_finish(self, engine: SimulatedEngine, tmp_path: Path) -> None:
        """The answer comes to its end, new connections are refused, and the books are closed and balanced."""
        with LiveProxy(backends=[engine.url], ledger=tmp_path / "l.db", settings=QUICK) as mortal:
            body = chat(stream=True, max_tokens=300, ignore_eos=True)
            with HTTP.stream("POST", mortal.url + CHAT, json=body) as answer:
                pieces = answer.iter_raw()
                text = next(pieces)
                mortal_ends = threading.Thread(target=mortal.stop)
                mortal_ends.start()
                until(lambda: refuses(mortal.url))
                text += b"".join(pieces)
            mortal_ends.join()

        assert energy_comment(text)["tokens"]["completion"] == 300
        assert ledger_rows(tmp_path / "l.db") == [("settled", "ok")]

    def test_second_signal_ends_at_once(self, engine: SimulatedEngine, tmp_path: Path) -> None:
        """Whoever asks twice does not wait for a stalled stream; what it cost is kept."""
        with LiveProxy(backends=[engine.url], ledger=tmp_path / "l.db", settings=QUICK) as mortal:
            engine.script(Script(stall_after=2))
            with HTTP.stream("POST", mortal.url + CHAT, json=chat(stream=True)) as answer:
                next(answer.iter_raw())
                mortal.signal(signal.SIGTERM)
                until(lambda: refuses(mortal.url))
                mortal.signal(signal.SIGTERM)
                asked = time.monotonic()
                mortal.wait()
                assert time.monotonic() - asked < 3

        assert ledger_rows(tmp_path / "l.db") == [("settled", "aborted")]


def refuses(url: str) -> bool:
    """Whether nobody listens there any more."""
    try:
        connection(url).close()
    except OSError:
        return True
    return False


def ledger_rows(path: Path) -> list[tuple[str, str]]:
    """State and outcome of every row; the books in the file balance, or an AssertionError."""
    with contextlib.closing(sqlite3.connect(path)) as ledger:
        requests_uj, whole, meter = ledger.execute(
            "select sum(requests_uj), sum(requests_uj + idle_uj + unattributed_uj + unmeasured_uj), sum(meter_uj)"
            " from accounts"
        ).fetchone()
        rows_uj = ledger.execute("select sum(energy_uj) from requests").fetchone()[0]
        found: list[tuple[str, str]] = ledger.execute("select state, outcome from requests order by id").fetchall()
    assert (whole, rows_uj) == (meter, requests_uj)
    return found
