"""Interrupts at chosen moments, for tests of searches."""

import dis
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def interrupted_at(line: int, watched: tuple[str, ...]) -> Iterator[None]:
    """Raises KeyboardInterrupt before the so many-th line that runs in a watched file."""
    left = line

    def trace(frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        nonlocal left
        if not frame.f_code.co_filename.endswith(watched):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def interrupted_in_compiled_code(after_s: float, struck: list[bool]) -> Iterator[None]:
    """Sends SIGINT when the main thread is in the simulator's compiled code, not before `after_s`; notes it.

    Python hears of a signal when compiled code returns: what was done there is done, and its answer is lost.
    """
    main, over = threading.main_thread().ident, threading.Event()
    assert main == threading.get_ident(), "signals are handled in the main thread"

    def strike() -> None:
        time.sleep(after_s)
        while not over.is_set():
            if is_in_compiled_code(sys._current_frames()[main]):
                struck.append(True)
                signal.pthread_kill(main, signal.SIGINT)
                return
            time.sleep(0)

    striker = threading.Thread(target=strike)
    striker.start()
    try:
        yield
    finally:
        over.set()
        striker.join()


def is_in_compiled_code(frame: FrameType) -> bool:
    """Whether a thread is in the one call of `Engine._perform`, not before or after it."""
    code = frame.f_code
    return code.co_name == "_perform" and dis.opname[code.co_code[frame.f_lasti]].startswith("CALL")
