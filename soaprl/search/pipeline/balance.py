"""Cuts a sequence of operators into stages of about the same time that fit in memory."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCosts:
    """What a stage would take; n operators, p stages.

    Attributes:
        time_s: Forward and backward seconds of each operator for one micro-batch, shape [p, n].
        receive_s: Seconds to receive what crosses a cut before each operator, and its gradient, shape
            [n + 1]; 0 before the first operator.
        held_bytes: Parameters, gradients and optimizer state of each operator on a device, shape [n].
        kept_bytes: Activations of one micro-batch that a device keeps for each operator, shape [n].
        in_flight: Of how many micro-batches each stage keeps activations, shape [p].
        capacity_bytes: Memory of the devices of each stage, shape [p].
    """

    time_s: FloatArray
    receive_s: FloatArray
    held_bytes: FloatArray
    kept_bytes: FloatArray
    in_flight: FloatArray
    capacity_bytes: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """Stages.

    Attributes:
        stages: The stage of each operator.
        slowest_s: Time of the slowest stage for one micro-batch.
        fits: Whether all stages are expected to fit in memory.
    """

    stages: tuple[int, ...]
    slowest_s: float
    fits: bool


def balanced(costs: StageCosts) -> Cuts:
    """The stages whose slowest one is fastest, among those that fit in memory; among all if none do.

    With T[s, i, j] the time of operators i to j - 1 as stage s (to receive what crosses the cut at i
    included), infinite if they do not fit, the least slowest time of operators 0 to j - 1 in the first s + 1
    stages is B[s, j] = min over i < j of max(B[s - 1, i], T[s, i, j]); implemented in `_cuts`. No stage is
    empty.
    """
    found = _cuts(costs, limited=True)
    fits = found is not None
    cuts = found or _cuts(costs, limited=False)
    assert cuts is not None, "without a limit there are always stages"
    stages = tuple(s for s, (first, last) in enumerate(pairwise(cuts)) for _ in range(first, last))
    slowest_s = max(
        float(costs.receive_s[first] + costs.time_s[s, first:last].sum())
        for s, (first, last) in enumerate(pairwise(cuts))
    )
    return Cuts(stages=stages, slowest_s=slowest_s, fits=fits)


def _cuts(costs: StageCosts, *, limited: bool) -> list[int] | None:
    """Positions from 0 to the number of operators, or None if nothing fits."""
    num_stages, n = costs.time_s.shape
    held = np.concatenate(([0.0], np.cumsum(costs.held_bytes)))
    kept = np.concatenate(([0.0], np.cumsum(costs.kept_bytes)))
    best = np.full(n + 1, np.inf)
    best[0] = 0.0
    origin = np.zeros((num_stages, n + 1), np.int64)
    empty = np.tri(n + 1, dtype=np.bool_).T
    for stage in range(num_stages):
        # Rows are where the stage ends, columns where it begins.
        if stage == 0 or not np.array_equal(costs.time_s[stage], costs.time_s[stage - 1]):
            ends = np.concatenate(([0.0], np.cumsum(costs.time_s[stage])))
            taken_s = ends[:, None] - (ends - costs.receive_s)[None, :]
            taken_s[empty] = np.inf
        slowest = np.maximum(best[None, :], taken_s)
        if limited:
            load = held + costs.in_flight[stage] * kept
            slowest[load[:, None] - load[None, :] > costs.capacity_bytes[stage]] = np.inf
        origin[stage] = np.argmin(slowest, axis=1)
        best = slowest[np.arange(n + 1), origin[stage]]
    if not np.isfinite(best[n]):
        return None
    cuts = [n]
    for stage in reversed(range(num_stages)):
        cuts.append(int(origin[stage, cuts[-1]]))
    return cuts[::-1]
