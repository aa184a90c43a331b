"""What a request has cost before its last windows are divided: those that are, and a prediction of the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.accounting.activity import Crowd, Span, presence, work_in
from proxy.accounting.attribution import predicted
from proxy.accounting.bill import Bill
from proxy.accounting.flight import Flight
from proxy.accounting.units import Nanoseconds, seconds
from proxy.accounting.weights import Weights


@dataclass(frozen=True, slots=True)
class Provisional:
    """A figure before settlement, in microjoules by phase; `metered` is the active energy meanwhile."""

    prefill: int
    decode: int
    shared: int
    metered: int

    @property
    def energy(self) -> int:
        """Sum of the phases."""
        return self.prefill + self.decode + self.shared

    def plus(self, prefill: int, decode: int, shared: int, *, metered: int) -> "Provisional":
        """With a predicted rest added."""
        return Provisional(self.prefill + prefill, self.decode + decode, self.shared + shared, self.metered + metered)


def forecast(
    bill: Bill,
    now: Nanoseconds,
    *,
    reached: Nanoseconds | None,
    flights: Sequence[Flight],
    weights: Weights,
    kappa: float | None,
    power_w: float | None,
) -> Provisional | None:
    """Energy so far; None when nothing is known yet.

    reached: up to here all windows are divided. power_w: the group's latest mean power. The rest is predicted
    joules times kappa, but never more than the meters read; before kappa is known it is the group's power over
    the sequences present.
    """
    flight = bill.flight
    so_far = Provisional(bill.prefill_uj, bill.decode_uj, bill.shared_uj, bill.metered_uj)
    if not flight.metered_work:
        return so_far
    if reached is None:
        return None
    end = now if flight.ended is None else flight.ended
    start = max(flight.sent, reached)
    if end <= start:
        return so_far
    span = Span(start, Nanoseconds(end))
    held = max(sum(other.sequences for other in flights if presence(other, span)), flight.sequences)
    crowd = Crowd(span, [(span, float(held))])
    parts = predicted(work_in(flight, span, crowd, weights, None), weights)
    if power_w is None or not sum(parts):
        return None
    read_j = power_w * seconds(span.length)
    rest_j = read_j * flight.sequences / held if kappa is None else min(kappa * sum(parts), read_j)
    rest = [round(part / sum(parts) * rest_j * 1e6) for part in parts]
    return so_far.plus(*rest, metered=max(sum(rest), round(read_j * 1e6)))
