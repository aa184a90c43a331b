"""What one engine step did: the work of each of its sequences, and of all of them together."""

from proxy.accounting import experts
from proxy.accounting.activity import Span, Work
from proxy.accounting.steps import EngineStep
from proxy.accounting.weights import Weights


def add_step(found: dict[str, Work], step: EngineStep, window: Span, weights: Weights, worth: float = 1.0) -> None:
    """Adds the part of a step that lies in a window to the work of its sequences, by name.

    worth: what the step's work counts, 1 for as much as predicted; tokens and time are counted as they are.
    """
    length = step.end - step.start
    part = 1.0
    if length > 0 and (step.start < window.start or step.end > window.end):
        part = (min(step.end, window.end) - max(step.start, window.start)) / length
    weight = part * worth
    share, present_ns = weight / len(step.sequences), part * length
    windowed, known = weights.windowed > 0, found.get
    for name, before, prefill, decode, recomputed in step.sequences:
        work = known(name)
        if work is None:
            work = found[name] = Work()
        work.steps += share
        work.present_ns += present_ns
        if decode == 1 and not prefill and not recomputed and not windowed:
            # Nearly all sequences of nearly all steps.
            work.tokens += part
            work.output_tokens += part
            work.decode += weight
            work.decode_context += weight * before
            continue
        work.tokens += part * (prefill + decode - recomputed)
        work.output_tokens += part * decode
        prefill, decode = _anew(prefill, decode, recomputed)
        if prefill:
            work.prefill += weight * prefill
            work.prefill_context += weight * weights.prefill_context(before, prefill)
        if decode:
            # Drafted positions share one reading of the context.
            context = before + prefill + decode - 1
            work.decode += weight * decode
            work.decode_context += weight * (weights.context_of(context) if windowed else context)
    if weights.experts:
        _add_experts(found, step, weights, weight)


def _add_experts(found: dict[str, Work], step: EngineStep, weights: Weights, weight: float) -> None:
    parts = experts.shares((x.prefill + x.decode for x in step.sequences), weights.touched)
    for sequence in step.sequences:
        found[sequence.name].experts += weight * parts[sequence.prefill + sequence.decode]


def _anew(prefill: int, decode: int, recomputed: int) -> tuple[int, int]:
    """Positions by how they are computed: a preempted answer is computed anew in chunks, as a prompt is."""
    again = min(decode, max(0, recomputed - prefill))
    return prefill + again, decode - again


def whole_of(step: EngineStep, weights: Weights) -> Work:
    """The work that the energy of a whole step is predicted from; tokens and time are left out."""
    prefill = decode = 0
    prefill_context = context = 0.0
    windowed = weights.windowed > 0
    for _, before, chunk, positions, recomputed in step.sequences:
        if positions == 1 and not chunk and not recomputed and not windowed:
            decode += 1
            context += before
            continue
        chunk, positions = _anew(chunk, positions, recomputed)
        if chunk:
            prefill += chunk
            prefill_context += weights.prefill_context(before, chunk)
        if positions:
            read = before + chunk + positions - 1
            decode += positions
            context += weights.context_of(read) if windowed else read
    steps, touched = 1.0 if step.sequences else 0.0, weights.touched_by(prefill + decode)
    return Work(prefill, prefill_context, decode, context, steps, touched)
