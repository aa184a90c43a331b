"""What the plugin costs a real vLLM on this machine: python -m tests.steplog.on_engine [SEQUENCES …]

One engine, one load of steady decoding, and the plugin switched on and off every BLOCK steps from within, so that
both halves see the same load, the same memory and the same neighbours. Printed are microseconds from one scheduling to
the next, and by how many percent the steps with it are longer: mean over pairs of neighbouring blocks, and its standard
error. The plugin is the one of this repository, wherever another is installed; ROUNDS and STEPLOG (another plugin's
folder) are read from the environment.
"""

import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from itertools import pairwise
from pathlib import Path

from tests.engine.real import RealEngine
from tests.steplog.conftest import PLUGIN
from tests.steplog.overhead import receiving

BLOCK = 50
TOKENS = 1_900
ROUNDS = int(os.environ.get("ROUNDS", "3"))
OPTIONS = ("--max-num-seqs", "256", "--kv-cache-memory-bytes", str(1 << 29), "--no-enable-prefix-caching")

SWITCH = f"""
import functools
import os
import time

BLOCK = {BLOCK}


def register():
    import jouleproxy_steplog
    from vllm.v1.core.sched.scheduler import Scheduler

    jouleproxy_steplog.register()
    if hasattr(Scheduler.schedule, "_switched"):
        return
    noted = Scheduler.schedule, Scheduler.update_from_output
    plain = tuple(method.__wrapped__ for method in noted)
    file = open(os.environ["BLOCKS_FILE"] + "." + str(os.getpid()), "w")
    state = {{"on": False, "use": plain, "last": 0, "cpu": 0, "n": 0, "periods": []}}

    @functools.wraps(noted[0])
    def schedule(self, *arguments, **named):
        now, periods = time.perf_counter_ns(), state["periods"]
        if state["n"]:
            periods.append(now - state["last"])
        if len(periods) == BLOCK:
            # the first few may still hold what the other half left behind
            cpu = time.thread_time_ns()
            wall = sum(periods[5:]) // (BLOCK - 5)
            file.write("%d %d %d %d\\n" % (state["on"], state["n"], wall, (cpu - state["cpu"]) // BLOCK))
            file.flush()
            state["on"] = not state["on"]
            state["use"] = noted if state["on"] else plain
            periods.clear()
            now = time.perf_counter_ns()
            state["cpu"] = time.thread_time_ns()
        output = state["use"][0](self, *arguments, **named)
        n = output.total_num_scheduled_tokens
        if n != state["n"] or n != len(output.num_scheduled_tokens):
            periods.clear()
            n = n if n == len(output.num_scheduled_tokens) else 0
        state["n"], state["last"] = n, now
        return output

    @functools.wraps(noted[1])
    def update_from_output(self, *arguments, **named):
        return state["use"][1](self, *arguments, **named)

    schedule._switched = True
    Scheduler.schedule, Scheduler.update_from_output = schedule, update_from_output
"""


def switch(folder: Path) -> None:
    """Writes a plugin of vLLM that switches ours on and off."""
    distribution = folder / "switch-1.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: switch\nVersion: 1\n")
    (distribution / "entry_points.txt").write_text("[vllm.general_plugins]\nswitch = steplog_switch:register\n")
    (folder / "steplog_switch.py").write_text(SWITCH)


def load(url: str, sequences: int) -> None:
    """So many sequences that begin and end together."""
    body = {"model": "tiny", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    body["prompt"] = [[100 + k, *range(300, 310)] for k in range(sequences)]
    request = urllib.request.Request(
        url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        answer.read()


def report(folder: Path, sequences: int) -> None:
    """Time by the clock, and of the processor spent by the thread that runs the engine."""
    lines = [line.split() for file in folder.glob("blocks.*") for line in file.read_text().splitlines()]
    for column, what in ((2, "wall"), (3, "thread")):
        tell(sequences, what, [(line[0] == "1", int(line[column])) for line in lines if int(line[1]) == sequences])


def tell(sequences: int, what: str, blocks: list[tuple[bool, int]]) -> None:
    """One line of the table, of the mean step of each block, with the plugin and without."""
    pairs = [(a, b) if later else (b, a) for (earlier, a), (later, b) in pairwise(blocks) if earlier != later]
    if len(pairs) < 3:
        print(f"{sequences:9d}  only {len(pairs)} pairs of blocks")
        return
    costs = sorted(with_it - without for without, with_it in pairs)
    kept = costs[len(costs) // 10 : len(costs) - len(costs) // 10]  # what else ran on the machine hits single blocks
    plain = statistics.median(without for without, _ in pairs)
    cost, error = statistics.mean(kept), statistics.stdev(kept) / len(kept) ** 0.5
    print(
        f"{sequences:9d} {what:7s} {len(pairs):6d} {plain / 1e3:9.1f} {cost / 1e3:9.1f} ± {error / 1e3:.1f}"
        f"  {cost / plain:7.2%} ± {error / plain:.2%}",
        flush=True,
    )


def main() -> None:
    """Prints the table."""
    wanted = [int(argument) for argument in sys.argv[1:]] or [1, 32, 256]
    plugin = os.environ.get("STEPLOG", str(PLUGIN))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        switch(folder)
        path = folder / "steps.sock"
        environment = {
            "JOULEPROXY_STEP_LOG": str(path),
            "BLOCKS_FILE": str(folder / "blocks"),
            "PYTHONPATH": f"{plugin}:{folder}",
        }
        with receiving(str(path)), RealEngine(folder / "log", *OPTIONS, environment=environment) as engine:
            print("sequences         pairs  plain µs   plugin µs  of a step")
            for sequences in wanted:
                began = time.monotonic()
                for _ in range(ROUNDS):
                    load(engine.url, sequences)
                report(folder, sequences)
                print(f"          ({time.monotonic() - began:.0f} s)", file=sys.stderr)


if __name__ == "__main__":
    main()
