"""Blocks of PyTorch's caching allocator, the pools of free blocks, and merging of neighbors.

Names in double backticks, and lines after them, are those of c10/cuda/CUDACachingAllocator.cpp; see ``allocator``.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass


class Block:
    """A piece of a segment: struct ``Block``, 179-248. Its neighbors in the segment are ``before`` and ``after``."""

    __slots__ = (
        "address", "after", "age", "allocated", "before", "events", "mapped", "pool", "segment", "size", "stream",
        "used_on",
    )  # fmt: skip

    def __init__(self, pool: Pool, stream: int, address: int, size: int, segment: ExpandableSegment | None) -> None:
        self.pool, self.stream, self.address, self.size, self.segment = pool, stream, address, size, segment
        self.allocated = False
        self.mapped = True
        self.before: Block | None = None
        self.after: Block | None = None
        self.events = 0  # events of other streams that it waits for
        self.used_on: set[int] = set()  # streams given to record_stream
        self.age = 0

    @property
    def is_split(self) -> bool:
        return self.before is not None or self.after is not None

    @property
    def is_available(self) -> bool:
        return not self.allocated and not self.events and not self.used_on

    def insert_after(self, block: Block) -> None:
        """Insert this block after another one: ``Block::splice``, 236-247."""
        self.before, self.after = block, block.after
        if block.after is not None:
            block.after.before = self
        block.after = self


@dataclass(frozen=True)
class ExpandableSegment:
    """A range of addresses to which memory is mapped page by page: ``ExpandableSegment``, 358-647."""

    address: int
    size: int
    page: int


class Pool:
    """Free blocks by stream, sorted by size and then address: ``BlockPool``, 156-175, ``BlockComparatorSize``, 723-731.

    Blocks that are not mapped, of expandable segments, are sorted by address (``BlockComparatorAddress``, 732-737).
    """

    def __init__(self, is_small: bool) -> None:
        self.is_small = is_small
        self.free: dict[int, list[tuple[int, int, Block]]] = {}
        self.unmapped: dict[int, list[tuple[int, Block]]] = {}
        self.searches = 0

    def add(self, block: Block) -> None:
        if block.mapped:
            block.age = self.searches
            insort(self.free.setdefault(block.stream, []), (block.size, block.address, block))
        else:
            insort(self.unmapped.setdefault(block.stream, []), (block.address, block))

    def remove(self, block: Block) -> None:
        if block.mapped:
            free = self.free[block.stream]
            del free[bisect_left(free, (block.size, block.address))]
        else:
            unmapped = self.unmapped[block.stream]
            del unmapped[bisect_left(unmapped, (block.address,))]

    def blocks(self) -> list[Block]:
        """The free, mapped blocks, in order of streams."""
        return [block for stream in sorted(self.free) for *_, block in self.free[stream]]


def can_grow_to(block: Block) -> int:
    after = block.after
    return block.size + (after.size if after is not None and not after.mapped else 0)


def merge(block: Block, neighbor: Block | None) -> None:
    """Merge a block with a neighbor in the same state: ``try_merge_blocks``, 2474-2505."""
    if neighbor is None or not neighbor.is_available or neighbor.mapped != block.mapped:
        return
    neighbor.pool.remove(neighbor)
    if block.before is neighbor:
        block.address, block.before = neighbor.address, neighbor.before
        if block.before is not None:
            block.before.after = block
    else:
        block.after = neighbor.after
        if block.after is not None:
            block.after.before = block
    block.size += neighbor.size
