"""Pipeline parallelism, with data and tensor parallelism inside of its stages.

GPipe (Huang et al., arXiv 1811.06965), PipeDream-Flush or 1F1B (Narayanan et al., arXiv 2006.09503), and
their combination with Megatron's tensor parallelism (Narayanan et al., arXiv 2104.04473).

Of n devices, p stages have n / p consecutive devices each, inside of which operators run as in
`soaprl.strategy.experts_megatron` with a tensor degree t, or by sample alone (t = 1). All legal p, t and
numbers m of micro-batches are estimated: stages are contiguous in the order of the operators and balanced by
dynamic programming (`soaprl.search.pipeline.balance`), and an iteration takes m + p - 1 times the slowest
one. The best by this estimate are simulated with 1F1B, and the best of them with GPipe.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from soaprl.errors import GraphError, SearchError
from soaprl.graph.micro_batch import micro_batch
from soaprl.graph.operators import OperatorGraph
from soaprl.search.experts import refusal_prefix
from soaprl.search.pipeline.balance import Cuts, StageCosts, balanced
from soaprl.search.pipeline.costs import OperatorCosts
from soaprl.search.simple import best_of
from soaprl.search.task import SearchResult, SearchTask
from soaprl.simulator.problem import Problem
from soaprl.strategy.experts_megatron import tensor_degrees, tensor_parallel
from soaprl.strategy.placing import Inapplicable, by_sample
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import OpConfig, Sharding, Strategy

PIPELINE, ACCUMULATION = "pipeline", "accumulation"
# How many are simulated, best estimates first, and how many of them with GPipe, too.
_NUM_SIMULATED, _NUM_GPIPE = 12, 2
# Largest number of micro-batches for each stage; beyond, the bubble is below 1/17.
_MOST_PER_STAGE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A pipeline, and what it is expected to take.

    Attributes:
        strategy: With schedule 1F1B.
        num_stages: p.
        tensor_degree: t.
        estimated_s: m + p - 1 times the slowest stage.
        fits: Whether it is expected to fit in memory.
    """

    strategy: Strategy
    num_stages: int
    tensor_degree: int
    estimated_s: float
    fits: bool


def search_pipeline(task: SearchTask) -> SearchResult:
    """The best simulated pipeline of two stages or more; see the module.

    Raises:
        SearchError: There is one device, the batch cannot be cut into micro-batches, or state is to be
            sharded in a way that is not known for micro-batches.
    """
    if task.problem.cluster.num_devices < 2:
        raise SearchError(f"{refusal_prefix(PIPELINE)}there is one device, so nothing to put stages on.")
    strategies = _simulated(task, PIPELINE, [p for p in _legal(task, PIPELINE) if p.num_stages > 1])
    return best_of(task, PIPELINE, strategies)


def search_accumulation(task: SearchTask) -> SearchResult:
    """Data and tensor parallelism on all devices, with micro-batches one after the other.

    Raises:
        SearchError: As for `search_pipeline`.
    """
    found = [p for p in _legal(task, ACCUMULATION) if p.num_stages == 1]
    return best_of(task, ACCUMULATION, _simulated(task, ACCUMULATION, found))


def _legal(task: SearchTask, method: str) -> tuple[Pipeline, ...]:
    if task.sharding not in (Sharding.NONE, Sharding.ZERO1):
        raise SearchError(
            f"{refusal_prefix(method)}micro-batches are simulated with sharding 'none' or 'zero1', found"
            f" {task.sharding.value!r}."
        )
    try:
        return pipelines(task.problem)
    except GraphError as error:
        raise SearchError(f"{refusal_prefix(method)}{error}") from error


def _simulated(task: SearchTask, method: str, found: Sequence[Pipeline]) -> list[Strategy]:
    """The strategies to simulate, in this order."""
    if not found:
        graph = task.problem.graph
        raise SearchError(
            f"{refusal_prefix(method)}expected a batch that can be cut into micro-batches of a sample for"
            f" each replica, found one of {graph.batch_size} in {graph.name!r}."
        )
    chosen = [pipeline.strategy for pipeline in found[:_NUM_SIMULATED]]
    if found[0].num_stages > 1:
        chosen += [replace(strategy, schedule=Schedule.GPIPE) for strategy in chosen[:_NUM_GPIPE]]
    # Strategies with as many micro-batches have the same copies of operators, so they come one after another.
    groups = list(dict.fromkeys(strategy.micro_batches for strategy in chosen))
    chosen.sort(key=lambda strategy: groups.index(strategy.micro_batches))
    return [task.sharded(strategy) for strategy in chosen]


