"""A streamed answer on its way to the client: what it counts, and what the client shall not see of it.

Asked for running usage, vLLM differs from the answer the client would have got in three ways, and each is
undone here: every chunk carries a usage object; one more chunk with usage and no choices comes before the end;
and the server's fingerprint stands in that chunk instead of in those with a finish reason.
"""

import re
from dataclasses import dataclass, field

from proxy.wire import usage
from proxy.wire.ask import GENERATING, Ask
from proxy.wire.sse import DONE, EventSplitter, before_data, data_of

_INDEX = re.compile(rb'"choices"\s*:\s*\[\s*\{\s*"index"\s*:\s*(\d+)')
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
_FINGERPRINT = re.compile(rb',\s*"system_fingerprint"\s*:\s*"[^"]*"')
_ERROR = re.compile(rb'^\{\s*"error"\s*:')
_TYPED_END = re.compile(rb'"type"\s*:\s*"(response\.(completed|failed|incomplete)|message_stop)"')
"""The last event of /v1/responses and of /v1/messages, which know no [DONE]."""
_DELTA = re.compile(rb"^event: [\w.]*delta\b")
_HEAD = re.compile(rb'data: \{"id":"[^\n]*?"choices":\[\{"index":0,')
"""What all chunks of a stream with one choice begin with; text comes after it."""
_TOLD = re.compile(
    rb',"usage":\{"prompt_tokens":(\d+),"total_tokens":\d+,"completion_tokens":(\d+)[^{}]*(?:\{[^{}]*\}[^{}]*)*\}'
    rb"([^\r\n]*\n\n)"
)


@dataclass(slots=True)
class Fingerprint:
    """The server's fingerprint as a JSON member with its comma; empty bytes: it has none; None: not seen yet."""

    member: bytes | None = None


@dataclass(slots=True)
class Counts:
    """What the stream has said of tokens so far; None where it has not."""

    prompt: int | None = None
    cached: int | None = None
    completion: int | None = None
    by_choice: dict[int, int] = field(default_factory=dict)
    prompt_by_prompt: dict[int, int] = field(default_factory=dict)


