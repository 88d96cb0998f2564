"""Processes that work side by side: spawned, one thread each, deaf to interrupts, gone with their parent.

Everything a process has come to remember of problems (patterns, times of tasks) is let go with it, so tasks
are handed out in *shifts* of a few for each process, and every shift has fresh ones. (An executor that
replaces processes by itself, `max_tasks_per_child`, stops for good in Python 3.11 when tasks are waiting.)
"""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import TypeVar

import torch

from soaprl.errors import PolicyError

Task = TypeVar("Task")


@contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """An executor of `count` processes; on the way out it waits for what they are doing, and begins no more.

    Args:
        count: How many.

    Raises:
        PolicyError: One of them came to an end by itself.
    """
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_begin)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise PolicyError(
            "expected processes to work until they are done, but one was ended, perhaps for want of memory."
            " Run the same command again, with fewer --workers; what is done is kept."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def shifts(tasks: Sequence[Task], size: int) -> Iterator[Sequence[Task]]:
    """`tasks` in their order, `size` at a time.

    Args:
        tasks: All of them.
        size: How many at most in a shift.
    """
    for first in range(0, len(tasks), size):
        yield tasks[first : first + size]


def _begin() -> None:
    # The process that asked for the work decides what an interrupt means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that asked for the work is gone.

    A parent that is killed cannot say so. The pipe that brings tasks is held open by those who read it, too:
    a process would wait for the next task for good, with all the memory that it has.
    """
    parent = parent_process()
    assert parent is not None, "a spawned process has a parent"
    parent.join()
    os._exit(1)
