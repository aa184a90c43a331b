"""The plugin's datagrams, written from their layout and not with its code."""

import struct

from proxy.accounting.steps import Computed, EngineStep
from proxy.accounting.units import Nanoseconds

SINGLE = struct.Struct("<4sIQQQQII")
HEAD = struct.Struct("=4sIQII")
ONE = struct.Struct("=QQQIII")
SAME = 0xFFFFFFFF
STEP = EngineStep(
    1, 77, 5, Nanoseconds(1_000), Nanoseconds(2_000), (Computed("chatcmpl-é-1", 7, 0, 3, 2), Computed("b", 0, 9, 0)), 4
)


def single(step: EngineStep) -> bytes:
    """One step, as the first plugin sent it."""
    names, *columns = zip(*step.sequences, strict=True) if step.sequences else ((),) * 5
    head = SINGLE.pack(
        b"jps1", step.engine, step.boot, step.number, step.start, step.end, step.dropped, len(step.sequences)
    )
    return head + words(*(value for column in columns for value in column)) + "\n".join(names).encode()


def datagram(*steps: EngineStep) -> bytes:
    """Steps of one process; dropped is that of the first."""
    first, names, parts = steps[0], None, []
    for step in steps:
        before, own = names, [part.name for part in step.sequences]
        names = "\n".join(own).encode()
        n, read = len(own), [(i, p.prefill, p.recomputed) for i, p in enumerate(step.sequences) if p[2] or p[4]]
        told = SAME if names == before else len(names)
        parts.append(ONE.pack(step.number, step.start, step.end, n, len(read), told))
        parts.append(words(*(p.before for p in step.sequences), *(p.prefill + p.decode for p in step.sequences)))
        parts.append(words(*(value for entry in read for value in entry)))
        parts.append(b"" if told == SAME else names)
    return HEAD.pack(b"jps2", first.engine, first.boot, first.dropped, len(steps)) + b"".join(parts)


def words(*values: int) -> bytes:
    """Each as u32."""
    return struct.pack(f"={len(values)}I", *values)
