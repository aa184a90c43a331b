"""What one request has been charged so far, and its row for the ledger."""

from dataclasses import dataclass, field, replace

from proxy.accounting.activity import presence
from proxy.accounting.attribution import Policy, Share
from proxy.accounting.flight import Flight
from proxy.accounting.postings import RequestRow, State
from proxy.accounting.samples import Window
from proxy.accounting.uncertainty import PREDICTED, PRIOR, Doubts, Spread, standard_deviation
from proxy.accounting.units import Nanoseconds


@dataclass(slots=True)
class Bill:
    """A flight with who pays for it and what it has cost; energies in microjoules only ever grow.

    started_at_unix_ns: wall clock, for people. metered_uj: active energy of the windows it ran in.
    added_ns: latency this proxy added before the first byte. unmeasured: part of its energy is not known.
    grade: once it is settled.
    changed: charged since its row was last written. spread: how far the energy may be off.
    """

    flight: Flight
    tenant: str
    model: str
    backend: str
    endpoint: str
    stream: bool
    policy: Policy
    started_at_unix_ns: int
    http_status: int | None = None
    added_ns: int | None = None
    energy_uj: int = 0
    prefill_uj: int = 0
    decode_uj: int = 0
    shared_uj: int = 0
    token_share_uj: int = 0
    metered_uj: int = 0
    unmeasured: bool = False
    grade: str | None = None
    changed: bool = False
    spread: Spread = field(default_factory=Spread)

    def snapshot(self) -> "Bill":
        """A copy that stands still while the relay, on its own thread, goes on noting tokens."""
        return replace(self, flight=replace(self.flight, ticks=self.flight.ticks.copy()), spread=replace(self.spread))

    def charge(self, share: Share, doubts: Doubts = PRIOR) -> None:
        """Adds one window's share, with the doubts that the group had about that window."""
        _, energy, prefill, decode, shared, token_share, deviation = share
        guessed = self.flight.computed if deviation is not None and deviation[3] else 0
        self.spread.add(energy, deviation, doubts, guessed)
        self.energy_uj += energy
        self.prefill_uj += prefill
        self.decode_uj += decode
        self.shared_uj += shared
        self.token_share_uj += token_share
        self.changed = True

    def ran_in(self, window: Window) -> bool:
        """Whether the engine may have held this request in the window."""
        return presence(self.flight, window.start, window.end) is not None

    def was_in(self, active_uj: int, *, unmeasured: bool) -> None:
        """Adds the active energy of a window in which this request ran: the whole of which its share is a part."""
        self.metered_uj += active_uj
        self.unmeasured |= unmeasured

    def duration_ns(self, now: Nanoseconds) -> Nanoseconds:
        """From sending to the last byte, or to now."""
        end = now if self.flight.ended is None else self.flight.ended
        return Nanoseconds(end - self.flight.sent)

    @property
    def guess_error_uj(self) -> float:
        """What guessed prompt tokens may have done to the energy; see Spread.guess_error."""
        if not self.spread.guess:
            return 0.0
        told = self.flight.computed if self.flight.hits_told is not None else None
        return self.spread.guess_error(told)

    def relative_uncertainty(self, energy_uj: int | None = None) -> float | None:
        """Standard deviation of the energy against other requests', relative to it; None while there is none.

        energy_uj: a provisional figure; what it has beyond the divided windows is only predicted.
        """
        energy = self.energy_uj if energy_uj is None else energy_uj
        return self._relative(energy, self.guess_error_uj, self.spread.noise_uj2)

    def _relative(self, energy_uj: int, guess_error_uj: float, noise_uj2: float) -> float | None:
        if energy_uj <= 0:
            return None
        rest = PREDICTED * (energy_uj - self.energy_uj)
        spread, noise = self.spread, noise_uj2 + rest * rest
        return standard_deviation(spread.prefill, spread.shared, spread.unseen, guess_error_uj, noise) / energy_uj

    def row(
        self,
        state: State,
        *,
        grade: str,
        estimated: bool,
        now: Nanoseconds,
        absolute_uncertainty: float | None = None,
    ) -> RequestRow:
        """The ledger's row as it stands. absolute_uncertainty: of the backend's meters."""
        flight, spread = self.flight, self.spread
        guess_error, noise = self.guess_error_uj, spread.noise_uj2
        return RequestRow(
            row=flight.row,
            request_id=flight.request_id,
            tenant=self.tenant,
            model=self.model,
            backend=self.backend,
            endpoint=self.endpoint,
            stream=self.stream,
            state=state,
            outcome=flight.outcome or "open",
            policy=self.policy,
            grade=grade,
            estimated=estimated,
            energy_uj=self.energy_uj,
            token_share_uj=self.token_share_uj,
            prefill_uj=self.prefill_uj,
            decode_uj=self.decode_uj,
            shared_uj=self.shared_uj,
            metered_uj=self.metered_uj,
            prompt_tokens=flight.prompt_tokens,
            cached_tokens=flight.cached_tokens,
            completion_tokens=flight.completion_tokens,
            started_at_unix_ns=self.started_at_unix_ns,
            duration_ns=self.duration_ns(now),
            ttft_ns=flight.ttft_ns,
            tpot_ns=flight.tpot_ns,
            relative_uncertainty=self._relative(self.energy_uj, guess_error, noise),
            absolute_uncertainty=absolute_uncertainty,
            prefill_tilt_j=spread.prefill / 1e6,
            shared_tilt_j=spread.shared / 1e6,
            unseen_tilt_j=spread.unseen / 1e6,
            guess_tilt_j=guess_error / 1e6,
            noise_j2=noise / 1e12,
            http_status=self.http_status,
        )
