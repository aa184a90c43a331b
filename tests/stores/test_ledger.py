"""The books: what is posted is kept whole, once, whatever the database does meanwhile."""

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import OperationalError

from proxy.accounting.postings import Posting
from proxy.stores import open_store
from proxy.stores.batch import Batch
from proxy.stores.engines import database_url, reading_engine, writing_engine
from proxy.stores.ledger import Ledger
from tests.stores.examples import (
    HOUR_NS,
    NOON_NS,
    Settlement,
    balance,
    doubtful,
    imbalances,
    law_broken,
    paid,
    request_row,
    settled,
)

WAIT_S = 20.0


def keep(ledger: Ledger, *postings: Posting) -> None:
    """Posts, and returns when all is committed."""
    for posting in postings:
        ledger.post(posting)
    assert ledger.flush(WAIT_S), ledger.last_error


@contextmanager
def broken_law_of(url: str) -> Iterator[list[tuple[str, int]]]:
    engine = create_engine(database_url(url))
    with engine.connect() as connection:
        yield law_broken(connection)
    engine.dispose()


def test_a_row_comes_back_as_it_was_posted(ledger: Ledger) -> None:
    row = request_row(77)

    keep(ledger, paid(row))

    assert (row, 1) == ledger.request("req-1")


def test_unknown_figures_come_back_as_none_and_not_as_zero(ledger: Ledger) -> None:
    row = replace(request_row(5), prompt_tokens=None, completion_tokens=None, ttft_ns=None, http_status=None)

    keep(ledger, paid(row))

    found, _ = ledger.request("req-1")
    assert found is not None
    assert (
        found.prompt_tokens,
        found.completion_tokens,
        found.ttft_ns,
        found.http_status,
    ) == (None, None, None, None)
    assert [total.completion_tokens for total in ledger.summary("model")] == [None]
    assert [total.joules_per_output_token for total in ledger.summary("model")] == [None]


def test_a_request_grows_from_open_to_settled_and_is_counted_once(ledger: Ledger) -> None:
    running = request_row(100, state="open")

    keep(ledger, paid(running))
    keep(ledger, Posting((balance(50),), (settled(running, 150),)))

    assert (settled(running, 150), 1) == ledger.request("req-1")
    assert imbalances(ledger) == [(0, 0)]


def test_the_newest_of_several_requests_with_one_id_is_found_and_the_others_counted(ledger: Ledger) -> None:
    first = request_row(1, started_at_unix_ns=NOON_NS)
    second = request_row(2, started_at_unix_ns=NOON_NS + 1)

    keep(ledger, paid(second), paid(first))

    assert (second, 2) == ledger.request("req-1")
    assert ledger.request("req-2") == (None, 0)


def test_a_tenant_sees_only_its_own_requests(ledger: Ledger) -> None:
    mine, theirs = request_row(1, tenant="mine"), request_row(2, tenant="theirs")

    keep(ledger, paid(mine, theirs))

    assert (mine, 1) == ledger.request("req-1", tenant="mine")
    assert [mine] == ledger.requests(None, 10, tenant="mine")
    assert [total.keys[0] for total in ledger.summary("tenant", tenant="mine")] == ["mine"]


def test_requests_are_listed_newest_first_from_a_time_on(ledger: Ledger) -> None:
    rows = [request_row(1, request_id=str(n), started_at_unix_ns=NOON_NS + n) for n in range(5)]

    keep(ledger, paid(*rows))

    assert [row.request_id for row in ledger.requests(None, 3)] == ["4", "3", "2"]
    assert [row.request_id for row in ledger.requests(NOON_NS + 3, 10)] == ["4", "3"]


def test_a_summary_adds_up_each_key_and_orders_by_energy(ledger: Ledger) -> None:
    rows = (request_row(10, model="small"), request_row(30, model="large"), request_row(25, model="small"))

    keep(ledger, paid(*rows))

    by_model = [(total.keys, total.requests, total.energy_uj, total.prompt_tokens) for total in ledger.summary("model")]
    assert by_model == [(("small",), 2, 35, 200), (("large",), 1, 30, 100)]
    assert [total.joules_per_output_token for total in ledger.summary("model")] == [35e-6 / 20, 30e-6 / 10]


