"""Finds groups of devices that do the same under a strategy: its replicas.

R groups of B devices each are replicas if

- every operator has one factor along which its tasks change from group to group, in order and in parts of one
  size, and otherwise runs on the same places of each group (`_operator_replicas`);
- this factor leads from each operator to those that read from it, so that no activation crosses groups, and
  no parameter has it, so that every group holds all parameters (`_check_graph`);
- the groups have devices of the same types, on links of the same speed that no two groups share
  (`soaprl.simulator.folding.inside`).

Groups are consecutive devices, or equally spaced ones; small groups are tried first.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from soaprl.cluster.tables import IntArray
from soaprl.graph.operators import Access, Operator, OperatorGraph, TensorRole
from soaprl.strategy.strategy import OpConfig, Strategy
from soaprl.strategy.validation import check_config, check_strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a simulation cannot be folded: a sentence for people."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """Groups of devices with the same tasks.

    Attributes:
        devices: Shape [R, B]; the device in each place of each group.
        factors: For each operator the factor that is divided over the groups.
        places: For each operator the place of each task of one group, in the shape of its degrees there.
    """

    devices: IntArray
    factors: tuple[int, ...]
    places: tuple[IntArray, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grouping:
    """A way to divide the devices: the group of each and its place there, and the devices by both."""

    group: IntArray
    place: IntArray
    devices: IntArray


def find_replicas(graph: OperatorGraph, num_devices: int, strategy: Strategy) -> Iterator[Replicas | Refusal]:
    """Replicas of the strategy, the smallest groups first; last, why no other groups are replicas.

    Raises:
        StrategyError: The strategy does not fit the graph or the cluster.
    """
    grids = _grids(graph, num_devices, strategy)
    furthest, reason = -1, "no operator is split over all groups of devices"
    for grouping in _groupings(num_devices):
        found = _replicas(graph, strategy, grids, grouping)
        if isinstance(found, Replicas):
            yield found
        elif found[0] > furthest:
            furthest, reason = found
    yield Refusal(reason=reason)


def _grids(graph: OperatorGraph, num_devices: int, strategy: Strategy) -> list[IntArray]:
    """The device of each task by operator, in the shape of its degrees; equal configurations share them."""
    if len(strategy.configs) != len(graph.operators):
        check_strategy(graph, num_devices, strategy)
    known: dict[tuple[tuple[int, ...], int], IntArray] = {}
    grids = []
    for operator, config in zip(graph.operators, strategy.configs, strict=True):
        maxima = [factor.max_degree for factor in operator.factors]
        degrees_fit = len(maxima) == len(config.degrees) and all(
            1 <= degree <= most for degree, most in zip(config.degrees, maxima, strict=True)
        )
        if not degrees_fit:
            check_config(operator, config, num_devices)
        key = (config.degrees, id(config.devices))
        grid = known.get(key)
        if grid is None:
            flat = np.array(config.devices, np.int64)
            if len(flat) != config.num_tasks or flat.min() < 0 or flat.max() >= num_devices:
                check_config(operator, config, num_devices)
            grid = known[key] = flat.reshape(config.degrees)
        grids.append(grid)
    return grids


def _groupings(num_devices: int) -> Iterator[_Grouping]:
    """Ways to divide the devices into groups of one size, the smallest groups first."""
    devices = np.arange(num_devices)
    for size in range(1, num_devices // 2 + 1):
        if num_devices % size:
            continue
        count = num_devices // size
        yield _Grouping(group=devices // size, place=devices % size, devices=devices.reshape(count, size))
        if size > 1:
            yield _Grouping(
                group=devices % count, place=devices // count, devices=devices.reshape(size, count).T
            )


def _replicas(
    graph: OperatorGraph, strategy: Strategy, grids: list[IntArray], grouping: _Grouping
) -> Replicas | tuple[int, str]:
    """Replicas for these groups, or how many operators were fine, and what is wrong with the next."""
    known: dict[int, tuple[int, IntArray] | str] = {}
    factors, places = [], []
    for o, (operator, config, grid) in enumerate(zip(graph.operators, strategy.configs, grids, strict=True)):
        found = known.get(id(grid))
        if found is None:
            found = known[id(grid)] = _operator_replicas(grid, grouping)
        if isinstance(found, str):
            return o, f"operator {operator.name!r} {found}"
        factor = operator.factors[found[0]]
        if factor.extent % config.degrees[found[0]]:
            return o, (
                f"operator {operator.name!r} cuts the {factor.extent} indices of its factor {factor.name!r}"
                f" into {config.degrees[found[0]]} parts that are not all of one size"
            )
        factors.append(found[0])
        places.append(found[1])
    wrong = _check_graph(graph, factors)
    if wrong:
        return wrong
    return Replicas(devices=grouping.devices, factors=tuple(factors), places=tuple(places))


def _operator_replicas(grid: IntArray, grouping: _Grouping) -> tuple[int, IntArray] | str:
    """The factor that is divided over the groups and the places of one group's tasks, or what is wrong."""
    count = len(grouping.devices)
    group = grouping.group[grid]
    moving = [f for f in range(grid.ndim) if (group != group.take([0], f)).any()]
    if not moving:
        return "runs on one group of devices alone"
    if len(moving) > 1:
        return "changes from one group of devices to another along several factors"
    factor = moving[0]
    degree = grid.shape[factor]
    if degree % count:
        return f"has {degree} parts for {count} groups of {grouping.devices.shape[1]} devices"
    apart = (*grid.shape[:factor], count, degree // count, *grid.shape[factor + 1 :])
    by_group = np.moveaxis(group.reshape(apart), factor, 0)
    if (by_group != np.arange(count).reshape(-1, *(1,) * grid.ndim)).any():
        return f"is not divided over the {count} groups of {grouping.devices.shape[1]} devices in their order"
    places = np.moveaxis(grouping.place[grid].reshape(apart), factor, 0)
    if (places != places[0]).any():
        return f"does not run on the same places of all {count} groups of {grouping.devices.shape[1]} devices"
    return factor, places[0]


def _check_graph(graph: OperatorGraph, factors: list[int]) -> tuple[int, str] | None:
    """What crosses groups, if anything: how many operators were fine, and what is wrong with the next."""
    for o, (operator, factor) in enumerate(zip(graph.operators, factors, strict=True)):
        for access in (*operator.inputs, *operator.parameters, *operator.buffers, *operator.outputs):
            wrong = _check_access(graph, operator, factor, access)
            if wrong:
                return o, wrong
        for access in operator.outputs:
            written = _along(access, factor)
            for reader, position in graph.consumers[access.tensor]:
                read = _along(graph.operators[reader].inputs[position], factors[reader])
                if len(written) != 1 or read != written:
                    name = graph.operators[reader].name
                    return o, f"operator {name!r} reads from {operator.name!r} across groups of devices"
    return None


def _check_access(graph: OperatorGraph, operator: Operator, factor: int, access: Access) -> str | None:
    extent = operator.factors[factor].extent
    for span in access.spans:
        if span.factor != factor:
            continue
        name = operator.factors[factor].name
        if graph.tensors[access.tensor].role is TensorRole.PARAMETER:
            return f"operator {operator.name!r} divides a parameter over groups of devices, along {name!r}"
        if not span.plain or span.lower > 0 or span.upper < extent:
            return f"operator {operator.name!r} reads or writes a window or a slice along its factor {name!r}"
    return None


def _along(access: Access, factor: int) -> list[int]:
    """The dimensions of the tensor that the factor runs over."""
    return [dim for dim, span in enumerate(access.spans) if span.factor == factor]


def group_config(places: IntArray, factor: int, *, num_groups: int, size: int) -> OpConfig:
    """The configuration of an operator on the first `num_groups` groups of `size` devices, side by side.

    Args:
        places: The place of each task of one group, in the shape of its degrees there.
        factor: The factor that is divided over the groups.
        num_groups: How many groups there are.
        size: Devices of a group.
    """
    devices = np.concatenate([places + size * group for group in range(num_groups)], axis=factor)
    return OpConfig(devices.shape, tuple(devices.ravel().tolist()))
