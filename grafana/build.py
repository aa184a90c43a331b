"""Write grafana/energy.json from overview.py and details.py, always the same bytes for the same panels.

python grafana/build.py            write the file
python grafana/build.py --check    exit 1 if the file is not what would be written
"""

import json
import sys
from pathlib import Path

from details import ROWS as DETAILS
from kinds import DATASOURCE, Json
from overview import ROWS as OVERVIEW

TARGET = Path(__file__).with_name("energy.json")
COLUMNS = 24


def variable(name: str, label: str, query: str) -> Json:
    """A drop-down of label values, several at a time; everything when nothing is chosen."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": ["All"], "value": ["$__all"]},
        "options": [],
    }


def variables() -> list[Json]:
    """The data source first: the other two ask it for their values."""
    source = {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "options": [],
        "refresh": 1,
    }
    backend = variable("backend", "Backend", "label_values(jouleproxy_energy_joules_total, backend)")
    model = variable("model", "Model", 'label_values(jouleproxy_tokens_total{backend=~"$backend"}, model)')
    return [source, backend, model]


def placed() -> list[Json]:
    """All panels in reading order, numbered, each line of a row filled from the left."""
    panels: list[Json] = []
    y = 0

    def place(panel: Json, x: int, width: int, height: int) -> None:
        grid = {"x": x, "y": y, "w": width, "h": height}
        panels.append({"id": len(panels) + 1, "gridPos": grid, **panel})

    for title, lines in (*OVERVIEW, *DETAILS):
        place({"type": "row", "title": title, "collapsed": False, "panels": []}, 0, COLUMNS, 1)
        y += 1
        for height, line in lines:
            x = 0
            for width, panel in line:
                place(panel, x, width, height)
                x += width
            if x != COLUMNS:
                raise ValueError(f"a line of row {title!r} is {x} columns wide, not {COLUMNS}")
            y += height
    return panels


def dashboard() -> Json:
    """The dashboard as Grafana 11 and later import it."""
    builtin = {"type": "grafana", "uid": "-- Grafana --"}
    annotations: Json = {
        "name": "Annotations & Alerts",
        "type": "dashboard",
        "builtIn": 1,
        "datasource": builtin,
        "enable": True,
        "hide": True,
        "iconColor": "rgba(0, 211, 255, 1)",
    }
    return {
        "uid": "jouleproxy-energy",
        "title": "LLM energy (jouleproxy)",
        "description": "Joules of every request, token, tenant and backend; always adding up to the GPUs' meters.",
        "tags": ["llm", "energy"],
        "schemaVersion": 41,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [annotations]},
        "templating": {"list": variables()},
        "links": [],
        "panels": placed(),
    }


def main(arguments: list[str]) -> int:
    """Write the file, or with --check only compare; the exit status."""
    text = json.dumps(dashboard(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if arguments == ["--check"]:
        current = TARGET.read_text(encoding="utf-8") if TARGET.exists() else None
        if current != text:
            print("grafana/energy.json is not what grafana/build.py writes: run it", file=sys.stderr)
        return int(current != text)
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
