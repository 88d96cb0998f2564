"""Model parallelism: contiguous stages of operators, one stage a device, balanced by time."""

from itertools import pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

from soaprl.cluster.cluster import DeviceType
from soaprl.cost.model import CostModel, Shard
from soaprl.graph.operators import Access, Operator, OperatorGraph
from soaprl.simulator.problem import Problem
from soaprl.strategy.baselines import unsplit
from soaprl.strategy.strategy import Strategy


def model_parallel(problem: Problem) -> Strategy:
    """Operators in topological order, cut into one contiguous stage for each device; none is split.

    The cuts make the largest sum of forward and backward times of a stage as small as possible (transfers are
    not considered); implemented in `balanced_cuts`.
    """
    times = _stage_times(problem)
    cuts = balanced_cuts(times)
    configs = []
    for device, (first, last) in enumerate(pairwise(cuts)):
        configs += [unsplit(operator, device) for operator in problem.graph.operators[first:last]]
    return Strategy(tuple(configs))


def balanced_cuts(times: NDArray[np.float64]) -> list[int]:
    """Cuts of a sequence into stages such that the largest stage time is least.

    With T[d, i] the time of the first i items on device d, the least largest time of the first i items on the
    first d devices is B[d, i] = min over s <= i of max(B[d-1, s], T[d-1, i] - T[d-1, s]).

    Args:
        times: Time of each item on each device, shape (devices, items).

    Returns:
        devices + 1 positions from 0 to the number of items; stage d holds the items from cut d to cut d + 1.
    """
    num_devices, num_items = times.shape
    ends = np.concatenate((np.zeros((num_devices, 1)), np.cumsum(times, axis=1)), axis=1)
    best = np.full(num_items + 1, np.inf)
    best[0] = 0.0
    origin = np.zeros((num_devices, num_items + 1), dtype=np.int64)
    for device in range(num_devices):
        grown = np.empty(num_items + 1)
        for stop in range(num_items + 1):
            largest = np.maximum(best[: stop + 1], ends[device, stop] - ends[device, : stop + 1])
            origin[device, stop] = np.argmin(largest)
            grown[stop] = largest[origin[device, stop]]
        best = grown
    cuts = [num_items]
    for device in reversed(range(num_devices)):
        cuts.append(int(origin[device, cuts[-1]]))
    return cuts[::-1]


def _stage_times(problem: Problem) -> NDArray[np.float64]:
    """Forward plus backward seconds of each whole operator on each device, shape (devices, operators)."""
    cluster = problem.cluster
    by_type = np.array(
        [
            [_whole_time(problem.graph, operator, problem.cost, kind) for operator in problem.graph.operators]
            for kind in cluster.device_types
        ]
    )
    return by_type[[device.type for device in cluster.devices]]


def _whole_time(graph: OperatorGraph, operator: Operator, cost: CostModel, kind: DeviceType) -> float:
    """Forward plus backward seconds of `operator` as one task."""

    def sizes(accesses: tuple[Access, ...]) -> tuple[int, ...]:
        return tuple(_whole_bytes(graph, operator, access) for access in accesses)

    shard = Shard(
        extents=operator.extents,
        input_bytes=sizes(operator.inputs),
        parameter_bytes=sizes(operator.parameters),
        output_bytes=sizes(operator.outputs),
    )
    time = cost.task_time(graph, operator, shard, kind)
    return time.forward_s + time.backward_s


def _whole_bytes(graph: OperatorGraph, operator: Operator, access: Access) -> int:
    """Bytes that the whole operator touches through `access`."""
    intervals = [
        span.interval(0, operator.extents[span.factor] if span.factor >= 0 else 1) for span in access.spans
    ]
    return graph.tensors[access.tensor].itemsize * prod(max(0, stop - start) for start, stop in intervals)
