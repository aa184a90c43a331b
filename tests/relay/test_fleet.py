"""
Several backends behind one proxy and several tenants before it: who is asked, who may see what, who is away.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.answers import Script
from tests.engine.simulated import SimulatedEngine
from tests.live import LiveProxy, assert_law
from tests.relay.speaking import CHAT, HTTP, QUICK, chat, error_of, received, rows, until

KEYS = {"acme": "acme-key", "globex": "globex-key"}


class Fleet:
    """Two engines of one model and one for embeddings, behind one proxy with tenants."""

    def __init__(self, folder: Path) -> None:
        self.one = SimulatedEngine(step_s=0.002)
        self.two = SimulatedEngine(step_s=0.002)
        self.vectors = SimulatedEngine(model="vectors", pooling=True)
        self.engines = {"one": self.one, "two": self.two, "vectors": self.vectors}
        self.folder = folder

    @contextlib.contextmanager
    def running(self) -> Iterator["Fleet"]:
        with self.one, self.two, self.vectors:
            config = [self._backend(name, engine) for name, engine in self.engines.items()]
            config += [_tenant(name, key) for name, key in KEYS.items()]
            ledger = self.folder / "ledger.db"
            with LiveProxy(backends=[], ledger=ledger, config="\n".join(config), settings=QUICK) as self.proxy:
                yield self

    def _backend(self, name: str, engine: SimulatedEngine) -> str:
        recording = self.folder / f"{name}.csv"
        lines = [f"{n / 50},{n * 2}" for n in range(50 * 300)]
        recording.write_text("\n".join(["seconds,joules", *lines]))
        return f'[[backends]]\nname = "{name}"\nurl = "{engine.url}"\nmeter = "recorded:{recording}"'

    def ask(self, path: str = CHAT, tenant: str = "acme", **fields: Any) -> httpx.Response:
        key = {"authorization": f"Bearer {KEYS[tenant]}"}
        return HTTP.post(self.proxy.url + path, json=fields or chat(), headers=key)


def _tenant(name: str, key: str) -> str:
    return f'[[tenants]]\nname = "{name}"\nkey_sha256 = ["{hashlib.sha256(key.encode()).hexdigest()}"]'


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet")).running() as running:
        until(lambda: all(f'backend_up{{backend="{n}"}} 1.0' in running.proxy.metrics() for n in running.engines))
        yield running
        assert_law(running.proxy.balance())


class TestTenants:
    @pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic acme-key", "acme-key", "Bearer"])
    def test_no_key_or_a_wrong_one(self, fleet: Fleet, authorization: str | None) -> None:
        """401 with a sentence, and nothing reaches an engine."""
        headers = {} if authorization is None else {"authorization": authorization}

        answer = HTTP.post(fleet.proxy.url + CHAT, json=chat(), headers={"x-request-id": "no-key"} | headers)

        assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
        assert not any(r.headers.get("x-request-id") == "no-key" for r in fleet.one.requests + fleet.two.requests)

    def test_a_key_makes_a_tenant_and_stays_here(self, fleet: Fleet) -> None:
        """The record says who pays; the engine does not see the key."""
        answer = fleet.ask(tenant="globex")

        request_id = answer.headers["x-request-id"]
        assert fleet.proxy.settled(request_id)["tenant"] == "globex"
        assert "authorization" not in received(fleet.one, request_id).headers

    def test_tenants_do_not_see_each_other(self, fleet: Fleet) -> None:
        """On the traffic port another tenant's request does not exist; the operator sees all."""
        request_id = fleet.ask(tenant="acme").headers["x-request-id"]
        fleet.proxy.settled(request_id)
        where = fleet.proxy.url + "/energy/requests"

        def get(path: str, tenant: str | None) -> httpx.Response:
            headers = {} if tenant is None else {"authorization": f"Bearer {KEYS[tenant]}"}
            return HTTP.get(path, headers=headers)

        assert get(f"{where}/{request_id}", "acme").json()["status"] == "settled"
        assert get(f"{where}/{request_id}", "globex").status_code == 404
        assert get(f"{where}/{request_id}", None).status_code == 401
        assert {row["tenant"] for row in get(where, "globex").json()["requests"]} <= {"globex"}
        assert get(where, None).status_code == 401
        summary = get(fleet.proxy.url + "/energy/summary?by=tenant", "acme").json()
        assert [row["tenant"] for row in summary["rows"]] == ["acme"]
        assert get(fleet.proxy.url + "/energy/balance", "acme").status_code == 404


class TestSeveralBackends:
    def test_by_model(self, fleet: Fleet) -> None:
        """A request goes where its model is; embeddings have prompt tokens only."""
        answer = fleet.ask("/v1/embeddings", model="vectors", input=["one two", "three"])

        request_id = answer.headers["x-request-id"]
        received(fleet.vectors, request_id)
        record = fleet.proxy.settled(request_id)
        assert (record["backend"], record["model"], record["endpoint"]) == ("vectors", "vectors", "embeddings")
        assert record["tokens"] == {"prompt": 3, "cached": None, "completion": 0}

    def test_least_outstanding(self, fleet: Fleet) -> None:
        """While one engine is busy the next request goes to the other."""
        fleet.one.script(Script(stall_after=1))
        with HTTP.stream(
            "POST", fleet.proxy.url + CHAT, json=chat(stream=True), headers={"authorization": "Bearer acme-key"}
        ) as busy:
            received(fleet.one, busy.headers["x-request-id"])
            others = [fleet.ask().headers["x-request-id"] for _ in range(3)]
            for request_id in others:
                received(fleet.two, request_id)

        assert fleet.proxy.settled(busy.headers["x-request-id"])["outcome"] == "aborted"

    def test_failover_ejection_and_return(self, fleet: Fleet) -> None:
        """A refused connection is tried elsewhere and kept as a row of its own; the backend returns by itself."""
        fleet.one.down()
        try:
            first = fleet.ask()
            request_id = first.headers["x-request-id"]
            fleet.proxy.settled(request_id)
            attempts = until(lambda: [r for r in rows(fleet.proxy, request_id) if r["status"] == "settled"])
            later = [fleet.ask() for _ in range(3)]
        finally:
            fleet.one.up()

        assert {answer.status_code for answer in [first, *later]} == {200}
        by_backend = {row["backend"]: (row["outcome"], row["energy_microjoules"] > 0) for row in attempts}
        assert by_backend["two"] == ("ok", True)
        assert by_backend.get("one", ("error", False)) == ("error", False)
        until(lambda: received_by(fleet.one, fleet.ask().headers["x-request-id"]))

    def test_all_of_a_model_away(self, fleet: Fleet) -> None:
        """503, not the 404 of an engine that has another model: the model exists and will be back."""
        fleet.one.down()
        fleet.two.down()
        try:
            until(lambda: 'backend_up{backend="two"} 0.0' in fleet.proxy.metrics())
            answer = fleet.ask()
        finally:
            fleet.one.up()
            fleet.two.up()

        assert (answer.status_code, error_of(answer)["code"]) == (503, "no_backend")
        until(lambda: fleet.ask().status_code == 200)


def received_by(engine: SimulatedEngine, request_id: str) -> bool:
    return any(r.headers.get("x-request-id") == request_id for r in engine.requests)
