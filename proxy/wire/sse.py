"""Server-sent events cut out of a byte stream, wherever the network split it. Bytes are kept as they came."""

import re

_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class EventSplitter:
    """Feeds in chunks, gives whole events with their closing blank line; what is left stays for the next chunk."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events this chunk completes, in order; joined with `rest` they are the bytes fed in."""
        data = self._rest + chunk if self._rest else chunk
        if b"\r" not in data:
            *whole, self._rest = data.split(b"\n\n")
            return [event + b"\n\n" for event in whole]
        events, start = [], 0
        for blank in _BLANK_LINE.finditer(data, max(0, len(self._rest) - 3)):
            events.append(data[start : blank.end()])
            start = blank.end()
        self._rest = data[start:]
        return events

    @property
    def rest(self) -> bytes:
        """Bytes of an event that is not complete; not empty at the end of a stream that was cut."""
        return self._rest


def data_of(event: bytes) -> bytes:
    """The payload of an event's `data:` line; empty where it has none. vLLM sends one such line per event."""
    start = 0 if event.startswith(b"data:") else event.find(b"\ndata:") + 1
    if not event.startswith(b"data:", start):
        return b""
    end = event.find(b"\n", start)
    return event[start + 5 : end if end >= 0 else len(event)].strip()


def before_data(event: bytes, line: bytes) -> bytes:
    """`event` with one more line put before its first line."""
    return line + b"\n" + event


def data_event(payload: bytes) -> bytes:
    """One event with one data line."""
    return b"data: " + payload + b"\n\n"


DONE = b"[DONE]"
"""The payload that ends a chat or completions stream."""
