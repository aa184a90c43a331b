"""A step log that listens while a test talks to a real engine; also a process of its own: … PATH (to be killed)."""

import asyncio
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from proxy.accounting.steps import EngineStep
from proxy.upstream.step_log import StepLog
from proxy.wire.engine_names import request_ids


class Listener:
    """Keeps every step that comes to the path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: list[EngineStep] = []
        self.log = StepLog(path, self.steps.append)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10), "the step log did not open"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self) -> None:
        async def listen() -> None:
            self.log.open()
            self._ready.set()

        self._loop.run_until_complete(listen())
        self._loop.run_forever()
        self.log.close()

    def wait(self, until: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Polls; steps come after the answer they belong to only by a little."""
        deadline = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < deadline, f"not within {timeout_s} s; {len(self.steps)} steps so far"
            time.sleep(0.02)

    def totals(self, request_id: str) -> Counter[str]:
        """What the engine computed for a request, over all its sequences: prefill, decode, recomputed, steps."""
        total = Counter[str]()
        for step in list(self.steps):
            mine = [part for part in step.sequences if request_id in request_ids(part.name)]
            for part in mine:
                total.update(prefill=part.prefill, decode=part.decode, recomputed=part.recomputed)
            total["steps"] += bool(mine)
        return total

    def names(self) -> set[str]:
        """All the engine's names so far."""
        return {part.name for step in list(self.steps) for part in step.sequences}


if __name__ == "__main__":
    with Listener(Path(sys.argv[1])) as listener:
        print("listening", flush=True)
        listener.wait(lambda: bool(listener.steps), 60)
        print("heard", flush=True)
        threading.Event().wait()
