"""The open loop: starts each request when it is due and never waits for an answer."""

from collections.abc import Callable, Sequence

from loadgen.arrivals import requests_due
from proxy.accounting.units import seconds


def replay(
    due: Sequence[int],
    *,
    start: int,
    clock: Callable[[], int],
    sleep: Callable[[float], None],
    begin: Callable[[int], None],
) -> None:
    """Call `begin(k)` at `start + due[k]` for each k, in order; returns when the last has begun.

    `due` ascends, in ns after `start`; `clock` gives ns, `sleep` takes seconds. A sleep that ends late makes requests
    late, never fewer: all that are owed begin at once.
    """
    begun = 0
    while begun < len(due):
        for _ in range(requests_due(due, clock() - start, begun)):
            begin(begun)
            begun += 1
        if begun < len(due):
            sleep(max(0.0, seconds(start + due[begun] - clock())))
