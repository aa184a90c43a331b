"""What an engine's own step log says: which sequences each step held, and what it computed for them.

A step is one forward pass over a batch. With such a log nothing has to be inferred from token times (grade A).
"""

from typing import NamedTuple

from proxy.accounting.units import Nanoseconds


class Computed(NamedTuple):
    """What one sequence got in one step.

    name: the engine's own name of the sequence. before: tokens of its context that were there before the step,
    computed or found in a cache. prefill: prompt tokens computed. decode: positions computed after the prompt, with
    speculative decoding the drafted ones too, accepted or not. recomputed: how many of all these had been computed
    before and were lost to preemption.
    """

    name: str
    before: int
    prefill: int
    decode: int
    recomputed: int = 0


class EngineStep(NamedTuple):
    """One step of one engine process, on this machine's monotonic clock.

    engine: the rank of a data-parallel replica, else 0. boot: changes when the process starts anew. number: counts
    up by one, so that a gap tells of lost steps. start: when its work could begin, never before the end of the step
    before it. end: when its output was there. dropped: steps the engine's side had to throw away up to now.
    """

    engine: int
    boot: int
    number: int
    start: Nanoseconds
    end: Nanoseconds
    sequences: tuple[Computed, ...]
    dropped: int = 0
