"""Hands the engines' step logs to their groups; says when one is heard, silent, not there at all, or loses steps."""

import logging
from collections.abc import Mapping

from proxy.accounting.group import Group
from proxy.accounting.steps import EngineStep
from proxy.accounting.units import SECOND, Nanoseconds
from proxy.settings import Settings
from proxy.settlement import Settlement
from proxy.upstream.step_log import StepLog

WHOLE_AFTER = Nanoseconds(10 * SECOND)
"""When nothing more has gone wrong for so long, it is over."""
_log = logging.getLogger(__name__)
_SAID = {
    "live": "%s: the engine's step log is heard; what it says goes before token times",
    "silent": "%s: tokens arrive, but no steps are heard any more; until they are, token times must do (grade B)",
    "unheard": (
        "%s: a request is settled and no step was heard on %s; token times must do (grade B). "
        "Is deploy/steplog installed next to vLLM, and vLLM started with JOULEPROXY_STEP_LOG set to that path? "
        "Where vLLM runs as another user, JOULEPROXY_STEP_LOG_MODE must let it write to the socket"
    ),
}
_LOST = (
    "%s: %d engine steps were lost on the way to the step log; windows that lack steps are divided by token times "
    "(grade B). The engine drops steps while nobody takes them: is this machine too busy?"
)
_WHOLE = "%s: the step log is whole again; it lost %d steps"
_UNTOLD = (
    "%s: %d windows could not wait for the step that may have been in them; token times must do for them (grade B). "
    "Does a step take longer than JOULEPROXY_PREFILL_WAIT_S, or does the engine hang?"
)
_IN_TIME = "%s: steps are told in time again; %d windows did not wait for theirs"


class StepLogs:
    """All step logs of one proxy; open, look and close on the loop that serves the traffic."""

    def __init__(self, settings: Settings, groups: Mapping[str, Group], settlement: Settlement) -> None:
        self._groups = groups
        self._settlement = settlement
        paths = {backend.name: backend.step_log or settings.step_log for backend in settings.backends}
        self.paths = {name: path for name, path in paths.items() if path is not None}
        mode = int(settings.step_log_mode, 8)
        self._logs = {name: StepLog(path, self._taker(name), mode=mode) for name, path in self.paths.items()}
        self._said: dict[str, str] = {}
        self._lost = {name: _Burst(name, _LOST, _WHOLE) for name in self._logs}
        self._untold = {name: _Burst(name, _UNTOLD, _IN_TIME) for name in self._logs}

    def _taker(self, backend: str) -> "_Taker":
        return _Taker(self._groups[backend], self._settlement)

    def open(self, now: Nanoseconds) -> None:
        """Listens from now on; raises ConfigurationError."""
        for backend, log in self._logs.items():
            log.open()
            self._groups[backend].steps.listens(now)

    def look(self, backend: str, now: Nanoseconds) -> None:
        """Says once what has changed about a backend's log."""
        log, group = self._logs.get(backend), self._groups[backend]
        if log is None:
            return
        self._lost[backend].look(group.steps.lost, now)
        self._untold[backend].look(group.steps.untold, now)
        if self._said.get(backend) == group.steps.state:
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


class _Burst:
    """Says that something is going wrong with one backend's log: once when it begins, and once when it is over.

    begun, over: the words; they get the backend's name and a count.
    """

    def __init__(self, backend: str, begun: str, over: str) -> None:
        self._backend = backend
        self._begun, self._over = begun, over
        self._count = self._before = 0
        self._latest: Nanoseconds | None = None

    def look(self, count: int, now: Nanoseconds) -> None:
        """`count` in all up to now."""
        if count > self._count:
            if self._latest is None:
                self._before = self._count
                _log.warning(self._begun, self._backend, count - self._before)
            self._count, self._latest = count, now
        elif self._latest is not None and now - self._latest >= WHOLE_AFTER:
            self._latest = None
            _log.info(self._over, self._backend, count - self._before)


class _Taker:
    """Gives a step to its group, under the lock that the metrics thread reads under."""

    def __init__(self, group: Group, settlement: Settlement) -> None:
        self._group = group
        self._settlement = settlement

    def __call__(self, step: EngineStep) -> None:
        with self._settlement.lock:
            self._group.stepped(step)
