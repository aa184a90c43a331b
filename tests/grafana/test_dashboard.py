"""The dashboard as a file: made by grafana/build.py, complete, within the grid, asking only for metrics that exist."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.grafana.exposition import metric_names

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "grafana/energy.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = yaml.safe_load((ROOT / "deploy/prometheus-rules.yml").read_text(encoding="utf-8"))
RULE_LIST = [rule for group in RULES["groups"] for rule in group["rules"]]
KNOWN_VARIABLES = {"datasource", "backend", "model", "__rate_interval", "__range"}
WORDS_OF_PROMQL = {
    *("by", "on", "group_left", "or", "unless"),
    *("sum", "count", "max", "avg", "topk", "rate", "increase", "abs", "absent", "histogram_quantile"),
}

each_panel = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])


def asked_for(expr: str) -> set[str]:
    """Names of the series in a PromQL expression: what is left without labels, strings, windows and functions."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", " ", expr)
    bare = re.sub(r"\b(by|on|group_left)\s*\([^)]*\)", " ", bare)
    return set(re.findall(r"[a-zA-Z_:][\w:]*", bare)) - WORDS_OF_PROMQL


def build(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", str(ROOT / "grafana/build.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_file_is_what_the_panels_say() -> None:
    """Whoever edits energy.json by hand, or forgets to run build.py, is told so."""
    checked = build("--check")

    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    """--check compares bytes, and writes nothing."""
    for source in (ROOT / "grafana").glob("*.py"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    changed = (ROOT / "grafana/energy.json").read_bytes().replace(b"J/token", b"j/token")
    (tmp_path / "energy.json").write_bytes(changed)

    checked = subprocess.run([sys.executable, "-B", str(tmp_path / "build.py"), "--check"], capture_output=True)

    assert checked.returncode == 1
    assert changed == (tmp_path / "energy.json").read_bytes()


def test_it_can_be_found_and_imported() -> None:
    """A fixed uid, tags, a schema that Grafana 11 and later read, and no id of someone's Grafana."""
    assert DASHBOARD["uid"] == "jouleproxy-energy"
    assert DASHBOARD["tags"] == ["llm", "energy"]
    assert 39 <= DASHBOARD["schemaVersion"] <= 41
    assert "id" not in DASHBOARD
    assert "__inputs" not in DASHBOARD


def test_the_user_chooses_data_source_backend_and_model() -> None:
    """The three variables are there, and those with values ask the chosen data source for them."""
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}

    assert list(variables) == ["datasource", "backend", "model"]
    assert variables["datasource"]["type"] == "datasource"
    for name in ("backend", "model"):
        assert variables[name]["datasource"]["uid"] == "${datasource}"
        assert variables[name]["multi"]
        assert variables[name]["includeAll"]
        assert asked_for(variables[name]["query"]["query"]) - {"label_values", name} <= metric_names()


@each_panel
def test_every_panel_explains_itself(panel: dict[str, Any]) -> None:
    """Title, description, unit and a name for every series."""
    assert panel["title"]
    assert len(panel["description"]) > 20
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert all(target["legendFormat"] for target in panel["targets"])
    if panel["type"] == "timeseries":
        assert panel["options"]["legend"]["showLegend"]


@each_panel
def test_every_panel_uses_the_chosen_data_source(panel: dict[str, Any]) -> None:
    """No panel is tied to the data source of the machine it was made on."""
    sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]

    assert [{"type": "prometheus", "uid": "${datasource}"}] * len(sources) == sources


@each_panel
def test_every_panel_asks_for_what_exists(panel: dict[str, Any]) -> None:
    """Only metrics of the proxy, only defined variables, no fixed window."""
    for target in panel["targets"]:
        expr = target["expr"]
        assert set() == asked_for(expr) - metric_names()
        assert set() == set(re.findall(r"\$\{?(\w+)", expr)) - KNOWN_VARIABLES
        assert re.findall(r"\[(?!\$__rate_interval\]|\$__range\])", expr) == []
        assert target["instant"] == ("$__range" in expr or panel["type"] == "table")


