"""What the loops need from the outside: the smallest protocols, nothing more."""

from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

from proxy.accounting.postings import Posting
from proxy.accounting.samples import Sample
from proxy.accounting.units import Nanoseconds
from proxy.wire.answer import Fingerprint
from proxy.wire.headers import Headers

MeterKind = Literal["nvml", "rapl", "modelled", "recorded"]


class Clock(Protocol):
    """Monotonic nanoseconds of this process."""

    def __call__(self) -> Nanoseconds: ...


class Meter(Protocol):
    """A device whose cumulative energy can be read.

    name: stable identity over restarts, for instance `nvml:GPU-3f…`.
    gpu: the short label that metrics and reports show (a GPU's UUID, `cpu-package-0`, `modelled`).
    kind: which adapter made it.
    epoch: names the origin of the counter; two readings with different epochs must not be subtracted.
    estimated: the figure comes from a model, not from a sensor.
    description: one line for people: device, sensor, precision.
    """

    name: str
    gpu: str
    kind: MeterKind
    epoch: str
    estimated: bool
    description: str

    def read(self) -> Sample:
        """One reading; may block, so it is called from the sampler's thread only.

        Raises MeterLost (try again later) or another MeterError; never returns zero for "unknown".
        """
        ...

    def close(self) -> None:
        """Gives back handles; reading afterwards is an error."""
        ...


class OpenMeters(Protocol):
    """Opens the meters that a specification names, for one energy group."""

    def __call__(self, spec: str, gpus: Sequence[str]) -> Sequence[Meter]: ...


class Sink(Protocol):
    """Takes a piece of a body; gives what must be awaited before the next one, where the taker is slow."""

    def __call__(self, piece: bytes, /) -> Awaitable[None] | None: ...


class Answer(Protocol):
    """The head of an engine's answer, and its body. Reading it raises BackendFailed or BackendTimeout."""

    status: int
    headers: Headers

    async def whole(self) -> bytes: ...

    async def pour(self, sink: Sink) -> None:
        """Hands the body on as it comes, piece by piece, until its end."""
        ...


class Engine(Protocol):
    """One vLLM server."""

    def ask(self, method: str, target: str, headers: Headers, body: bytes) -> AbstractAsyncContextManager[Answer]:
        """One request. Raises Refused before anything was sent, else BackendFailed or BackendTimeout."""
        ...


class Member(Protocol):
    """One engine as the pool knows it. models: None until it has told them."""

    name: str
    up: bool
    models: frozenset[str] | None
    outstanding: int
    fingerprint: Fingerprint


class Pool(Protocol):
    """Chooses engines."""

    def choose(self, model: str | None, *, without: frozenset[str]) -> Member:
        """Raises NoBackend when there is none."""
        ...

    def refused(self, name: str) -> None:
        """Takes an engine out until it is healthy again."""
        ...


class Client(Protocol):
    """The other end of the traffic connection."""

    async def start(self, status: int, headers: Headers) -> None: ...

    def write(self, body: bytes) -> Awaitable[None] | None:
        """Sends a piece of the body at once; gives what must be awaited where the client reads more slowly."""
        ...

    async def finish(self, body: bytes = b"") -> None:
        """Ends the body, with a last piece."""
        ...


class Store(Protocol):
    """Where postings go; taking one never waits."""

    def post(self, posting: Posting) -> None: ...
