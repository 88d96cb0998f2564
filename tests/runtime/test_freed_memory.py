import subprocess
import sys

import pytest

# Three blocks of 16 MiB are more than glibc keeps at the end of the heap by itself.
_SCRIPT = """
import ctypes, resource, sys
from soaprl.runtime.freed_memory import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
kept, size = sys.argv[1] == "keep" and keep_freed_memory(), 2**24
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(size) for _ in range(3)]
    for block in blocks:
        libc.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults_of_the_last_round(what: str) -> tuple[bool, int]:
    found = subprocess.run([sys.executable, "-c", _SCRIPT, what], capture_output=True, text=True, check=True)
    kept, faults = found.stdout.split()
    return kept == "1", int(faults)


def test_memory_that_is_kept_is_not_fetched_again() -> None:
    kept, faults = _faults_of_the_last_round("keep")
    if not kept:
        pytest.skip("the allocator is not glibc's")
    # 12,288 pages are touched.
    assert faults < 100
    assert _faults_of_the_last_round("plain")[1] > 1000