@each_panel
def test_every_panel_follows_the_chosen_backend_or_model(panel: dict[str, Any]) -> None:
    """Tenants and ledger rows are the only things that are counted for the whole proxy."""
    for target in panel["targets"]:
        whole = {"jouleproxy_tenant_energy_joules_total", "jouleproxy_ledger_dropped_rows_total"}
        if not asked_for(target["expr"]) <= whole:
            assert re.search(r'(backend=~"\$backend"|model=~"\$model")', target["expr"])


def test_panels_neither_overlap_nor_leave_the_grid() -> None:
    """Every cell of the 24 columns belongs to one panel at most, and rows come first in their part."""
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        assert 0 <= grid["x"] < grid["x"] + grid["w"] <= 24
        for x in range(grid["x"], grid["x"] + grid["w"]):
            for y in range(grid["y"], grid["y"] + grid["h"]):
                assert taken.setdefault((x, y), panel["title"]) is panel["title"]
    assert DASHBOARD["panels"][0]["type"] == "row"


def test_panels_have_names_and_numbers_of_their_own() -> None:
    """Grafana needs unique ids, people need unique titles."""
    assert len(DASHBOARD["panels"]) == len({panel["id"] for panel in DASHBOARD["panels"]})
    assert len(DASHBOARD["panels"]) == len({panel["title"] for panel in DASHBOARD["panels"]})


def test_the_first_screen_answers_the_questions() -> None:
    """Within the first 28 lines: power by account, J per token and request, tenants, idle, phases, latency, health."""
    first = " ".join(panel["title"] for panel in PANELS if panel["gridPos"]["y"] + panel["gridPos"]["h"] <= 28).lower()

    for word in ("power", "output token", "request", "tenant", "idle", "prefill", "tokens per second", "first token"):
        assert word in first
    assert "meter health" in first


@pytest.mark.parametrize("rule", RULE_LIST, ids=lambda rule: rule.get("record") or rule["alert"])
def test_every_rule_asks_for_what_exists(rule: dict[str, Any]) -> None:
    """Only metrics of the proxy, recorded ones, and Prometheus's own `up`."""
    recorded = {each["record"] for each in RULE_LIST if "record" in each}

    assert set() == asked_for(rule["expr"]) - metric_names() - recorded - {"up"}


@pytest.mark.parametrize("rule", [rule for rule in RULE_LIST if "record" in rule], ids=lambda rule: rule["record"])
def test_recorded_names_say_level_metric_and_operation(rule: dict[str, Any]) -> None:
    """level:metric:operation, where the level is the labels that are left."""
    level, metric, operation = rule["record"].split(":")

    assert metric.startswith("jouleproxy_")
    assert operation in {"rate5m", "ratio_rate5m"}
    assert level.replace("_", ", ") in re.findall(r"by \(([a-z, ]+)\)", rule["expr"])


@pytest.mark.parametrize("rule", [rule for rule in RULE_LIST if "alert" in rule], ids=lambda rule: rule["alert"])
def test_every_alert_says_how_bad_and_what_to_do(rule: dict[str, Any]) -> None:
    """A severity, one line for the pager, and a description."""
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"]["summary"]
    assert len(rule["annotations"]["description"]) > 40


def test_grafana_knows_the_scrape_interval() -> None:
    """$__rate_interval is only right when the provisioned data source has Prometheus's interval."""
    provisioning = yaml.safe_load((ROOT / "grafana/provisioning.yaml").read_text(encoding="utf-8"))
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text(encoding="utf-8"))

    [source] = provisioning["datasources"]
    assert prometheus["global"]["scrape_interval"] == source["jsonData"]["timeInterval"]
    assert source["type"] == "prometheus"
    assert [provider["type"] for provider in provisioning["providers"]] == ["file"]
