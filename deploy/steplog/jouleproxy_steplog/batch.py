"""What a step holds: for each sequence the tokens it computes, read off the scheduler's own output.

SchedulerOutput is what the workers compute by, so its numbers are those of the step itself; the scheduler's requests
have been advanced by then. Of the requests only lengths and preemptions are read, and only when a request is new or
comes back, so that the common step costs no more than a few operations per sequence.

With speculative decoding and asynchronous scheduling together the scheduler counts drafts as accepted until it learns
otherwise, so `before` may be too large by the drafts of one step.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

LONGEST_NAME = 256
"""Characters of a name that are kept: clients choose part of it, and a thousand names must fit into a datagram."""
SPARE = 1024
"""Requests more than the scheduler's own that may be remembered before those it has forgotten are looked for."""


class Batch(NamedTuple):
    """A step's sequences, column by column.

    before: tokens of context that were there before, computed or cached. prefill: prompt tokens computed. decode:
    positions after the prompt computed, drafted ones too. recomputed: how many of all these a preemption had undone.
    """

    names: list[str]
    before: list[int]
    prefill: list[int]
    decode: list[int]
    recomputed: list[int]


class Sequence:
    """What is remembered of a request between its steps.

    name: as it is sent. prompt: tokens. reached: the highest position computed, rejected drafts included. lost: the
    positions below it have been computed once and were lost in a preemption. preemptions: so many were seen.
    """

    __slots__ = ("lost", "name", "preemptions", "prompt", "reached")

    def __init__(self, name: str, prompt: int, preemptions: int | None) -> None:
        self.name = name
        self.prompt = prompt
        self.preemptions = preemptions
        self.reached = 0
        self.lost = 0


class Sequences:
    """All requests of one scheduler that have been in a step and have not finished."""

    def __init__(self) -> None:
        self._known: dict[str, Sequence] = {}

    def __len__(self) -> int:
        return len(self._known)

    def read(self, output: Any, requests: Mapping[str, Any]) -> Batch | None:
        """The batch of a step that has just been scheduled; None for one without tokens."""
        for name in output.finished_req_ids:
            self._known.pop(name, None)
        if len(self._known) > len(requests) + SPARE:
            self._known = {name: sequence for name, sequence in self._known.items() if name in requests}
        if not output.num_scheduled_tokens:
            return None
        for new in output.scheduled_new_reqs:
            self._meet(new.req_id, requests)
        for name in output.scheduled_cached_reqs.resumed_req_ids:
            self._meet(name, requests)
        return self._columns(output, requests)

    def _meet(self, name: str, requests: Mapping[str, Any]) -> Sequence:
        """Takes in a request that is new, or back after a preemption or (of a streaming session) with more input."""
        request = requests[name]
        preemptions = getattr(request, "num_preemptions", None)
        sequence = self._known.get(name)
        if sequence is None:
            sequence = self._known[name] = Sequence(plain(name), request.num_prompt_tokens, preemptions)
            return sequence
        if preemptions is None or preemptions != sequence.preemptions:
            # the last token's position has never been computed, nor have rejected drafts beyond it
            sequence.lost = max(sequence.lost, min(sequence.reached, request.num_tokens - 1))
        sequence.prompt, sequence.preemptions = request.num_prompt_tokens, preemptions
        return sequence

    def _columns(self, output: Any, requests: Mapping[str, Any]) -> Batch:
        known, tokens, cached = self._known, output.num_scheduled_tokens, output.scheduled_cached_reqs
        ids = [new.req_id for new in output.scheduled_new_reqs] + list(cached.req_ids)
        before = [new.num_computed_tokens for new in output.scheduled_new_reqs] + list(cached.num_computed_tokens)
        if not len(ids) == len(before) == len(tokens):
            raise ValueError(f"{len(tokens)} sequences have tokens; listed are {len(ids)}, with {len(before)} places")
        sequences = [known.get(name) or self._meet(name, requests) for name in ids]
        counts = [tokens[name] for name in ids]
        prefill, recomputed = [], []
        for sequence, start, count in zip(sequences, before, counts, strict=True):
            after = start + count
            prefill.append(0 if start >= sequence.prompt else min(after, sequence.prompt) - start)
            recomputed.append(0 if start >= sequence.lost else min(after, sequence.lost) - start)
            if after > sequence.reached:
                sequence.reached = after
        decode = [count - own for count, own in zip(counts, prefill, strict=True)]
        return Batch([sequence.name for sequence in sequences], before, prefill, decode, recomputed)


def plain(name: str) -> str:
    """The name as it can be sent: valid UTF-8 without line breaks, and not too long."""
    if not name.isascii():
        name = name.encode("utf-8", "replace").decode()
    return name[:LONGEST_NAME].replace("\n", " ")
