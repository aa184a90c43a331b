"""
Events are cut at blank lines only, whatever the chunks.
"""

import pytest

from proxy.wire.sse import EventSplitter, data_of

STREAM = b'data: {"a":1}\n\nevent: x\ndata: 2\r\n\r\n: comment\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_any_cut_gives_the_same_events(cut: int) -> None:
    """
    Where the network splits the stream does not matter, and no byte is lost.
    """
    splitter = EventSplitter()

    events = [*splitter.feed(STREAM[:cut]), *splitter.feed(STREAM[cut:])]

    assert STREAM == b"".join(events) + splitter.rest
    assert [b'{"a":1}', b"2", b"", b"[DONE]"] == [data_of(event) for event in events]


def test_an_unfinished_event_waits() -> None:
    """
    Half an event is not an event.
    """
    splitter = EventSplitter()

    assert ([], b"data: 1\n") == (splitter.feed(b"data: 1\n"), splitter.rest)
