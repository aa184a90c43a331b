"""Which backend takes a request: the least busy among those that are up and serve its model."""

from dataclasses import dataclass, field

from proxy.errors import NoBackend
from proxy.wire.answer import Fingerprint

FAILURES_TO_EJECT = 2
"""Health checks in a row that must fail; a refused connection counts at once."""


@dataclass(slots=True)
class Member:
    """One backend's state. `models` is None until it has told them; `up` changes in this file only."""

    name: str
    up: bool = True
    models: frozenset[str] | None = None
    outstanding: int = 0
    failures: int = 0
    fingerprint: Fingerprint = field(default_factory=Fingerprint)


class Pool:
    """The members, in the order of the settings."""

    def __init__(self, names: list[str]) -> None:
        self.members = {name: Member(name) for name in names}

    def choose(self, model: str | None, *, without: frozenset[str] = frozenset()) -> Member:
        """The least busy healthy member that serves the model.

        A model nobody is known to serve goes to any healthy member: that engine's own answer (404, or an adapter
        loaded a moment ago) is better than a guess. Raises NoBackend when none is up; a model whose backends are
        away is away too, and another engine's 404 would say that it does not exist.
        """
        serving = [member for member in self.members.values() if member.models and model in member.models]
        asked = serving or list(self.members.values())
        able = [member for member in asked if member.up and member.name not in without]
        if not able:
            names = ", ".join(member.name for member in asked)
            raise NoBackend(f"No backend is up ({names}). Start vLLM or check the backends setting, then try again.")
        return min(able, key=lambda member: member.outstanding)

    def refused(self, name: str) -> None:
        """A connection could not be made: out until a health check succeeds."""
        self._out(self.members[name])

    def _out(self, member: Member) -> None:
        """Out, and its fingerprint forgotten: what comes back may be another engine."""
        member.up = False
        member.fingerprint.member = None

    def checked(self, name: str, healthy: bool, models: frozenset[str] | None = None) -> bool:
        """Takes in a health check; True when it changed whether the member is up."""
        member = self.members[name]
        before = member.up
        if healthy:
            member.failures, member.up = 0, True
            member.models = models if models is not None else member.models
        else:
            member.failures += 1
            if member.failures >= FAILURES_TO_EJECT:
                self._out(member)
        return member.up != before
