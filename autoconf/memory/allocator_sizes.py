"""Sizes of blocks and segments of PyTorch's caching allocator; see ``allocator`` for their source."""

from __future__ import annotations

from autoconf.memory.allocator_settings import AllocatorSettings

MIN_BLOCK = 512  # kMinBlockSize: all sizes are multiples of it
SMALL_SIZE = 2**20  # kSmallSize: the largest allocation of the small pool
SMALL_SEGMENT = 2 * 2**20  # kSmallBuffer: segments of the small pool
MIN_LARGE = 10 * 2**20  # kMinLargeAlloc: from this size on a segment is as large as its first block
LARGE_SEGMENT = 20 * 2**20  # kLargeBuffer: segments of the large pool below that size
ROUND_LARGE = 2 * 2**20  # kRoundLarge: rounded up to a multiple of this


def allocation_size(size: int, large_segment_size: int = LARGE_SEGMENT) -> int:
    """Bytes of the segment requested from ``cudaMalloc``: ``get_allocation_size``, 2550-2558.

    >>> [allocation_size(mib * 2**20) // 2**20 for mib in (1, 2, 9, 10, 11)]
    [2, 20, 20, 10, 12]
    """
    if size <= SMALL_SIZE:
        return SMALL_SEGMENT
    if size < MIN_LARGE:
        return large_segment_size
    return up(size, ROUND_LARGE)


def rounded(nbytes: int, settings: AllocatorSettings) -> int:
    """Bytes of the block for a request: ``round_size``, 2063-2074, and ``roundup_power2_next_division``, 2043-2061.

    >>> rounded(1, AllocatorSettings()), rounded(1025, AllocatorSettings())
    (512, 1536)
    """
    if nbytes < MIN_BLOCK:
        return MIN_BLOCK
    interval = min(max(nbytes.bit_length() - 1 - 20, 0), len(settings.roundup_power2_divisions) - 1)
    divisions = settings.roundup_power2_divisions[interval]
    if divisions > 1 and nbytes > MIN_BLOCK * divisions and nbytes & (nbytes - 1):
        return up(nbytes, (1 << (nbytes.bit_length() - 1)) // divisions)
    return up(nbytes, MIN_BLOCK)


def up(size: int, multiple: int) -> int:
    """The next multiple."""
    return (size + multiple - 1) // multiple * multiple
