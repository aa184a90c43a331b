"""Replays a binned workload as streaming chat: `locust -f loadgen/chat.py --host http://127.0.0.1:8080 --headless`.

One user per process plays an open loop: requests go out when they are due, whether or not earlier ones are answered.
Locust counts users and shows results; all else is in the modules beside this one. `python -m loadgen.options` lists
the arguments.

    options     the arguments               conductor   who plays which part, what came back
    shard       requests, ready to send     player      one worker's run
    replay      when to send                sender      one request and its stream
    bins, arrivals, prompts, answer, outcome            the pure parts
"""

from typing import Any

from gevent.event import Event
from geventhttpclient.client import HTTPClientPool
from geventhttpclient.url import URL
from locust import FastHttpUser, LoadTestShape, events

from loadgen.options import add_arguments
from loadgen.rows import keep_three_digits
from loadgen.stage import Stage


class Chat(FastHttpUser):  # type: ignore[misc]  # Locust has no types
    """The one user of a process; every request of its part goes over this pool, without a cap of the pool's own."""

    host = "http://127.0.0.1:8080"
    client_pool = HTTPClientPool(concurrency=100_000, network_timeout=600.0, connection_timeout=60.0)

    def play(self) -> None:
        """Play this process's part, then wait to be stopped."""
        client = self.client_pool.get_client(URL(self.host))
        self.environment.stage.player.play(client, self.host)
        Event().wait()

    tasks = [play]  # noqa: RUF012  # Locust collects tasks from a list


class UntilAnswered(LoadTestShape):  # type: ignore[misc]  # Locust has no types
    """One user per worker until the last request is answered."""

    def tick(self) -> tuple[int, int] | None:
        """Called by Locust every second."""
        users: tuple[int, int] | None = self.runner.environment.stage.users()
        return users


def prepare(environment: Any, **kwargs: Any) -> None:
    """Called by Locust in every process once its runner is there."""
    environment.stage = Stage(environment)
    options = environment.parsed_options
    if options.headless and not options.print_stats:
        # Locust's table every two seconds would bury the progress line; --print-stats brings it back
        options.only_summary = True


keep_three_digits()
events.init_command_line_parser.add_listener(add_arguments)
events.init.add_listener(prepare)
