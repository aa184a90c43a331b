"""Postings as settlement makes them, with as few words as a test needs, and the law as a question to a ledger."""

import uuid
from dataclasses import replace

from sqlalchemy import text

from proxy.accounting.postings import BalancePosting, Posting, RequestRow, State
from proxy.stores.books import Books

HOUR_NS = 3_600_000_000_000
NOON_NS = 1_760_000_400_000_000_000 // HOUR_NS * HOUR_NS


def balance(
    requests_uj: int = 0,
    idle_uj: int = 0,
    unattributed_uj: int = 0,
    unmeasured_uj: int = 0,
    *,
    backend: str = "b0",
    meter: str = "nvml:GPU-0",
    last_counter_uj: int = 1_000,
    estimated: bool = False,
) -> BalancePosting:
    return BalancePosting(
        backend=backend,
        meter=meter,
        gpu=meter.removeprefix("nvml:"),
        kind="nvml",
        estimated=estimated,
        epoch="boot-1",
        description=f"{meter}, a test",
        requests_uj=requests_uj,
        idle_uj=idle_uj,
        unattributed_uj=unattributed_uj,
        unmeasured_uj=unmeasured_uj,
        meter_uj=requests_uj + idle_uj + unattributed_uj + unmeasured_uj,
        last_counter_uj=last_counter_uj,
    )


def request_row(
    energy_uj: int = 0,
    *,
    row: str | None = None,
    request_id: str = "req-1",
    tenant: str = "acme",
    model: str = "llama",
    backend: str = "b0",
    state: State = "settled",
    outcome: str = "ok",
    started_at_unix_ns: int = NOON_NS,
    completion_tokens: int | None = 10,
) -> RequestRow:
    prefill_uj = energy_uj // 3
    return RequestRow(
        row=row or uuid.uuid4().hex,
        request_id=request_id,
        tenant=tenant,
        model=model,
        backend=backend,
        endpoint="/v1/chat/completions",
        stream=True,
        state=state,
        outcome=outcome,
        policy="weighted",
        grade="B",
        estimated=False,
        energy_uj=energy_uj,
        token_share_uj=energy_uj + 1,
        prefill_uj=prefill_uj,
        decode_uj=energy_uj - prefill_uj,
        shared_uj=0,
        metered_uj=energy_uj * 2,
        prompt_tokens=100,
        cached_tokens=None,
        completion_tokens=completion_tokens,
        started_at_unix_ns=started_at_unix_ns,
        duration_ns=1_500_000_000,
        ttft_ns=200_000_000,
        tpot_ns=None,
        relative_uncertainty=0.03,
        http_status=200,
    )


def doubtful(row: RequestRow, *, tilt_j: float = 0.0, noise_j2: float = 0.0) -> RequestRow:
    """The same request, with its doubts as they are added up; prefill and guess have the given tilt."""
    tilts = {"prefill_tilt_j": tilt_j, "shared_tilt_j": -tilt_j, "unseen_tilt_j": 0.0, "guess_tilt_j": tilt_j}
    return replace(row, noise_j2=noise_j2, **tilts)


def paid(*rows: RequestRow, idle_uj: int = 0, last_counter_uj: int = 1_000) -> Posting:
    """A posting in which these new rows got all their energy at once."""
    energy_uj = sum(row.energy_uj for row in rows)
    return Posting((balance(energy_uj, idle_uj, last_counter_uj=last_counter_uj),), rows)


def settled(row: RequestRow, energy_uj: int) -> RequestRow:
    """The same request, later."""
    return replace(
        row, state="settled", energy_uj=energy_uj, prefill_uj=energy_uj, decode_uj=0, token_share_uj=energy_uj
    )


def imbalances(books: Books) -> list[tuple[int, int]]:
    """Per backend: accounts against meter, request rows against the account `requests`."""
    return [(found.accounts.imbalance_uj, found.rows_imbalance_uj) for found in books.balance()]


def law_broken(connection: object) -> list[tuple[str, int]]:
    """The law asked in plain SQL, without a line of the program's own reading: backends where it does not hold."""
    found = connection.execute(  # type: ignore[attr-defined]
        text(
            "SELECT backend, sum(uj) FROM ("
            " SELECT backend, energy_uj AS uj FROM requests"
            " UNION ALL SELECT backend, energy_uj FROM retired"
            " UNION ALL SELECT backend, -requests_uj FROM accounts"
            " UNION ALL SELECT backend, 3 * (meter_uj - requests_uj - idle_uj - unattributed_uj - unmeasured_uj)"
            " FROM accounts"
            ") AS books GROUP BY backend HAVING sum(uj) <> 0"
        )
    )
    return [(str(backend), int(off)) for backend, off in found]


class Settlement:
    """A made-up settlement: splits random amounts between requests that run and the accounts."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.meter_uj = 0
        self._running: dict[int, RequestRow] = {}

    def step(self, shares: list[tuple[int, int, bool]], rest: tuple[int, int, int]) -> Posting:
        touched: dict[str, RequestRow] = {}
        for number, energy_uj, done in shares:
            row = self._running.get(number) or request_row(0, row=uuid.uuid4().hex, backend=self.backend, state="open")
            grown = replace(row, energy_uj=row.energy_uj + energy_uj, shared_uj=row.shared_uj + energy_uj)
            touched[row.row] = self._running[number] = replace(grown, state="settled") if done else grown
            if done:
                del self._running[number]
        given_uj = sum(energy_uj for _, energy_uj, _ in shares)
        self.meter_uj += given_uj + sum(rest)
        counted = balance(given_uj, *rest, backend=self.backend, last_counter_uj=self.meter_uj)
        return Posting((counted,), tuple(touched.values()))
