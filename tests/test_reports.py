"""
What is asked about energy is answered from the ledger and the open requests, each to whom it belongs.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.requests import Request

import proxy.pages
from proxy.pages import openai_errors
from proxy.reports.finder import Finder
from proxy.reports.records import record
from proxy.reports.routes import energy_routes
from proxy.stores import open_store
from proxy.stores.ledger import Ledger
from tests.stores.examples import request_row
from tests.world import World

RECORD_KEYS = {
    *("request_id", "status", "outcome", "http_status", "tenant", "model", "backend", "endpoint", "stream"),
    *("energy_joules", "energy_microjoules", "energy_kwh", "energy_by_token_share_joules", "avg_power_watts"),
    *("duration_seconds", "attribution_method", "attribution_ratio", "grade", "estimated", "relative_uncertainty"),
    *("absolute_uncertainty", "phases", "tokens", "started_at", "ttft_seconds", "tpot_seconds"),
}


class Office:
    """A world whose postings go to a real ledger, and both listeners' /energy routes."""

    def __init__(self, folder: Path) -> None:
        self.store: Ledger = open_store(f"sqlite:///{folder}/ledger.db")
        self.world = World(keep=self.store.post)
        self.world.later(0, 5_000_000)
        finder = Finder(self.store, self.world.settlement, lambda: self.world.now)
        self.admin = self._client(finder, whole=True)
        self.traffic = self._client(finder, whole=False)

    def _client(self, finder: Finder, *, whole: bool) -> TestClient:
        def tenant_of(request: Request) -> str | None:
            return None if whole else request.headers["authorization"]

        app = FastAPI()
        openai_errors(app)
        app.include_router(energy_routes(self.store, finder, tenant_of, whole=whole))
        return TestClient(app)

    def settle(self) -> None:
        """All that is over is closed and committed."""
        self.world.settlement.step(force=True)
        assert self.store.flush(5)

    def get(self, path: str, tenant: str | None = None, **params: Any) -> tuple[int, dict[str, Any]]:
        """Status and body, from the admin listener or, for a tenant, from the traffic listener."""
        if tenant is None:
            answer = self.admin.get(f"/energy/{path}", params=params)
        else:
            answer = self.traffic.get(f"/energy/{path}", params=params, headers={"authorization": tenant})
        return answer.status_code, answer.json()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    made = Office(tmp_path)
    yield made
    made.store.close()


def test_a_settled_record_has_every_key_of_the_contract(office: Office) -> None:
    """Joules, microjoules, kilowatt hours, power and phases say the same."""
    office.world.run_request("r")
    office.settle()

    status, found = office.get("requests/r")

    assert (status, found["status"], found["outcome"], found["records"]) == (200, "settled", "ok", 1)
    assert set(found) == RECORD_KEYS | {"records"}
    energy_j = found["energy_microjoules"] / 1e6
    assert found["energy_joules"] == pytest.approx(energy_j)
    assert sum(found["phases"].values()) == pytest.approx(energy_j)
    assert found["energy_kwh"] == pytest.approx(energy_j / 3.6e6)
    assert found["avg_power_watts"] == pytest.approx(energy_j / found["duration_seconds"])
    assert found["duration_seconds"] == 0.2
    assert found["tokens"] == {"prompt": 10, "cached": None, "completion": 2}
    assert (found["ttft_seconds"], found["tpot_seconds"]) == (0.1, 0.1)
    assert found["started_at"] == "1970-01-01T00:00:00+00:00"


def test_a_running_request_is_provisional(office: Office) -> None:
    """Its energy so far and the prediction of the rest are one figure in every unit."""
    bill = office.world.bill("r")
    office.world.later(100, 6_000_000)
    bill.flight.tick(office.world.now, 1)
    office.world.later(50)

    status, found = office.get("requests/r")

    assert (status, found["status"], set(found)) == (200, "provisional", RECORD_KEYS)
    assert found["energy_microjoules"] == round(found["energy_joules"] * 1e6) > 0


def test_closed_but_not_committed_is_provisional(office: Office) -> None:
    """Settled is said only of what a crash cannot take away."""
    office.store.close()
    office.world._keep = None
    office.world.run_request("r")
    office.world.settlement.step(force=True)

    _, found = office.get("requests/r")

    assert (found["status"], found["outcome"]) == ("provisional", "ok")


