"""Times between measured ones.

What is interpolated is the logarithm of measured time over roofline time: the roofline knows how work grows
with a shard, the measurements how far the machine is from it. With r(c) that ratio at the corners c of the
grid cell in which a shard's extents e lie, and weights that are linear in log e along each factor,

    time(e) = roofline(e) * exp(sum over corners of weight(c) * log r(c))

Implemented in `between`. Where corners are missing, all measured shards of the family count, those that are
closer more: weight 1 / distance^2 in log2 of the extents (Shepard 1968). Implemented in `around`.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from math import exp, log, log2, prod

from soaprl.cost.profiled.measurement import Extents

# The logarithms of the ratios of both passes.
LogRatios = tuple[float, float]


def log_ratio(measured_s: float, roofline_s: float) -> float:
    """The logarithm of a ratio; 0 where either is no time at all."""
    return log(measured_s / roofline_s) if measured_s > 0 and roofline_s > 0 else 0.0


def cell(corners: Sequence[tuple[int, ...]]) -> list[Extents]:
    """The corners of a cell of the grid, of which each factor has one or two sizes."""
    return [tuple(corner) for corner in product(*corners)]


def between(
    corners: Sequence[tuple[int, ...]], extents: Extents, ratios: Mapping[Extents, LogRatios]
) -> LogRatios:
    """The log ratios at `extents`, from those at all corners of its cell."""
    forward = backward = 0.0
    for corner in cell(corners):
        weight = prod(_weight(sizes, at, e) for sizes, at, e in zip(corners, corner, extents, strict=True))
        forward += weight * ratios[corner][0]
        backward += weight * ratios[corner][1]
    return forward, backward


def _weight(sizes: tuple[int, ...], corner: int, extent: int) -> float:
    if len(sizes) == 1:
        return 1.0
    share = log(extent / sizes[0]) / log(sizes[1] / sizes[0])
    return share if corner == sizes[1] else 1.0 - share


def around(extents: Extents, ratios: Mapping[Extents, LogRatios]) -> LogRatios:
    """The log ratios at `extents`, from all that there are; at least one."""
    forward = backward = total = 0.0
    for known, (known_forward, known_backward) in ratios.items():
        squared = sum(log2(a / b) ** 2 for a, b in zip(extents, known, strict=True))
        if squared == 0.0:
            return known_forward, known_backward
        forward += known_forward / squared
        backward += known_backward / squared
        total += 1.0 / squared
    return forward / total, backward / total


def inside(extents: Extents, known: Sequence[Extents]) -> bool:
    """Whether every extent is within those of the known shards."""
    return all(
        min(sizes) <= e <= max(sizes) for e, sizes in zip(extents, zip(*known, strict=True), strict=True)
    )


def scaled(roofline_s: float, ratio: float) -> float:
    """A time by its roofline and a log ratio."""
    return roofline_s * exp(ratio)


def update_time(sizes: Mapping[int, float], num_bytes: int) -> float:
    """The time of an update, linear in bytes between measured sizes, and by bytes alone above the largest.

    Below the smallest the smallest counts: what an update takes at least.
    """
    known = sorted(sizes)
    if num_bytes <= known[0]:
        return sizes[known[0]]
    if num_bytes >= known[-1]:
        return sizes[known[-1]] * num_bytes / known[-1]
    above = next(i for i, size in enumerate(known) if size >= num_bytes)
    low, high = known[above - 1], known[above]
    share = (num_bytes - low) / (high - low)
    return sizes[low] * (1 - share) + sizes[high] * share