class StreamTap:
    """One per streamed answer. `feed` gives what may go to the client now; the closing events wait for `finish`.

    failed: the engine reported an error inside the stream. queue_time_ms: the engine's own figure, if it gives one.
    """

    def __init__(self, ask: Ask, fingerprint: Fingerprint) -> None:
        self.counts = Counts()
        self.failed = False
        self.queue_time_ms: float | None = None
        self._ask = ask
        self._fingerprint = fingerprint
        self._events = EventSplitter()
        self._held: list[bytes] = []
        self._usage_event = b""
        self._last_event = b""
        self._head = b""

    def feed(self, chunk: bytes) -> bytes:
        """Bytes for the client; may be empty while an event is incomplete or held."""
        if not self._events.rest and (passed := self._pass_quickly(chunk)) is not None:
            return passed
        return b"".join(map(self._pass, self._events.feed(chunk)))

    @property
    def complete(self) -> bool:
        """Whether the stream came to its proper end."""
        return self._last_event != b""

    def finish(self, energy: bytes, *, comment: bytes, in_usage: bool) -> bytes:
        """The closing events with the energy: a comment line before the last one, or a member of usage.

        energy: a JSON object; comment: the line without its line end. Where there is no usage object to put
        the energy in, the comment is sent instead, so that it is never lost.
        """
        closing = self._usage_event + self._last_event
        place = usage.locate(closing) if in_usage else None
        if place:
            return usage.with_energy(closing, place, energy)
        return self._usage_event + before_data(self._last_event, comment)

    @property
    def held(self) -> bytes:
        """Whole events that still waited when the backend broke off; the client shall not lose them."""
        return self._release()

    @property
    def rest(self) -> bytes:
        """What remains when the backend closes: an unfinished event."""
        return self._events.rest

    def _pass(self, event: bytes) -> bytes:
        passed = self._pass_quickly(event)
        return self._pass_closely(event) if passed is None else passed

    def _pass_closely(self, event: bytes) -> bytes:
        data = data_of(event)
        end = _TYPED_END.search(data)
        if data == DONE or end:
            self.failed = self.failed or (end is not None and end.group(2) == b"failed")
            return self._close(event, data)
        if _ERROR.match(data):
            self.failed = True
            return self._release() + event
        if self._ask.path not in GENERATING:
            return self._other(event)
        place = usage.locate(event)
        if place is None:
            return self._hold_back(event)
        if _NO_CHOICES.search(event):
            return self._final_usage(event, place)
        return self._running_usage(event, place)

    def _pass_quickly(self, event: bytes) -> bytes | None:
        """One chunk in the midst of a stream, as vLLM writes it for one choice; None for anything else."""
        if not self._head or self._held or not event.startswith(self._head):
            return None
        at = event.rfind(b',"usage":{')
        found = _TOLD.fullmatch(event, at) if at > 0 else None
        if found is None or event.find(b"\n", 0, at) >= 0 or event.rfind(b'"finish_reason":null', 0, at) < 0:
            return None
        prompt, completion, rest = found.groups()
        counts = self.counts
        counts.completion = counts.by_choice[0] = int(completion)
        counts.prompt = counts.prompt_by_prompt[0] = int(prompt)
        return event if self._ask.wants_continuous else event[:at] + rest

    def _other(self, event: bytes) -> bytes:
        """Streams of other shapes pass as they are: counted by their deltas until a usage object says better."""
        place = usage.locate(event)
        if place:
            self._take_final(usage.read(event, place))
        elif _DELTA.match(event):
            self.counts.completion = (self.counts.completion or 0) + 1
        return event

    def _close(self, event: bytes, data: bytes) -> bytes:
        place = usage.locate(data)
        if place:
            self._take_final(usage.read(data, place))
        self._last_event = event
        return self._release()

    def _final_usage(self, event: bytes, place: usage.Place) -> bytes:
        self._take_final(usage.read(event, place))
        self.queue_time_ms = usage.queue_time_ms(event)
        # Each time anew: the engine may have been restarted as another version.
        found = _FINGERPRINT.search(event)
        self._fingerprint.member = found.group() if found else b""
        if self._ask.wants_usage:
            self._usage_event = event
        return self._release()

    def _take_final(self, read: usage.Usage) -> None:
        counts = self.counts
        counts.prompt = read.prompt if read.prompt is not None else counts.prompt
        counts.cached = read.cached if read.cached is not None else counts.cached
        counts.completion = read.completion if read.completion is not None else counts.completion

    def _running_usage(self, event: bytes, place: usage.Place) -> bytes:
        read = usage.read(event, place)
        head = _HEAD.match(event) if self._ask.sequences == 1 else None
        self._head = head.group() if head else b""
        choice = _INDEX.search(event)
        index = int(choice.group(1)) if choice else 0
        counts = self.counts
        if read.completion is not None:
            counts.by_choice[index] = read.completion
            counts.completion = sum(counts.by_choice.values())
        if read.prompt is not None:
            counts.prompt_by_prompt[index * self._ask.prompts // self._ask.sequences] = read.prompt
            counts.prompt = sum(counts.prompt_by_prompt.values())
        if self._ask.wants_continuous:
            return event
        if not _FINISHED.search(event) or self._ask.wants_usage:
            return self._hold_back(usage.without(event, place))
        if self._fingerprint.member is None:
            self._held.append(event)
            return b""
        return usage.without(event, place, self._fingerprint.member)

    def _hold_back(self, event: bytes) -> bytes:
        """Keeps the order: behind a held event everything waits."""
        if not self._held:
            return event
        self._held.append(event)
        return b""

    def _release(self) -> bytes:
        member = self._fingerprint.member or b""
        released = []
        for event in self._held:
            place = usage.locate(event)
            released.append(usage.without(event, place, member) if place else event)
        self._held.clear()
        return b"".join(released)
