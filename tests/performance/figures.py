"""What the runs come to: figures of each system under each load, and the ratios that are judged."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.performance.course import Run
from tests.performance.systems import DIRECT

OWN, NGINX, ROUTER, LITELLM = "jouleproxy", "nginx", "vllm-router", "LiteLLM"
Figure = Callable[[Run], float | None]


def _time_ms(what: str, quantile: str) -> Figure:
    def figure(run: Run) -> float | None:
        times: dict[str, float] | None = run.said[what]
        return None if times is None else times[quantile] / 1000

    return figure


def _cpu_per_chunk(run: Run) -> float | None:
    """Seconds for 100,000 events."""
    return run.cpu_s / run.said["events_all"] * 1e5 if run.cpu_s is not None and run.said["events_all"] else None


def _cpu_per_request(run: Run) -> float | None:
    """Seconds for 10,000 answers."""
    return run.cpu_s / run.said["answered"] * 1e4 if run.cpu_s is not None and run.said["answered"] else None


FIGURES: dict[str, Figure] = {
    "requests/s": lambda run: run.said["latencies"] / run.said["seconds"],
    "chunks/s": lambda run: run.said["events"] / run.said["seconds"] if run.said["events_all"] else None,
    "CPU s per 1e5 chunks": _cpu_per_chunk,
    "CPU s per 1e4 requests": _cpu_per_request,
    "TTFT p50 ms": _time_ms("ttft_us", "p50"),
    "TTFT p99 ms": _time_ms("ttft_us", "p99"),
    "gap p99 ms": _time_ms("gap_us", "p99"),
    "errors": lambda run: run.said["errors"],
    "memory MB": lambda run: None if run.memory_bytes is None else run.memory_bytes / 1e6,
}


@dataclass(frozen=True, slots=True)
class Spread:
    """The median over the rounds, the least and the most."""

    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one."""
        return cls(median(values), min(values), max(values))


class Runs:
    """All runs, by system and load."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs: dict[tuple[str, str], list[Run]] = defaultdict(list)
        for run in runs:
            self._runs[run.system, run.workload].append(run)

    def spread(self, system: str, workload: str, figure: str) -> Spread | None:
        """None where there is no such figure."""
        values = self._values(system, workload, figure)
        return Spread.of(values) if values else None

    def _values(self, system: str, workload: str, figure: str) -> list[float]:
        found = [FIGURES[figure](run) for run in self._runs[system, workload]]
        return [value for value in found if value is not None]

    def ratio(self, workload: str, figure: str, above: str, below: str) -> Spread | None:
        """One system's figure by another's, round by round."""
        return self._pairs(workload, figure, above, below, lambda one, other: one / other if other else None)

    def more(self, workload: str, figure: str, than: str) -> Spread | None:
        """How much more this proxy has than another system, round by round."""
        return self._pairs(workload, figure, OWN, than, lambda one, other: one - other)

    def _pairs(
        self, workload: str, figure: str, one: str, other: str, compare: Callable[[float, float], float | None]
    ) -> Spread | None:
        pairs = zip(self._values(one, workload, figure), self._values(other, workload, figure), strict=False)
        found = [value for pair in pairs if (value := compare(*pair)) is not None]
        return Spread.of(found) if found else None


CPU = "CPU s per 1e5 chunks"
JUDGED: dict[str, Callable[[Runs], Spread | None]] = {
    "cpu_per_chunk_vs_nginx_200": lambda runs: runs.ratio("streams", CPU, OWN, NGINX),
    "cpu_per_chunk_vs_vllm_router_200": lambda runs: runs.ratio("streams", CPU, OWN, ROUTER),
    "litellm_cpu_per_chunk_vs_own_200": lambda runs: runs.ratio("streams", CPU, LITELLM, OWN),
    "chunks_per_s_vs_nginx_500": lambda runs: runs.ratio("many", "chunks/s", OWN, NGINX),
    "json_requests_per_s_vs_nginx": lambda runs: runs.ratio("json", "requests/s", OWN, NGINX),
    "json_requests_per_s_vs_vllm_router": lambda runs: runs.ratio("json", "requests/s", OWN, ROUTER),
    "added_ttft_p50_ms_200": lambda runs: runs.more("streams", "TTFT p50 ms", DIRECT),
    "added_ttft_p99_ms_200": lambda runs: runs.more("streams", "TTFT p99 ms", DIRECT),
    "added_gap_p99_ms_200": lambda runs: runs.more("streams", "gap p99 ms", DIRECT),
}
"""Each by the name it has in the JSON."""


def as_json(runs: Runs, systems: Sequence[str], workloads: Sequence[str]) -> dict[str, Any]:
    """`ratios`: those that are judged; `figures`: the median of each, by load and system. Absent is null."""
    ratios = {name: None if (found := judge(runs)) is None else found.middle for name, judge in JUDGED.items()}
    figures = {
        load: {
            system: {name: None if (one := runs.spread(system, load, name)) is None else one.middle for name in FIGURES}
            for system in systems
        }
        for load in workloads
    }
    return {"ratios": ratios, "figures": figures}
