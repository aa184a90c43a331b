"""Reads the datagrams of the plugin in deploy/steplog, those of several steps and the older ones of a single step.

Layout: b"jps2"; engine u32, boot u64, dropped u32, steps u32. Each step: number, start, end: u64; n, read, bytes of
names: u32; n u32 before; n u32 computed; read times index, prefill, recomputed: u32; names, UTF-8, joined by line
feeds, or those of the step before where SAME stands for their bytes. In the byte order of the machine.

The older one, little endian: b"jps1"; engine u32, boot u64, number, start, end: u64, dropped, n: u32; n u32 each:
before, prefill, decode, recomputed; names.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from operator import gt, sub
from typing import NamedTuple, cast

from proxy.accounting.steps import Computed, EngineStep
from proxy.accounting.units import Nanoseconds

MAGIC, SINGLE = b"jps2", b"jps1"
HEAD = struct.Struct("=4sIQII")
STEP = struct.Struct("=QQQIII")
SINGLE_HEAD = struct.Struct("<4sIQQQQII")
SAME = 0xFFFF_FFFF
MOST_SEQUENCES = 1 << 16
"""vLLM's own limit (max_num_seqs) is some thousands at most."""
_computed = partial(tuple.__new__, Computed)
"""As Computed._make, without a call in Python for each: an engine tells of some ten thousand a second."""


class NotAStep(ValueError):
    """A datagram that is no engine step."""


class _Process(NamedTuple):
    """What all steps of a datagram have in common."""

    engine: int
    boot: int
    dropped: int


def parse(datagram: bytes | memoryview) -> list[EngineStep]:
    """The steps that a datagram tells of; raises NotAStep."""
    magic = bytes(datagram[:4])
    if magic not in (MAGIC, SINGLE):
        raise NotAStep(f"it begins with {magic!r}, not {MAGIC!r}")
    try:
        return list(_several(datagram)) if magic == MAGIC else [_single(datagram)]
    except struct.error as error:
        raise NotAStep(f"{len(datagram)} bytes are too few: {error}") from error
    except UnicodeDecodeError as error:
        raise NotAStep("a name is no UTF-8") from error


def _several(datagram: bytes | memoryview) -> Iterator[EngineStep]:
    _, engine, boot, dropped, steps = HEAD.unpack_from(datagram)
    process, at, names = _Process(engine, boot, dropped), HEAD.size, list[str]()
    for _ in range(steps):
        number, start, end, n, read, named = STEP.unpack_from(datagram, at)
        at += STEP.size
        _check(n, read)
        numbers = struct.unpack_from(f"={2 * n + 3 * read}I", datagram, at)
        at += 4 * len(numbers)
        if named != SAME:
            if at + named > len(datagram):
                raise NotAStep(f"{len(datagram)} bytes are too few for the names")
            names = _names(datagram[at : at + named], n)
            at += named
        elif len(names) != n:
            raise NotAStep(f"{n} sequences after a step of {len(names)}")
        yield _step(process, number, start, end, _sequences(names, numbers, n))
    if at != len(datagram):
        raise NotAStep(f"{len(datagram) - at} bytes follow the last step")


def _sequences(names: list[str], numbers: tuple[int, ...], n: int) -> Iterable[tuple[str, int, int, int, int]]:
    """Column by column, for most steps hold nothing but decode."""
    before, computed = numbers[:n], numbers[n : 2 * n]
    prefill, recomputed = [0] * n, [0] * n
    decode: Sequence[int] = computed
    if len(numbers) > 2 * n:
        for index, prompt, again in zip(*[iter(numbers[2 * n :])] * 3, strict=True):
            if index >= n:
                raise NotAStep(f"sequence {index} of {n}")
            prefill[index], recomputed[index] = prompt, again
        if any(map(gt, prefill, computed)) or any(map(gt, recomputed, computed)):
            raise NotAStep("more prompt tokens than computed ones")
        decode = list(map(sub, computed, prefill))
    return zip(names, before, prefill, decode, recomputed, strict=True)


def _single(datagram: bytes | memoryview) -> EngineStep:
    _, engine, boot, number, start, end, dropped, n = SINGLE_HEAD.unpack_from(datagram)
    _check(n, 0)
    numbers = struct.unpack_from(f"<{4 * n}I", datagram, SINGLE_HEAD.size)
    names = _names(datagram[SINGLE_HEAD.size + 16 * n :], n)
    columns = (numbers[i * n : (i + 1) * n] for i in range(4))
    rows = cast(Iterable[tuple[str, int, int, int, int]], zip(names, *columns, strict=True))
    return _step(_Process(engine, boot, dropped), number, start, end, rows)


def _check(n: int, read: int) -> None:
    if n > MOST_SEQUENCES or read > n:
        raise NotAStep(f"{n} sequences, {read} of them with a prompt, are too many")


def _names(text: bytes | memoryview, n: int) -> list[str]:
    names = str(text, "utf-8").split("\n") if n or len(text) else []
    if len(names) != n:
        raise NotAStep(f"{len(names)} names for {n} sequences")
    return names


def _step(
    process: _Process, number: int, start: int, end: int, rows: Iterable[tuple[str, int, int, int, int]]
) -> EngineStep:
    if end < start:
        raise NotAStep("it ends before it starts")
    sequences = tuple(map(_computed, rows))
    return EngineStep(
        process.engine, process.boot, number, Nanoseconds(start), Nanoseconds(end), sequences, process.dropped
    )
