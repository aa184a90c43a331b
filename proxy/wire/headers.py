"""Which headers belong to a message and which only to one connection."""

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
"""RFC 9110 section 7.6.1, and the common proxy-connection."""
NOTHING: frozenset[bytes] = frozenset()


def end_to_end(headers: Iterable[tuple[bytes, bytes]], *, drop: frozenset[bytes] = NOTHING) -> Headers:
    """The message's own headers, names in lower case: not hop-by-hop, not named by Connection, not in `drop`."""
    kept = [(name.lower(), value) for name, value in headers]
    named = {token.strip() for name, value in kept if name == b"connection" for token in value.lower().split(b",")}
    gone = HOP_BY_HOP | drop | named
    return [(name, value) for name, value in kept if name not in gone]


def value_of(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of a header given in lower case, or None."""
    return next((value for key, value in headers if key.lower() == name), None)
