"""How much memory a call takes at its peak."""

import tracemalloc

from fastbptt._kernels import memory

KEPT_BLOCKS = 32  # as in memory.pyx


def peak_of(call):
    """What ``call()`` returns, and the bytes that Python and the kernels had at the most meanwhile, beyond what they had before."""
    blocks = [memory.Block(1) for _ in range(KEPT_BLOCKS)]  # in place of those that are kept, which would not count
    del blocks
    tracemalloc.start()
    try:
        result = call()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
