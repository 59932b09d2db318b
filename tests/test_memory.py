"""Recycled memory: blocks are as large as was asked, aligned, apart from each other, used again, and given back in the end."""

import gc
import mmap
import os

import numpy as np
import pytest
from tolerances import DTYPES

from fastbptt._kernels import memory

ALIGNMENT, PAGE, LARGE, KEPT_BYTES, KEPT_BLOCKS = 64, 4096, 1 << 22, 1 << 26, 32  # as in memory.pyx


def view(block):
    return np.frombuffer(block, np.uint8)


def address(block):
    return view(block).ctypes.data


def freed(*sizes):
    """The addresses of new blocks of these sizes, which are then free, the first one first."""
    blocks = [memory.Block(size) for size in sizes]
    addresses = [address(block) for block in blocks]
    while blocks:
        del blocks[0]
    return addresses


@pytest.fixture(autouse=True)
def nothing_kept():
    """Whatever was kept before is given back: as many blocks of one page as are kept at all take its place, and are too small below."""
    gc.collect()
    freed(*[1] * KEPT_BLOCKS)


def test_blocks_in_any_order_of_birth_and_death():
    """Each is filled with its own number, and still holds it when it is freed."""
    rng = np.random.default_rng(0)
    alive = []
    for number in range(3000):
        if len(alive) > 40 or (alive and rng.random() < 0.5):
            block, mark, size = alive.pop(rng.integers(len(alive)))
            assert (view(block) == mark).all() and view(block).size >= size
        else:
            size = int(2 ** rng.uniform(0, 18))
            block = memory.Block(size)
            assert address(block) % ALIGNMENT == 0
            view(block).fill(number % 251)
            alive.append((block, number % 251, size))


@pytest.mark.parametrize("size", [4033, 8128, 100_000, 1 << 20])
def test_a_block_is_used_again(size):
    (where,) = freed(size)
    again = memory.Block(size)
    assert address(again) == where
    assert address(memory.Block(size)) != where


def test_the_smallest_that_is_large_enough_and_less_than_twice_as_large():
    large, small, fitting = freed(20 * PAGE - ALIGNMENT, 9 * PAGE - ALIGNMENT, 11 * PAGE - ALIGNMENT)
    block = memory.Block(10 * PAGE - ALIGNMENT)
    assert address(block) == fitting and view(block).size == 11 * PAGE - ALIGNMENT
    other = memory.Block(10 * PAGE - ALIGNMENT)
    assert address(other) not in (large, small)
    assert address(memory.Block(10 * PAGE - ALIGNMENT + 1)) == large


def test_no_more_than_so_many_are_kept_and_the_oldest_goes_first():
    sizes = [(40 + i) * PAGE - ALIGNMENT for i in range(KEPT_BLOCKS + 3)]
    addresses = freed(*sizes)
    again = [memory.Block(size) for size in sizes[::-1]][::-1]
    assert [address(block) == where for block, where in zip(again, addresses)][3:] == [True] * KEPT_BLOCKS
    assert sum(view(block).size > size for block, size in zip(again, sizes)) == 0


def test_no_more_than_so_many_bytes_are_kept():
    """A block larger than the limit is not kept, and the others stay; of two that do not fit together the younger is kept."""
    quarter, half = KEPT_BYTES // 4, KEPT_BYTES // 2
    (where,) = freed(quarter - ALIGNMENT)
    freed(KEPT_BYTES + 1)
    assert address(memory.Block(quarter - ALIGNMENT)) == where
    first, _, third = freed(half + PAGE, 10 * PAGE, half + 2 * PAGE)
    blocks = [memory.Block(half + 2 * PAGE), memory.Block(half + PAGE)]
    assert address(blocks[0]) == third
    assert view(blocks[1]).size < half + 2 * PAGE or address(blocks[1]) != first


def flags_of_mapping(where):
    """The system's flags of the mapping that this address is in; "hg" is for huge pages."""
    with open("/proc/self/smaps") as lines:
        for line in lines:
            word, _, rest = line.partition(" ")
            if "-" in word:
                start, end = (int(address, 16) for address in word.split("-"))
            elif word == "VmFlags:" and start <= where < end:
                return rest.split()
    raise AssertionError(f"no mapping at {where:#x}")


def notes_advice():
    """Whether the system takes note of who asks for huge pages, which qemu does not pass on."""
    if not os.path.exists("/sys/kernel/mm/transparent_hugepage"):
        return False
    with mmap.mmap(-1, LARGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
        own.madvise(mmap.MADV_HUGEPAGE)
        return "hg" in flags_of_mapping(np.frombuffer(own, np.uint8).ctypes.data)


@pytest.mark.parametrize("size", [LARGE, 10 * LARGE, KEPT_BYTES + 12345])
def test_large_blocks_ask_for_huge_pages(size):
    """From end to end, up to a page; and blocks are still as large as was asked, as the last byte shows."""
    if not notes_advice():
        pytest.skip("a system without huge pages, or one that does not say who has asked for them")
    block = memory.Block(size)
    view(block)[-1] = 1
    for at in (PAGE, size // 2, size - PAGE):
        assert "hg" in flags_of_mapping(address(block) + at)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", [memory.empty, memory.zeros])
@pytest.mark.parametrize("shape", [(3, 4), (0, 5), (), (1 << 13,), (1 << 14,), (300, 100, 2)], ids=str)
def test_arrays(shape, make, dtype):
    large = np.prod(shape) * dtype.itemsize >= 1 << 16
    places = []
    for _ in range(2):
        array = make(shape, dtype)
        assert array.shape == shape and array.dtype == dtype and array.flags.c_contiguous and array.flags.writeable
        assert make is memory.empty or not array.any()
        array.fill(7)
        places.append(array.ctypes.data)
        assert isinstance(array.base, memory.Block) == large
        del array
    if large:
        assert places[0] == places[1]


def test_sizes_that_there_are_not():
    for size in (1 << 62, (1 << 62) + 1, (1 << 64) - 1):
        with pytest.raises(MemoryError):
            memory.Block(size)
    with pytest.raises((MemoryError, ValueError)):
        memory.empty((1 << 40, 1 << 40), DTYPES[0])
