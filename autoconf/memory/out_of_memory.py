"""The out-of-memory error of PyTorch's caching allocator, with PyTorch's message."""

from __future__ import annotations

from autoconf.memory.units import GIB


class OutOfMemory(MemoryError):
    """``cudaMalloc`` failed, also after all free segments were released; the message is PyTorch's.

    Attributes:
        tried: bytes requested from ``cudaMalloc``.
        allocated: bytes in use.
        reserved: bytes of all segments.
    """

    def __init__(self, tried: int, allocated: int, reserved: int, free: int, total: int) -> None:
        # c10/cuda/CUDACachingAllocator.cpp, 1338-1363, without its advice.
        super().__init__(
            f"CUDA out of memory. Tried to allocate {format_size(tried)}. GPU 0 has a total capacity of "
            f"{format_size(total)} of which {format_size(free)} is free. Of the allocated memory "
            f"{format_size(allocated)} is allocated by PyTorch, and {format_size(reserved - allocated)} is reserved "
            f"by PyTorch but unallocated."
        )
        self.tried, self.allocated, self.reserved = tried, allocated, reserved


def format_size(size: int) -> str:
    """Format bytes as in PyTorch's messages: ``format_size``.

    >>> format_size(512), format_size(20 * 2**20), format_size(79 * 2**30)
    ('512 bytes', '20.00 MiB', '79.00 GiB')
    """
    if size <= 1024:
        return f"{size} bytes"
    for unit, name in ((2**20, "KiB"), (GIB, "MiB")):
        if size <= unit:
            return f"{1024 * size / unit:.2f} {name}"
    return f"{size / GIB:.2f} GiB"
