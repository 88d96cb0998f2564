"""Exact arithmetic of simulated times.

Every duration in a simulation is a whole number of *ticks* of 2^-40 s (0.9 ps). Sums and differences of such
numbers are exact in double precision up to 2^13 s (8,192 s), in whatever order they are added. So times do
not depend on how they were computed: a part of a schedule that only starts later is the same part, shifted.
"""

import numpy as np

from soaprl.cluster.tables import FloatArray
from soaprl.cost.kernels import inner_kernel

TICKS_PER_S = 2.0**40
TICK_S = 2.0**-40


@inner_kernel
def in_ticks(time_s: float) -> float:
    """The whole number of ticks, in seconds, that is closest to `time_s`."""
    return np.rint(time_s * TICKS_PER_S) * TICK_S  # type: ignore[no-any-return]


def all_in_ticks(times_s: FloatArray) -> FloatArray:
    """`in_ticks` of every entry."""
    return np.asarray(np.rint(times_s * TICKS_PER_S) * TICK_S, np.float64)
