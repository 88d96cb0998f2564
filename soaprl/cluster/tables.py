"""A cluster as flat arrays: what compiled code reads instead of `Cluster`."""

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from soaprl.cluster.cluster import Cluster

IntArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float64]

# Start of a collective before its first step: NCCL's ring algorithm, low-latency protocol (published in
# its tuning table, 6.6 us; its other protocols start in 8.4 and 14 us).
COLLECTIVE_BASE_S = 6.6e-6


class ClusterTables(NamedTuple):
    """The arrays of a cluster with D devices and L links; a named tuple, because Numba can take it apart.

    Attributes:
        num_devices: D.
        route_offsets: Shape [D * D + 1]; the route from device i to j is
            ``route_links[route_offsets[i * D + j] : route_offsets[i * D + j + 1]]``.
        route_links: Link indices of all routes, one after the other.
        route_latency_s: Shape [D * D]; sum of the latencies on the route.
        route_bandwidth_bytes_per_s: Shape [D * D]; bandwidth of the route's narrowest link, infinite from a
            device to itself.
        link_bandwidth_bytes_per_s: Shape [L].
        link_latency_s: Shape [L].
        device_node: Shape [D]; node of each device, numbered from 0 without gaps.
        device_type: Shape [D]; index of each device's type.
        device_mesh: Shape [D]; devices with the same number are in one node, and each pair of them has a link
            of its own in each direction.
        collective_base_s: Time from the start of a collective to its first step.
    """

    num_devices: int
    route_offsets: IntArray
    route_links: IntArray
    route_latency_s: FloatArray
    route_bandwidth_bytes_per_s: FloatArray
    link_bandwidth_bytes_per_s: FloatArray
    link_latency_s: FloatArray
    device_node: IntArray
    device_type: IntArray
    device_mesh: IntArray
    collective_base_s: float


def cluster_tables(cluster: Cluster, *, paper: bool = False) -> ClusterTables:
    """The arrays of `cluster`.

    With `paper` every latency is 0, of links and of collectives: a transfer of s bytes over a link of
    bandwidth b takes s / b and nothing else (assumptions A2 and A4 of the paper).
    """
    num_devices = cluster.num_devices
    flat_routes = [route for row in cluster.routes for route in row]
    lengths = np.fromiter((len(route) for route in flat_routes), np.int64, len(flat_routes))
    offsets = np.zeros(len(flat_routes) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    route_links = np.fromiter((link for route in flat_routes for link in route), np.int64, int(offsets[-1]))
    bandwidth = np.array([link.bandwidth_bytes_per_s for link in cluster.links], np.float64)
    latency = np.array([0.0 if paper else link.latency_s for link in cluster.links], np.float64)
    nodes = np.array([device.node for device in cluster.devices], np.int64)
    device_node = np.unique(nodes, return_inverse=True)[1].astype(np.int64)
    return ClusterTables(
        num_devices=num_devices,
        route_offsets=offsets,
        route_links=route_links,
        route_latency_s=_route_reduce(np.add, latency[route_links], offsets, 0.0),
        route_bandwidth_bytes_per_s=_route_reduce(np.minimum, bandwidth[route_links], offsets, np.inf),
        link_bandwidth_bytes_per_s=bandwidth,
        link_latency_s=latency,
        device_node=device_node,
        device_type=np.array([device.type for device in cluster.devices], np.int64),
        device_mesh=_meshes(cluster),
        collective_base_s=0.0 if paper else COLLECTIVE_BASE_S,
    )


def _route_reduce(function: np.ufunc, values: FloatArray, offsets: IntArray, empty: float) -> FloatArray:
    """`function` over the values of each route; `empty` for routes without links."""
    reduced = np.full(len(offsets) - 1, empty, np.float64)
    filled = offsets[1:] > offsets[:-1]
    if filled.any():
        reduced[filled] = function.reduceat(values, offsets[:-1][filled])
    return reduced


def _meshes(cluster: Cluster) -> IntArray:
    """For each device the number of its mesh: it joins the first of its node to which it is fully linked."""
    meshes: list[list[int]] = []
    numbers = np.zeros(cluster.num_devices, np.int64)
    start = 0  # the first mesh of the node: devices are grouped by node
    for i, device in enumerate(cluster.devices):
        if i == 0 or cluster.devices[i - 1].node != device.node:
            start = len(meshes)
        for number in range(start, len(meshes)):
            if _fully_linked(cluster, [*meshes[number], i]):
                meshes[number].append(i)
                numbers[i] = number
                break
        else:
            numbers[i] = len(meshes)
            meshes.append([i])
    return numbers


def _fully_linked(cluster: Cluster, devices: list[int]) -> bool:
    """Whether each ordered pair has a route of one link that no other pair uses."""
    routes = [cluster.routes[i][j] for i in devices for j in devices if i != j]
    return all(len(route) == 1 for route in routes) and len(set(routes)) == len(routes)