def pipelines(problem: Problem) -> tuple[Pipeline, ...]:
    """All pipelines, best first: those expected to fit by their estimated time, then the others.

    One stage is among them: gradient accumulation.

    Raises:
        GraphError: Samples depend on each other, so that the batch cannot be cut.
    """
    graph, found = problem.graph, []
    refusal: GraphError | None = None
    for number in _micro_batch_counts(graph, problem.cluster.num_devices):
        try:
            part = micro_batch(graph, number)
        except GraphError as error:
            refusal = error
            continue
        costs = OperatorCosts(problem, part)
        found += list(_with_micro_batches(problem, part, costs, number))
    if not found and refusal is not None:
        raise refusal
    return tuple(sorted(found, key=lambda pipeline: (not pipeline.fits, pipeline.estimated_s)))


def _micro_batch_counts(graph: OperatorGraph, num_devices: int) -> list[int]:
    """Divisors of the batch, about a factor of two from one to the next."""
    most = min(graph.batch_size, _MOST_PER_STAGE * num_devices)
    counts: list[int] = []
    for number in range(2, most + 1):
        if graph.batch_size % number == 0 and (not counts or number >= 1.9 * counts[-1]):
            counts.append(number)
    return counts


def _with_micro_batches(
    problem: Problem, part: OperatorGraph, costs: OperatorCosts, number: int
) -> Iterator[Pipeline]:
    n = problem.cluster.num_devices
    for num_stages in range(1, min(n, len(part.operators)) + 1):
        width = n // num_stages
        if n % num_stages or number > _MOST_PER_STAGE * num_stages or (num_stages > 1 and number < 2):
            continue
        for tensor in _degrees(part, width):
            inside = _inside(part, width, tensor)
            yield _pipeline(problem, costs, inside, num_stages, tensor, number)


def _degrees(part: OperatorGraph, width: int) -> tuple[int, ...]:
    """The tensor degrees that leave a sample for each replica; 1 is for every model."""
    found = tensor_degrees(part, width)
    degrees = () if isinstance(found, Inapplicable) else found
    by_samples = (1,) if part.batch_size >= width else ()
    return tuple(sorted({*degrees, *by_samples}))


def _inside(part: OperatorGraph, width: int, tensor: int) -> tuple[OpConfig, ...]:
    """Configurations on devices 0 to `width` - 1."""
    if tensor > 1:
        return tensor_parallel(part, width, tensor).configs
    return tuple(by_sample(operator, range(width)) for operator in part.operators)


def _pipeline(
    problem: Problem,
    costs: OperatorCosts,
    inside: tuple[OpConfig, ...],
    num_stages: int,
    tensor: int,
    number: int,
) -> Pipeline:
    cuts = balanced(_stage_costs(problem, costs, inside, num_stages, number))
    width = problem.cluster.num_devices // num_stages
    configs = tuple(
        OpConfig(config.degrees, tuple(stage * width + device for device in config.devices))
        for stage, config in zip(cuts.stages, inside, strict=True)
    )
    return Pipeline(
        strategy=Strategy(configs, micro_batches=number, schedule=Schedule.ONE_F_ONE_B, stages=cuts.stages),
        num_stages=num_stages,
        tensor_degree=tensor,
        estimated_s=_estimate(cuts, num_stages, number),
        fits=cuts.fits,
    )


def _estimate(cuts: Cuts, num_stages: int, number: int) -> float:
    return (number + num_stages - 1) * cuts.slowest_s


def _stage_costs(
    problem: Problem, costs: OperatorCosts, inside: tuple[OpConfig, ...], num_stages: int, number: int
) -> StageCosts:
    cluster = problem.cluster
    width = cluster.num_devices // num_stages
    members = [cluster.devices[s * width : (s + 1) * width] for s in range(num_stages)]
    by_type = costs.times_s(inside)
    receive_s = np.zeros(len(inside) + 1)
    if num_stages > 1:
        # A stage's devices each receive their share, and send back a gradient of the same size.
        links = [
            cluster.links[k] for s in range(1, num_stages) for k in cluster.routes[(s - 1) * width][s * width]
        ]
        narrowest = min(link.bandwidth_bytes_per_s for link in links)
        receive_s[1:] = 2 * costs.crossing_bytes[1:] / (width * narrowest)
    return StageCosts(
        time_s=np.stack([by_type[sorted({d.type for d in devices})].max(axis=0) for devices in members]),
        receive_s=receive_s,
        held_bytes=costs.held_bytes(inside),
        kept_bytes=costs.kept_bytes(inside),
        in_flight=np.array([min(num_stages - s, number) for s in range(num_stages)], np.float64),
        capacity_bytes=np.array(
            [min(cluster.device_types[d.type].memory_bytes for d in devices) for devices in members],
            np.float64,
        ),
    )
