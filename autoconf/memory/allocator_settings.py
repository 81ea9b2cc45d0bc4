"""Settings of PyTorch's caching allocator, in the format of the environment variable ``PYTORCH_CUDA_ALLOC_CONF``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MIB = 2**20

_POWERS = 16  # c10/core/AllocatorConfig.cpp, kRoundUpPowerOfTwoIntervals: from 1 MiB to 64 GiB
_TRUTH = {"True": True, "False": False}
# Keys that PyTorch accepts and that do not change the memory of a GPU: pinned memory of the host, locks, graphs
# (c10/cuda/CUDAAllocatorConfig.h, getKeys), and an early error instead of that of cudaMalloc.
_WITHOUT_EFFECT = (
    "release_lock_on_cudamalloc", "release_lock_on_hipmalloc", "pinned_use_cuda_host_register",
    "pinned_use_hip_host_register", "pinned_num_register_threads", "pinned_reserve_segment_size_mb",
    "pinned_use_background_threads", "pinned_max_round_threshold_mb", "pinned_max_cached_size_mb",
    "pinned_free_catch_all", "graph_capture_record_stream_reuse", "throw_on_cudamalloc_oom",
)  # fmt: skip


@dataclass(frozen=True)
class AllocatorSettings:
    """Settings of PyTorch's native allocator.

    Defaults are those of torch 2.13.0: c10/core/AllocatorConfig.h, members of ``AcceleratorAllocatorConfig``, and
    c10/cuda/CUDAAllocatorConfig.h, ``m_per_process_memory_fraction``.

    Args:
        expandable_segments: one segment per stream and pool, which grows, instead of one per ``cudaMalloc``.
        max_split_size: size in bytes from which on blocks are never split; ``None`` for no limit.
        max_non_split_rounding: bytes by which a block that is never split may exceed the request.
        garbage_collection_threshold: share of the allowed memory above which old free blocks are released; 0 for
            never. Without a ``memory_fraction`` below 1 it has no effect, as in PyTorch.
        memory_fraction: share of the GPU's memory that the process may reserve, in (0, 1].
        large_segment_size: bytes of a segment for allocations of more than 1 and less than 10 MiB.
        roundup_power2_divisions: for sizes from 1 MiB, 2 MiB, 4 MiB ... 32 GiB on, the number of parts into which the
            distance to the next power of two is divided, to round sizes up; 0 for rounding to 512 bytes.

    >>> AllocatorSettings.parse("expandable_segments:True").expandable_segments
    True
    >>> AllocatorSettings.parse("max_split_size_mb:128, garbage_collection_threshold:0.8").max_split_size
    134217728
    """

    expandable_segments: bool = False
    max_split_size: int | None = None
    max_non_split_rounding: int = 20 * MIB
    garbage_collection_threshold: float = 0.0
    memory_fraction: float = 1.0
    large_segment_size: int = 20 * MIB
    roundup_power2_divisions: tuple[int, ...] = field(default=(0,) * _POWERS)

    @classmethod
    def parse(cls, text: str) -> AllocatorSettings:
        """Read the value of ``PYTORCH_CUDA_ALLOC_CONF``.

        Args:
            text: pairs such as ``expandable_segments:True``, separated by commas; empty for the defaults.

        Raises:
            ValueError: a key is unknown, a value is invalid, or the backend is not ``native``.

        >>> AllocatorSettings.parse("expandable_segments:yes")
        Traceback (most recent call last):
        ValueError: expandable_segments: must be True or False, got 'yes'
        >>> AllocatorSettings.parse("max_split_size:128")
        Traceback (most recent call last):
        ValueError: PYTORCH_CUDA_ALLOC_CONF: unknown key 'max_split_size'; did you mean 'max_split_size_mb'?
        """
        found: dict[str, Any] = {}
        for key, value in _pairs(text):
            if key in _READERS:
                name, reader = _READERS[key]
                found[name] = reader(key, value)
            elif key in _SIZES:
                segment = found.get("large_segment_size", cls.large_segment_size) // MIB
                found[_SIZES[key]] = _mebibytes(key, value, 11 if key == "large_segment_size_mb" else segment)
            elif key == "backend":
                _check_backend(value)
            elif key not in _WITHOUT_EFFECT:
                raise ValueError(f"PYTORCH_CUDA_ALLOC_CONF: unknown key {key!r}{_hint(key)}")
        return cls(**found)


def _pairs(text: str) -> list[tuple[str, str]]:
    """Keys and values; a value may be a list in brackets."""
    # c10/core/AllocatorConfig.h, ConfigTokenizer: white space does not matter.
    compact = re.sub(r"\s+", "", text)
    pairs = []
    for item in re.findall(r"(?:\[[^\]]*\]|[^,])+", compact):
        key, colon, value = item.partition(":")
        if not colon or not key or not value:
            raise ValueError(f"PYTORCH_CUDA_ALLOC_CONF: must be key:value pairs separated by commas, got {item!r}")
        pairs.append((key, value))
    return pairs


def _hint(key: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(key, [*_READERS, *_SIZES, *_WITHOUT_EFFECT, "backend"], 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join([*_READERS, *_SIZES])}"


def _check_backend(value: str) -> None:
    if value != "native":
        raise ValueError(f"backend: only PyTorch's native allocator can be replayed, got {value!r}")


def _truth(key: str, value: str) -> bool:
    if value not in _TRUTH:
        raise ValueError(f"{key}: must be True or False, got {value!r}")
    return _TRUTH[value]


def _mebibytes(key: str, value: str, least: int) -> int:
    if not value.isdecimal() or int(value) < least:
        raise ValueError(f"{key}: must be a whole number of MiB, at least {least}, got {value!r}")
    return int(value) * MIB


def _share(least_excluded: float, most: float, includes_most: bool) -> Callable[[str, str], float]:
    def read(key: str, value: str) -> float:
        try:
            share = float(value)
        except ValueError:
            share = float("nan")
        if not (least_excluded < share < most or (includes_most and share == most)):
            bracket = "]" if includes_most else ")"
            raise ValueError(f"{key}: must be a number in ({least_excluded:g}, {most:g}{bracket}, got {value!r}")
        return share

    return read


def _divisions(key: str, value: str) -> tuple[int, ...]:
    # c10/core/AllocatorConfig.cpp, parseRoundUpPower2Divisions: one number for all sizes, or a list of boundaries in
    # MiB; sizes below the first boundary take its number, ">" means sizes above the last.
    if not value.startswith("["):
        return (_power_of_two(key, value),) * _POWERS
    divisions = [0] * _POWERS
    last = -1
    for item in value.strip("[]").split(","):
        boundary, colon, number = item.partition(":")
        parts = _power_of_two(key, number) if colon and number != "0" else 0
        if not colon:
            raise ValueError(f"{key}: must be a power of two or a list such as [256:4,>:8], got {value!r}")
        if boundary == ">":
            divisions[last + 1 :] = [parts] * (_POWERS - last - 1)
            continue
        index = min(_power_of_two(key, boundary).bit_length() - 1, _POWERS - 1)
        if last < 0:
            divisions[:index] = [parts] * index
        divisions[index] = parts
        last = index
    return tuple(divisions)


def _power_of_two(key: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1 or int(text) & (int(text) - 1):
        raise ValueError(f"{key}: must be a power of two, got {text!r}")
    return int(text)


# c10/core/AllocatorConfig.cpp, parseLargeSegmentSize (above 10 MiB), parseMaxSplitSize and parseMaxNonSplitRoundingSize
# (at least a large segment, as set before it).
_SIZES = {
    "large_segment_size_mb": "large_segment_size",
    "max_split_size_mb": "max_split_size",
    "max_non_split_rounding_mb": "max_non_split_rounding",
}
_READERS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "expandable_segments": ("expandable_segments", _truth),
    "garbage_collection_threshold": ("garbage_collection_threshold", _share(0, 1, False)),
    "per_process_memory_fraction": ("memory_fraction", _share(0, 1, True)),
    "roundup_power2_divisions": ("roundup_power2_divisions", _divisions),
}
