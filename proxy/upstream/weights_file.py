"""The file that a calibration writes and the service reads: energy weights, and how they were found.

TOML with two tables. [about]: when, of what, on what, how good. [weights]: the fields of Weights in joules, seconds
and tokens; `window` is left out where no layer has one, `driver` where none is known.
"""

import json
import math
import os
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from proxy.accounting.terms import TERMS
from proxy.accounting.weights import Weights
from proxy.errors import ConfigurationError

Check = Callable[[Any, str], Any]
_AGAIN = "calibrate again or leave this file out of the settings"
_HEAD = "# Energy weights, written by `jouleproxy calibrate`.\n"
_ABOVE_ZERO = {"prefill", "decode", "step", "step_s"}
_FRACTIONS = {"touched", "windowed"}
_MAY_BE_LEFT_OUT = {"window", "driver"}
_NOT_WRITTEN = {"measured", "roofline"}
"""What is in a file has been measured."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Where weights come from.

    written: with its offset from UTC. model, gpu, driver, meter: as they name themselves; driver None without one.
    estimated: the meter is a model, not a sensor. steps: where the work was known from, `step log` or `token times`.
    idle_w: watts with the model loaded and nothing running. fitted: the weights that the load told; the others are the
    prior's, scaled. r2: of predicted against measured energy per engine step over what was fitted, at most 1.
    held_out_mape_percent: mean absolute error over what was not fitted; prior_mape_percent: that of the prior there.
    requests, seconds: size of the load. version: of this program.
    """

    written: datetime
    model: str
    gpu: str
    driver: str | None
    meter: str
    estimated: bool
    steps: str
    idle_w: float
    fitted: tuple[str, ...]
    r2: float
    held_out_mape_percent: float
    prior_mape_percent: float
    requests: int
    seconds: float
    version: str


def write_weights(path: Path, weights: Weights, about: Calibration) -> None:
    """Writes the file whole or not at all. Raises ConfigurationError when it cannot be written or is not sound."""
    text = _HEAD + _table("about", about) + _table("weights", weights)
    parse_weights(text, path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            beside.unlink(missing_ok=True)
        raise ConfigurationError(f"weights file {path} cannot be written ({error}): choose another place") from error


def read_weights(path: Path) -> tuple[Weights, Calibration]:
    """What a calibration found. Raises ConfigurationError naming the file, the key and the way out."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"weights file {path} cannot be read ({error}): {_AGAIN}") from error
    return parse_weights(text, path)


def parse_weights(text: str, path: Path) -> tuple[Weights, Calibration]:
    """The content of a weights file; `path` is for messages. Raises ConfigurationError."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"weights file {path} is no TOML ({error}): {_AGAIN}") from error
    if extra := sorted(set(tables) - {"about", "weights"}):
        raise _wrong(path, extra[0], "is not known here")
    about = Calibration(**_checked(tables, "about", Calibration, path))
    weights = Weights(**_checked(tables, "weights", Weights, path), measured=True)
    if weights.windowed and weights.window is None:
        raise _wrong(path, "weights.window", "is missing although some layers are windowed")
    return weights, about


def _checked(tables: dict[str, Any], name: str, kind: type[Weights] | type[Calibration], path: Path) -> dict[str, Any]:
    """The values of a table, one for each field of its kind, each sound."""
    table = tables.get(name)
    if not isinstance(table, dict):
        raise _wrong(path, name, "is missing")
    allowed = _keys(kind)
    if unknown := sorted(set(table) - set(allowed)):
        raise _wrong(path, f"{name}.{unknown[0]}", "is not known here")
    if missing := [key for key in allowed if key not in table and key not in _MAY_BE_LEFT_OUT]:
        raise _wrong(path, f"{name}.{missing[0]}", "is missing")
    sound = {}
    for key in allowed:
        check: Check = _CHECKS.get(key, _amount)
        try:
            sound[key] = check(table.get(key), key)
        except ValueError as error:
            raise _wrong(path, f"{name}.{key}", f"is {table[key]!r}; {error}") from error
    return sound


def _keys(kind: type[Weights] | type[Calibration]) -> list[str]:
    """What is in a file of its fields."""
    return [entry.name for entry in fields(kind) if entry.name not in _NOT_WRITTEN]


def _wrong(path: Path, key: str, what: str) -> ConfigurationError:
    return ConfigurationError(f"weights file {path}: {key} {what}: {_AGAIN}")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("it must be a finite number")
    return float(value)


def _amount(value: Any, name: str) -> float:
    number = _number(value)
    if number < 0 or (number == 0 and name in _ABOVE_ZERO):
        raise ValueError("it must be above 0" if name in _ABOVE_ZERO else "it must not be negative")
    if name in _FRACTIONS and number > 1:
        raise ValueError("it must be at most 1")
    return number


def _fit(value: Any, name: str) -> float:
    if (number := _number(value)) > 1:
        raise ValueError("it must be at most 1")
    return number


def _whole(value: Any, name: str) -> int | None:
    if value is None and name in _MAY_BE_LEFT_OUT:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("it must be a whole number above 0")
    return value


def _word(value: Any, name: str) -> str | None:
    if value is None and name in _MAY_BE_LEFT_OUT:
        return None
    if not isinstance(value, str) or not value:
        raise ValueError("it must be a text")
    return value


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it must be true or false")
    return value


def _names(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not set(map(str, value)) <= set(TERMS):
        raise ValueError(f"it must be a list of names of weights: {', '.join(TERMS)}")
    return tuple(map(str, value))


def _instant(value: Any, name: str) -> datetime:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError("it must be a date and time with its offset from UTC")
    return value


_CHECKS: dict[str, Check] = {
    "written": _instant,
    **dict.fromkeys(("model", "gpu", "driver", "meter", "steps", "version"), _word),
    "estimated": _flag,
    "fitted": _names,
    **dict.fromkeys(("requests", "window"), _whole),
    "r2": _fit,
}


def _table(name: str, values: Weights | Calibration) -> str:
    given = ((key, getattr(values, key)) for key in _keys(type(values)))
    lines = [f"{key} = {_literal(value)}" for key, value in given if value is not None]
    return "\n".join(["", f"[{name}]", *lines, ""])


def _literal(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    if isinstance(value, str):
        # JSON's escapes are TOML's too, but it leaves the delete character as it is and TOML does not take it.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return repr(value).lower() if isinstance(value, bool) else repr(value)
