"""What every test needs of the process it runs in."""

import signal


def pytest_configure() -> None:
    """Makes Ctrl-C an interrupt again.

    A shell starts background jobs with SIGINT ignored, and what they start inherits that: tests of
    interrupts would wait for something that never comes.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
