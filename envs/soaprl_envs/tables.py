"""What each candidate costs by itself, where its tasks are, and who is near whom.

All of it is kept by *family* (`soaprl_envs.families`) and candidate; what does not depend on devices is kept
by *variant* (`soaprl_envs.variants`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import ClusterTables, FloatArray, IntArray, cluster_tables
from soaprl.search.proposals import tied_groups
from soaprl.simulator.problem import Problem
from soaprl.simulator.tables import GraphIndex, graph_index, graph_tables
from soaprl.strategy.strategy import OpConfig
from soaprl_envs.families import families
from soaprl_envs.moving import Moves, edge_moves
from soaprl_envs.synchronizing import CollectiveLines
from soaprl_envs.variants import Variants, whole_bytes


class Near(NamedTuple):
    """Who is near whom among N operators with E edges.

    Attributes:
        producer: Shape [E].
        consumer: Shape [E].
        in_begin: Shape [N + 1]; operator o consumes the edges ``in_edges[in_begin[o]:in_begin[o + 1]]``.
        in_edges: Shape [E].
        out_begin: Shape [N + 1]; likewise for the edges that it produces.
        out_edges: Shape [E].
        tie_begin: Shape [N + 1]; likewise for the operators tied to o, without o itself.
        ties: Those operators.
    """

    producer: IntArray
    consumer: IntArray
    in_begin: IntArray
    in_edges: IntArray
    out_begin: IntArray
    out_edges: IntArray
    tie_begin: IntArray
    ties: IntArray


class Alone(NamedTuple):
    """The candidates of F families by themselves, at most K each with at most T tasks, on D devices.

    Attributes:
        family: Shape [N]; the family of each operator.
        num_candidates: Shape [F]; number of candidates.
        variant: Shape [F, K]; of V variants; -1 where there is no candidate.
        num_tasks: Shape [F, K].
        devices: Shape [F, K, T]; the device of each task.
        config: Shape [F, K]; equal numbers mean equal configurations, whatever the family.
        placement: Shape [F, K]; equal numbers mean equal sets of devices.
        task_s: Shape [V, T, types]; forward and backward seconds of each task; whole ticks, so that sums are
            exact in any order.
        task_bytes: Shape [V, T]; bytes that a task keeps, see `Variants.task_bytes`.
        own_s: Shape [F, K]; compute seconds of the busiest device.
        work_s: Shape [F, K]; compute seconds of all devices together.
        memory_share: Shape [F, K]; share of a device's memory that the operator takes, where it is largest.
        sync_s: Shape [F, K]; seconds of summing gradients.
        sync_bytes: Shape [F, K]; bytes sent for that.
        device_type: Shape [D].
        capacity_bytes: Shape [D].
        scale_s: Shape [1]; the unit of times: the busiest device's compute seconds under the start.
    """

    family: IntArray
    num_candidates: IntArray
    variant: IntArray
    num_tasks: IntArray
    devices: IntArray
    config: IntArray
    placement: IntArray
    task_s: FloatArray
    task_bytes: IntArray
    own_s: FloatArray
    work_s: FloatArray
    memory_share: FloatArray
    sync_s: FloatArray
    sync_bytes: FloatArray
    device_type: IntArray
    capacity_bytes: FloatArray
    scale_s: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CandidateTables:
    """The tables of a problem's candidates.

    Attributes:
        alone: What each candidate costs by itself.
        near: Edges and ties by operator.
        moves: What edges cost.
        cluster: The cluster.
        index: The graph's edges and groups.
        edge_gradient: Shape [E]; 1 where a gradient flows back.
        parameter_bytes: Shape [N]; of whole operators.
        output_bytes: Shape [N]; of whole operators.
    """

    alone: Alone
    near: Near
    moves: Moves
    cluster: ClusterTables
    index: GraphIndex
    edge_gradient: IntArray
    parameter_bytes: FloatArray
    output_bytes: FloatArray


def candidate_tables(
    problem: Problem, configs: tuple[tuple[OpConfig, ...], ...], start: IntArray
) -> CandidateTables:
    """Computes the tables of a problem's candidates; the times of the strategy `start` are the unit."""
    graph = problem.graph
    numbers = families(graph, configs)
    family = np.array(numbers, np.int64)
    firsts = tuple(numbers.index(f) for f in range(max(numbers) + 1))
    found = tuple(configs[o] for o in firsts)
    cluster = cluster_tables(problem.cluster, paper=problem.options.paper)
    variants = Variants(problem, firsts)
    variant = _by_candidate(found, lambda f, config: variants.number(f, config.degrees), missing=-1)
    index = graph_index(graph)
    gradient = graph_tables(graph, index).edge_gradient
    return CandidateTables(
        alone=_alone(problem, family, found, variant, variants, cluster, start),
        near=_near(problem, index),
        moves=edge_moves(graph, index, gradient, family, variant, variants),
        cluster=cluster,
        index=index,
        edge_gradient=gradient,
        parameter_bytes=np.array([whole_bytes(graph, op.parameters) for op in graph.operators]),
        output_bytes=np.array([whole_bytes(graph, op.outputs) for op in graph.operators]),
    )


