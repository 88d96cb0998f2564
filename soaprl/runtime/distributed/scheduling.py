"""Keeps gloo's threads from taking the processor of who they wait for.

A thread of gloo reads what other ranks send. It skips a connection while another thread holds its lock, as
the computing thread does while it hands a message over, and tries again at once. If the arrival of data wakes
it on the processor of that very thread, it turns idly until the scheduler takes the processor away from it,
milliseconds later: whenever all ranks compute and then send at the same time. Linux' batch policy, whose
threads do not interrupt others when they wake up, ends that; they run when the computing thread waits.
"""

import os
from contextlib import suppress
from pathlib import Path

_THREADS = Path("/proc/self/task")
_NAME = "gloo_tcp_loop"


def let_gloo_wait() -> None:
    """Gives the threads that gloo has by now the batch policy; elsewhere than on Linux nothing happens."""
    if not hasattr(os, "SCHED_BATCH") or not _THREADS.is_dir():
        return
    for thread in _THREADS.iterdir():
        # Threads end, and a system may forbid it: then it is only slower.
        with suppress(OSError):
            if (thread / "comm").read_text(encoding="utf-8").strip() == _NAME:
                os.sched_setscheduler(int(thread.name), os.SCHED_BATCH, os.sched_param(0))
