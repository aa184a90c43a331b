"""What is asked of every system: the client's settings, and which figure matters."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Workload:
    """One load. settings: of client.c. streams: whether answers come as events."""

    name: str
    about: str
    settings: Mapping[str, int] = field(default_factory=dict)

    @property
    def streams(self) -> bool:
        """Whether answers come as events."""
        return self.settings.get("stream", 1) == 1


def paced(streams: int) -> dict[str, int]:
    """So many streams at 100 tokens per second."""
    return {"connections": streams, "tokens": 128, "step_us": 10_000}


WORKLOADS = {
    load.name: load
    for load in (
        Workload("json", "small JSON, 64 connections", {"connections": 64, "stream": 0, "tokens": 16}),
        Workload("burst", "128 tokens without pause, 32 streams", {"connections": 32, "tokens": 128, "step_us": 0}),
        Workload("streams", "200 streams at 100 tokens/s", paced(200)),
        Workload("many", "500 streams at 100 tokens/s", paced(500)),
        Workload("prompts", "prompts of 200 kB, 16 connections", {"connections": 16, "stream": 0, "prompt": 200_000}),
        Workload("slow", "200 streams, 20 of them read slowly", {**paced(200), "slow": 20}),
        Workload(
            "churn", "a connection per request, 32 at once", {"connections": 32, "tokens": 4, "step_us": 0, "churn": 1}
        ),
    )
}
