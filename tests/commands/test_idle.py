"""Case rule: idle policies in reports: idle can be given to those who pay, exactly, and stays visible beside."""

import csv
import io
import json
from contextlib import closing
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from proxy.accounting.postings import Posting
from proxy.commands.idle import IDLE, MILLIONTHS, by_reservation, by_work, parts_of, reservations
from proxy.commands.report import report
from proxy.stores import open_store
from proxy.stores.sums import Accounts, Total
from tests.stores.examples import HOUR_NS, NOON_NS, balance, request_row

COLUMNS = ("energy_microjoules", "active_microjoules", "loaded_microjoules")
KEYS = ("tenant", "model", "backend", "hour")


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(report)
    return CliRunner().invoke(app, list(arguments))


def policy(idle: str) -> tuple[str, ...]:
    """The options of a policy; two tenants of the example reserve, and one that never asked for anything."""
    reserve = ("--reserve", "acme=0.5", "--reserve", "beta=0.2", "--reserve", "standby=0.1")
    return ("--idle", idle, *(reserve if idle == "reserved" else ()))


def lines_of(ledger: str, *arguments: str) -> dict[str, dict[str, str]]:
    result = run("--ledger", ledger, "--format", "csv", *arguments)
    assert result.exit_code == 0, result.output
    found = csv.DictReader(io.StringIO(result.stdout))
    by = (found.fieldnames or [""])[1]
    return {line[by] or line["line"]: line for line in found}


@pytest.fixture
def ledger_file(tmp_path: Path) -> str:
    """Two hours. b0: acme 30 J and 110 tokens, beta 60 J and 330 tokens, idle 10.000007 J; b1: beta, idle 5 J."""
    file, now = str(tmp_path / "ledger.db"), [NOON_NS]
    with closing(open_store(file, clock=lambda: now[0])) as ledger:
        acme, beta = (
            request_row(30_000_000),
            request_row(60_000_000, tenant="beta", model="qwen", completion_tokens=230),
        )
        ledger.post(Posting((balance(90_000_000, 10_000_007, 3, 4),), (acme, beta)))
        now[0] += HOUR_NS
        later = request_row(7, tenant="beta", backend="b1", started_at_unix_ns=NOON_NS + HOUR_NS)
        ledger.post(Posting((balance(7, 5_000_000, backend="b1", meter="nvml:GPU-1"),), (later,)))
        assert ledger.flush(20.0)
    return file


IDLE_UJ = 15_000_007
METER_UJ = 90_000_000 + 3 + 4 + 7 + IDLE_UJ


@pytest.mark.parametrize("idle", IDLE)
@pytest.mark.parametrize("by", KEYS)
def test_idle_policies_in_reports_sum_to_the_meter_in_every_column(ledger_file: str, idle: str, by: str) -> None:
    if (idle, by) == ("reserved", "model"):
        return
    lines = lines_of(ledger_file, "--by", by, *policy(idle))

    assert {name: sum(int(line[name]) for line in lines.values()) for name in COLUMNS} == dict.fromkeys(
        COLUMNS, METER_UJ
    )
    assert all(int(line[name]) >= 0 for line in lines.values() for name in COLUMNS)
    assert (lines["unattributed"]["loaded_microjoules"], lines["unmeasured"]["loaded_microjoules"]) == ("3", "4")


@pytest.mark.parametrize("idle", IDLE)
def test_idle_policies_in_reports_always_show_the_active_and_the_loaded_figure(ledger_file: str, idle: str) -> None:
    """Active never changes with the policy; the chosen figure is active for `separate`, else loaded."""
    lines = lines_of(ledger_file, *policy(idle))

    assert (lines["acme"]["active_microjoules"], lines["idle"]["active_microjoules"]) == ("30000000", str(IDLE_UJ))
    chosen = "active_microjoules" if idle == "separate" else "loaded_microjoules"
    assert all(line["energy_microjoules"] == line[chosen] for line in lines.values())


def test_idle_policies_in_reports_per_token_follows_the_tokens_of_each_backend(ledger_file: str) -> None:
    """A quarter of b0's tokens are acme's, though a third of its energy is."""
    lines = lines_of(ledger_file, *policy("per-token"))

    assert int(lines["acme"]["loaded_microjoules"]) - 30_000_000 == pytest.approx(10_000_007 * 110 / 440, abs=1)
    assert lines["idle"]["loaded_microjoules"] == "0"


def test_idle_policies_in_reports_reserved_pays_for_what_is_held_ready(ledger_file: str) -> None:
    """Used or not; what nobody reserved stays idle, and a tenant without a reservation pays for its work only."""
    lines = lines_of(ledger_file, "--idle", "reserved", "--reserve", "acme=0.5", "--reserve", "standby=0.25")

    assert int(lines["acme"]["loaded_microjoules"]) == 30_000_000 + 5_000_003 + 2_500_000
    assert (lines["beta"]["loaded_microjoules"], lines["beta"]["active_microjoules"]) == ("60000007", "60000007")
    standby = lines["standby"]
    assert (standby["requests"], standby["active_microjoules"]) == ("0", "0")
    assert int(standby["loaded_microjoules"]) == 2_500_002 + 1_250_000
    assert int(lines["idle"]["loaded_microjoules"]) == IDLE_UJ - 5_000_003 - 2_500_000 - 2_500_002 - 1_250_000


