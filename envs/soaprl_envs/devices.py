"""The cluster as a small graph: its nodes, or its devices where there is one node, at most `MAX_VERTICES`."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from soaprl.cluster.cluster import Cluster
from soaprl.cluster.tables import ClusterTables, FloatArray, IntArray
from soaprl.simulator.problem import Problem
from soaprl.strategy.placing import nodes_of
from soaprl_envs.tables import CandidateTables

MAX_VERTICES = 64
_FULLY_LINKED = 16

DEVICE_COLUMNS = (
    "devices",  # log(devices of the vertex) / log(D)
    "speed",  # log(time of all operators on its slowest type / on the quickest type)
    "memory",  # log(memory of a device / the largest), / 2
    "memory_need",  # log(memory of a device x D / what one copy of everything keeps), / 2
    "inside",  # log(time of the mean tensor on its narrowest inner route / S), / 4; 0 for a single device
    "outside",  # log(time of the mean tensor on its narrowest route to others / S), / 4; 0 without others
    "alone",  # 1 if it is a single device
)
DEVICE_EDGE_COLUMNS = (
    "bandwidth",  # log(narrowest route between both / the cluster's widest), / 2
    "latency",  # log(1 + latency x 1e6) / 4
)


def device_features(
    problem: Problem, tables: CandidateTables
) -> tuple[NDArray[np.float32], IntArray, NDArray[np.float32]]:
    """Features of the vertices [G, columns], pairs of vertices [2, H], features of pairs [H, columns]."""
    cluster = tables.cluster
    groups = _vertices(problem.cluster)
    between = cluster.route_bandwidth_bytes_per_s.reshape(cluster.num_devices, -1)
    latency = cluster.route_latency_s.reshape(cluster.num_devices, -1)
    pairs = _pairs(len(groups))
    widest = float(between[np.isfinite(between)].max(initial=1.0))
    vertices = np.array([_vertex(problem, tables, between, group) for group in groups])
    features = np.zeros((pairs.shape[1], len(DEVICE_EDGE_COLUMNS)))
    for i, (one, other) in enumerate(pairs.T.tolist()):
        route = groups[one][0], groups[other][0]
        features[i] = np.log(between[route] / widest) / 2, np.log1p(latency[route] * 1e6) / 4
    return _clipped(vertices), pairs, _clipped(features)


def num_vertices(cluster: Cluster) -> int:
    """G: how many vertices a cluster has."""
    return len(_vertices(cluster))


def _vertices(cluster: Cluster) -> list[tuple[int, ...]]:
    nodes = list(nodes_of(cluster))
    groups: list[tuple[int, ...]] = nodes if len(nodes) > 1 else [(device,) for device in nodes[0]]
    if len(groups) <= MAX_VERTICES:
        return groups
    # A large cluster: neighbouring vertices together, as evenly as possible.
    bounds = [i * len(groups) // MAX_VERTICES for i in range(MAX_VERTICES + 1)]
    return [
        tuple(device for group in groups[first:last] for device in group) for first, last in pairwise(bounds)
    ]


def _vertex(
    problem: Problem, tables: CandidateTables, between: FloatArray, group: tuple[int, ...]
) -> list[float]:
    cluster: ClusterTables = tables.cluster
    alone, members = tables.alone, np.array(group)
    others = np.setdiff1d(np.arange(cluster.num_devices), members)
    types = cluster.device_type[members]
    times = alone.task_s[:, 0, :].sum(axis=0)
    capacity = alone.capacity_bytes
    kept = _whole_bytes(tables)
    tensor_bytes = float(tables.output_bytes.mean())
    unit = np.log(max(2, cluster.num_devices))

    def moving(narrowest: float) -> float:
        return float(np.log(tensor_bytes / narrowest / alone.scale_s[0] + 1e-12)) / 4

    return [
        float(np.log(len(group)) / unit),
        float(np.log(times[types].max() / max(1e-12, times.min()))),
        float(np.log(capacity[members].min() / capacity.max())) / 2,
        float(np.log(capacity[members].min() * len(capacity) / max(1.0, kept))) / 2,
        moving(float(between[np.ix_(members, members)].min())) if len(group) > 1 else 0.0,
        moving(float(between[np.ix_(members, others)].min())) if len(others) else 0.0,
        float(len(group) == 1),
    ]


def _whole_bytes(tables: CandidateTables) -> float:
    """What all operators keep at the start, over all devices."""
    alone = tables.alone
    start = alone.variant[alone.family, 0]
    return float(alone.task_bytes[start].sum())


def _pairs(count: int) -> IntArray:
    """All ordered pairs of a few vertices; of many, each with the next ones around a circle."""
    reach = count - 1 if count <= _FULLY_LINKED else 8
    pairs = [(i, (i + step) % count) for i in range(count) for step in range(1, reach + 1)]
    if count > _FULLY_LINKED:
        pairs += [(other, one) for one, other in pairs]
    return np.array(pairs, np.int64).reshape(-1, 2).T.copy()


def _clipped(values: FloatArray) -> NDArray[np.float32]:
    return np.clip(np.nan_to_num(values, posinf=5.0, neginf=-5.0), -5.0, 5.0).astype(np.float32)
