"""Sends one chat request and reads its stream line by line as it comes, over geventhttpclient."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from gevent.lock import BoundedSemaphore
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError
from geventhttpclient.url import URL

from loadgen.answer import Answer, error_message
from loadgen.outcome import Outcome
from loadgen.shard import Request

FAILURES = (OSError, HTTPParseError)


class Sender:
    """Sends to one server. `clock` gives ns, `start` is the instant times are counted from."""

    def __init__(
        self,
        client: HTTPClient,
        base_url: str,
        *,
        api_key: str | None,
        max_in_flight: int | None,
        clock: Callable[[], int],
        start: int,
    ) -> None:
        self._client = client
        self._path = URL(base_url).path.rstrip("/") + "/v1/chat/completions"
        self._headers = {"content-type": "application/json", "accept": "text/event-stream"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._room: AbstractContextManager[Any] = BoundedSemaphore(max_in_flight) if max_in_flight else nullcontext()
        self._clock = clock
        self._start = start
        self.in_flight = 0

    def send(self, request: Request) -> Outcome:
        """Send and read to the end. Failures of the network or the server are the outcome's `error`."""
        with self._room:
            self.in_flight += 1
            sent_ns = self._now()
            answer = Answer()
            try:
                error = self._exchange(request, answer)
            except FAILURES as failure:
                error = f"{type(failure).__name__}: {failure}"
            finally:
                self.in_flight -= 1
        return Outcome(
            request_id=request.request_id,
            bin=request.bin,
            input_asked=request.input_tokens,
            input_got=answer.prompt_tokens,
            output_asked=request.output_tokens,
            output_got=answer.completion_tokens,
            due_ns=request.due_ns,
            sent_ns=sent_ns,
            first_ns=answer.first_ns,
            last_ns=answer.last_ns,
            energy_uj=answer.energy_uj,
            grade=answer.energy.get("grade"),
            estimated=answer.energy.get("estimated"),
            error=error,
        )

    def _exchange(self, request: Request, answer: Answer) -> str | None:
        headers = {**self._headers, "x-request-id": request.request_id}
        response = self._client.request("POST", self._path, body=request.body, headers=headers)
        try:
            if response.status_code != 200:
                return f"HTTP {response.status_code}: {error_message(response.read())}"
            # readline gives each line as soon as it is there; read(n) and Locust's iter_lines wait for n bytes, which
            # delays the first token by several chunks
            while line := response.readline(b"\n"):
                answer.read(line, self._now())
        finally:
            response.release()
        return answer.error or (None if answer.done else "the stream ended without [DONE]")

    def _now(self) -> int:
        return self._clock() - self._start
