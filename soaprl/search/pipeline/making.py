"""Makes all pipelines of a problem, with estimates of what they take."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from soaprl.cluster.cluster import Cluster
from soaprl.cluster.tables import ClusterTables, cluster_tables
from soaprl.cost.transfers import all_reduce_time
from soaprl.errors import GraphError
from soaprl.graph.micro_batch import micro_batch
from soaprl.graph.operators import OperatorGraph
from soaprl.search.pipeline.balance import Cuts, StageCosts, balanced
from soaprl.search.pipeline.costs import OperatorCosts
from soaprl.simulator.problem import Problem
from soaprl.strategy.experts_megatron import TensorParallelism
from soaprl.strategy.placing import Inapplicable, by_sample
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import OpConfig, Strategy

IntArray = NDArray[np.int64]

# Largest number of micro-batches for each stage; beyond, the bubble is below 1/17.
_MOST_PER_STAGE = 16
# What share of a stage's time its backward pass is, in which gradients can be synchronized.
_BACKWARD_SHARE = 2 / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A pipeline, and what it is expected to take.

    Attributes:
        strategy: With schedule 1F1B.
        num_stages: p.
        tensor_degree: t.
        estimated_s: m + p - 1 times the slowest stage, and what synchronization and update add.
        fits: Whether it is expected to fit in memory.
    """

    strategy: Strategy
    num_stages: int
    tensor_degree: int
    estimated_s: float
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """How many stages and micro-batches, what is inside of a stage, and where.

    Attributes:
        num_micro_batches: m.
        tensor_degree: t.
        inside: Configurations on devices 0 to n / p - 1.
        devices: Shape [p, n / p]; the device for each of these in each stage.
    """

    num_micro_batches: int
    tensor_degree: int
    inside: tuple[OpConfig, ...]
    devices: IntArray


def pipelines(problem: Problem, num_micro_batches: int | None = None) -> tuple[Pipeline, ...]:
    """All pipelines, in the order of `best_first`.

    One stage is among them: gradient accumulation.

    Args:
        problem: The problem.
        num_micro_batches: Only those with so many; None: with any of about a factor of two from one to the
            next.

    Raises:
        GraphError: Samples depend on each other, so that the batch cannot be cut.
    """
    return best_first(estimated_pipelines(problem, num_micro_batches))


def best_first(found: Iterable[Pipeline]) -> tuple[Pipeline, ...]:
    """Those expected to fit by their estimated time, then the others."""
    return tuple(sorted(found, key=lambda pipeline: (not pipeline.fits, pipeline.estimated_s)))


def estimated_pipelines(problem: Problem, num_micro_batches: int | None = None) -> Iterator[Pipeline]:
    """What `pipelines` puts in order, one by one: a large model on many devices takes a while."""
    graph, refusal, any_found = problem.graph, None, False
    tables = cluster_tables(problem.cluster, paper=problem.options.paper)
    counts = _micro_batch_counts(graph, problem.cluster.num_devices)
    for number in counts if num_micro_batches is None else [num_micro_batches]:
        try:
            part = micro_batch(graph, number)
        except GraphError as error:
            refusal = error
            continue
        costs = OperatorCosts(problem, part)
        for shape in _shapes(problem.cluster, part, number):
            any_found = True
            yield _pipeline(problem, tables, costs, shape)
    if refusal is not None and not any_found:
        raise refusal


def _micro_batch_counts(graph: OperatorGraph, num_devices: int) -> list[int]:
    """Divisors of the batch, about a factor of two from one to the next."""
    most = min(graph.batch_size, _MOST_PER_STAGE * num_devices)
    counts: list[int] = []
    for number in range(2, most + 1):
        if graph.batch_size % number == 0 and (not counts or number >= 1.9 * counts[-1]):
            counts.append(number)
    return counts


def _shapes(cluster: Cluster, part: OperatorGraph, number: int) -> Iterator[_Shape]:
    n, tensors = cluster.num_devices, TensorParallelism.of(part)
    for num_stages in range(1, min(n, len(part.operators)) + 1):
        if n % num_stages or number > _MOST_PER_STAGE * num_stages:
            continue
        width = n // num_stages
        for tensor in _degrees(tensors, width):
            inside = _inside(tensors, width, tensor)
            for devices in _placements(cluster, num_stages, tensor):
                yield _Shape(num_micro_batches=number, tensor_degree=tensor, inside=inside, devices=devices)


def _degrees(tensors: TensorParallelism, width: int) -> tuple[int, ...]:
    """The tensor degrees that leave a sample for each replica; 1 is for every model."""
    found = tensors.degrees(width)
    degrees = () if isinstance(found, Inapplicable) else found
    by_samples = (1,) if tensors.graph.batch_size >= width else ()
    return tuple(sorted({*degrees, *by_samples}))


