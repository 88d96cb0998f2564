import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from soaprl.runtime.measuring.processors import awake, stolen_s

_LINUX = hasattr(os, "SCHED_IDLE")


def test_stolen_time_is_that_of_all_processors(tmp_path: Path) -> None:
    path = tmp_path / "stat"
    ticks = os.sysconf("SC_CLK_TCK")
    path.write_text(f"cpu  5 0 7 9 0 0 1 {3 * ticks} 0 0\ncpu0 5 0 7 9 0 0 1 77 0 0\n")
    assert stolen_s(path) == 3.0


@pytest.mark.parametrize("text", ["", "cpu 1 2 3\n", "intr 1 2 3 4 5 6 7 8 9\n"])
def test_where_nobody_counts_nothing_is_stolen(tmp_path: Path, text: str) -> None:
    path = tmp_path / "stat"
    assert stolen_s(path) == 0.0
    path.write_text(text)
    assert stolen_s(path) == 0.0


def children() -> list[int]:
    listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in listed if b"SCHED_IDLE" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.skipif(not _LINUX, reason="needs Linux' idle scheduling policy")
def test_every_processor_is_kept_awake_by_what_yields_to_everything_else() -> None:
    with awake():
        found = children()
        assert len(found) == len(os.sched_getaffinity(0))
        while not all(os.sched_getscheduler(pid) == os.SCHED_IDLE for pid in found):
            time.sleep(0.01)
        pinned = sorted(processor for pid in found for processor in os.sched_getaffinity(pid))
        assert pinned == sorted(os.sched_getaffinity(0))
    assert not children()


@pytest.mark.skipif(not _LINUX, reason="needs Linux' idle scheduling policy")
def test_nothing_is_kept_awake_for_a_process_that_is_gone() -> None:
    program = (
        "import os, subprocess, sys\n"
        "from soaprl.runtime.measuring.processors import awake\n"
        "with awake():\n"
        "    print(os.getpid(), flush=True)\n"
        "    os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    while done.stdout.strip() in subprocess.run(
        ["ps", "-eo", "args="], capture_output=True, text=True, check=True
    ).stdout.replace("\n", " ").split(" "):
        time.sleep(0.05)
