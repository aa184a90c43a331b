"""Hands the engines' step logs to their groups, and says when one is heard, falls silent or is not there at all."""

import logging
from collections.abc import Mapping

from proxy.accounting.group import Group
from proxy.accounting.steps import EngineStep
from proxy.accounting.units import Nanoseconds
from proxy.settings import Settings
from proxy.settlement import Settlement
from proxy.upstream.step_log import StepLog

_log = logging.getLogger(__name__)
_SAID = {
    "live": "%s: the engine's step log is heard; what it says goes before token times",
    "silent": "%s: tokens arrive, but no steps are heard any more; until they are, token times must do (grade B)",
    "unheard": (
        "%s: a request is settled and no step was heard on %s; token times must do (grade B). "
        "Is deploy/steplog installed next to vLLM, and vLLM started with JOULEPROXY_STEP_LOG set to that path?"
    ),
}


class StepLogs:
    """All step logs of one proxy; open, look and close on the loop that serves the traffic."""

    def __init__(self, settings: Settings, groups: Mapping[str, Group], settlement: Settlement) -> None:
        self._groups = groups
        self._settlement = settlement
        paths = {backend.name: backend.step_log or settings.step_log for backend in settings.backends}
        self.paths = {name: path for name, path in paths.items() if path is not None}
        self._logs = {name: StepLog(path, self._taker(name)) for name, path in self.paths.items()}
        self._said: dict[str, str] = {}

    def _taker(self, backend: str) -> "_Taker":
        return _Taker(self._groups[backend], self._settlement)

    def open(self, now: Nanoseconds) -> None:
        """Listens from now on; raises ConfigurationError."""
        for backend, log in self._logs.items():
            log.open()
            self._groups[backend].steps.listens(now)

    def look(self, backend: str) -> None:
        """Says once what has changed about a backend's log."""
        log, group = self._logs.get(backend), self._groups[backend]
        if log is None or self._said.get(backend) == group.steps.state:
            return
        state = group.steps.state
        if state == "unheard":
            if not group.tallies.requests_by_grade:
                return
            _log.warning(_SAID[state], backend, log.path)
        else:
            _log.log(logging.INFO if state == "live" else logging.WARNING, _SAID[state], backend)
        self._said[backend] = state

    def close(self) -> None:
        """Stops listening."""
        for log in self._logs.values():
            log.close()


class _Taker:
    """Gives a step to its group, under the lock that the metrics thread reads under."""

    def __init__(self, group: Group, settlement: Settlement) -> None:
        self._group = group
        self._settlement = settlement

    def __call__(self, step: EngineStep) -> None:
        with self._settlement.lock:
            self._group.stepped(step)
