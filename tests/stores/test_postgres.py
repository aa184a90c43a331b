"""What only a server can do to a ledger: go away, come back, cut connections, and serve several proxies at once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest

from proxy.accounting.postings import Posting
from proxy.stores import open_store
from proxy.stores.ledger import Ledger
from tests.stores.examples import balance, imbalances, paid, request_row
from tests.stores.postgres import PostgresServer

pytestmark = pytest.mark.postgres

WAIT_S = 30.0


@pytest.fixture
def server_to_stop() -> Iterator[PostgresServer]:
    """A server of the test's own, because it will be stopped."""
    server = PostgresServer()
    yield server
    server.remove()


def test_postings_made_while_the_server_is_away_are_kept_and_committed_when_it_is_back(
    server_to_stop: PostgresServer,
) -> None:
    with closing(open_store(server_to_stop.new_database())) as ledger:
        ledger.post(paid(request_row(1)))
        assert ledger.flush(WAIT_S)

        server_to_stop.stop()
        ledger.post(paid(request_row(2)))
        ledger.post(paid(request_row(3)))
        assert not ledger.flush(0.3)
        assert ledger.behind == 2
        assert ledger.last_error

        server_to_stop.start()
        assert ledger.flush(WAIT_S)
        assert ledger.behind == 0
        assert [found.rows_uj for found in ledger.balance()] == [6]
        assert imbalances(ledger) == [(0, 0)]


def test_connections_cut_at_any_moment_book_nothing_twice_and_lose_nothing(postgres_server: PostgresServer) -> None:
    url = postgres_server.new_database()
    name = url.rsplit("/", 1)[1]
    cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s"
    with closing(open_store(url)) as ledger, psycopg.connect(postgres_server.admin_url, autocommit=True) as admin:
        for round_number in range(40):
            for _ in range(20):
                ledger.post(paid(request_row(3), idle_uj=2))
            if round_number % 2:
                admin.execute(cut, (name,))
        assert ledger.flush(WAIT_S)

        (found,) = ledger.balance()
        assert (found.rows_uj, found.accounts.idle_uj) == (800 * 3, 800 * 2)
        assert found.imbalance_uj == 0


def test_several_proxies_begin_and_write_one_ledger_at_the_same_time(postgres_server: PostgresServer) -> None:
    """They share backend, tenants and hour, but each has its own meter and its own name."""
    url = postgres_server.new_database()

    def proxy(number: int) -> Ledger:
        ledger = open_store(url, writer=f"node-{number}")
        for n in range(1, 101):
            counted = balance(number, 1, meter=f"nvml:GPU-{number}", last_counter_uj=n)
            ledger.post(Posting((counted,), (request_row(number),)))
        assert ledger.flush(WAIT_S), ledger.last_error
        return ledger

    with ThreadPoolExecutor(4) as pool:
        ledgers = list(pool.map(proxy, range(1, 5)))

    (found,) = ledgers[0].balance()
    assert (found.rows_uj, found.accounts.idle_uj, found.imbalance_uj) == (1000, 400, 0)
    assert len(found.meters) == 4
    assert ledgers[2].last_counter("nvml:GPU-3", "boot-1") == 100
    assert ledgers[2].last_counter("nvml:GPU-2", "boot-1") is None
    for ledger in ledgers:
        ledger.close()