def test_unknown_request(office: Office) -> None:
    """404 in OpenAI's shape, at once and after waiting."""
    for wait in (0, 0.01):
        status, found = office.get("requests/none", wait=wait)
        assert status == 404
        assert found["error"]["code"] == "not_found"
        assert "'none'" in found["error"]["message"]


def test_waits_for_the_settled_figure(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question with wait= is answered as soon as the request is settled."""
    office.world.run_request("r")
    finder_sleeps = []

    async def settle_instead_of_sleeping(seconds: float) -> None:
        finder_sleeps.append(seconds)
        office.settle()

    monkeypatch.setattr("proxy.reports.finder.asyncio.sleep", settle_instead_of_sleeping)
    _, found = office.get("requests/r", wait=5)

    assert found["status"] == "settled"
    assert len(finder_sleeps) == 1


def test_the_newest_of_a_repeated_id(office: Office) -> None:
    """The last attempt is shown, with how many there are."""
    office.world.run_request("r")
    office.settle()
    office.world.bill("r", row="other").flight.end(office.world.now, "aborted")
    office.settle()

    _, found = office.get("requests/r")

    assert (found["outcome"], found["records"]) == ("aborted", 2)


def test_tenants_see_their_own(office: Office) -> None:
    """Single requests, lists and sums; the balance is the operator's."""
    office.world.run_request("a", tenant="acme")
    office.world.run_request("g", tenant="globex")
    office.settle()

    assert office.get("requests/a", tenant="acme")[0] == 200
    assert office.get("requests/a", tenant="globex")[0] == 404
    _, listed = office.get("requests", tenant="acme")
    assert [r["request_id"] for r in listed["requests"]] == ["a"]
    _, summary = office.get("summary", tenant="globex", by="tenant")
    assert [row["tenant"] for row in summary["rows"]] == ["globex"]
    assert office.get("balance", tenant="acme")[0] == 404


def test_running_requests_of_others_are_not_shown(office: Office) -> None:
    """Neither while they run nor when they have just ended."""
    office.world.bill("r", tenant="acme")

    assert office.get("requests/r", tenant="globex")[0] == 404
    assert office.get("requests/r", tenant="acme")[0] == 200


def test_sums_agree_with_the_balance(office: Office) -> None:
    """Records, each summary and the balance are the same microjoules."""
    for tenant in ("a", "b", "a"):
        office.world.run_request(f"{tenant}{office.world.now}", tenant=tenant)
        office.settle()

    _, balance = office.get("balance")
    requests_uj = balance["total"]["accounts"]["requests"]
    assert balance["total"]["imbalance_microjoules"] == 0
    assert sum(balance["total"]["accounts"].values()) == balance["total"]["meter_microjoules"] == 6_000_000
    assert balance["backends"][0]["meters"] == [
        {
            "gpu": "gpu",
            "kind": "recorded",
            "estimated": False,
            "description": "a test",
            "absolute_uncertainty": None,
        }
    ]
    _, listed = office.get("requests")
    assert sum(r["energy_microjoules"] for r in listed["requests"]) == requests_uj > 0
    for by in ("model", "tenant", "backend"):
        _, summary = office.get("summary", by=by)
        assert summary["by"] == by
        assert sum(row["energy_microjoules"] for row in summary["rows"]) == requests_uj
        assert sum(row["completion_tokens"] for row in summary["rows"]) == 6


def test_a_short_request_has_a_large_uncertainty_and_a_sum_a_smaller_one(office: Office) -> None:
    """A tenth of two readings of the counter; of ten such requests about a third of that, in record and summary."""
    for number in range(10):
        office.world.run_request(f"r{number}")
        office.settle()

    _, found = office.get("requests/r3")
    assert found["relative_uncertainty"] > 0.08
    for by in ("model", "tenant", "backend"):
        (row,) = office.get("summary", by=by)[1]["rows"]
        assert 0 < row["relative_uncertainty"] < found["relative_uncertainty"] / 2
        assert (row["grade"], row["absolute_uncertainty"]) == (found["grade"], found["absolute_uncertainty"])


def test_a_record_shows_both_parts_as_the_ledger_has_them() -> None:
    shown = record(replace(request_row(5), relative_uncertainty=0.0345, absolute_uncertainty=0.05), status="settled")

    assert (shown["relative_uncertainty"], shown["absolute_uncertainty"]) == (0.0345, 0.05)


def test_list_is_newest_first_and_bounded(office: Office) -> None:
    """limit and since do what they say."""
    for second in range(3):
        bill = office.world.bill(f"r{second}")
        bill.started_at_unix_ns = second * 1_000_000_000
        bill.flight.end(office.world.now, "ok")
    office.settle()

    names = [
        [r["request_id"] for r in office.get("requests", **q)[1]["requests"]] for q in ({}, {"limit": 1}, {"since": 1})
    ]

    assert names == [["r2", "r1", "r0"], ["r2"], ["r2", "r1"]]


def test_a_long_list_is_for_operators(office: Office) -> None:
    """On the traffic port it would hold up those who wait for answers."""
    assert office.get("requests", limit=100_000)[0] == 200
    assert office.get("requests", tenant="acme", limit=1000)[0] == 200
    status, found = office.get("requests", tenant="acme", limit=1001)
    assert (status, found["error"]["param"]) == (400, "limit")


@pytest.mark.parametrize("request_id", ["a/b", "a/b/", "/a", "https://x/y"])
def test_an_id_with_slashes_is_found(office: Office, request_id: str) -> None:
    """A client may name its request so; the list beside it is still the list."""
    office.world.run_request(request_id)
    office.settle()

    status, found = office.get(f"requests/{quote(request_id, safe='/')}")

    assert (status, found.get("request_id")) == (200, request_id)
    assert [r["request_id"] for r in office.get("requests")[1]["requests"]] == [request_id]


@pytest.mark.parametrize(
    ("path", "params", "where"),
    [
        ("requests/r", {"wait": -1}, "wait"),
        ("requests/r", {"wait": "soon"}, "wait"),
        ("requests", {"limit": 0}, "limit"),
        ("summary", {"by": "colour"}, "by"),
    ],
)
def test_wrong_questions(office: Office, path: str, params: dict[str, Any], where: str) -> None:
    """400 that names the parameter, in OpenAI's shape."""
    status, found = office.get(path, **params)

    assert (status, found["error"]["param"], found["error"]["type"]) == (400, where, "invalid_request_error")
    assert found["error"]["message"].startswith(f"{where}: ")


def test_energy_that_is_not_known_is_null() -> None:
    """A meter that failed leaves nothing to show; null is not 0."""
    unknown = request_row(0)
    shown = record(replace(unknown, grade="unmeasured"), status="settled")

    assert {shown[key] for key in ("energy_joules", "energy_microjoules", "energy_kwh")} == {None}
    assert shown["phases"] is None
    assert record(unknown, status="settled")["energy_joules"] == 0


def test_an_attempt_that_is_closed_late_does_not_hide_the_answer(office: Office) -> None:
    """A refused backend's attempt was sent first and may be settled last; the request is the one that was answered."""
    refused = office.world.bill("r", row="refused")
    office.world.run_request("r")
    office.settle()
    before = office.get("requests/r")[1]

    refused.flight.end(office.world.now, "error")
    office.settle()

    after = office.get("requests/r")[1]
    assert [(found["status"], found["outcome"]) for found in (before, after)] == [("settled", "ok")] * 2
    assert after["records"] == 2


@pytest.mark.parametrize(("of", "path", "rows"), [("models", "summary", "rows"), ("newest", "requests", "requests")])
def test_the_live_page_reads_what_the_api_tells(office: Office, of: str, path: str, rows: str) -> None:
    """Every name is there, each head has its cell, and energy stands beside grade and uncertainty."""
    office.world.run_request("r")
    office.settle()
    page = (Path(proxy.pages.__file__).parent / "live.html").read_text()
    (heads, cells) = re.findall(rf'table\("\w+", \[(.*?)\],\s*{of}\.map\(\(r\) => \[(.*)\]\)\);', page)[0]
    (told, *_) = office.get(path)[1][rows]

    assert set(re.findall(r"\br\.(\w+)", cells)) <= set(told)
    assert len(heads.split(", ")) == len(re.split(r", (?![^(]*\))", cells))
    for name in ("energy_joules", "grade", "relative_uncertainty"):
        assert f"r.{name}" in cells
