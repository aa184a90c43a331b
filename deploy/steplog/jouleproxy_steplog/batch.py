"""What a step holds: for each sequence the tokens it computes, read off the scheduler's own output.

SchedulerOutput is what the workers compute by, so its numbers are those of the step itself; the scheduler's requests
have been advanced by then. Of the requests only lengths and preemptions are read, and only when a request is new or
comes back. The common step, in which the sequences of the one before decode one token more, is read by a few calls
that loop in C.

With speculative decoding and asynchronous scheduling together the scheduler counts drafts as accepted until it learns
otherwise, so `before` may be too large by the drafts of one step.
"""

from array import array
from collections.abc import Iterable, Mapping
from operator import lt
from typing import Any, NamedTuple

LONGEST_NAME = 256
"""Characters of a name that are kept: clients choose part of it, and a thousand names must fit into a datagram."""
SPARE = 1024
"""Requests more than the scheduler's own that may be remembered before those it has forgotten are looked for."""
WHOLE = 1 << 62
"""How far a sequence is computed whose prompt is: as far as it goes."""


Fact = tuple[int, int, int | None]
"""Of a request, when it was scheduled: tokens of its prompt, tokens in all, preemptions so far (None: not counted)."""
NOTHING: dict[str, Fact] = {}
Seen = tuple[Iterable[str], list[str], list[int], dict[str, int], dict[str, Fact]]
"""Of a scheduler's output: names that have finished; those in the step; tokens before it, in their order; tokens it
computes, by name; and what must be known of requests that are new, or back after a preemption or (of a streaming
session) with more input."""


def fact(request: Any) -> Fact:
    """What must be known of a request."""
    return request.num_prompt_tokens, request.num_tokens, getattr(request, "num_preemptions", None)


def seen_with_new(output: Any, requests: Mapping[str, Any]) -> Seen:
    """Of an output with requests that are new or back."""
    cached, new = output.scheduled_cached_reqs, [one.req_id for one in output.scheduled_new_reqs]
    before = [*cached.num_computed_tokens, *(one.num_computed_tokens for one in output.scheduled_new_reqs)]
    known = {name: fact(requests[name]) for name in (*cached.resumed_req_ids, *new)}
    return output.finished_req_ids, [*cached.req_ids, *new], before, output.num_scheduled_tokens, known


class Batch(NamedTuple):
    """A step's sequences.

    n: how many. names: UTF-8, joined by line feeds; the same object as long as they are the same. numbers: u32, first
    the tokens of context that were there before, computed or cached, of each; then the tokens computed of each; then
    for each of the `read` sequences that compute prompt tokens, or anew what a preemption had undone: its index, the
    prompt tokens among those it computes, and the undone ones. tokens: computed in all.
    """

    n: int
    names: bytes
    numbers: array  # type: ignore[type-arg]  # no parameter before Python 3.12
    read: int
    tokens: int


class Sequence:
    """What is remembered of a request between its steps.

    name: as it is sent. prompt: tokens. reached: the position up to which it is computed, while there is a prompt to
    compute, else WHOLE. lost: the positions below it have been computed once and were lost in a preemption. floor: at
    and above it there are only decode positions that are new. preemptions: so many were seen.
    """

    __slots__ = ("floor", "lost", "name", "preemptions", "prompt", "reached")

    def __init__(self, name: str, prompt: int, preemptions: int | None) -> None:
        self.name = name
        self.prompt = self.floor = prompt
        self.preemptions = preemptions
        self.reached = WHOLE
        self.lost = 0


class Sequences:
    """All requests of one scheduler that have been in a step and have not finished."""

    def __init__(self) -> None:
        self._known: dict[str, Sequence] = {}
        self._ids: list[str] = []
        """Of the latest step; what follows belongs to them, in their order."""
        self._floors: list[int] = []
        self._names = b""

    def __len__(self) -> int:
        return len(self._known)

    def read(self, seen: Seen, requests: Mapping[str, Any]) -> Batch | None:
        """The batch of a step; None for one without tokens. Steps must be read in the order of their scheduling."""
        finished, ids, before, tokens, known = seen
        for name in finished:
            self._known.pop(name, None)
        if not tokens:
            return None
        for name, told in known.items():
            self._meet(name, *told)
        if known:
            self._make_room(ids, requests)
        n = len(ids)
        if not n == len(before) == len(tokens):
            raise ValueError(f"{len(tokens)} sequences have tokens; listed are {n}, with {len(before)} places")
        if ids != self._ids:
            self._seat(ids, requests)
        # mostly in the same order already
        counts = list(tokens.values()) if list(tokens) == ids else [tokens[name] for name in ids]
        numbers = array("I", before)
        numbers.extend(counts)
        read = self._read_prompts(before, counts, numbers) if any(map(lt, before, self._floors)) else 0
        return Batch(n, self._names, numbers, read, sum(counts))

    def _make_room(self, ids: list[str], requests: Mapping[str, Any]) -> None:
        """Forgets requests that vanished without a word."""
        if len(self._known) > len(requests) + SPARE:
            needed = {*ids}
            self._known = {name: one for name, one in self._known.items() if name in requests or name in needed}

    def _meet(self, name: str, prompt: int, tokens: int, preemptions: int | None) -> Sequence:
        """Takes in a request that is new or back."""
        self._ids = []
        sequence = self._known.get(name)
        if sequence is None:
            sequence = self._known[name] = Sequence(plain(name), prompt, preemptions)
            return sequence
        if preemptions is None or preemptions != sequence.preemptions:
            # the last token's position has never been computed, nor have rejected drafts beyond it
            sequence.lost = max(sequence.lost, min(sequence.reached, tokens - 1))
        sequence.prompt, sequence.preemptions = prompt, preemptions
        sequence.floor = max(sequence.prompt, sequence.lost)
        return sequence

    def _seat(self, ids: list[str], requests: Mapping[str, Any]) -> None:
        """Others than in the step before, or in another order."""
        known = self._known
        seated = [known.get(name) or self._meet(name, *fact(requests[name])) for name in ids]
        self._floors = [sequence.floor for sequence in seated]
        self._names = "\n".join([sequence.name for sequence in seated]).encode()
        self._ids = list(ids)

    def _read_prompts(self, before: list[int], counts: list[int], numbers: "array[int]") -> int:
        """Appends who computes anything but new decode positions; how many they are."""
        read = 0
        for index, (start, floor) in enumerate(zip(before, self._floors, strict=True)):
            if start >= floor:
                continue
            sequence, after = self._known[self._ids[index]], start + counts[index]
            prefill = max(0, min(after, sequence.prompt) - start)
            numbers.extend((index, prefill, max(0, min(after, sequence.lost) - start)))
            sequence.reached = WHOLE if after >= floor else after
            read += 1
        return read


def plain(name: str) -> str:
    """The name as it can be sent: valid UTF-8 without line breaks, and not too long."""
    if not name.isascii():
        name = name.encode("utf-8", "replace").decode()
    return name[:LONGEST_NAME].replace("\n", " ")
