"""
Headers of the message pass; headers of one connection do not.
"""

import pytest

from proxy.wire.headers import HOP_BY_HOP, end_to_end, value_of


def test_end_to_end_headers_keep_order_values_and_repetition() -> None:
    """Only their names become lower case."""
    given = [(b"X-B", b" 1 "), (b"x-a", b"caf\xe9"), (b"X-B", b"2")]

    assert end_to_end(given) == [(b"x-b", b" 1 "), (b"x-a", b"caf\xe9"), (b"x-b", b"2")]


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_hop_by_hop_headers_are_dropped(name: bytes) -> None:
    """In any case of letters."""
    assert end_to_end([(name.upper(), b"x"), (b"kept", b"y")]) == [(b"kept", b"y")]


def test_what_connection_names_is_dropped() -> None:
    """Several Connection headers, several names each, spaces and capitals."""
    given = [
        (b"Connection", b"close, X-One"),
        (b"connection", b" x-two "),
        (b"x-one", b""),
        (b"X-Two", b""),
        (b"x", b""),
    ]

    assert end_to_end(given) == [(b"x", b"")]


def test_more_can_be_dropped() -> None:
    """What is not the other side's to see."""
    assert end_to_end([(b"Authorization", b"k"), (b"x", b"")], drop=frozenset({b"authorization"})) == [(b"x", b"")]


def test_first_value_by_name() -> None:
    """Or None; an empty value is a value."""
    headers = [(b"A", b""), (b"a", b"2")]

    assert (value_of(headers, b"a"), value_of(headers, b"b")) == (b"", None)
