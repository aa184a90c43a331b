"""Several steps in one datagram, for waking the receiver costs the engine more than all else here.

Layout, in the byte order of the machine, which both ends share: b"jps2"; engine u32, boot u64, dropped u32, steps u32.
Then each step: number u64, start u64 and end u64 (CLOCK_MONOTONIC, ns), n u32, read u32, bytes of names u32; n u32:
before; n u32: computed; read times index u32, prefill u32, recomputed u32, and where no such entry tells otherwise all
that is computed is decode and new; n names, UTF-8, joined by line feeds. In place of the number of bytes SAME stands
for the names of the step before it in this datagram, and none follow.
"""

import struct
from typing import Any

from jouleproxy_steplog.batch import Batch

MAGIC = b"jps2"
HEAD = struct.Struct("=4sIQII")
STEP = struct.Struct("=QQQIII")
SAME = 0xFFFF_FFFF
MOST_STEPS = 64
MOST_BYTES = 1 << 16
"""Beyond either a parcel is full. The largest step is some hundred KB."""


class Parcel:
    """The steps that go together. steps: how many they are."""

    __slots__ = ("_names", "_parts", "_size", "steps")

    def __init__(self) -> None:
        self.steps = 0
        self._parts: list[Any] = []
        self._size = 0
        self._names: bytes | None = None

    def add(self, number: int, start: int, end: int, batch: Batch) -> None:
        """One more step."""
        n, names, numbers, read, _ = batch
        if names is self._names:
            self._parts += STEP.pack(number, start, end, n, read, SAME), numbers
        else:
            self._parts += STEP.pack(number, start, end, n, read, len(names)), numbers, names
            self._names = names
            self._size += len(names)
        self._size += 4 * len(numbers)
        self.steps += 1

    @property
    def full(self) -> bool:
        """Whether it must go now."""
        return self.steps >= MOST_STEPS or self._size >= MOST_BYTES

    def datagram(self, engine: int, boot: int, dropped: int) -> bytes:
        """All of it."""
        return b"".join((HEAD.pack(MAGIC, engine, boot, dropped & 0xFFFFFFFF, self.steps), *self._parts))
