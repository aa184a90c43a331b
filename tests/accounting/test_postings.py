"""Postings that do not add up never come to be."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.postings import joined
from tests.stores.examples import balance, request_row

amounts = st.tuples(*[st.integers(0, 10**12)] * 4)


@pytest.mark.parametrize("account", ["requests_uj", "idle_uj", "unattributed_uj", "unmeasured_uj", "meter_uj"])
def test_a_balance_that_misses_the_meter_by_one_microjoule_is_refused(account: str) -> None:
    good = balance(4, 3, 2, 1)

    with pytest.raises(ValueError, match="the meter counted"):
        replace(good, **{account: getattr(good, account) + 1})


@pytest.mark.parametrize("phase", ["prefill_uj", "decode_uj", "shared_uj", "energy_uj"])
def test_a_request_whose_phases_miss_its_energy_is_refused(phase: str) -> None:
    good = request_row(100)

    with pytest.raises(ValueError, match="phases hold"):
        replace(good, **{phase: getattr(good, phase) + 1})


def test_a_request_cannot_have_given_energy_back() -> None:
    with pytest.raises(ValueError, match="less than nothing"):
        request_row(-3)


@given(amounts, amounts)
def test_joining_adds_every_account_and_keeps_the_law(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    both = joined(balance(*first), balance(*second))

    assert tuple(a + b for a, b in zip(first, second, strict=True)) == (
        both.requests_uj,
        both.idle_uj,
        both.unattributed_uj,
        both.unmeasured_uj,
    )
    assert sum(first) + sum(second) == both.meter_uj


def test_joining_keeps_the_later_counter_and_identity() -> None:
    later = replace(balance(last_counter_uj=70), epoch="boot-2", description="after the restart")

    both = joined(balance(last_counter_uj=90), later)

    assert (both.last_counter_uj, both.epoch, both.description) == (70, "boot-2", "after the restart")
