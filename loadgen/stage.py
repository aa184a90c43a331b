"""Where Locust and the load meet: messages to conductor and player, the shape's answer, the files and the terminal."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

from locust.runners import MasterRunner, WorkerRunner

from loadgen.bins import load_workload
from loadgen.conductor import Conductor, Run
from loadgen.errors import LoadError, OptionError
from loadgen.options import Options, read_options
from loadgen.outcome import Outcome, json_lines
from loadgen.player import Player
from loadgen.report import final_report, progress_line


class Stage:
    """One per process. A master has a conductor, a worker a player, a local run both."""

    def __init__(self, environment: Any) -> None:
        self.player = Player(environment)
        self._environment = environment
        self._runner = environment.runner
        self._conductor = Conductor(self._send, time.time_ns)
        self._options: Options | None = None
        self._file: TextIO | None = None
        self._next_line_s = 0.0
        self._report = ""
        self._playing = False
        if not isinstance(self._runner, MasterRunner):
            self.player.listen(self._runner)
        if not isinstance(self._runner, WorkerRunner):
            self._listen()

    def users(self) -> tuple[int, int] | None:
        """What the shape answers Locust every second: one user per worker until all is over, then None."""
        if not self._playing:
            self._open()
        run = self._conductor.run
        if run is None:
            return None
        self._conductor.lost(self._alive())
        if run.over:
            self._close()
            return None
        self._progress(run)
        return run.shards, run.shards

    def _listen(self) -> None:
        conductor = self._conductor
        heard: dict[str, Callable[[str, Any], object]] = {
            "loadgen-hello": lambda client, data: conductor.hello(client),
            "loadgen-ready": lambda client, data: conductor.ready(client, **data),
            "loadgen-news": lambda client, data: self._write(conductor.news(client, data)),
            "loadgen-done": lambda client, data: conductor.done(client),
            "loadgen-failed": lambda client, data: conductor.failed(data["error"]),
        }
        for kind, act in heard.items():
            # act=act binds each function at its own turn of the loop
            self._runner.register_message(kind, lambda environment, msg, act=act: act(msg.node_id, msg.data))
        self._environment.events.test_stop.add_listener(lambda **kwargs: self._close())
        self._environment.events.quit.add_listener(lambda **kwargs: self._print_report())

    def _send(self, client: str, kind: str, data: dict[str, Any]) -> None:
        self._runner.send_message(kind, data, client)

    def _alive(self) -> list[str]:
        if isinstance(self._runner, MasterRunner):
            return [client.id for client in self._runner.clients.all if client.state != "missing"]
        return ["local"]

    def _open(self) -> None:
        run = self._conductor.begin(f"load-{uuid4().hex[:8]}", self._runner.worker_count)
        self._playing, self._report, self._next_line_s = True, "", 0.0
        self._environment.process_exit_code = None
        try:
            self._options = read_options(self._environment.parsed_options)
            load_workload(self._options.workload)  # a wrong name is told before any server is asked
            if run.shards == 0:
                raise OptionError("no worker has connected: start one with --worker, or use --processes")
            if self._options.outcomes:
                self._file = _writable(self._options.outcomes)
        except LoadError as error:
            self._conductor.failed(str(error))

    def _write(self, fresh: list[Outcome]) -> None:
        if self._file is not None:
            self._file.writelines(json_lines(fresh))
            self._file.flush()

    def _progress(self, run: Run) -> None:
        now_s = time.monotonic()
        if self._options is None or run.start_unix_ns is None or now_s < self._next_line_s:
            return
        self._next_line_s = now_s + self._options.progress_every_s
        print(progress_line(run, (time.time_ns() - run.start_unix_ns) / 1e9), flush=True)

    def _close(self) -> None:
        run = self._conductor.run
        if not self._playing or run is None:
            return
        self._playing = False
        if not run.over:
            run.troubles.append(f"stopped early: {run.planned - len(run.outcomes)} requests were not answered")
        if self._file is not None:
            self._file.close()
            self._file = None
        if run.troubles or len(run.outcomes) != run.planned:
            self._environment.process_exit_code = 1
        capped = self._options is not None and self._options.max_in_flight is not None
        width = shutil.get_terminal_size((100, 24)).columns
        self._report = final_report(run, from_due=capped, width=width, colour=sys.stdout.isatty())
        if not self._environment.parsed_options.headless:
            self._print_report()

    def _print_report(self) -> None:
        """Without a web page this comes after Locust's own tables, so that it is the last thing on the terminal."""
        if self._report:
            print("\n" + self._report, flush=True)
            self._report = ""


def _writable(path: str) -> TextIO:
    try:
        return Path(path).open("w", encoding="utf-8")
    except OSError as error:
        raise OptionError(f"--outcomes {path}: {error.strerror}") from error
