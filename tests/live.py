"""The proxy as a process of its own, on free ports, as people run it.

with LiveProxy(backends=[engine.url], ledger=tmp_path / "ledger.db") as proxy:
    httpx.post(f"{proxy.url}/v1/chat/completions", json=...)
    proxy.settled(request_id)["energy_joules"]
    proxy.balance()["total"]
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.engine.real import free_port

START_TIMEOUT_S = 20.0
_HTTP = httpx.Client(trust_env=False, verify=False, timeout=10, limits=httpx.Limits(max_keepalive_connections=0))
"""One client for all questions, because making one costs more than most answers; a connection per question."""


class ProxyFailed(Exception):
    """The proxy did not come up; the message ends with what it printed."""


class LiveProxy:
    """One `jouleproxy serve`. settings: further JOULEPROXY_ variables, by lower-case name."""

    def __init__(
        self,
        *,
        backends: Sequence[str],
        ledger: Path,
        meter: str = "modelled",
        config: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.port, self.admin_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin = f"http://127.0.0.1:{self.admin_port}"
        self.ledger = f"sqlite:///{ledger}"
        self.log = ledger.with_suffix(".log")
        self._config = None if config is None else ledger.with_suffix(".toml")
        if self._config is not None and config is not None:
            self._config.write_text(config)
        given = {
            "port": str(self.port),
            "admin_port": str(self.admin_port),
            "ledger": self.ledger,
            "meter": meter,
            "scrape_period_s": "0.2",
            "health_period_s": "0.2",
        }
        if config is None:
            given["backends"] = ",".join(backends)
        given |= dict(settings or {})
        clean = {name: value for name, value in os.environ.items() if not name.startswith("JOULEPROXY_")}
        self._environment = clean | {f"JOULEPROXY_{name.upper()}": value for name, value in given.items()}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        """Starts the process and waits until /readyz (or, without `wait`, until /healthz) says 200."""
        command = [sys.executable, "-m", "proxy", "serve"]
        if self._config is not None:
            command += ["--config", str(self._config)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._environment, stdout=log, stderr=log, process_group=0, cwd=Path(__file__).parents[1]
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                if _HTTP.get(f"{self.admin}/{'readyz' if wait else 'healthz'}").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        self.kill()
        raise ProxyFailed(self.log.read_text()[-3000:])

    def stop(self) -> int:
        """Asks it to end and gives its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def signal(self, signum: signal.Signals) -> None:
        """Sends it a signal."""
        assert self._process is not None
        self._process.send_signal(signum)

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None
        return self._process.wait(20)

    def kill(self) -> None:
        """SIGKILL: nothing can be tidied up."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            try:
                self.stop()
            finally:
                self.kill()

    def settled(self, request_id: str, wait_s: float = 20.0) -> dict[str, Any]:
        """The settled record of a request; an AssertionError if it does not come."""
        answer = _HTTP.get(f"{self.admin}/energy/requests/{request_id}", params={"wait": wait_s}, timeout=wait_s + 5)
        found: dict[str, Any] = answer.json()
        assert found.get("status") == "settled", found
        return found

    def balance(self) -> dict[str, Any]:
        """GET /energy/balance."""
        found: dict[str, Any] = _HTTP.get(f"{self.admin}/energy/balance").json()
        return found

    def metrics(self) -> str:
        """GET /metrics."""
        return _HTTP.get(f"{self.admin}/metrics").text


def assert_law(balance: dict[str, Any]) -> None:
    """requests + idle + unattributed + unmeasured == meter, in each backend and in all, to the microjoule."""
    for books in [*balance["backends"], balance["total"]]:
        assert books["imbalance_microjoules"] == 0, json.dumps(books)
        assert sum(books["accounts"].values()) == books["meter_microjoules"], json.dumps(books)
