"""PyTorch's caching allocator, replayed: each rule by a sequence worked out by hand, and what always holds.

PyTorch has no allocator of this kind on a CPU, so there is nothing of its own to run next to it here, but for the
parser of its settings.
"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from autoconf.memory.allocator import Allocator
from autoconf.memory.allocator_blocks import Block
from autoconf.memory.allocator_settings import MIB, AllocatorSettings
from autoconf.memory.allocator_sizes import allocation_size, rounded
from autoconf.memory.out_of_memory import OutOfMemory

KIB = 1024


def mib(allocator: Allocator) -> tuple[float, float]:
    """Allocated and reserved."""
    return allocator.allocated / MIB, allocator.reserved / MIB


def sizes(allocator: Allocator) -> list[list[float]]:
    """MiB of the blocks of each segment; free ones are negative, those without memory are left out."""
    return [[b.size / MIB * (1 if b.allocated else -1) for b in blocks if b.mapped] for blocks in allocator.segments()]


# --- rounding, pools, segments ----------------------------------------------------------------------------------------


def test_sizes_are_rounded_up_to_512_bytes() -> None:
    assert [rounded(n, AllocatorSettings()) for n in (1, 511, 512, 513, 1024, 1025)] == [
        512, 512, 512, 1024, 1024, 1536,
    ]  # fmt: skip


def test_sizes_are_rounded_up_to_parts_of_a_power_of_two_where_that_is_set() -> None:
    quarters = AllocatorSettings.parse("roundup_power2_divisions:4")
    # Between 1 and 2 MiB a quarter is 256 KiB: 1200 KiB lies between 1024 and 1280. PyTorch's own comment has 1200 in
    # four parts of 1024 to 2048 as 1280; below 512 * 4 bytes sizes are only rounded to 512.
    assert rounded(1200 * KIB, quarters) == 1280 * KIB
    assert rounded(2048, quarters) == 2048 and rounded(1200, quarters) == 1536
    assert rounded(4 * MIB, quarters) == 4 * MIB  # a power of two stays
    later = AllocatorSettings.parse("roundup_power2_divisions:[256:1,512:2,>:4]")
    assert rounded(300 * MIB + 1, later) == 300 * MIB + 512  # of 256 to 512 MiB: one part is no rounding
    assert rounded(600 * MIB, later) == 768 * MIB  # 512 to 1024 MiB in two parts
    assert rounded(1100 * MIB, later) == 1280 * MIB  # from 1 GiB on in four


def test_segments_are_2_mib_20_mib_or_as_large_as_their_first_block() -> None:
    assert allocation_size(512) == 2 * MIB and allocation_size(MIB) == 2 * MIB
    assert allocation_size(MIB + 512) == 20 * MIB and allocation_size(10 * MIB - 512) == 20 * MIB
    assert allocation_size(10 * MIB) == 10 * MIB and allocation_size(10 * MIB + 512) == 12 * MIB


def test_small_and_large_allocations_never_share_a_segment() -> None:
    allocator = Allocator()
    large = allocator.malloc(15 * MIB)  # a segment of 16, of which 1 is not split off: it is not more than 1
    allocator.free(large)
    allocator.malloc(MIB)
    assert sizes(allocator) == [[-16], [1, -1]] and mib(allocator) == (1, 18)


def test_small_blocks_fill_a_segment_of_2_mib() -> None:
    allocator = Allocator()
    for _ in range(4096):
        allocator.malloc(1)  # 512 bytes each: 4,096 of them are 2 MiB
    assert mib(allocator) == (2, 2)
    allocator.malloc(1)
    assert mib(allocator) == (2 + 512 / MIB, 4)


def test_blocks_of_one_stream_do_not_serve_another() -> None:
    allocator = Allocator()
    allocator.free(allocator.malloc(30 * MIB, stream=1))
    allocator.malloc(30 * MIB, stream=2)
    assert mib(allocator) == (30, 60)
    allocator.malloc(30 * MIB, stream=1)
    assert mib(allocator) == (60, 60)


# --- best fit, splits, merges -----------------------------------------------------------------------------------------


def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    allocator = Allocator()
    blocks = [allocator.malloc(n * MIB) for n in (50, 30, 40)]
    for block in blocks:
        allocator.free(block)
    allocator.malloc(35 * MIB)
    assert sizes(allocator) == [[-50], [-30], [35, -5]]


def test_of_equal_blocks_the_one_at_the_lower_address_is_taken() -> None:
    allocator = Allocator()
    first, second = allocator.malloc(30 * MIB), allocator.malloc(30 * MIB)
    allocator.free(second)
    allocator.free(first)
    allocator.malloc(30 * MIB)
    assert sizes(allocator) == [[30], [-30]]


def test_a_large_block_is_split_only_where_more_than_1_mib_remains() -> None:
    allocator = Allocator()
    allocator.free(allocator.malloc(30 * MIB))
    exact = allocator.malloc(29 * MIB)  # 1 MiB would remain, which is not more: the block is handed out whole
    assert exact.size == 30 * MIB and mib(allocator) == (30, 30)
    allocator.free(exact)
    allocator.malloc(29 * MIB - 512)
    assert sizes(allocator) == [[29 - 512 / MIB, -(1 + 512 / MIB)]]


def test_a_small_block_is_split_down_to_512_bytes() -> None:
    allocator = Allocator()
    allocator.malloc(MIB)
    allocator.malloc(MIB - 512)
    assert sizes(allocator) == [[1, 1 - 512 / MIB, -512 / MIB]]


def test_free_neighbors_become_one_block() -> None:
    allocator = Allocator()
    first, second, third = (allocator.malloc(6 * MIB) for _ in range(3))  # 18 of a segment of 20 MiB
    allocator.free(first)
    allocator.free(third)
    assert sizes(allocator) == [[-6, 6, -8]]  # the third with the 2 MiB that were left
    allocator.free(second)
    assert sizes(allocator) == [[-20]]


def test_blocks_of_two_segments_never_become_one() -> None:
    allocator = Allocator()
    first, second = allocator.malloc(10 * MIB), allocator.malloc(10 * MIB)
    allocator.free(first)
    allocator.free(second)
    allocator.malloc(20 * MIB)
    assert mib(allocator) == (20, 40)  # two free segments of 10 MiB are of no use


# --- max_split_size ---------------------------------------------------------------------------------------------------


def test_blocks_of_the_limit_and_more_are_never_split() -> None:
    allocator = Allocator(settings=AllocatorSettings.parse("max_split_size_mb:40"))
    allocator.free(allocator.malloc(60 * MIB))
    allocator.malloc(20 * MIB)  # below the limit: the block of 60 MiB is not for it
    assert sizes(allocator) == [[-60], [20]]
    block = allocator.malloc(45 * MIB)  # 60 is less than 45 + 20: taken whole
    assert block.size == 60 * MIB and mib(allocator) == (80, 80)


def test_a_block_that_would_waste_20_mib_is_not_taken() -> None:
    allocator = Allocator(settings=AllocatorSettings.parse("max_split_size_mb:40"))
    allocator.free(allocator.malloc(60 * MIB))
    allocator.malloc(40 * MIB)  # 60 is not less than 40 + 20
    assert mib(allocator) == (40, 100)
    wider = Allocator(settings=AllocatorSettings.parse("max_split_size_mb:40,max_non_split_rounding_mb:21"))
    wider.free(wider.malloc(60 * MIB))
    wider.malloc(40 * MIB)
    assert mib(wider) == (60, 60)


def test_where_room_is_missing_only_as_many_unsplit_blocks_go_as_are_needed() -> None:
    allocator = Allocator(capacity=200 * MIB, settings=AllocatorSettings.parse("max_split_size_mb:40"))
    for block in [allocator.malloc(n * MIB) for n in (50, 60, 70)]:
        allocator.free(block)
    # No block has 100 MiB: the largest go first, 70 and then 60, and 50 stays.
    allocator.malloc(100 * MIB)
    assert sizes(allocator) == [[-50], [100]] and allocator.retries == 0


def test_a_single_block_that_is_large_enough_goes_alone() -> None:
    allocator = Allocator(capacity=200 * MIB, settings=AllocatorSettings.parse("max_split_size_mb:40"))
    for block in [allocator.malloc(n * MIB) for n in (50, 60, 80)]:
        allocator.free(block)
    # 40 MiB are asked for; blocks of 60 and more would waste 20. 190 of 200 are reserved. The smallest of at least 40
    # goes, and 140 + 40 have room. (The block of 50 would be taken, but it is in use.)
    allocator.malloc(50 * MIB)
    allocator.malloc(40 * MIB)
    assert sizes(allocator) == [[50], [-80], [40]]


# --- out of room ------------------------------------------------------------------------------------------------------


def test_free_segments_are_given_back_when_there_is_no_room() -> None:
    allocator = Allocator(capacity=100 * MIB)
    allocator.free(allocator.malloc(60 * MIB))
    allocator.free(allocator.malloc(MIB))
    allocator.malloc(70 * MIB)  # 62 + 70 are more than 100; without the free ones it is 70
    assert mib(allocator) == (70, 70) and allocator.retries == 1
    assert allocator.max_reserved == 70 * MIB


def test_a_segment_of_which_a_part_is_in_use_is_not_given_back() -> None:
    allocator = Allocator(capacity=100 * MIB)
    allocator.free(allocator.malloc(60 * MIB))
    allocator.malloc(10 * MIB)  # the first 10 MiB of the segment of 60
    with pytest.raises(OutOfMemory) as failure:
        allocator.malloc(55 * MIB)  # 50 MiB are free in the segment, 40 on the GPU; it asks for 56
    assert str(failure.value) == (
        "CUDA out of memory. Tried to allocate 56.00 MiB. GPU 0 has a total capacity of 100.00 MiB of which 40.00 MiB "
        "is free. Of the allocated memory 10.00 MiB is allocated by PyTorch, and 50.00 MiB is reserved by PyTorch but "
        "unallocated."
    )
    assert mib(allocator) == (10, 60)  # nothing is lost: the program may go on
    assert allocator.malloc(40 * MIB).size == 40 * MIB


def test_a_share_of_the_gpu_is_all_that_may_be_reserved() -> None:
    settings = AllocatorSettings.parse("per_process_memory_fraction:0.5")
    allocator = Allocator(capacity=95 * MIB, settings=settings, total=100 * MIB)
    allocator.malloc(40 * MIB)
    with pytest.raises(OutOfMemory):
        allocator.malloc(12 * MIB)  # 52 are more than 50, of 100


def test_garbage_collection_gives_back_what_has_been_free_for_longest() -> None:
    settings = AllocatorSettings.parse("garbage_collection_threshold:0.5,per_process_memory_fraction:0.99")
    allocator = Allocator(capacity=400 * MIB, settings=settings)
    old, young = allocator.malloc(150 * MIB), allocator.malloc(60 * MIB)
    allocator.free(old)
    for _ in range(10):
        allocator.free(allocator.malloc(2 * MIB, stream=1))
    allocator.free(young)
    # 230 reserved, threshold int(0.5 * 396) = 198: 32 have to go. Ages 11, 1 and 1: only that of 150 MiB is above the
    # average, and 80 + 170 stay without any retry.
    allocator.malloc(170 * MIB)
    assert mib(allocator) == (170, 250) and allocator.retries == 0


def test_without_a_share_the_garbage_collection_threshold_does_nothing() -> None:
    allocator = Allocator(capacity=400 * MIB, settings=AllocatorSettings.parse("garbage_collection_threshold:0.1"))
    allocator.free(allocator.malloc(150 * MIB))
    allocator.malloc(170 * MIB)
    assert mib(allocator) == (170, 320)


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_block_that_another_stream_uses_comes_back_when_that_stream_has_come_so_far() -> None:
    allocator = Allocator()
    block = allocator.malloc(30 * MIB)
    allocator.record_stream(block, 1)
    allocator.free(block)
    assert mib(allocator) == (0, 30)
    allocator.malloc(30 * MIB)  # the first is still in use by stream 1
    assert mib(allocator) == (30, 60)
    allocator.synchronize(1)
    allocator.malloc(30 * MIB)
    assert mib(allocator) == (60, 60)


def test_a_block_used_by_two_streams_waits_for_both() -> None:
    allocator = Allocator()
    block = allocator.malloc(30 * MIB)
    for stream in (0, 1, 2):  # its own does not count
        allocator.record_stream(block, stream)
    allocator.free(block)
    allocator.synchronize(1)
    allocator.malloc(30 * MIB)
    assert allocator.reserved == 60 * MIB
    allocator.synchronize(2)
    allocator.malloc(30 * MIB)
    assert allocator.reserved == 60 * MIB


def test_streams_that_came_to_a_point_let_go_of_what_was_freed_before_it() -> None:
    allocator = Allocator()
    early, late = allocator.malloc(30 * MIB), allocator.malloc(30 * MIB)
    for block in (early, late):
        allocator.record_stream(block, 1)
    allocator.free(early)
    there = allocator.progress()
    allocator.free(late)
    allocator.reach(there)
    again = allocator.malloc(30 * MIB)
    assert again.address == early.address and mib(allocator) == (30, 60)
    allocator.malloc(30 * MIB)  # the later one is still in use
    assert mib(allocator) == (60, 90)


def test_blocks_that_wait_for_a_stream_are_freed_before_out_of_memory() -> None:
    allocator = Allocator(capacity=50 * MIB)
    block = allocator.malloc(30 * MIB)
    allocator.record_stream(block, 1)
    allocator.free(block)
    allocator.malloc(40 * MIB)
    assert mib(allocator) == (40, 40) and allocator.retries == 1


# --- expandable segments ----------------------------------------------------------------------------------------------

EXPANDABLE = AllocatorSettings(expandable_segments=True)


def test_an_expandable_segment_grows_by_pages_of_20_mib() -> None:
    allocator = Allocator(settings=EXPANDABLE)
    allocator.malloc(30 * MIB)  # two pages
    assert sizes(allocator) == [[30, -10]]
    allocator.malloc(30 * MIB)  # 10 are there; 20 more are one page
    assert sizes(allocator) == [[30, 30]] and mib(allocator) == (60, 60)


def test_small_allocations_have_an_expandable_segment_of_2_mib_pages() -> None:
    allocator = Allocator(settings=EXPANDABLE)
    for _ in range(3):
        allocator.malloc(MIB)
    assert mib(allocator) == (3, 4)


def test_free_neighbors_of_an_expandable_segment_serve_any_size() -> None:
    """What takes two segments of 10 MiB, and a third of 20, otherwise."""
    allocator = Allocator(settings=EXPANDABLE)
    blocks = [allocator.malloc(10 * MIB) for _ in range(2)]
    for block in blocks:
        allocator.free(block)
    allocator.malloc(20 * MIB)
    assert mib(allocator) == (20, 20)


def test_blocks_of_an_expandable_segment_are_split_down_to_512_bytes() -> None:
    allocator = Allocator(settings=EXPANDABLE)
    allocator.malloc(20 * MIB - 512)
    assert sizes(allocator) == [[20 - 512 / MIB, -512 / MIB]]


def test_whole_pages_of_an_expandable_segment_are_given_back_from_its_middle() -> None:
    allocator = Allocator(capacity=100 * MIB, settings=EXPANDABLE)
    first, second, third = (allocator.malloc(30 * MIB) for _ in range(3))  # pages of 20: 30 | 30 | 30, 10 left
    assert mib(allocator) == (90, 100)
    allocator.free(second)  # bytes 30 to 60: the page from 40 to 60 is whole
    allocator.empty_cache()
    # And of 90 to 100 there is no whole page. 30, a rest of 10, nothing from 40 to 60, 30, a rest of 10.
    assert sizes(allocator) == [[30, -10, 30, -10]] and mib(allocator) == (60, 80)
    # 25 find the lowest room: 10 and 15 of the page that is mapped again.
    fourth = allocator.malloc(25 * MIB)
    assert fourth.address == first.address + 30 * MIB
    assert sizes(allocator) == [[30, 25, -5, 30, -10]] and mib(allocator) == (85, 100)
    for block in (first, third, fourth):
        allocator.free(block)
    allocator.empty_cache()
    assert sizes(allocator) == [] and mib(allocator) == (0, 0)


def test_an_expandable_segment_that_cannot_grow_gives_back_pages_of_others_first() -> None:
    allocator = Allocator(capacity=100 * MIB, settings=EXPANDABLE)
    allocator.free(allocator.malloc(60 * MIB, stream=1))
    allocator.malloc(80 * MIB)
    assert mib(allocator) == (80, 80) and allocator.retries == 1
    with pytest.raises(OutOfMemory):
        allocator.malloc(21 * MIB)


def test_a_block_that_can_grow_is_as_large_as_it_can_grow() -> None:
    """Best fit prefers a smaller block inside the segment to the one at its end."""
    allocator = Allocator(settings=EXPANDABLE)
    blocks = [allocator.malloc(20 * MIB) for _ in range(6)]
    allocator.free(blocks[1])
    allocator.free(blocks[2])  # 40 MiB inside
    allocator.free(blocks[5])  # 20 MiB at the end, which can grow
    taken = allocator.malloc(15 * MIB)
    assert taken.address == blocks[1].address


# --- what always holds ------------------------------------------------------------------------------------------------


def check(allocator: Allocator) -> None:
    """Blocks fill their segments without gaps, and add up to what the allocator says."""
    segments = list(allocator.segments())
    for blocks in segments:
        for before, after in pairwise(blocks):
            assert before.address + before.size == after.address and after.before is before
            assert not (before.is_available and after.is_available and before.mapped == after.mapped)
    blocks = [block for segment in segments for block in segment if block.mapped]
    assert sum(block.size for block in blocks) == allocator.reserved <= allocator.max_reserved
    assert sum(block.size for block in blocks if block.allocated) == allocator.allocated <= allocator.max_allocated
    assert allocator.allocated <= allocator.reserved
    assert allocator.capacity is None or allocator.max_reserved <= allocator.capacity


def play(allocator: Allocator, seed: int, steps: int = 300) -> list[Block]:
    """Random allocations of three streams and sizes of all kinds; returns what is alive."""
    chance = random.Random(seed)
    live: list[Block] = []
    for step in range(steps):
        if live and chance.random() < 0.45:
            block = live.pop(chance.randrange(len(live)))
            if chance.random() < 0.2:
                allocator.record_stream(block, chance.randrange(3))
            allocator.free(block)
        elif chance.random() < 0.1:
            allocator.synchronize(chance.randrange(3))
        else:
            nbytes = int(2 ** chance.uniform(0, 26))
            try:
                live.append(allocator.malloc(nbytes, chance.randrange(3)))
            except OutOfMemory:
                assert allocator.capacity is not None
        if step % 25 == 0:
            check(allocator)
    return live


@pytest.mark.parametrize("settings", ["", "expandable_segments:True", "max_split_size_mb:20"])
@pytest.mark.parametrize("capacity", [None, 600 * MIB])
@pytest.mark.parametrize("seed", range(15))
def test_random_programs_keep_the_books(settings: str, capacity: int | None, seed: int) -> None:
    allocator = Allocator(capacity, AllocatorSettings.parse(settings))
    live = play(allocator, seed)
    check(allocator)
    for block in live:
        allocator.free(block)
    allocator.empty_cache()
    assert allocator.allocated == allocator.reserved == 0 and list(allocator.segments()) == []


@pytest.mark.parametrize("seed", range(15))
def test_a_capacity_that_is_never_reached_changes_nothing(seed: int) -> None:
    free, limited = Allocator(), None
    play(free, seed)
    limited = Allocator(free.max_reserved)
    play(limited, seed)
    assert (limited.max_reserved, limited.retries) == (free.max_reserved, 0)
    assert sizes(limited) == sizes(free)


@pytest.mark.parametrize("seed", range(15))
def test_a_program_fits_where_it_fits_whatever_was_free_before(seed: int) -> None:
    """Giving everything back first leaves as much as a new allocator has."""
    used, fresh = Allocator(600 * MIB), Allocator(600 * MIB)
    for block in play(used, seed + 100):
        used.free(block)
    used.empty_cache()
    play(used, seed)
    play(fresh, seed)
    assert sizes(used) == sizes(fresh)


@pytest.mark.parametrize("seed", range(15))
def test_large_blocks_of_one_stream_waste_less_than_a_page_in_an_expandable_segment(seed: int) -> None:
    """While nothing is freed, an expandable segment reserves what is allocated, up to its page; native ones more."""
    chance = random.Random(seed)
    expandable, native = Allocator(settings=EXPANDABLE), Allocator()
    for _ in range(100):
        nbytes = int(2 ** chance.uniform(20.1, 26))
        expandable.malloc(nbytes)
        native.malloc(nbytes)
    assert expandable.reserved < expandable.allocated + 20 * MIB
    assert expandable.reserved <= native.reserved + 20 * MIB


def test_a_block_cannot_be_freed_twice() -> None:
    allocator = Allocator()
    block = allocator.malloc(MIB)
    allocator.free(block)
    with pytest.raises(ValueError, match="not allocated"):
        allocator.free(block)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_are_read_as_pytorch_writes_them() -> None:
    text = " max_split_size_mb : 30 , expandable_segments:True,per_process_memory_fraction:1.0, backend:native"
    found = AllocatorSettings.parse(text + ",pinned_use_background_threads:True,large_segment_size_mb:40")
    assert found == AllocatorSettings(expandable_segments=True, max_split_size=30 * MIB, large_segment_size=40 * MIB)
    assert AllocatorSettings.parse("") == AllocatorSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expandable_segments:true", "expandable_segments: must be True or False, got 'true'"),
        ("max_split_size_mb:10", "max_split_size_mb: must be a whole number of MiB, at least 20, got '10'"),
        ("large_segment_size_mb:10", "large_segment_size_mb: must be a whole number of MiB, at least 11, got '10'"),
        ("garbage_collection_threshold:1", r"garbage_collection_threshold: must be a number in \(0, 1\), got '1'"),
        ("per_process_memory_fraction:0", r"per_process_memory_fraction: must be a number in \(0, 1\], got '0'"),
        ("backend:cudaMallocAsync", "backend: only PyTorch's native allocator can be replayed"),
        ("roundup_power2_divisions:[256:3]", "roundup_power2_divisions: must be a power of two, got '3'"),
        ("roundup_power2_divisions:[256]", "roundup_power2_divisions: must be a power of two or a list"),
        ("expandable_segment:True", "unknown key 'expandable_segment'; did you mean 'expandable_segments'"),
        ("expandable_segments", "must be key:value pairs separated by commas, got 'expandable_segments'"),
    ],
)
def test_bad_settings_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AllocatorSettings.parse(text)


@pytest.mark.torch
@pytest.mark.parametrize(
    "text",
    [
        "max_split_size_mb:19", "max_split_size_mb:20", "expandable_segments:yes", "expandable_segments:True",
        "garbage_collection_threshold:0.5", "garbage_collection_threshold:1.0", "garbage_collection_threshold:0",
        "roundup_power2_divisions:[256:4,>:8]", "roundup_power2_divisions:[256:3]", "roundup_power2_divisions:4",
        "roundup_power2_divisions:[3:4]", "large_segment_size_mb:10", "large_segment_size_mb:11",
        "max_non_split_rounding_mb:19", "max_non_split_rounding_mb:20", "max_split_size_mb:x",
        "large_segment_size_mb:12,max_split_size_mb:15",
        "max_split_size_mb : 30 ,expandable_segments:True",
    ],
)  # fmt: skip
def test_pytorch_takes_and_refuses_the_same_settings(text: str) -> None:
    torch = pytest.importorskip("torch")

    def takes(parse: object) -> bool:
        try:
            parse(text)  # type: ignore[operator]
        except (ValueError, RuntimeError):
            return False
        return True

    try:
        assert takes(torch._C._accelerator_setAllocatorSettings) == takes(AllocatorSettings.parse)
    finally:
        torch._C._accelerator_setAllocatorSettings("large_segment_size_mb:20")
