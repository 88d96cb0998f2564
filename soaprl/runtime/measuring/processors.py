"""What a hypervisor does to measurements, and how to keep it from doing so.

On a virtual machine a processor that has nothing to do is given to other guests, and comes back late: an
exchange between two processes that waits for a wake-up then takes milliseconds instead of microseconds. The
system counts that as *stolen* time.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_STATISTICS = Path("/proc/stat")
# Of the line that begins with `cpu`: user, nice, system, idle, iowait, irq, softirq, steal (man 5 proc).
_STEAL = 8
# It leaves the processor at once when anything else wants it, and ends with the process that started it.
_SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == int(sys.argv[2]):
    for _ in range(1000000):
        pass
"""


def stolen_s(statistics: Path = _STATISTICS) -> float:
    """Seconds that the hypervisor took of all processors since the system started; 0 where nobody counts.

    Args:
        statistics: In the format of Linux' ``/proc/stat``.
    """
    if not statistics.exists():
        return 0.0
    total = statistics.read_text(encoding="ascii").partition("\n")[0].split()
    if len(total) <= _STEAL or total[0] != "cpu":
        return 0.0
    return int(total[_STEAL]) / os.sysconf("SC_CLK_TCK")


@contextmanager
def awake() -> Iterator[None]:
    """Keeps this process's processors from sleeping, by processes that run while nothing else does.

    They have Linux' idle scheduling policy. That holds among the processes of one session only where the
    system groups processes by session: what is measured must not start a session of its own. Elsewhere than
    on Linux nothing happens.
    """
    with ExitStack() as stack:
        for processor in sorted(os.sched_getaffinity(0)) if hasattr(os, "SCHED_IDLE") else ():
            words = [sys.executable, "-S", "-E", "-c", _SPIN, str(processor), str(os.getpid())]
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
            stack.enter_context(process)
            stack.callback(process.kill)
        yield
