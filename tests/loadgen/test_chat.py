"""The whole load generator: the real `locust -f loadgen/chat.py` against a real HTTP server."""

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from loadgen.bins import load_workload
from loadgen.outcome import Outcome, read_outcomes
from tests.loadgen.mock_vllm import MODEL, MockVllm, serving, tokens_of

ROOT = Path(__file__).parents[2]
LIMIT_S = 60
Locust = Callable[..., "Finished"]


@dataclass(frozen=True)
class Finished:
    """What a run left: its exit code, both streams of text, and the file of outcomes."""

    code: int
    out: str
    err: str
    outcomes: list[Outcome]


@pytest.fixture
def locust(tmp_path: Path) -> Locust:
    """Runs `python -m locust -f loadgen/chat.py --headless` as a user does, from the repository."""

    def run(url: str, *arguments: str) -> Finished:
        file = tmp_path / "outcomes.jsonl"
        command = [sys.executable, "-m", "locust", "-f", "loadgen/chat.py", "--host", url, "--headless"]
        done = subprocess.run(
            [*command, "--outcomes", str(file), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S
        )
        outcomes = read_outcomes(file.read_text().splitlines()) if file.is_file() else []
        return Finished(done.returncode, done.stdout, done.stderr, outcomes)

    return run


def assert_each_arrived_once_as_planned(server: MockVllm, finished: Finished, requests: int) -> None:
    """Ids 0 to n-1 of one run, and the plan's lengths, in what the server saw and in what the client wrote."""
    ids = [request_id for request_id, _ in server.chats]
    plan = load_workload("azure-conv-2023").fit(server.max_model_len).plan(requests, seed=0)
    seen = [(tokens_of(asked["messages"][0]["content"]), asked["max_tokens"]) for _, asked in server.chats]

    assert sorted(int(i.rpartition("-")[2]) for i in ids) == list(range(requests))
    assert len({i.rpartition("-")[0] for i in ids}) == 1
    assert sorted(seen) == sorted((max(p.input_tokens, tokens_of("So")), p.output_tokens) for p in plan)
    assert sorted(o.request_id for o in finished.outcomes) == sorted(ids)
    assert [o.request_id for o in finished.outcomes if o.mismatched] == []


def test_one_process_sends_every_request_once_and_reports_joules_per_bin(locust: Locust) -> None:
    """Asked lengths, unique prompts, a complete file, the table as the last words, exit code 0."""
    server = MockVllm()
    with serving(server) as url:
        finished = locust(url, "--requests", "30", "--rate", "20", "--progress-every", "0.2")

    assert finished.code == 0, finished.err
    assert_each_arrived_once_as_planned(server, finished, 30)
    body = server.chats[0][1]
    assert (body["model"], body["min_tokens"], body["ignore_eos"]) == (MODEL, body["max_tokens"], True)
    beginnings = [a["messages"][0]["content"].split()[:5] for _, a in server.chats]
    assert len({" ".join(b) for b in beginnings if len(b) == 5}) == sum(len(b) == 5 for b in beginnings)
    for outcome in finished.outcomes:
        assert outcome.energy_uj == 250_000 + 10_000 * outcome.output_asked
        assert outcome.ttft_ns is not None
        assert outcome.ttft_ns > 0
        assert outcome.sent_ns >= outcome.due_ns
    assert re.search(r"^t \d+/\d+ s  sent \d+/30  .* J/request$", finished.out, re.M)
    total_j = sum(o.energy_uj or 0 for o in finished.outcomes) / 1e6
    table = finished.out[finished.out.index("bin (tokens)") :]
    assert re.search(rf"^ all +30 .* {total_j:#.3g}$", table, re.M)
    assert table.rstrip().splitlines()[-1].startswith("energy: provisional figures of the proxy for 30 of 30 requests")
    assert "Traceback" not in finished.err
    aggregated = re.search(r"^ +Aggregated +(\d+)", finished.out + finished.err, re.M)
    assert aggregated is not None
    assert aggregated[1] == "30"


def test_two_processes_share_the_plan_without_doubles(locust: Locust) -> None:
    """A master and two workers: each request in one of them, one table, exit code 0."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    server = MockVllm()
    with serving(server) as url:
        finished = locust(
            url,
            "--requests",
            "25",
            "--rate",
            "60",
            "--processes",
            "2",
            "--master-port",
            port,
            "--master-bind-port",
            port,
        )

    assert finished.code == 0, finished.err
    assert_each_arrived_once_as_planned(server, finished, 25)
    assert finished.out.count("bin (tokens)") == 1
    assert "sent 25 of 25, answered 25, failed 0" in finished.out


def test_failures_and_missing_joules_are_reported_and_the_exit_code_says_so(locust: Locust) -> None:
    """Every fifth answer is a 500, and a plain server reports no energy and has no /tokenize."""
    server = MockVllm(energy=False, tokenize=False, refuse_every=5)
    with serving(server) as url:
        finished = locust(url, "--requests", "20", "--rate", "100", "--arrivals", "constant")

    assert finished.code == 1
    assert "answered 16, failed 4" in finished.out
    assert "4 x HTTP 500: the engine is not well" in finished.out
    assert "energy: not reported by the server" in finished.out
    assert {o.energy_uj for o in finished.outcomes} == {None}
    assert sum(o.error is not None for o in finished.outcomes) == 4


def test_a_load_that_cannot_be_made_ends_with_the_reason(locust: Locust) -> None:
    """No traceback, no empty table."""
    with serving(MockVllm()) as url:
        finished = locust(url, "--model", "other", "--requests", "3")

    assert finished.code == 1
    assert f"--model other is not served by {url}, which has: {MODEL}" in finished.out
    assert "no load was sent" in finished.out
    assert "Traceback" not in finished.err


def test_an_interrupted_run_still_shows_what_it_has() -> None:
    """Ctrl-C is how people stop a load they have seen enough of."""
    server = MockVllm()
    with serving(server) as url:
        command = [sys.executable, "-m", "locust", "-f", "loadgen/chat.py", "--host", url, "--headless", "--rate", "20"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        threading.Thread(target=interrupt_after, args=(process, server, 5), daemon=True).start()
        out, _ = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 1
    assert re.search(r"warning: stopped early: \d+ requests were not answered", out)
    assert "bin (tokens)" in out


def interrupt_after(process: "subprocess.Popen[str]", server: MockVllm, chats: int) -> None:
    """Send Ctrl-C once the server has seen so many chats."""
    assert server.seen(chats, LIMIT_S), "the load did not start"
    process.send_signal(signal.SIGINT)


def test_a_cap_in_flight_is_kept_and_its_wait_is_shown(locust: Locust) -> None:
    """One at a time on the server's side; the wait counts as lateness and not as the server's time."""
    server = MockVllm(token_s=0.005)
    with serving(server) as url:
        finished = locust(url, "--requests", "15", "--rate", "500", "--max-in-flight", "1")

    assert finished.code == 0, finished.err
    assert server.most_at_once == 1
    assert "TTFT counted from the due time" in finished.out
    assert max(o.lateness_ns for o in finished.outcomes) > 50_000_000
