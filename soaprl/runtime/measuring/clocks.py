"""Clocks: what a stretch of work takes on a device.

With one thread on a CPU it is the time that the thread ran, so that other processes which take the processor
away do not count. With several threads it is the time that passed. On a GPU it is the time between two
events, which the device itself records.
"""

import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Protocol, TypeAlias

import torch

# Lets what came before be done, and says when that was; the difference of two, in seconds, is `elapsed`.
Mark: TypeAlias = object


class Clock(Protocol):
    """Marks moments, and tells the time between two of them once all work is done."""

    def mark(self) -> Mark:
        """This moment in the device's work."""
        ...

    def elapsed_s(self, start: Mark, end: Mark) -> float:
        """Seconds between two marks."""
        ...

    def settle(self) -> None:
        """Waits until the device has done everything."""
        ...

    def flush(self) -> None:
        """Makes the device's cache forget what was used last."""
        ...


class ProcessorClock:
    """The clock of a CPU.

    Args:
        threads: Of the process.
        cache_bytes: As much memory as the caches have.
    """

    def __init__(self, threads: int, cache_bytes: int) -> None:
        self._now: Callable[[], float] = time.thread_time if threads == 1 else time.perf_counter
        self._filler = torch.zeros(cache_bytes // 4)

    def mark(self) -> Mark:
        """Now."""
        return self._now()

    def elapsed_s(self, start: Mark, end: Mark) -> float:
        """Seconds between two marks."""
        assert isinstance(start, float) and isinstance(end, float)  # noqa: PT018
        return end - start

    def settle(self) -> None:
        """Nothing: work is done when its call returns."""

    def flush(self) -> None:
        """Writes as much as the caches hold."""
        self._filler.add_(1.0)


class GpuClock:
    """The clock of the current GPU; the cache is as large as the driver says."""

    def __init__(self) -> None:
        cache_bytes = int(torch.cuda.get_device_properties().L2_cache_size)
        self._filler = torch.zeros(2 * max(cache_bytes, 2**20), dtype=torch.uint8, device="cuda")

    def mark(self) -> Mark:
        """An event after all work so far."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def elapsed_s(self, start: Mark, end: Mark) -> float:
        """Seconds between two events, once they have come."""
        assert isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event)  # noqa: PT018
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def settle(self) -> None:
        """Waits for the device."""
        torch.cuda.synchronize()

    def flush(self) -> None:
        """Overwrites twice the size of the cache."""
        self._filler.zero_()


def spread_of(samples: list[float]) -> float:
    """Half the interquartile range over the median; 0 for fewer than 4 samples."""
    middle = median(samples)
    if len(samples) < 4 or middle <= 0:
        return 0.0
    low, _, high = quantiles(samples, n=4)
    return (high - low) / 2 / middle
