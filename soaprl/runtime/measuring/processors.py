"""What measurements have to know of processors: who takes time of them, and who runs where.

On a virtual machine a processor that has nothing to do is given to other guests, and comes back late: an
exchange between two processes that waits for a wake-up then takes milliseconds instead of microseconds. The
system counts that as *stolen* time.
"""

import os
from pathlib import Path

_STATISTICS = Path("/proc/stat")
# Of the line that begins with `cpu`: user, nice, system, idle, iowait, irq, softirq, steal (man 5 proc).
_STEAL = 8


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


def bind(number: int, count: int) -> None:
    """Binds this process to a processor of its own, if there are enough of them.

    Processes that are moved between processors, or wait for the same one, are measured with that.

    Args:
        number: Of this process among those that are measured together.
        count: How many these are.
    """
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        if count <= len(allowed):
            os.sched_setaffinity(0, {allowed[number]})
