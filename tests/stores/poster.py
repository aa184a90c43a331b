"""A process that posts as fast as it can and prints what was acknowledged, until somebody kills it.

    python -m tests.stores.poster URL SEED

Each line is a JSON object: the rows that a successful flush covered, with the energy they had then.
"""

import json
import random
import sys

from proxy.accounting.postings import Posting
from proxy.stores import open_store
from proxy.stores.ledger import Ledger
from tests.stores.examples import HOUR_NS, NOON_NS, Settlement, balance, request_row


def post_old_rows(ledger: Ledger, settlement: Settlement) -> None:
    """Requests of yesterday, so that a kill can also strike while they are retired."""
    old = request_row(17, backend=settlement.backend, tenant="old", started_at_unix_ns=NOON_NS - HOUR_NS)
    settlement.meter_uj += 17
    counted = balance(17, backend=settlement.backend, last_counter_uj=settlement.meter_uj)
    ledger.post(Posting((counted,), (old,)))
    ledger.retire(NOON_NS, timeout_s=0)


def main() -> None:
    url, seed = sys.argv[1:]
    dice = random.Random(seed)
    ledger = open_store(url)
    settlement = Settlement("b0")
    settlement.meter_uj = ledger.last_counter("nvml:GPU-0", "boot-1") or 0
    acknowledged: dict[str, int] = {}
    while True:
        for _ in range(dice.randrange(1, 30)):
            shares = [(dice.randrange(200), dice.randrange(10**9), dice.random() < 0.2) for _ in range(20)]
            posting = settlement.step(shares, (dice.randrange(10**9), dice.randrange(10), 0))
            ledger.post(posting)
            acknowledged |= {row.row: row.energy_uj for row in posting.requests}
        post_old_rows(ledger, settlement)
        if ledger.flush(30.0):
            print(json.dumps(acknowledged), flush=True)
            acknowledged = {}


if __name__ == "__main__":
    main()
