"""Meters that several backends name: refused unless that was asked for, else opened and read once for all of them."""

import logging
from collections.abc import Mapping, Sequence

from proxy.accounting.samples import Sample
from proxy.errors import ConfigurationError
from proxy.ports import Meter, MeterKind

_log = logging.getLogger(__name__)


class SharedMeter:
    """A meter that says of itself that what each backend gets of it is modelled."""

    def __init__(self, meter: Meter, backends: Sequence[str]) -> None:
        self.name = meter.name
        self.gpu = meter.gpu
        self.kind: MeterKind = meter.kind
        self.epoch = meter.epoch
        self.estimated = meter.estimated
        self.description = f"{meter.description}; shared by {', '.join(backends)}: modelled split"
        self._meter = meter

    def read(self) -> Sample:
        """One reading; raises MeterError."""
        return self._meter.read()

    def close(self) -> None:
        """Gives back handles."""
        self._meter.close()


def distinct(opened: Mapping[str, Sequence[Meter]], *, share: bool) -> dict[str, list[Meter]]:
    """Each backend's meters, the same object wherever two backends name the same device; what is too many is closed.

    share: whether that is wanted. Raises ConfigurationError if it is not: energy must not count twice.
    """
    users: dict[str, list[str]] = {}
    for backend, own in opened.items():
        for meter in own:
            users.setdefault(meter.name, []).append(backend)
    kept: dict[str, Meter] = {}
    for meter in (meter for own in opened.values() for meter in own):
        backends = users[meter.name]
        if len(backends) > 1 and not share:
            raise ConfigurationError(
                f"{meter.name} would be counted for {' and for '.join(backends)}: energy must not count twice. Give "
                "each backend its own gpus, or set share_gpus = true to divide it by predicted joules (grade D)."
            )
        if meter.name in kept:
            meter.close()
        else:
            kept[meter.name] = SharedMeter(meter, backends) if len(backends) > 1 else meter
    for name, backends in users.items():
        if len(backends) > 1:
            shared = " and ".join(backends)
            _log.warning("%s is shared by %s: each one's part is modelled, its figures are of grade D", name, shared)
    return {backend: [kept[meter.name] for meter in own] for backend, own in opened.items()}
