import os
import subprocess
import sys
from pathlib import Path

import pytest

from soaprl.runtime.measuring.processors import stolen_s


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


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs processors that can be chosen")
@pytest.mark.parametrize("more", [0, 1])
def test_processes_have_a_processor_each_if_there_are_enough(more: int) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    program = (
        "import os, sys\n"
        "from soaprl.runtime.measuring.processors import bind\n"
        "bind(len(os.sched_getaffinity(0)) - 1, int(sys.argv[1]))\n"
        "print(*sorted(os.sched_getaffinity(0)))\n"
    )
    command = [sys.executable, "-c", program, str(len(allowed) + more)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [int(word) for word in done.stdout.split()] == (allowed if more else allowed[-1:])
