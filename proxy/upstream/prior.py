"""Which weights a backend starts with: calibrated ones from a file, else the roofline of its model on its boards."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from proxy.accounting.gpus import CPU, H100, Gpu, gpu_named, together
from proxy.accounting.model_shape import LLAMA_8B, ModelShape
from proxy.accounting.weights import Weights, roofline_prior
from proxy.errors import ConfigurationError
from proxy.ports import Meter
from proxy.upstream.hub_cache import config_of
from proxy.upstream.model_files import read_shape
from proxy.upstream.weights_file import read_weights

_log = logging.getLogger(__name__)
HOST_METERS = ("rapl", "modelled")
"""Kinds that measure a processor."""


class Priors:
    """The prior of one backend. Everything in the settings goes before what the engine tells of itself.

    weights_file: what `jouleproxy calibrate` has written. model_config_file: the model's config.json.
    """

    def __init__(
        self, backend: str, meters: Sequence[Meter], *, weights_file: Path | None, config_file: Path | None
    ) -> None:
        self._backend = backend
        self._meters = meters
        self._weights_file = weights_file
        self._config_file = config_file

    def at_start(self) -> Weights:
        """Before the engine has told its model. Raises ConfigurationError for a file that cannot be used."""
        if self._weights_file is not None:
            weights, about = read_weights(self._weights_file)
            _log.info("%s: weights calibrated on %s, %s, %s", self._backend, about.written, about.model, about.gpu)
            return weights if self._same_board(about.gpu) else replace(weights, measured=False)
        if self._config_file is None:
            return self._roofline(LLAMA_8B)
        shape = read_shape(self._config_file)
        if shape is None:
            raise ConfigurationError(f"model_config_file of {self._backend}: {self._config_file} has no shape")
        return self._roofline(shape)

    def for_model(self, root: str) -> Weights | None:
        """Once the engine has told its model, a folder or a name on the hub; None where that changes nothing."""
        if self._weights_file is not None or self._config_file is not None:
            return None
        path = Path(root)
        shape = read_shape(path if path.exists() else config_of(root, os.environ) or path)
        return None if shape is None else self._roofline(shape)

    @property
    def _kinds(self) -> list[Gpu]:
        return [gpu for meter in self._meters if (gpu := gpu_named(meter.description)) is not None]

    def _same_board(self, calibrated_on: str) -> bool:
        """Whether these boards may be those the weights come from; says so where they are others."""
        then, now = gpu_named(calibrated_on), together(self._kinds)
        if then is None or now is None or then == now:
            return True
        _log.warning(
            "%s: %s was calibrated on %s and is used on %s: the split is off until the meter has corrected it. "
            "Calibrate again, or leave weights_file out of the settings",
            self._backend,
            self._weights_file,
            then.name,
            now.name,
        )
        return False

    def _roofline(self, shape: ModelShape) -> Weights:
        kinds = self._kinds
        on_host = all(meter.kind in HOST_METERS for meter in self._meters)
        if on_host:
            return roofline_prior(shape, CPU)
        if not kinds:
            _log.warning(
                "%s: no board of this kind is known here (%s), so its work is first weighed as on an H100. "
                "`jouleproxy calibrate` measures it",
                self._backend,
                "; ".join(dict.fromkeys(meter.description for meter in self._meters)),
            )
        return roofline_prior(shape, together(kinds) or H100, gpus=max(1, len(self._meters)))