def _inside(tensors: TensorParallelism, width: int, tensor: int) -> tuple[OpConfig, ...]:
    """Configurations on devices 0 to `width` - 1."""
    if tensor > 1:
        return tensors.strategy(width, tensor).configs
    return tuple(by_sample(operator, range(width)) for operator in tensors.graph.operators)


def _placements(cluster: Cluster, num_stages: int, tensor: int) -> list[IntArray]:
    """Device tables: stages on consecutive devices; on several nodes also replicas on consecutive devices.

    The first synchronizes gradients inside of nodes and sends activations across them, the second the other
    way round.
    """
    n = cluster.num_devices
    consecutive = np.arange(n, dtype=np.int64).reshape(num_stages, -1)
    num_replicas = n // num_stages // tensor
    if cluster.num_nodes == 1 or num_stages == 1 or num_replicas == 1:
        return [consecutive]
    apart = np.arange(n, dtype=np.int64).reshape(num_replicas, num_stages, tensor)
    return [consecutive, apart.transpose(1, 0, 2).reshape(num_stages, -1)]


def _pipeline(problem: Problem, tables: ClusterTables, costs: OperatorCosts, shape: _Shape) -> Pipeline:
    cuts = balanced(_stage_costs(problem, costs, shape))
    places = [row.tolist() for row in shape.devices]
    configs = tuple(
        OpConfig(config.degrees, tuple(places[stage][device] for device in config.devices))
        for stage, config in zip(cuts.stages, shape.inside, strict=True)
    )
    num_stages, number = len(places), shape.num_micro_batches
    return Pipeline(
        strategy=Strategy(configs, micro_batches=number, schedule=Schedule.ONE_F_ONE_B, stages=cuts.stages),
        num_stages=num_stages,
        tensor_degree=shape.tensor_degree,
        estimated_s=(number + num_stages - 1) * cuts.slowest_s
        + _after_s(problem, tables, costs, shape, cuts),
        fits=cuts.fits,
    )


def _stage_costs(problem: Problem, costs: OperatorCosts, shape: _Shape) -> StageCosts:
    cluster, (num_stages, width) = problem.cluster, shape.devices.shape
    types = [sorted({cluster.devices[d].type for d in row}) for row in shape.devices.tolist()]
    by_type = costs.times_s(shape.inside)
    # What is received in a forward pass, and as much in the backward pass.
    moved = 2 * costs.moves.received_bytes(shape.inside, width)
    seconds_per_byte = np.array([_from_others(cluster, row) for row in shape.devices.tolist()])
    receive_s = np.zeros(len(shape.inside) + 1)
    if num_stages > 1:
        # A stage's devices each receive their share, and send back a gradient of the same size.
        first = shape.devices[:, 0].tolist()
        narrowest = min(_bandwidth(cluster, a, b) for a, b in pairwise(first))
        receive_s[1:] = 2 * costs.crossing_bytes[1:] / (width * narrowest)
    return StageCosts(
        time_s=np.stack([by_type[kinds].max(axis=0) for kinds in types]) + seconds_per_byte @ moved.T,
        receive_s=receive_s,
        held_bytes=costs.held_bytes(shape.inside),
        kept_bytes=costs.kept_bytes(shape.inside),
        in_flight=np.array([min(num_stages - s, shape.num_micro_batches) for s in range(num_stages)], float),
        capacity_bytes=np.array(
            [min(cluster.device_types[kind].memory_bytes for kind in kinds) for kinds in types], float
        ),
    )


def _after_s(
    problem: Problem, tables: ClusterTables, costs: OperatorCosts, shape: _Shape, cuts: Cuts
) -> float:
    """What sums of gradients inside of the stages, beyond the last backward pass, and updates add."""
    cluster, (num_stages, width) = problem.cluster, shape.devices.shape
    num_replicas = width // shape.tensor_degree
    trained = np.bincount(cuts.stages, costs.trained_bytes(shape.inside), num_stages)
    longest_s = 0.0
    for stage, row in enumerate(shape.devices.tolist()):
        kind = cluster.device_types[cluster.devices[row[0]].type]
        taken_s = problem.cost.update_time(int(trained[stage]), kind)
        if num_replicas > 1:
            replicas = row[:: shape.tensor_degree]
            reduce_s = all_reduce_time(tables, replicas, float(trained[stage])).time_s
            taken_s += max(0.0, reduce_s - _BACKWARD_SHARE * cuts.slowest_s)
        longest_s = max(longest_s, taken_s)
    return longest_s


def _from_others(cluster: Cluster, row: list[int]) -> list[float]:
    """Seconds to send a byte from each device of a stage to its first."""
    return [0.0 if device == row[0] else 1 / _bandwidth(cluster, device, row[0]) for device in row]


def _bandwidth(cluster: Cluster, source: int, target: int) -> float:
    return min(cluster.links[link].bandwidth_bytes_per_s for link in cluster.routes[source][target])
