"""The kinds of panel of the dashboard, as the JSON Grafana imports: curves, figures, bars, a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]

DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Query:
    """One PromQL expression and the name of its series."""

    expr: str
    legend: str
    instant: bool = False
    """Asked once, at the end of the range: for what is counted over $__range."""


def override(name: str, **properties: Any) -> Json:
    """Properties of the series called `name`, or matching it when it is written /like this/."""
    matcher = {"id": "byRegexp" if name.startswith("/") else "byName", "options": name}
    listed = [{"id": key, "value": value} for key, value in properties.items()]
    return {"matcher": matcher, "properties": listed}


def colour(name: str) -> Json:
    """One of Grafana's named colours, whatever the value."""
    return {"mode": "fixed", "fixedColor": name}


def steps(first: str, *rest: tuple[float, str]) -> Json:
    """Threshold colours: `first` from below, then each from its value on."""
    listed: list[Json] = [{"color": first, "value": None}]
    return {"mode": "absolute", "steps": listed + [{"color": name, "value": value} for value, name in rest]}


def words(by_value: dict[str, tuple[str, str]], more: tuple[str, str] | None = None) -> list[Json]:
    """Text and colour shown instead of a value; `more` for any number from 1 on."""
    named = {value: {"text": text, "color": hue} for value, (text, hue) in by_value.items()}
    mappings: list[Json] = [{"type": "value", "options": named}]
    if more is not None:
        shown = {"text": more[0], "color": more[1]}
        mappings.append({"type": "range", "options": {"from": 1, "to": None, "result": shown}})
    return mappings


ACCOUNTS = {"requests": "blue", "idle": "light-yellow", "unattributed": "orange", "unmeasured": "red"}
PHASES = {"prefill": "light-blue", "decode": "dark-blue", "shared": "purple"}
ACCOUNT_COLOURS = [override(name, color=colour(hue)) for name, hue in ACCOUNTS.items()]
PHASE_COLOURS = [override(name, color=colour(hue)) for name, hue in PHASES.items()]
DASHED = {"custom.lineStyle": {"fill": "dash", "dash": [6, 4]}}
HIGH_QUANTILE_DASHED = [override("/p9[0-9]$/", **DASHED)]


def _targets(queries: tuple[Query, ...], form: str) -> list[Json]:
    return [
        {
            "refId": chr(ord("A") + index),
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": query.expr,
            "legendFormat": query.legend,
            "format": form,
            "instant": query.instant,
            "range": not query.instant,
        }
        for index, query in enumerate(queries)
    ]


def _panel(kind: str, title: str, description: str, queries: tuple[Query, ...], *, form: str = "time_series") -> Json:
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": _targets(queries, form),
    }


def curves(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    stacked: bool = False,
    signed: bool = False,
    soft_max: float | None = None,
    min_step: str | None = None,
    values: Literal["bottom", "right"] | None = None,
    overrides: Sequence[Json] = (),
) -> Json:
    """Series over time, with a table of mean and last `values` if asked for; `min_step` widens $__rate_interval."""
    custom: Json = {
        "drawStyle": "line",
        "lineWidth": 1 if stacked else 2,
        "fillOpacity": 55 if stacked else 0,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    if soft_max is not None:
        custom["axisSoftMax"] = soft_max
    least = {} if signed else {"min": 0}
    defaults: Json = {"unit": unit, **least, "color": {"mode": "palette-classic"}, "custom": custom}
    return {
        **_panel("timeseries", title, description, queries),
        **({} if min_step is None else {"interval": min_step}),
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
        "options": {
            "legend": {
                "showLegend": True,
                "displayMode": "table" if values else "list",
                "placement": values or "bottom",
                "calcs": ["mean", "lastNotNull"] if values else [],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def figures(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    listed: bool = False,
    decimals: int | None = None,
    min_step: str | None = None,
    overrides: Sequence[Json] = (),
) -> Json:
    """A last value as a large number, or several of them `listed` under one another with their names."""
    defaults: Json = {"unit": unit, "color": {"mode": "thresholds"}, "thresholds": steps("text"), "noValue": "–"}
    if decimals is not None:
        defaults["decimals"] = decimals
    return {
        **_panel("stat", title, description, queries),
        **({} if min_step is None else {"interval": min_step}),
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
        "options": {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "orientation": "horizontal" if listed else "auto",
            "textMode": "value_and_name" if listed else "value",
            "text": {"titleSize": 14, "valueSize": 18} if listed else {},
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "wideLayout": True,
        },
    }


def bars(title: str, description: str, unit: str, *queries: Query, overrides: Sequence[Json] = ()) -> Json:
    """Amounts beside one another, largest first where the query sorts them."""
    panel = _panel("bargauge", title, description, queries)
    panel["fieldConfig"] = {
        "defaults": {"unit": unit, "min": 0, "color": colour("blue"), "thresholds": steps("blue"), "noValue": "–"},
        "overrides": list(overrides),
    }
    panel["options"] = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "orientation": "horizontal",
        "displayMode": "basic",
        "namePlacement": "auto",
        "showUnfilled": True,
        "sizing": "auto",
        "minVizHeight": 16,
        "minVizWidth": 8,
        "valueMode": "color",
    }
    return panel


def table(title: str, description: str, *queries: Query, order: tuple[str, ...], overrides: Sequence[Json]) -> Json:
    """One line per label set and one column per query, called by its legend; `order` gives the columns."""
    columns = {query.legend: f"Value #{chr(ord('A') + index)}" for index, query in enumerate(queries)}
    unwanted = ["Time", *(column for legend, column in columns.items() if legend not in order)]
    panel = _panel("table", title, description, queries, form="table")
    panel["fieldConfig"] = {
        "defaults": {
            "unit": "short",
            "noValue": "–",
            "color": {"mode": "thresholds"},
            "thresholds": steps("text"),
            "custom": {"align": "auto", "minWidth": 80, "cellOptions": {"type": "color-text"}},
        },
        "overrides": list(overrides),
    }
    panel["options"] = {"showHeader": True, "cellHeight": "sm"}
    arrange = {
        "excludeByName": dict.fromkeys(unwanted, True),
        "indexByName": {columns.get(name, name): position for position, name in enumerate(order)},
        "renameByName": {column: legend for legend, column in columns.items() if legend in order},
    }
    panel["transformations"] = [{"id": "merge", "options": {}}, {"id": "organize", "options": arrange}]
    return panel