def _alone(
    problem: Problem,
    family: IntArray,
    configs: tuple[tuple[OpConfig, ...], ...],
    variant: IntArray,
    variants: Variants,
    cluster: ClusterTables,
    start: IntArray,
) -> Alone:
    width = max(config.num_tasks for found in configs for config in found)
    task_s, task_bytes = variants.task_times(width), variants.task_bytes(width)
    capacity = _capacities(problem)
    devices = np.zeros((*variant.shape, width), np.int64)
    own_s, work_s, share = np.zeros(variant.shape), np.zeros(variant.shape), np.zeros(variant.shape)
    sync_s, sync_bytes = np.zeros(variant.shape), np.zeros(variant.shape)
    loads = np.zeros((*variant.shape, len(capacity)))
    lines = CollectiveLines(cluster)
    for f, found in enumerate(configs):
        for c, config in enumerate(found):
            v, on = int(variant[f, c]), np.array(config.devices, np.int64)
            devices[f, c, : len(on)] = on
            times = task_s[v, np.arange(len(on)), cluster.device_type[on]]
            loads[f, c] = np.bincount(on, times, len(capacity))
            own_s[f, c], work_s[f, c] = loads[f, c].max(), times.sum()
            kept = np.bincount(on, task_bytes[v, : len(on)], len(capacity))
            share[f, c] = (kept / capacity).max()
            pattern = variants.sync_pattern(v)
            sync_s[f, c], sync_bytes[f, c] = lines.time(variants.sync_pools, pattern, on)
    return Alone(
        family=family,
        num_candidates=np.array([len(found) for found in configs], np.int64),
        variant=variant,
        num_tasks=_by_candidate(configs, lambda f, config: config.num_tasks),
        devices=devices,
        config=_numbered(configs, lambda config: config),
        placement=_numbered(configs, lambda config: tuple(sorted(set(config.devices)))),
        task_s=task_s,
        task_bytes=task_bytes,
        own_s=own_s,
        work_s=work_s,
        memory_share=share,
        sync_s=sync_s,
        sync_bytes=sync_bytes,
        device_type=cluster.device_type,
        capacity_bytes=capacity,
        scale_s=np.array([max(loads[family, start].sum(axis=0).max(), 1e-12)]),
    )


def _capacities(problem: Problem) -> FloatArray:
    """Bytes of memory of each device."""
    types = problem.cluster.device_types
    return np.array([types[device.type].memory_bytes for device in problem.cluster.devices], np.float64)


def _near(problem: Problem, index: GraphIndex) -> Near:
    edges, operators = index.edges, range(len(problem.graph.operators))
    in_begin, in_edges = _lists([[e for e in index.edges_of[o] if edges[e].consumer == o] for o in operators])
    out_begin, out_edges = _lists(
        [[e for e in index.edges_of[o] if edges[e].producer == o] for o in operators]
    )
    tied = tied_groups(problem.graph)
    tie_begin, ties = _lists([[m for m in tied[o] if m != o] for o in operators])
    return Near(
        producer=np.array([edge.producer for edge in edges], np.int64),
        consumer=np.array([edge.consumer for edge in edges], np.int64),
        in_begin=in_begin,
        in_edges=in_edges,
        out_begin=out_begin,
        out_edges=out_edges,
        tie_begin=tie_begin,
        ties=ties,
    )


def _by_candidate(
    configs: Sequence[Sequence[OpConfig]], value: Callable[[int, OpConfig], int], *, missing: int = 0
) -> IntArray:
    """A number for each family and candidate."""
    filled = np.full((len(configs), max(len(found) for found in configs)), missing, np.int64)
    for f, found in enumerate(configs):
        filled[f, : len(found)] = [value(f, config) for config in found]
    return filled


def _numbered(configs: Sequence[Sequence[OpConfig]], key: Callable[[OpConfig], object]) -> IntArray:
    """Equal numbers for candidates with equal keys, -1 where there is no candidate."""
    numbers: dict[object, int] = {}
    return _by_candidate(configs, lambda f, config: numbers.setdefault(key(config), len(numbers)), missing=-1)


def _lists(lists: Iterable[Sequence[int]]) -> tuple[IntArray, IntArray]:
    """Where each list begins, and all of them one after the other."""
    known = list(lists)
    begin = np.cumsum([0, *(len(found) for found in known)], dtype=np.int64)
    return begin, np.array([item for found in known for item in found], np.int64)
