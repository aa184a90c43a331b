"""The simulated engine's key-value memory: blocks of 16 tokens, shared by equal prefixes; the least recently used go.

As vLLM does it: a full block is found by others from the step in which it is computed; at least one token of every
prompt is computed; what nobody holds stays until its place is needed, and of one request the last blocks go first.
A prefix is known by a chain of numbers, one per block, each of which stands for everything up to the block's end.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK = 16
"""Tokens per block, vLLM's default."""


@dataclass(slots=True)
class Table:
    """The blocks of one sequence. shared: those that others may find, in order; private: how many others there are."""

    chain: Sequence[int]
    shared: list[int] = field(default_factory=list)
    private: int = 0
    looked: int = 0

    @property
    def blocks(self) -> int:
        """How many it holds."""
        return len(self.shared) + self.private


class Memory:
    """All blocks of one engine."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._holders: dict[int, int] = {}
        self._unheld: OrderedDict[int, None] = OrderedDict()
        self._private = 0

    @property
    def used(self) -> int:
        """Blocks that a running sequence holds."""
        return self._private + len(self._holders) - len(self._unheld)

    def found(self, chain: Sequence[int], tokens: int) -> int:
        """How many leading blocks of `chain` are there, leaving at least one of `tokens` to compute."""
        most = min(len(chain), (tokens - 1) // BLOCK)
        return next((place for place in range(most) if chain[place] not in self._holders), most)

    def admit(self, table: Table, hits: int, tokens: int) -> bool:
        """Takes `hits` found blocks and room for `tokens` in all; False, and nothing taken, where there is none."""
        revived = sum(1 for block in table.chain[:hits] if block in self._unheld)
        if self.used + revived + -(-tokens // BLOCK) - hits > self.blocks:
            return False
        for block in table.chain[:hits]:
            self._holders[block] += 1
            self._unheld.pop(block, None)
            table.shared.append(block)
        table.looked = hits
        return self.extend(table, tokens)

    def extend(self, table: Table, tokens: int) -> bool:
        """Room for `tokens` in all, of which full blocks can be found from now on; False where there is no room."""
        need = -(-tokens // BLOCK) - table.blocks
        if need > 0:
            if self.used + need > self.blocks:
                return False
            self._private += need
            table.private += need
            while len(self._holders) + self._private > self.blocks:
                oldest, _ = self._unheld.popitem(last=False)
                del self._holders[oldest]
        self._publish(table, tokens)
        return True

    def _publish(self, table: Table, tokens: int) -> None:
        full = min(tokens // BLOCK, len(table.chain))
        for place in range(table.looked, full):
            block = table.chain[place]
            if block not in self._holders:
                self._holders[block] = 1
                table.shared.append(block)
                table.private -= 1
                self._private -= 1
        table.looked = max(table.looked, full)

    def release(self, table: Table) -> None:
        """The sequence is over or preempted; its blocks can be found until they are needed."""
        self._private -= table.private
        for block in reversed(table.shared):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._unheld[block] = None
        table.shared, table.private, table.looked = [], 0, 0
