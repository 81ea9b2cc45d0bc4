"""Replay PyTorch's caching allocator, the native backend for CUDA, on one GPU.

A job needs more than its peak of allocated memory, because the allocator hands out parts of
segments from ``cudaMalloc``, caches freed ones, and cannot release a segment with a part in
use. All of that follows from the order and the sizes of allocations, by the rules below.

Source: PyTorch's c10/cuda/CUDACachingAllocator.cpp, class ``DeviceCachingAllocator``. Rules name its functions, with
their lines in release 2.6.0 (commit 1eba9b3aa3c43f86f4a2c807ac8e12c4a7767340), the newest release whose source was at
hand. docs/how-it-works/allocator.md has all of them in a table, and what later versions changed. Constants and settings
are those of torch 2.13.0's own headers (c10/core/AllocatorConfig.h, lines 17 to 26).
Not included: private pools (CUDA graphs, ``torch.cuda.MemPool``) and sharing between processes. Addresses of
segments are unknown; here each is above all earlier ones, which matters only between free blocks of the same size.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator

from autoconf.memory.allocator_blocks import Block, ExpandableSegment, Pool, can_grow_to, merge
from autoconf.memory.allocator_settings import AllocatorSettings
from autoconf.memory.allocator_sizes import MIN_BLOCK, SMALL_SEGMENT, SMALL_SIZE, allocation_size, rounded, up
from autoconf.memory.out_of_memory import OutOfMemory


class Allocator:
    """The allocator of one GPU.

    Args:
        capacity: bytes that ``cudaMalloc`` can hand out; ``None`` for no limit.
        settings: settings of the allocator.
        total: bytes of the GPU, to which ``memory_fraction`` applies and which errors name; by default the
            capacity.

    >>> allocator = Allocator(capacity=64 * 2**20)
    >>> block = allocator.malloc(3 * 2**20)
    >>> allocator.allocated // 2**20, allocator.reserved // 2**20
    (3, 20)
    >>> allocator.malloc(50 * 2**20)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    autoconf.memory.out_of_memory.OutOfMemory: CUDA out of memory. Tried to allocate 50.00 MiB. GPU 0 has a total ...
    """

    def __init__(
        self, capacity: int | None = None, settings: AllocatorSettings | None = None, total: int | None = None
    ) -> None:
        self.settings = settings or AllocatorSettings()
        self.capacity = capacity
        self.total = capacity if total is None else total
        self.allocated = self.reserved = self.max_allocated = self.max_reserved = 0
        self.retries = 0  # num_alloc_retries: how often all free segments were released
        self._small, self._large = Pool(True), Pool(False)
        self._active: set[Block] = set()
        self._events: dict[int, deque[Block]] = {}
        self._recorded: dict[int, int] = {}  # events of each stream so far
        self._reached: dict[int, int] = {}  # how many of them have completed on the GPU
        self._taken: dict[int, int] = {}  # how many of these process_events has seen
        self._next_address = 0
        limited = self.total is not None and self.settings.memory_fraction < 1
        self._allowed = int(self.settings.memory_fraction * (self.total or 0)) if limited else None
        self._collects = self._allowed is not None and self.settings.garbage_collection_threshold > 0

    # --- interface of programs ----------------------------------------------------------------------------------------

    def malloc(self, nbytes: int, stream: int = 0) -> Block:
        """Allocate: ``malloc``, 1185-1369.

        Args:
            nbytes: bytes, at least 1; PyTorch never requests 0 bytes.
            stream: the stream of the tensor; only this stream can reuse the block after it is freed.

        Raises:
            OutOfMemory: there is not enough memory.
        """
        self._process_events()
        size = rounded(nbytes, self.settings)
        pool = self._small if size <= SMALL_SIZE else self._large
        block = self._cached(pool, size, stream)
        if block is None:
            if self._collects:
                self._collect_garbage()
            block = self._new(pool, size, stream)
        if block is None and self._release_enough(pool, size, stream):
            block = self._new(pool, size, stream)
        if block is None:
            self.empty_cache()
            self.retries += 1
            block = self._new(pool, size, stream)
        if block is None:
            tried = allocation_size(size, self.settings.large_segment_size)
            free = (self.capacity or 0) - self.reserved
            raise OutOfMemory(tried, self.allocated, self.reserved, free, self.total or 0)
        return self._hand_out(block, size)

    def free(self, block: Block) -> None:
        """Free a block; if other streams used it, only after they have caught up.

        ``free``, 1469-1523, and ``insert_events``, 3139-3156.
        """
        if not block.allocated:
            raise ValueError("the block is not allocated")
        block.allocated = False
        self.allocated -= block.size
        if not block.used_on:
            self._return(block)
            return
        for stream in sorted(block.used_on):
            block.events += 1
            self._events.setdefault(stream, deque()).append(block)
            self._recorded[stream] = self._recorded.get(stream, 0) + 1
        block.used_on = set()

    def record_stream(self, block: Block, stream: int) -> None:
        """Record that another stream uses a block: ``recordStream``, 1569-1580, that is, ``Tensor.record_stream``."""
        if stream != block.stream:
            block.used_on.add(stream)

    def progress(self) -> dict[int, int]:
        """The position of the program on each stream with events, for ``reach``."""
        return dict(self._recorded)

    def reach(self, progress: dict[int, int]) -> None:
        """Let streams reach a recorded position of the program, so that all events before it have completed.

        Freed blocks come back at the next allocation, as ``process_events`` finds them.
        """
        for stream, events in progress.items():
            self._reached[stream] = max(self._reached.get(stream, 0), events)

    def synchronize(self, stream: int) -> None:
        """Let a stream catch up with the program."""
        self.reach({stream: self._recorded.get(stream, 0)})

    def empty_cache(self) -> None:
        """Wait for all streams, and release all segments that are completely free.

        ``release_cached_blocks``, 2859-2905, and ``release_blocks``, 3045-3069. ``torch.cuda.empty_cache`` and a failed
        ``cudaMalloc`` do the same.
        """
        self.reach(self._recorded)
        self._process_events()
        for pool in (self._large, self._small):
            blocks = pool.blocks()
            for block in blocks:
                if block.segment is None and not block.is_split:
                    self._release(block)
            for block in blocks:
                if block.segment is not None:
                    self._unmap(block)

    def segments(self) -> Iterator[list[Block]]:
        """Yield the blocks of each segment, in order of address."""
        pools = (self._small, self._large)
        idle = [block for pool in pools for block in pool.blocks()]
        idle += [block for pool in pools for blocks in pool.unmapped.values() for _, block in blocks]
        for first in sorted((b for b in {*idle, *self._active} if b.before is None), key=lambda b: b.address):
            blocks = [first]
            while (after := blocks[-1].after) is not None:
                blocks.append(after)
            yield blocks

    # --- existing blocks ----------------------------------------------------------------------------------------------

    def _process_events(self) -> None:
        """Return blocks whose events have completed to their pools: ``process_events``, 3177-3218."""
        for stream, waiting in self._events.items():
            while waiting and self._taken.get(stream, 0) < self._reached.get(stream, 0):
                self._taken[stream] = self._taken.get(stream, 0) + 1
                block = waiting.popleft()
                block.events -= 1
                if not block.events:
                    self._return(block)

    def _cached(self, pool: Pool, size: int, stream: int) -> Block | None:
        """Take the smallest free block of the stream that is large enough: ``get_free_block``, 2560-2618."""
        if self._collects:
            pool.searches += 1
        free = pool.free.get(stream, [])
        index = bisect_left(free, (size, -1))
        if index == len(free):
            return None
        if self.settings.expandable_segments:
            # Best fit uses the size to which a block can grow.
            while index + 1 < len(free) and can_grow_to(free[index + 1][2]) < can_grow_to(free[index][2]):
                index += 1
        block = free[index][2]
        limit = self.settings.max_split_size
        if limit is not None:
            # A block that is never split is not used for small requests, or for large ones that would waste much of it.
            most = size + self.settings.max_non_split_rounding if size >= limit else limit
            if block.size >= most:
                return None
        del free[index]
        return block

    def _hand_out(self, block: Block, size: int) -> Block:
        """Split off the unneeded rest: ``should_split``, 2540-2548, and ``alloc_found_block``, 1371-1467."""
        remaining = block.size - size
        if block.pool.is_small or self.settings.expandable_segments:
            splits = remaining >= MIN_BLOCK
        else:
            limit = self.settings.max_split_size
            splits = (limit is None or size < limit) and remaining > SMALL_SIZE
        if splits:
            rest = Block(block.pool, block.stream, block.address + size, remaining, block.segment)
            rest.insert_after(block)
            block.size = size
            block.pool.add(rest)
        block.allocated = True
        self._active.add(block)
        self.allocated += block.size
        self.max_allocated = max(self.max_allocated, self.allocated)
        return block

    def _return(self, block: Block) -> None:
        """Return a block to its pool, merged with free neighbors: ``free_block``, 2397-2470."""
        self._active.remove(block)
        merge(block, block.before)
        merge(block, block.after)
        block.pool.add(block)

    # --- segments -----------------------------------------------------------------------------------------------------

    def _new(self, pool: Pool, size: int, stream: int) -> Block | None:
        """Allocate a segment, or grow one: ``alloc_block``, 2693-2806."""
        nbytes = allocation_size(size, self.settings.large_segment_size)
        if self._allowed is not None and self.reserved + nbytes > self._allowed:
            return None
        if self.settings.expandable_segments:
            return self._grown(pool, size, stream)
        if not self._has_room(nbytes):
            return None
        self._reserve(nbytes)
        return Block(pool, stream, self._addresses(nbytes), nbytes, None)

    def _has_room(self, nbytes: int) -> bool:
        return self.capacity is None or self.reserved + nbytes <= self.capacity

    def _reserve(self, nbytes: int) -> None:
        self.reserved += nbytes
        self.max_reserved = max(self.max_reserved, self.reserved)

    def _addresses(self, nbytes: int) -> int:
        address = self._next_address
        self._next_address += nbytes
        return address

    def _release(self, block: Block) -> None:
        """Release a segment: ``release_block``, 2923-2972."""
        block.pool.remove(block)
        self.reserved -= block.size

    def _release_enough(self, pool: Pool, size: int, stream: int) -> bool:
        """Release unsplit blocks until the request fits: ``release_available_cached_blocks``, 2811-2857."""
        limit = self.settings.max_split_size
        if limit is None:
            return False
        wanted = max(size, limit)
        free = pool.free.get(stream, [])
        index = bisect_left(free, (wanted, -1))
        if index < len(free) and free[index][2].segment is None:
            self._release(free[index][2])
            return True
        oversize = [block for length, _, block in free[:index] if length >= limit and block.segment is None]
        released = 0
        while oversize and released < wanted:
            block = oversize.pop()  # the largest first
            released += block.size
            self._release(block)
        return released >= wanted

    def _collect_garbage(self) -> None:
        """Release segments that have been free for long: ``garbage_collect_cached_blocks``, 2629-2686."""
        assert self._allowed is not None
        threshold = int(self.settings.garbage_collection_threshold * self._allowed)
        target, reclaimed = self.reserved - threshold, 0
        pool = self._large
        candidates = [block for block in pool.blocks() if not block.is_split]
        freed = target > 0
        while freed and candidates and reclaimed < target:
            average = sum(pool.searches - block.age for block in candidates) / len(candidates)
            old = [b for b in candidates if b.segment is None and pool.searches - b.age >= average]
            for block in old:
                reclaimed += block.size
                self._release(block)
            candidates = [block for block in candidates if block not in old]
            freed = bool(old)

    # --- expandable segments ------------------------------------------------------------------------------------------

    def _grown(self, pool: Pool, size: int, stream: int) -> Block | None:
        """Map pages at the lowest address that fits: ``try_allocate_expandable_block``, 2363-2394."""
        block = self._lowest_room(pool, size, stream)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            after = block.after
            assert after is not None
            if not self._map(after, min(size - block.size, after.size)):
                return None
            block = after
        pool.remove(block)
        return block

    def _lowest_room(self, pool: Pool, size: int, stream: int) -> Block:
        """The first of adjacent free or unmapped blocks that suffice: ``find_expandable_block``, 2239-2293."""
        for _, block in pool.unmapped.get(stream, []):
            before = block.before
            first = before if before is not None and before.is_available else block
            found, at = 0, first
            while found < size and at is not None and at.is_available:
                found, at = found + at.size, at.after  # type: ignore[assignment]
            if found >= size:
                return first
        page = SMALL_SEGMENT if pool.is_small else self.settings.large_segment_size
        # 2275-2278: addresses for 1 1/8 of the GPU.
        total = self.total if self.total is not None else 2**50
        length = up(max(total + total // 8, size), page)
        segment = ExpandableSegment(self._addresses(length), length, page)
        block = Block(pool, stream, segment.address, length, segment)
        block.mapped = False
        pool.add(block)
        return block

    def _map(self, block: Block, size: int) -> bool:
        """Map the first bytes of an unmapped block, in whole pages: ``map_block``, 2295-2361."""
        assert block.segment is not None
        size = up(size, block.segment.page)
        if not self._has_room(size):
            return False
        block.pool.remove(block)
        block.mapped = True
        if size < block.size:
            rest = Block(block.pool, block.stream, block.address + size, block.size - size, block.segment)
            rest.mapped = False
            rest.insert_after(block)
            block.size = size
            block.pool.add(rest)
        self._reserve(size)
        merge(block, block.before)
        merge(block, block.after)
        block.pool.add(block)
        return True

    def _unmap(self, block: Block) -> None:
        """Unmap the whole pages of a free block.

        ``unmap_block``, 2974-3044, and ``release_expandable_segment``, 2907-2921.
        """
        segment, pool = block.segment, block.pool
        assert segment is not None
        start = segment.address + up(block.address - segment.address, segment.page)
        end = segment.address + (block.address + block.size - segment.address) // segment.page * segment.page
        if start >= end:
            return
        pool.remove(block)
        if start > block.address:
            rest = Block(pool, block.stream, start, block.address + block.size - start, segment)
            rest.insert_after(block)
            block.size = start - block.address
            pool.add(block)
            block = rest
        if end < block.address + block.size:
            rest = Block(pool, block.stream, end, block.address + block.size - end, segment)
            rest.insert_after(block)
            block.size = end - start
            pool.add(rest)
        self.reserved -= block.size
        block.mapped = False
        merge(block, block.before)
        merge(block, block.after)
        if block.is_split:  # otherwise the segment is empty, and its addresses are released as well
            pool.add(block)