def test_idle_policies_in_reports_reserved_by_backend_and_hour_keeps_it_where_it_was(ledger_file: str) -> None:
    of_backend = lines_of(ledger_file, "--by", "backend", *policy("reserved"))
    of_hour = lines_of(ledger_file, "--by", "hour", *policy("reserved"))

    assert int(of_backend["b1"]["loaded_microjoules"]) == 7 + 4_000_000
    assert int(of_hour["2025-10-09T10:00Z"]["loaded_microjoules"]) == 7 + 4_000_000
    assert (
        of_backend["idle"]["loaded_microjoules"] == of_hour["idle"]["loaded_microjoules"] == str(2_000_002 + 1_000_000)
    )


def test_idle_policies_in_reports_the_json_says_what_was_reserved(ledger_file: str) -> None:
    found = json.loads(run("--ledger", ledger_file, "--format", "json", *policy("reserved")).stdout)

    assert (found["idle"], found["reserved"]) == ("reserved", {"acme": 0.5, "beta": 0.2, "standby": 0.1})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--idle", "reserved"), "need each other"),
        (("--reserve", "acme=0.5"), "need each other"),
        (("--idle", "reserved", "--reserve", "acme=0.5", "--by", "model"), "for a tenant, not for a model"),
        (("--idle", "reserved", "--reserve", "acme"), "'acme' is not a tenant and its part"),
        (("--idle", "reserved", "--reserve", "acme=nan"), "'acme=nan' is not a tenant"),
        (("--idle", "reserved", "--reserve", "acme=1e999"), "'acme=1e999' is not a tenant"),
        (("--idle", "reserved", "--reserve", "a=0.6", "--reserve", "b=0.5"), "more than all of it is reserved"),
        (("--idle", "reserved", "--reserve", "a=0.1", "--reserve", "a=0.1"), "once for each tenant"),
        (("--idle", "last-active"), "last-active"),
    ],
)
def test_a_policy_that_cannot_be_followed_is_refused_with_the_reason(
    ledger_file: str, arguments: tuple[str, ...], reason: str
) -> None:
    result = run("--ledger", ledger_file, *arguments)

    assert result.exit_code == 2
    assert reason in " ".join(result.stderr.replace("│", " ").split())


def test_a_tenants_name_may_hold_an_equals_sign() -> None:
    assert reservations(["a=b=0.25", "c=1e-6"]) == {"a=b": 250_000, "c": 1}


@given(st.integers(0, 10**18), st.lists(st.integers(0, 10**15), min_size=1).filter(any))
def test_parts_add_up_exactly_and_miss_their_due_by_less_than_a_microjoule(total: int, weights: list[int]) -> None:
    parts = parts_of(total, weights)

    assert sum(parts) == total
    assert all(
        abs(part * sum(weights) - total * weight) < sum(weights) for part, weight in zip(parts, weights, strict=True)
    )


amounts = st.integers(0, 10**17)
totals_drawn = st.lists(
    st.builds(
        lambda keys, energy_uj, prompt, completion: Total(
            keys=keys,
            requests=1,
            energy_uj=energy_uj,
            token_share_uj=0,
            prefill_uj=0,
            decode_uj=0,
            shared_uj=energy_uj,
            prompt_tokens=prompt,
            cached_tokens=None,
            completion_tokens=completion,
        ),
        st.tuples(st.sampled_from(["b0", "b1", "b2"]), st.sampled_from("xyz")),
        amounts,
        st.none() | st.integers(0, 10**9),
        st.none() | st.integers(0, 10**9),
    ),
    unique_by=lambda total: total.keys,
)
pools_drawn = st.dictionaries(
    st.sampled_from([("b0",), ("b1",), ("b2",)]), amounts.map(lambda uj: Accounts(idle_uj=uj, meter_uj=uj))
)


@given(totals_drawn, pools_drawn, st.sampled_from(["proportional", "per-token"]))
def test_idle_policies_in_reports_give_away_no_more_than_there_is_and_lose_none(
    totals: list[Total], pools: dict[tuple[str, ...], Accounts], allocation: str
) -> None:
    """A backend gives all of its idle energy or, when its requests have no weight, none of it."""
    loads = by_work(allocation, totals, pools, hourly=False)  # type: ignore[arg-type]

    def weight(total: Total) -> int:
        if allocation == "proportional":
            return total.energy_uj
        return (total.prompt_tokens or 0) + (total.completion_tokens or 0)

    giving = {total.keys[0] for total in totals if weight(total)}
    assert sum(loads.values()) == sum(pool.idle_uj for (backend,), pool in pools.items() if backend in giving)
    assert min(loads.values(), default=0) >= 0


@given(
    st.lists(st.integers(0, MILLIONTHS), max_size=5).filter(lambda parts: sum(parts) <= MILLIONTHS),
    pools_drawn,
    st.sampled_from(["tenant", "backend"]),
)
def test_idle_policies_in_reports_reserve_at_most_what_there_is(
    parts: list[int], pools: dict[tuple[str, ...], Accounts], by: str
) -> None:
    """Each backend gives at most its own, whole if all of it is reserved, within a microjoule of each part."""
    reserve = {f"t{n}": part for n, part in enumerate(parts)}

    loads = by_reservation(reserve, pools, by)  # type: ignore[arg-type]

    idle_uj = sum(pool.idle_uj for pool in pools.values())
    assert 0 <= min(loads.values(), default=0)
    assert sum(loads.values()) <= idle_uj
    if sum(parts) == MILLIONTHS:
        assert sum(loads.values()) == idle_uj
    if by == "tenant":
        for tenant, part in reserve.items():
            assert abs(loads[tenant] * MILLIONTHS - idle_uj * part) <= len(pools) * MILLIONTHS
    with pytest.raises(ValueError, match="not for a model"):
        by_reservation(reserve, pools, "model")
