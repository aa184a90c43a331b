"""What one request has been charged so far, and its row for the ledger."""

from dataclasses import dataclass, replace

from proxy.accounting.activity import Span, presence
from proxy.accounting.attribution import Policy, Share, Split
from proxy.accounting.flight import Flight
from proxy.accounting.postings import RequestRow, State
from proxy.accounting.units import Nanoseconds


@dataclass(slots=True)
class Bill:
    """A flight with who pays for it and what it has cost; energies in microjoules only ever grow.

    started_at_unix_ns: wall clock, for people. metered_uj: active energy of the windows it ran in.
    added_ns: latency this proxy added before the first byte. unmeasured: part of its energy is not known.
    changed: charged since its row was last written.
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
    changed: bool = False

    def snapshot(self) -> "Bill":
        """A copy that stands still while the relay, on its own thread, goes on noting tokens."""
        return replace(self, flight=replace(self.flight, ticks=self.flight.ticks.copy()))

    def charge(self, share: Share) -> None:
        """Adds one window's share."""
        self.energy_uj += share.energy
        self.prefill_uj += share.prefill
        self.decode_uj += share.decode
        self.shared_uj += share.shared
        self.token_share_uj += share.token_share
        self.changed = True

    def was_in(self, split: Split) -> None:
        """Adds the active energy of a window in which this request ran: the whole of which its share is a part."""
        window = split.window
        if presence(self.flight, Span(window.start, window.end)) is not None:
            self.metered_uj += split.active
            self.unmeasured |= split.unmeasured > 0

    def duration_ns(self, now: Nanoseconds) -> Nanoseconds:
        """From sending to the last byte, or to now."""
        end = now if self.flight.ended is None else self.flight.ended
        return Nanoseconds(end - self.flight.sent)

    def row(self, state: State, *, grade: str, estimated: bool, now: Nanoseconds) -> RequestRow:
        """The ledger's row as it stands."""
        flight = self.flight
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
            http_status=self.http_status,
        )
