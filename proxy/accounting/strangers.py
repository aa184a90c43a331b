"""The work of traffic that did not come through here, in one window."""

from collections.abc import Sequence

from proxy.accounting.activity import Span, Work
from proxy.accounting.crowd import Crowd, Presence
from proxy.accounting.experts import Streamed
from proxy.accounting.flight import Flight
from proxy.accounting.step_clock import Pace
from proxy.accounting.unseen import Piece, UnseenTraffic
from proxy.accounting.usual_context import Context
from proxy.accounting.weights import Weights

UNSEEN_CONTEXT = 512
"""Context of a stranger while nobody else is there."""


def context_here(flights: Sequence[Flight]) -> Context:
    """That of those who are there: the best guess for somebody of whom not even the usual length is known."""
    known = [flight.prompt / flight.prompts + (flight.completion_tokens or 0) / 2 for flight in flights]
    length = sum(known) / len(known) if known else UNSEEN_CONTEXT
    return Context(length / 2, length)


class Strangers:
    """All that strangers did in a window."""

    def __init__(self, window: Span, unseen: Sequence[UnseenTraffic]) -> None:
        self._parts = [(piece, one.context) for one in unseen for piece in one.within(window)]

    @property
    def presences(self) -> list[Presence]:
        """How many sequences they had in the batch, and when."""
        return [(piece.span.start, piece.span.end, piece.sequences) for piece, _ in self._parts]

    @property
    def readers(self) -> list[Presence]:
        """How many of them read a prompt, and when."""
        return [(piece.span.start, piece.span.end, piece.reading) for piece, _ in self._parts if piece.reading]

    def works(
        self, crowd: Crowd, weights: Weights, pace: Pace, present: Sequence[Flight], streamed: Streamed | None
    ) -> list[Work]:
        """Their work, as one player's; none where there was nobody. present: our own. streamed: see Reading."""
        if not self._parts:
            return []
        work, here = Work(), context_here(present)
        for piece, known in self._parts:
            context = Context(*map(weights.context_of, known or here))
            steps = _add(work, piece, context, crowd, pace)
            if streamed and piece.sequences:
                reads, start, end = piece.reading / piece.sequences, piece.span.start, piece.span.end
                work.experts += steps * (1 - reads) * streamed.decoding(start, end)
                work.experts += steps * reads * streamed.reading(start, end)
        return [work]


def _add(work: Work, piece: Piece, context: Context, crowd: Crowd, pace: Pace) -> float:
    """The steps of all its sequences."""
    steps = piece.decode / pace.tokens_per_step if piece.steps is None else piece.steps * piece.sequences
    work.prefill += piece.prompt
    work.prefill_context += piece.prompt * context.prefill
    work.decode += piece.decode * pace.positions_per_token
    work.decode_context += piece.decode / pace.tokens_per_step * context.decode
    work.steps += steps * crowd.mean_share(piece.span.start, piece.span.end)
    work.tokens += piece.prompt + piece.decode
    work.output_tokens += piece.decode
    work.present_ns += piece.span.length * piece.sequences
    return steps
