"""A small world with one backend and one meter: its clock is turned and its meter read by the test."""

from collections.abc import Callable, Mapping

from proxy.accounting.bill import Bill
from proxy.accounting.flight import Flight
from proxy.accounting.group import Group, Patience
from proxy.accounting.postings import Posting
from proxy.accounting.samples import Sample
from proxy.accounting.units import MILLISECOND, SECOND, Microjoules, Nanoseconds
from proxy.accounting.weights import LLAMA_8B, roofline_prior
from proxy.ports import MeterKind
from proxy.settlement import Settlement


class StillMeter:
    """Never read here: the tests hand in the samples."""

    kind: MeterKind = "recorded"
    epoch = "epoch-1"
    estimated = False
    description = "a test"

    def __init__(self, name: str = "gpu") -> None:
        self.name = self.gpu = name

    def read(self) -> Sample:
        raise NotImplementedError

    def close(self) -> None:
        pass


class World:
    """A settlement with one backend, one meter, a clock to turn and a store that keeps what it gets."""

    def __init__(
        self, known: Mapping[str, Microjoules] | None = None, keep: Callable[[Posting], None] | None = None
    ) -> None:
        self.now = Nanoseconds(1_000 * SECOND)
        self.postings: list[Posting] = []
        self._keep = keep
        self._sent = 0
        self.finished: list[Bill] = []
        self.meter = StillMeter()
        patience = Patience(prefill=SECOND, silent=SECOND, scrape=Nanoseconds(0), gap=Nanoseconds(5 * SECOND))
        self.group = Group("b", [self.meter.name], weights=roofline_prior(LLAMA_8B), patience=patience)
        self.settlement = Settlement(
            {"b": self.group},
            {self.meter.name: self.meter},
            self,
            clock=lambda: self.now,
            known=known or {},
            on_finished=self.finished.append,
        )

    def post(self, posting: Posting) -> None:
        self.postings.append(posting)
        if self._keep is not None:
            self._keep(posting)

    def later(self, ms: int, counter_uj: int | None = None) -> None:
        """Turns the clock; a counter makes a reading at the new time."""
        self.now = Nanoseconds(self.now + ms * MILLISECOND)
        if counter_uj is not None:
            self.settlement.sampled(self.meter, Sample(self.now, Microjoules(counter_uj)), Nanoseconds(7))

    def bill(self, request_id: str = "r", tenant: str = "acme", row: str | None = None) -> Bill:
        """A request that is sent now."""
        flight = Flight(row=row or request_id, request_id=request_id, sent=self.now, prompt_tokens=10)
        made = Bill(flight, tenant, "m", "b", "chat", True, "weighted", started_at_unix_ns=self._sent)
        self._sent += 1
        self.group.open(made)
        return made

    def run_request(self, request_id: str = "r", tenant: str = "acme") -> Bill:
        """A request of 300 ms with two tokens, over before its last window is divided."""
        made = self.bill(request_id, tenant)
        self.later(100, self.counter + 1_000_000)
        made.flight.tick(self.now, 1)
        self.later(100, self.counter + 1_000_000)
        made.flight.tick(self.now, 2)
        made.flight.end(self.now, "ok")
        return made

    @property
    def counter(self) -> int:
        last = self.group.meters[self.meter.name].timeline.last
        return 0 if last is None else last.counter

    def posted(self, account: str) -> int:
        """Sum of an account over all postings so far."""
        return sum(getattr(b, account) for p in self.postings for b in p.balances)
