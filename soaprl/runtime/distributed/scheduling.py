"""Keeps gloo's threads from taking the processor of who they wait for, and gives it to them between tasks.

A thread of gloo reads what other ranks send. It skips a connection while another thread holds its lock, as
the computing thread does while it hands a message over, and tries again at once. If the arrival of data wakes
it on the processor of that very thread, it turns idly until the scheduler takes the processor away from it,
milliseconds later: whenever all ranks compute and then send at the same time. Linux' batch policy, whose
threads do not interrupt others when they wake up, ends that.

By itself it would make them wait until the computing thread waits, or its time slice ends: messages that do
not fit into a socket, and the further steps of sums, would come milliseconds later. So the computing thread
lets them run between two tasks (`serve_gloo`), when it holds no lock. It looks first whether one is ready to:
who gives a processor away for nothing loses a time slice to any other program that wants it.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

_THREADS = Path("/proc/self/task")
_NAME = "gloo_tcp_loop"
# What `wchan` says of a thread that sleeps nowhere: it runs, or would if it had a processor.
_READY = b"0"
# How often it is looked at each thread, in which it takes a hundredth of the time.
_EVERY_S = 250e-6


class _Threads:
    """Those of this process."""

    def __init__(self) -> None:
        self.files: list[int] = []
        self.next_s = 0.0


_threads = _Threads()


def let_gloo_wait() -> None:
    """Gives the threads that gloo has by now the batch policy; elsewhere than on Linux nothing happens."""
    if not hasattr(os, "SCHED_BATCH") or not _THREADS.is_dir():
        return
    for file in _threads.files:
        os.close(file)
    _threads.files = []
    for thread in _THREADS.iterdir():
        # Threads end, and a system may forbid it: then it is only slower.
        with suppress(OSError):
            if (thread / "comm").read_text(encoding="utf-8").strip() == _NAME:
                os.sched_setscheduler(int(thread.name), os.SCHED_BATCH, os.sched_param(0))
                _threads.files.append(os.open(thread / "wchan", os.O_RDONLY))


def serve_gloo() -> None:
    """Lets threads of gloo run if one is ready to; to be called between tasks, as often as one likes."""
    now_s = time.perf_counter()
    if now_s < _threads.next_s:
        return
    _threads.next_s = now_s + _EVERY_S * len(_threads.files)
    for file in _threads.files:
        try:
            ready = os.pread(file, 2, 0) == _READY
        except OSError:
            # It has ended.
            continue
        if ready:
            os.sched_yield()
            return
