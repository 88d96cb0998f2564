"""Keeps memory that tensors give up, so that the next iteration need not fetch it from the system again.

glibc gives memory back to the system when the end of its heap is free, and always that of large allocations.
Every iteration then touches thousands of new pages, each of which the system has to find and clear first; how
many depends on what happens to lie at the end of the heap. On one of two processors that took up to a tenth
of an iteration's time, in some runs of a strategy and not in others.
"""

import ctypes

# mallopt(3): no memory at the end of the heap is given back, and allocations up to the largest size that
# glibc accepts here are from the heap.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST_BYTES = -1, 32 * 2**20


def keep_freed_memory() -> bool:
    """Tells this process' allocator to keep memory; whether it does: only glibc is known."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES))
