"""What a request has cost before its last windows are divided: those that are, and a prediction of the rest."""

from dataclasses import dataclass

from proxy.accounting.activity import Span, presence
from proxy.accounting.attribution import predicted
from proxy.accounting.bill import Bill
from proxy.accounting.crowd import Crowd
from proxy.accounting.reconstruction import reading_of, work_of
from proxy.accounting.step_clock import Pace
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
    held: int,
    weights: Weights,
    kappa: float | None,
    power_w: float | None,
    pace: Pace,
) -> Provisional | None:
    """Energy so far; None when nothing is known yet.

    reached: up to here all windows are divided. held: sequences in the engine of late. power_w: the group's latest
    mean power. The rest is predicted
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
    where = presence(flight, span.start, span.end)
    if where is None:
        return so_far
    held = max(held, flight.sequences)
    crowd = Crowd(span, [(span.start, span.end, float(held))])
    work = work_of(flight, where[1] - where[0], reading_of(span, crowd, [flight], weights, pace))
    parts = predicted(work, weights)
    if power_w is None or not sum(parts):
        return None
    read_j = power_w * seconds(span.length)
    rest_j = read_j * flight.sequences / held if kappa is None else min(kappa * sum(parts), read_j)
    rest = [round(part / sum(parts) * rest_j * 1e6) for part in parts]
    return so_far.plus(*rest, metered=max(sum(rest), round(read_j * 1e6)))
