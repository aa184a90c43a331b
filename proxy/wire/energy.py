"""The energy of one request as clients see it: JSON members, SSE comment and headers.

Keys that other tools already read come first: energy_joules, energy_kwh, avg_power_watts, duration_seconds,
attribution_method, attribution_ratio; the rest is ours.
"""

import json
from typing import Any

from proxy.accounting.bill import Bill
from proxy.accounting.group import Group
from proxy.accounting.units import Nanoseconds, joules, seconds, watts

JOULES_PER_KWH = 3.6e6


def energy_object(
    *,
    request_id: str,
    status: str,
    energy_uj: int | None,
    duration_ns: int,
    method: str,
    metered_uj: int | None,
    grade: str,
    estimated: bool,
    relative_uncertainty: float | None,
    phases_uj: tuple[int, int, int] | None,
    tokens: tuple[int | None, int | None, int | None],
    absolute_uncertainty: float | None = None,
) -> dict[str, Any]:
    """The object; None stands for what is not known, never 0.

    metered_uj: active energy of the windows the request ran in; attribution_ratio is its part of that.
    phases_uj: prefill, decode, share of fixed step cost. tokens: prompt, cached, completion.
    relative_uncertainty, absolute_uncertainty: standard deviations as parts of the energy: against other requests of
    the same meter, and common to all of them.
    """
    energy_j = None if energy_uj is None else joules(energy_uj)
    return {
        "request_id": request_id,
        "energy_joules": energy_j,
        "energy_kwh": None if energy_j is None else energy_j / JOULES_PER_KWH,
        "avg_power_watts": None if energy_uj is None else watts(energy_uj, duration_ns),
        "duration_seconds": seconds(duration_ns),
        "attribution_method": method,
        "attribution_ratio": energy_uj / metered_uj if energy_uj is not None and metered_uj else None,
        "status": status,
        "grade": grade,
        "estimated": estimated,
        "relative_uncertainty": _rounded(relative_uncertainty),
        "absolute_uncertainty": _rounded(absolute_uncertainty),
        "phases": None
        if phases_uj is None
        else dict(zip(("prefill", "decode", "shared"), map(joules, phases_uj), strict=True)),
        "tokens": dict(zip(("prompt", "cached", "completion"), tokens, strict=True)),
    }


def provisional_energy(bill: Bill, group: Group, now: Nanoseconds) -> dict[str, Any]:
    """The energy object of a request that is not settled: what its divided windows say, and a prediction."""
    flight = bill.flight
    known = group.provisional(bill, now)
    return energy_object(
        request_id=flight.request_id,
        status="provisional",
        energy_uj=known.energy if known else None,
        duration_ns=bill.duration_ns(now),
        method=bill.policy,
        metered_uj=known.metered if known else None,
        grade=group.grade_of(bill),
        estimated=group.estimated,
        relative_uncertainty=bill.relative_uncertainty(known.energy) if known else None,
        absolute_uncertainty=group.absolute_uncertainty,
        phases_uj=(known.prefill, known.decode, known.shared) if known else None,
        tokens=(flight.prompt_tokens, flight.cached_tokens, flight.completion_tokens),
    )


def _rounded(uncertainty: float | None) -> float | None:
    """Nobody knows a doubt to more than three digits."""
    return None if uncertainty is None else float(f"{uncertainty:.3g}")


def as_json(energy: dict[str, Any]) -> bytes:
    """Compact JSON in one line."""
    return json.dumps(energy, separators=(",", ":")).encode()


def comment(energy: bytes) -> bytes:
    """The SSE comment line, without its line end. energy: as JSON."""
    return b": energy " + energy


def headers(energy: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """Response headers of a non-streaming answer; no joules header while they are unknown."""
    shown = [(b"x-energy-status", str(energy["status"]).encode())]
    if energy["energy_joules"] is not None:
        shown.insert(0, (b"x-energy-joules", f"{energy['energy_joules']:.6f}".encode()))
    return shown


def error_body(message: str, *, type: str, code: str | int | None, param: str | None = None) -> bytes:
    """OpenAI's error object."""
    return json.dumps({"error": {"message": message, "type": type, "param": param, "code": code}}).encode()
