"""
The energy object, its comment line and its headers say the same, and never 0 for what is not known.
"""

import json
from typing import Any

import pytest

from proxy.wire.energy import as_json, comment, energy_object, error_body, headers

KEYS = [
    *("request_id", "energy_joules", "energy_kwh", "avg_power_watts", "duration_seconds"),
    *("attribution_method", "attribution_ratio", "status", "grade", "estimated"),
    *("relative_uncertainty", "absolute_uncertainty", "phases", "tokens"),
]


def made(**given: Any) -> dict[str, Any]:
    """An energy object of 2 J in half a second, of 8 J metered."""
    known: dict[str, Any] = {
        "request_id": "r",
        "status": "provisional",
        "energy_uj": 2_000_000,
        "duration_ns": 500_000_000,
        "method": "weighted",
        "metered_uj": 8_000_000,
        "grade": "B",
        "estimated": False,
        "relative_uncertainty": None,
        "phases_uj": (500_000, 1_000_000, 500_000),
        "tokens": (10, 4, 2),
    }
    return energy_object(**(known | given))


def test_every_unit_says_the_same() -> None:
    """Joules, kilowatt hours, watts, seconds and the part of what was metered; keys in the order of the contract."""
    energy = made()

    assert list(energy) == KEYS
    assert (energy["energy_joules"], energy["avg_power_watts"], energy["duration_seconds"]) == (2.0, 4.0, 0.5)
    assert energy["energy_kwh"] == pytest.approx(2 / 3_600_000)
    assert energy["attribution_ratio"] == 0.25
    assert energy["phases"] == {"prefill": 0.5, "decode": 1.0, "shared": 0.5}
    assert energy["tokens"] == {"prompt": 10, "cached": 4, "completion": 2}


def test_a_figure_carries_its_relative_and_its_absolute_part() -> None:
    """To three digits; null where it is not known."""
    energy = made(relative_uncertainty=0.0234567, absolute_uncertainty=0.05)

    assert (energy["relative_uncertainty"], energy["absolute_uncertainty"]) == (0.0235, 0.05)
    assert (made()["relative_uncertainty"], made()["absolute_uncertainty"]) == (None, None)


def test_unknown_energy_is_null_everywhere() -> None:
    """And makes no header."""
    energy = made(energy_uj=None, phases_uj=None)

    unknown = {key for key, value in energy.items() if value is None}
    assert unknown >= {"energy_joules", "energy_kwh", "avg_power_watts", "attribution_ratio", "phases"}
    assert headers(energy) == [(b"x-energy-status", b"provisional")]


def test_no_time_has_no_power() -> None:
    """Division by nothing is not done."""
    energy = made(duration_ns=0, metered_uj=0)

    assert (energy["avg_power_watts"], energy["attribution_ratio"]) == (None, None)


def test_zero_is_zero() -> None:
    """An endpoint without work costs 0, which is known."""
    energy = made(energy_uj=0, phases_uj=(0, 0, 0))

    assert (energy["energy_joules"], energy["attribution_ratio"]) == (0.0, 0.0)
    assert headers(energy)[0] == (b"x-energy-joules", b"0.000000")


def test_comment_is_one_line_of_json() -> None:
    """Whatever a request id holds, the line does not break."""
    energy = made(request_id='a"\n\\ b')

    line = comment(as_json(energy))

    assert b"\n" not in line
    assert json.loads(line.removeprefix(b": energy ")) == json.loads(as_json(energy)) == energy


def test_headers_of_a_whole_answer() -> None:
    """Microjoule precision."""
    assert headers(made(energy_uj=1_234_567)) == [
        (b"x-energy-joules", b"1.234567"),
        (b"x-energy-status", b"provisional"),
    ]


def test_error_body_is_openais() -> None:
    """All four members, null where there is nothing."""
    assert json.loads(error_body("no", type="server_error", code=None)) == {
        "error": {"message": "no", "type": "server_error", "param": None, "code": None}
    }
