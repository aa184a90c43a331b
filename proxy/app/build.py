"""Makes the parts of one backend from its settings."""

from collections.abc import Mapping

from proxy.accounting.group import Group
from proxy.accounting.patience import Patience
from proxy.accounting.uncertainty import widest
from proxy.accounting.units import SECOND, Nanoseconds
from proxy.errors import ConfigurationError, MeterError
from proxy.meters import open_meters
from proxy.ports import Meter
from proxy.settings import Backend, Settings
from proxy.settlement import gain_of
from proxy.upstream.client import EngineClient
from proxy.upstream.prior import Priors
from proxy.wire.engine_names import likely_ids


def _span(seconds: float) -> Nanoseconds:
    return Nanoseconds(round(seconds * SECOND))


def grade_of(meters: list[Meter]) -> str:
    """B: counter and token times; C: a power integral; D: an estimate. The worst meter decides."""
    if any(meter.estimated for meter in meters):
        return "D"
    return "C" if any(meter.epoch.startswith("integral:") for meter in meters) else "B"


def meters_of(backend: Backend, settings: Settings) -> list[Meter]:
    """Raises ConfigurationError."""
    spec = backend.meter or settings.meter
    try:
        return list(open_meters(spec, backend.gpus))
    except MeterError as error:
        raise ConfigurationError(f"the meter {spec!r} of backend {backend.name} cannot be opened: {error}") from error


def engine_of(backend: Backend, settings: Settings) -> EngineClient:
    """Its HTTP client."""
    return EngineClient(
        backend.url,
        backend.name,
        connect_timeout_s=settings.connect_timeout_s,
        answer_timeout_s=settings.answer_timeout_s,
        api_key=backend.api_key.get_secret_value() if backend.api_key else None,
    )


def priors_of(backend: Backend, meters: list[Meter], settings: Settings) -> Priors:
    """What its weights start from."""
    calibrated = backend.weights_file or settings.weights_file
    return Priors(backend.name, meters, weights_file=calibrated, config_file=backend.model_config_file)


def group_of(backend: Backend, meters: list[Meter], settings: Settings, priors: Mapping[str, Priors]) -> Group:
    """Its energy group."""
    return Group(
        backend.name,
        [meter.name for meter in meters],
        weights=priors[backend.name].at_start(),
        patience=Patience(
            prefill=_span(settings.prefill_wait_s),
            silent=_span(settings.silent_wait_s),
            scrape=_span(2 * settings.scrape_period_s),
            gap=_span(settings.unmeasured_after_s),
        ),
        policy=settings.policy,
        grade=grade_of(meters),
        estimated=any(meter.estimated for meter in meters),
        request_ids=likely_ids,
        absolute_uncertainty=widest(map(gain_of, meters)),
    )
