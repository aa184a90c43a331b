"""Rules and dashboard on a real Prometheus that scrapes joules and tokens known beforehand."""

import json
import math
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.grafana.exposition import page

pytestmark = pytest.mark.prometheus

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus-rules.yml").read_text(encoding="utf-8"))
RULE_LIST = [rule for group in RULES["groups"] for rule in group["rules"]]
RECORDED = [rule["record"] for rule in RULE_LIST if "record" in rule]
ALERTS = [rule for rule in RULE_LIST if "alert" in rule]
PANELS = json.loads((ROOT / "grafana/energy.json").read_text(encoding="utf-8"))["panels"]
TARGETS = [(panel, target) for panel in PANELS for target in panel.get("targets", [])]
FILLED_IN = {"backend": ".+", "model": ".+", "__rate_interval": "4s", "__range": "30s"}
DEADLINE_S = 30.0

Series = list[dict[str, Any]]


def tool(name: str) -> str:
    """Path of a program of the Debian package prometheus; fails, saying what to install, where there is none."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is missing: apt-get install -y --no-install-recommends prometheus")
    return path


def promtool(*arguments: str) -> None:
    """Run promtool in deploy/; fails with what it printed."""
    done = subprocess.run([tool("promtool"), *arguments], cwd=DEPLOY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_is_accepted() -> None:
    """Prometheus would start with the shipped file and its rules."""
    promtool("check", "config", "prometheus.yml")


def test_the_rules_are_accepted() -> None:
    """Every expression parses, and no rule is there twice."""
    promtool("check", "rules", "--lint=all", "--lint-fatal", "prometheus-rules.yml")


def test_the_rules_do_what_their_tests_say() -> None:
    """Rules give the expected numbers; alerts fire when they must and only then."""
    promtool("test", "rules", "prometheus-rules-test.yml")


def test_every_rule_and_alert_has_a_test() -> None:
    """A rule without a case in prometheus-rules-test.yml does not count."""
    cases = yaml.safe_load((DEPLOY / "prometheus-rules-test.yml").read_text(encoding="utf-8"))["tests"]
    fired = {case["alertname"] for each in cases for case in each.get("alert_rule_test", []) if case["exp_alerts"]}
    asked = " ".join(case["expr"] for each in cases for case in each.get("promql_expr_test", []))

    assert set() == {alert["alert"] for alert in ALERTS} - fired
    assert [name for name in RECORDED if not re.search(rf"(?<![\w:]){name}(?![\w:])", asked)] == []


@pytest.fixture(scope="module")
def proxy_address() -> Iterator[str]:
    """A stand-in for the proxy's admin listener; its counters grow with the time of the scrape."""
    start = time.monotonic() - 60

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = page(time.monotonic() - start).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Scrapes are not news."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fast_configuration(proxy_address: str) -> dict[str, Any]:
    """The shipped configuration, scraping the stand-in every second; a second proxy and vLLM are down."""
    configuration: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    configuration["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(DEPLOY / "prometheus-rules.yml")]
    nobody = f"127.0.0.1:{free_port()}"
    targets = {"jouleproxy": [proxy_address, nobody], "vllm": [nobody]}
    for job in configuration["scrape_configs"]:
        job["static_configs"] = [{"targets": targets[job["job_name"]]}]
    return configuration


class Prometheus:
    """The HTTP API of a Prometheus server."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **parameters: object) -> Any:
        """The `data` of an answer; OSError when there is none."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def now(self, expr: str) -> Series:
        """Series of an expression at this moment."""
        result: Series = self.get("query", query=expr)["result"]
        return result

    def lately(self, expr: str) -> Series:
        """Series of an expression over the last seconds."""
        end = time.time()
        result: Series = self.get("query_range", query=expr, start=end - 4, end=end, step=1)["result"]
        return result


def wait_until(reached: Callable[[], bool], server: subprocess.Popen[bytes], log: Path) -> None:
    """Poll until the condition holds; fails with the log of the server after DEADLINE_S or when it has ended."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if reached():
                return
        except OSError:
            pass  # not listening yet
        time.sleep(0.2)
    pytest.fail(f"Prometheus did not get there in {DEADLINE_S} s:\n{log.read_text()}")


@pytest.fixture(scope="module")
def prometheus(proxy_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped the stand-in and evaluated all rules."""
    home = tmp_path_factory.mktemp("prometheus")
    (home / "prometheus.yml").write_text(yaml.safe_dump(fast_configuration(proxy_address)))
    port = free_port()
    command = [
        tool("prometheus"),
        f"--config.file={home / 'prometheus.yml'}",
        f"--storage.tsdb.path={home / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    api = Prometheus(f"http://127.0.0.1:{port}")

    def ready() -> bool:
        series = api.now('count by (__name__) ({__name__=~".+:jouleproxy_.+"})')
        scraped = api.now('count_over_time(jouleproxy_kappa{backend="well"}[4s]) >= 4')
        return len(series) == len(RECORDED) and len(scraped) == 1

    with (home / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd=home) as server:
        try:
            wait_until(ready, server, home / "log")
            yield api
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()


def filled_in(expr: str) -> str:
    """The expression as Grafana would send it with everything chosen; KeyError for a variable it does not know."""
    return re.sub(r"\$\{?(\w+)\}?", lambda found: FILLED_IN[found[1]], expr)


def only(series: Series) -> float:
    """The value of the only series."""
    [one] = series
    return float(one["value"][1])


def by(label: str, series: Series) -> dict[str, float]:
    """Values of series that differ in one label."""
    return {one["metric"][label]: float(one["value"][1]) for one in series}


def expressions(title: str) -> dict[str, str]:
    """The expressions of a panel by their legend."""
    [panel] = [panel for panel in PANELS if panel["title"] == title]
    return {target["legendFormat"]: filled_in(target["expr"]) for target in panel["targets"]}


@pytest.mark.parametrize(
    ("panel", "target"), TARGETS, ids=[f"{panel['title']}/{target['refId']}" for panel, target in TARGETS]
)
def test_every_panel_shows_numbers(prometheus: Prometheus, panel: dict[str, Any], target: dict[str, Any]) -> None:
    """Each query of each panel gives at least one finite value, each with the labels that its legend names."""
    series = prometheus.lately(filled_in(target["expr"]))

    assert [value for one in series for _, value in one["values"] if math.isfinite(float(value))] != []
    for one in series:
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= set(one["metric"])


def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    """Prometheus has loaded all rules and none of them ends in an error."""
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    assert len(RULE_LIST) == len(rules)
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []


@pytest.mark.parametrize("record", RECORDED)
def test_every_recording_rule_records_numbers(prometheus: Prometheus, record: str) -> None:
    """A dashboard built on the recorded series would not be empty."""
    values = [float(value) for one in prometheus.lately(record) for _, value in one["values"]]

    assert values
    assert all(map(math.isfinite, values))


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_sees_the_sick_backend_only(prometheus: Prometheus, alert: dict[str, Any]) -> None:
    """The condition of each alert holds for what is broken, and for nothing that is well."""
    labels = [one["metric"] for one in prometheus.now(alert["expr"])]

    assert labels
    assert {"sick"} >= {each["backend"] for each in labels if "backend" in each}


def test_joules_per_output_token_are_right(prometheus: Prometheus) -> None:
    """320 W at 640 tokens/s is 0.5 J per token; 200 W at 100 tokens/s is 2."""
    [by_model] = expressions("Joules per output token, by model").values()
    [all_models] = expressions("Joules per output token").values()
    [with_idle] = expressions("J/token, idle included").values()
    recorded = "model:jouleproxy_joules_per_output_token:ratio_rate5m"

    assert by("model", prometheus.now(by_model)) == pytest.approx({"small": 0.5, "large": 2.0})
    assert by("model", prometheus.now(recorded)) == pytest.approx({"small": 0.5, "large": 2.0})
    assert only(prometheus.now(all_models)) == pytest.approx(520 / 740)
    assert only(prometheus.now(with_idle)) == pytest.approx(900 / 740)


def test_cached_tokens_are_not_counted_twice(prometheus: Prometheus) -> None:
    """J per token divides by prompt and completion tokens; the cached ones are part of the prompt."""
    recorded = prometheus.now("model:jouleproxy_joules_per_token:ratio_rate5m")

    assert by("model", recorded) == pytest.approx({"small": 320 / 1640, "large": 200 / 400})


def test_the_stack_of_accounts_reaches_the_line_of_the_meter(prometheus: Prometheus) -> None:
    """The law, as a picture: four accounts add up to the meter, here 900 W."""
    power = expressions("Power: the four accounts against the meter")
    moment = time.time()
    watts = {name: only(prometheus.get("query", query=expr, time=moment)["result"]) for name, expr in power.items()}
    meter = watts.pop("meter")

    assert list(watts) == ["requests", "idle", "unattributed", "unmeasured"]
    assert meter == pytest.approx(sum(watts.values()))
    assert meter == pytest.approx(900, rel=0.2)  # absolute power also depends on when scrapes happen


def test_shares_are_right(prometheus: Prometheus) -> None:
    """Idle is 160 of 900 W; the research tenant has 312 of the 520 W of requests."""
    [idle] = expressions("Idle share").values()
    [tenants] = expressions("Energy by tenant, in range").values()
    tenant = by("tenant", prometheus.now(tenants))

    assert only(prometheus.now(idle)) == pytest.approx(160 / 900)
    assert tenant["research"] / tenant["other"] == pytest.approx(312 / 208)


def test_quantiles_are_right(prometheus: Prometheus) -> None:
    """All requests cost between 50 and 100 J, evenly: the median is 75 J and the 95th percentile 97.5 J."""
    quantiles = expressions("Joules per request")

    assert by("model", prometheus.now(quantiles["{{model}} p50"])) == pytest.approx({"small": 75.0, "large": 75.0})
    assert by("model", prometheus.now(quantiles["{{model}} p95"])) == pytest.approx({"small": 97.5, "large": 97.5})


def test_meter_health_tells_measured_from_estimated(prometheus: Prometheus) -> None:
    """The figure is 0 where every meter measures, and counts the meters that estimate."""
    source = expressions("Meter health")["source"]

    assert only(prometheus.now(source)) == 1
    assert only(prometheus.now(source.replace(".+", "well"))) == 0
