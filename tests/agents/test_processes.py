"""Processes that work side by side."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from soaprl_agents.processes import processes, shifts

from soaprl.errors import PolicyError

# A process of its own that has two others at work, tells their numbers, and waits.
_PARENT = """
import os, sys, time
from soaprl_agents.processes import processes

if __name__ == "__main__":
    with processes(2) as pool:
        working = [pool.submit(time.sleep, 0.5) for _ in range(4)]
        for future in working:
            future.result()
        print(*pool._processes, flush=True)
        time.sleep(3600)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes of others, as only Linux can")
def test_when_the_parent_is_killed_its_processes_end(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    working = [os.pidfd_open(int(number)) for number in parent.stdout.readline().split()]
    assert len(working) == 2
    assert not select.select(working, [], [], 0)[0]
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    while working:  # Without an end if they do not end: tests have no time limits of their own.
        for ended in select.select(working, [], [])[0]:
            working.remove(ended)
            os.close(ended)


def test_a_process_that_ends_by_itself_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(PolicyError, match="fewer --workers"), processes(1) as pool:
        pool.submit(os._exit, 1).result()


def test_shifts_keep_the_order() -> None:
    assert list(shifts(range(5), 2)) == [range(2), range(2, 4), range(4, 5)]