def test_a_summary_counts_requests_by_their_start_in_a_half_open_range(ledger: Ledger) -> None:
    rows = [request_row(10**n, started_at_unix_ns=NOON_NS + n * HOUR_NS) for n in range(3)]

    keep(ledger, paid(*rows))

    in_range = ledger.summary("tenant", since=NOON_NS + HOUR_NS, until=NOON_NS + 2 * HOUR_NS)
    assert [total.energy_uj for total in in_range] == [10]
    hours = {int(total.keys[0]): total.energy_uj for total in ledger.summary("hour")}
    assert {NOON_NS // HOUR_NS + n: 10**n for n in range(3)} == hours


def test_the_balance_names_every_backend_with_its_meters_and_accounts(ledger: Ledger) -> None:
    other = balance(0, 7, backend="b1", meter="rapl:package-0", estimated=True)

    keep(ledger, Posting((balance(10, 3, 2, 1), other), (request_row(10),)))

    first, second = ledger.balance()
    assert (
        first.accounts.requests_uj,
        first.accounts.idle_uj,
        first.accounts.unattributed_uj,
        first.accounts.unmeasured_uj,
        first.accounts.meter_uj,
    ) == (10, 3, 2, 1, 16)
    assert (first.imbalance_uj, first.rows_uj, [meter.meter for meter in first.meters]) == (0, 10, ["nvml:GPU-0"])
    assert (second.backend, second.accounts.meter_uj, [m.estimated for m in second.meters]) == ("b1", 7, [True])


def test_an_imbalance_is_computed_from_the_tables_and_shown(ledger: Ledger) -> None:
    keep(ledger, Posting((balance(10),), (request_row(13),)))

    (found,) = ledger.balance()
    assert (found.rows_imbalance_uj, found.accounts.imbalance_uj, found.imbalance_uj) == (3, 0, 3)


def test_energy_is_booked_under_the_hour_in_which_it_was_posted(url: str) -> None:
    now = [NOON_NS]
    with closing(open_store(url, clock=lambda: now[0])) as ledger:
        ledger.post(Posting((balance(idle_uj=5),)))
        now[0] += HOUR_NS
        ledger.post(Posting((balance(idle_uj=6),)))
        assert ledger.flush(WAIT_S)

        noon = NOON_NS // HOUR_NS
        idle = {hour: found.idle_uj for (hour,), found in ledger.accounts(("hour",)).items()}
        assert idle == {str(noon): 5, str(noon + 1): 6}
        later = ledger.accounts(("backend",), since=NOON_NS + HOUR_NS)
        assert [found.idle_uj for found in later.values()] == [6]


def test_counters_continue_after_a_restart_from_what_was_committed(url: str) -> None:
    with closing(open_store(url)) as ledger:
        keep(ledger, paid(last_counter_uj=500), paid(last_counter_uj=900))

    with closing(open_store(url)) as ledger:
        assert ledger.last_counter("nvml:GPU-0", "boot-1") == 900
        assert ledger.last_counter("nvml:GPU-0", "boot-2") is None
        assert ledger.last_counter("nvml:GPU-1", "boot-1") is None


def test_requests_left_open_by_a_dead_process_become_interrupted_and_keep_their_energy(url: str) -> None:
    running = request_row(40, state="open")
    with closing(open_store(url)) as ledger:
        keep(ledger, paid(running))

    with closing(open_store(url)) as ledger:
        assert (replace(running, state="settled", outcome="interrupted"), 1) == ledger.request("req-1")
        assert imbalances(ledger) == [(0, 0)]


def test_a_second_writer_leaves_the_open_requests_of_the_first_alone(url: str) -> None:
    running = request_row(40, state="open")
    with closing(open_store(url, writer="node-1")) as first:
        keep(first, paid(running))
        with closing(open_store(url, writer="node-2")) as second:
            keep(second, paid(request_row(2, request_id="req-2"), last_counter_uj=3))

            assert (running, 1) == second.request("req-1")
            assert first.last_counter("nvml:GPU-0", "boot-1") == 1_000
            assert second.last_counter("nvml:GPU-0", "boot-1") == 3
            assert imbalances(second) == [(0, 0)]


def test_a_process_whose_name_was_taken_books_nothing_more_and_says_why(url: str) -> None:
    first = open_store(url)
    keep(first, paid(request_row(1)))
    with closing(open_store(url)) as second:
        first.post(paid(request_row(2)))

        assert not first.flush(0.2)
        assert "another process now writes as 'main'" in str(first.last_error)
        assert first.behind == 1
        assert [found.accounts.meter_uj for found in second.balance()] == [1]
    first.close(timeout_s=0.1)


def test_postings_made_while_one_is_committed_merge_and_none_is_lost(ledger: Ledger) -> None:
    running = request_row(0, state="open")
    for n in range(1, 301):
        ledger.post(Posting((balance(2, 1, last_counter_uj=n),), (replace(running, decode_uj=2 * n, energy_uj=2 * n),)))

    assert ledger.flush(WAIT_S)
    (found,) = ledger.balance()
    assert (found.rows_uj, found.accounts.idle_uj, found.imbalance_uj) == (600, 300, 0)
    assert ledger.merged_postings > 0
    assert ledger.last_counter("nvml:GPU-0", "boot-1") == 300


def test_a_commit_whose_answer_was_lost_is_not_applied_twice(url: str) -> None:
    """The database commits, then the connection breaks before it can say so."""
    with closing(open_store(url)) as ledger:
        engine = ledger._writing
        commit = engine.dialect.do_commit
        lost: list[int] = []

        def commit_and_lose_the_answer(connection: Any) -> None:
            commit(connection)
            if not lost:
                lost.append(1)
                raise OperationalError("COMMIT", None, Exception("server closed the connection unexpectedly"))

        engine.dialect.do_commit = commit_and_lose_the_answer  # type: ignore[method-assign,assignment]
        keep(ledger, paid(request_row(10), idle_uj=5))

        (found,) = ledger.balance()
        assert (lost, found.accounts.meter_uj, found.imbalance_uj) == ([1], 15, 0)
        assert (ledger.behind, ledger.last_error) == (0, None)


def test_rows_that_find_no_room_are_folded_into_totals_and_their_energy_stays(url: str) -> None:
    """The database stays away; only a few rows may wait; what was already known as open is kept as a row."""
    where = database_url(url)
    engine, blocked = writing_engine(where), [False]

    @event.listens_for(engine, "begin")
    def _refuse(_connection: Any) -> None:
        if blocked[0]:
            raise OperationalError("BEGIN", None, Exception("the database is away"))

    open_store(url).close()
    ledger = Ledger(writing=engine, reading=reading_engine(where), max_rows=10, retry_s=0.01)
    with closing(ledger):
        known_open = request_row(100, row="ab" * 16, state="open", request_id="known")
        keep(ledger, paid(known_open))
        blocked[0] = True
        ledger.post(Posting((balance(11),), (settled(known_open, 111),)))
        for _ in range(50):
            ledger.post(paid(request_row(7)))
        assert not ledger.flush(0.05)
        assert (51, "the database is away" in str(ledger.last_error)) == (ledger.behind, True)
        blocked[0] = False
        assert ledger.flush(WAIT_S)

        assert ledger.folded_rows > 0
        assert (settled(known_open, 111), 1) == ledger.request("known")
        (total,) = ledger.summary("tenant")
        assert (total.requests, total.energy_uj, total.prompt_tokens) == (51, 111 + 50 * 7, 51 * 100)
        assert imbalances(ledger) == [(0, 0)]


def test_retired_rows_leave_their_sums_behind_to_the_microjoule(ledger: Ledger) -> None:
    rows = [
        request_row(3 * n + 1, model=f"m{n % 2}", started_at_unix_ns=NOON_NS + n * HOUR_NS // 2, completion_tokens=None)
        for n in range(8)
    ]
    keep(ledger, paid(*rows))
    before = {by: ledger.summary(by) for by in ("model", "tenant", "backend", "hour")}

    assert ledger.retire(NOON_NS + 2 * HOUR_NS, WAIT_S)

    assert rows[:3:-1] == ledger.requests(None, 100)
    assert before == {by: ledger.summary(by) for by in ("model", "tenant", "backend", "hour")}
    assert imbalances(ledger) == [(0, 0)]


def test_what_cancels_between_requests_is_not_in_the_doubt_about_their_sum(ledger: Ledger) -> None:
    """Rule of sums: tilts add with their signs, noise adds in quadrature, and a total is what its rows make."""
    dear = doubtful(request_row(1_000_000), tilt_j=0.3, noise_j2=0.01)
    cheap = doubtful(request_row(1_000_000), tilt_j=-0.3, noise_j2=0.01)

    keep(ledger, paid(dear, cheap))

    (total,) = ledger.summary("tenant")
    assert total.relative_uncertainty == pytest.approx(0.02**0.5 / 2)


def test_doubts_of_different_backends_add_up_because_nobody_knows_whether_they_err_alike(ledger: Ledger) -> None:
    dear = doubtful(request_row(1_000_000), tilt_j=0.3)
    cheap = doubtful(request_row(1_000_000, backend="b1"), tilt_j=-0.3)

    keep(ledger, Posting((balance(1_000_000), balance(1_000_000, backend="b1")), (dear, cheap)))

    (total,) = ledger.summary("tenant")
    assert total.uncertainty_uj == pytest.approx(sum(found.uncertainty_uj or 0 for found in ledger.summary("backend")))
    assert total.relative_uncertainty == pytest.approx((3 * 0.3**2) ** 0.5)


def test_a_sum_with_a_request_of_unknown_doubt_has_none(ledger: Ledger) -> None:
    """Rows of before the doubts were kept, and of a policy's own making."""
    keep(ledger, paid(doubtful(request_row(5)), request_row(5)))

    (total,) = ledger.summary("tenant")
    assert total.relative_uncertainty is None


@pytest.mark.parametrize("known", [True, False])
def test_retired_rows_leave_their_doubts_behind(ledger: Ledger, known: bool) -> None:
    """Retired twice, so that one hour's totals are made and then added to."""
    rows = [doubtful(request_row(1_000_000), tilt_j=0.1 * n, noise_j2=0.01 * n) for n in range(1, 5)]
    rows[1] = rows[1] if known else request_row(1_000_000)
    before = []
    for some in (rows[:2], rows[2:]):
        keep(ledger, paid(*some))
        before = [total.relative_uncertainty for total in ledger.summary("model")]
        assert ledger.retire(NOON_NS + 1, WAIT_S)

    assert ledger.requests(None, 10) == []
    (after,) = ledger.summary("model")
    assert after.relative_uncertainty == (pytest.approx(before[0]) if known else None)
    assert (after.relative_uncertainty is None) != known


def test_a_sum_has_the_grade_of_its_worst_request(ledger: Ledger) -> None:
    """Kept, retired, or both; where the energy of one is not known, that of the sum is not."""
    grades = ["A", "B", "A", "D", "B", "unmeasured"]
    seen = []
    for grade in grades:
        keep(ledger, paid(replace(request_row(5), grade=grade)))
        (kept,) = ledger.summary("model")
        assert ledger.retire(NOON_NS + 1, WAIT_S)
        (retired,) = ledger.summary("model")
        seen.append((kept.grade, retired.grade))

    assert seen == [(grade, grade) for grade in ("A", "B", "B", "D", "D", "unmeasured")]
    assert ledger.requests(None, 10) == []


def test_the_grade_of_a_sum_is_its_own(ledger: Ledger) -> None:
    keep(ledger, paid(replace(request_row(5), grade="A"), replace(request_row(5, tenant="beta"), grade="D")))

    assert {total.keys: total.grade for total in ledger.summary("tenant")} == {("acme",): "A", ("beta",): "D"}


def test_a_sum_has_the_absolute_doubt_of_the_worst_of_its_own_meters(ledger: Ledger) -> None:
    """Another backend's meters are nothing to it; a meter of which nothing is known leaves nothing known."""
    posted = {"b0": 0.05, "b1": 0.5, "b2": None}
    for backend, doubt in posted.items():
        row = request_row(7, backend=backend, tenant=f"of {backend}", model="one" if backend != "b2" else "two")
        counted = balance(7, backend=backend, meter=f"nvml:{backend}")
        keep(ledger, Posting((replace(counted, absolute_uncertainty=doubt),), (row,)))

    assert {total.keys[0]: total.absolute_uncertainty for total in ledger.summary("backend")} == posted
    assert {total.keys[0]: total.absolute_uncertainty for total in ledger.summary("model")} == {"one": 0.5, "two": None}


def test_folded_rows_leave_their_grade_behind(url: str) -> None:
    """What a stalled database made the writer give up is graded like what retention gives up."""
    batch = Batch()
    batch.add(paid(*(replace(request_row(10), grade=grade) for grade in ("B", "C", "A"))), hour=0)
    batch.fold(0, keep=())

    assert list(batch.folded_grades.values()) == ["C"]


def test_folded_rows_leave_their_doubts_behind() -> None:
    batch = Batch()
    batch.add(paid(*(doubtful(request_row(10), tilt_j=0.5, noise_j2=0.25) for _ in range(3))), hour=0)
    batch.fold(1, keep=())
    ((key, total),) = batch.folded.items()
    assert (total["requests"], total["guess_tilt_j"], total["noise_j2"]) == (2, 1.0, 0.5)

    batch.add(paid(request_row(10)), hour=0)
    batch.fold(0, keep=())
    assert batch.folded[key] | {"noise_j2": None, "guess_tilt_j": None} == batch.folded[key]


def test_a_meters_absolute_uncertainty_is_kept_with_it(ledger: Ledger) -> None:
    gauged = replace(balance(idle_uj=1), absolute_uncertainty=0.05)

    keep(ledger, Posting((gauged, balance(idle_uj=1, meter="nvml:GPU-1"))))

    (found,) = ledger.meters().values()
    assert [meter.absolute_uncertainty for meter in found] == [0.05, None]


def test_retry_every_attempt_has_its_own_ledger_row_linked_by_request_id(ledger: Ledger) -> None:
    """Case rule: retry: every attempt has its own ledger row, linked by request id; the last one is the request."""
    failed = request_row(7, row="a1", outcome="partial", backend="b0", started_at_unix_ns=NOON_NS)
    answered = request_row(30, row="a2", backend="b1", started_at_unix_ns=NOON_NS + 5)
    other = balance(30, backend="b1", meter="nvml:GPU-1")

    keep(ledger, Posting((balance(7), other), (failed, answered)))

    assert ledger.request("req-1") == (answered, 2)
    assert ledger.requests(None, 10) == [answered, failed]
    assert [(total.keys, total.energy_uj) for total in ledger.summary("backend")] == [(("b1",), 30), (("b0",), 7)]
    assert imbalances(ledger) == [(0, 0), (0, 0)]


def test_open_requests_are_never_retired(ledger: Ledger) -> None:
    keep(ledger, paid(request_row(1, state="open"), request_row(2)))

    assert ledger.retire(NOON_NS + HOUR_NS, WAIT_S)

    assert [row.energy_uj for row in ledger.requests(None, 10)] == [1]
    assert imbalances(ledger) == [(0, 0)]


def test_rows_older_than_the_time_to_keep_are_retired_by_themselves(url: str) -> None:
    with closing(open_store(url, keep_ns=HOUR_NS, clock=lambda: NOON_NS)) as ledger:
        old, young = request_row(1, started_at_unix_ns=NOON_NS - 2 * HOUR_NS), request_row(2)
        keep(ledger, paid(old, young))
        assert ledger.retire(0, WAIT_S), "waits for the retirement that the commit began"

        with closing(open_store(url)) as again:
            assert sum(total.energy_uj for total in again.summary("tenant")) == 3


@pytest.mark.parametrize("name", ["nul\0inside", "half a pair \ud83d", "μ-Modell", "'; DROP TABLE requests; --"])
def test_no_name_a_client_can_send_stops_the_books(ledger: Ledger, name: str) -> None:
    keep(ledger, paid(request_row(5, model=name, request_id=name)))

    assert [total.energy_uj for total in ledger.summary("model")] == [5]
    assert len(ledger.requests(None, 10)) == 1


def test_a_locked_database_keeps_postings_waiting_and_loses_none(tmp_path: Path) -> None:
    where = database_url(str(tmp_path / "ledger.db"))
    open_store(str(tmp_path / "ledger.db")).close()
    writing = writing_engine(where, busy_timeout_s=0.05)
    ledger = Ledger(writing=writing, reading=reading_engine(where), retry_s=0.01)
    with closing(ledger), closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        ledger.post(paid(request_row(1)))
        ledger.post(paid(request_row(2)))
        assert not ledger.flush(0.3)
        assert (ledger.behind, "locked" in str(ledger.last_error)) == (2, True)
        other.execute("COMMIT")

        assert ledger.flush(WAIT_S)
        assert (ledger.behind, ledger.last_error) == (0, None)
        assert [found.rows_uj for found in ledger.balance()] == [3]


def test_a_full_disk_keeps_postings_waiting_and_loses_none(tmp_path: Path) -> None:
    where = database_url(str(tmp_path / "ledger.db"))
    open_store(str(tmp_path / "ledger.db")).close()
    writing, room = writing_engine(where), ["PRAGMA max_page_count=1"]

    @event.listens_for(writing, "begin")
    def _room(connection: Any) -> None:
        connection.exec_driver_sql(room[0])

    ledger = Ledger(writing=writing, reading=reading_engine(where), retry_s=0.01)
    with closing(ledger):
        rows = [request_row(1) for _ in range(500)]
        ledger.post(paid(*rows))
        assert not ledger.flush(0.3)
        assert (ledger.behind, "full" in str(ledger.last_error)) == (1, True)
        room[0] = "PRAGMA max_page_count=1000000"

        assert ledger.flush(WAIT_S)
        assert [(found.rows_uj, found.imbalance_uj) for found in ledger.balance()] == [(500, 0)]


def test_closing_commits_what_was_posted_and_takes_no_more(url: str) -> None:
    ledger = open_store(url)
    ledger.post(paid(request_row(9)))
    ledger.close()

    assert ledger.behind == 0
    with pytest.raises(ValueError, match="closed"):
        ledger.post(paid(request_row(1)))
    ledger.close()


def test_questions_in_one_snapshot_agree_though_postings_arrive_between_them(ledger: Ledger) -> None:
    keep(ledger, paid(request_row(1)))

    with ledger.snapshot() as now:
        before = now.summary("tenant")
        keep(ledger, paid(request_row(1)))

        assert before == now.summary("tenant")
        assert [found.accounts.requests_uj for found in now.balance()] == [1]
    assert [found.accounts.requests_uj for found in ledger.balance()] == [2]


shares = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**12), st.booleans()), max_size=6)
steps = st.lists(st.tuples(shares, st.tuples(*[st.integers(0, 10**12)] * 3)), min_size=1, max_size=8)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=steps, second=steps, flush_each=st.booleans(), retire=st.booleans())
def test_any_sequence_of_postings_keeps_the_law_in_the_database(
    url: str, first: Any, second: Any, flush_each: bool, retire: bool
) -> None:
    """Two processes, one after the other, post anything settlement could; the law is asked in plain SQL."""
    backend = uuid.uuid4().hex
    settlements = [Settlement(backend), Settlement(backend)]
    for settlement, script in zip(settlements, (first, second), strict=True):
        with closing(open_store(url)) as ledger:
            for given_shares, rest in script:
                ledger.post(settlement.step(given_shares, rest))
                if flush_each:
                    assert ledger.flush(WAIT_S)
                    with broken_law_of(url) as broken:
                        assert broken == []
            assert not retire or ledger.retire(NOON_NS + 1, WAIT_S)
    with broken_law_of(url) as broken, closing(open_store(url)) as ledger:
        assert broken == []
        (mine,) = [found for found in ledger.balance() if found.backend == backend]
        assert sum(settlement.meter_uj for settlement in settlements) == mine.accounts.meter_uj


def test_an_engine_is_only_opened_when_used(tmp_path: Path) -> None:
    engine: Engine = writing_engine(database_url(str(tmp_path / "none.db")))
    engine.dispose()

    assert list(tmp_path.iterdir()) == []
