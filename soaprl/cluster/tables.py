"""A cluster as flat arrays: what compiled code reads instead of `Cluster`."""

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from soaprl.cluster.cluster import MAX_TABLE_DEVICES, Cluster, GivenAllReduce, Overheads
from soaprl.cluster.hub import GROUP, HubRoutes
from soaprl.errors import ClusterError

IntArray: TypeAlias = NDArray[np.int64]
FloatArray: TypeAlias = NDArray[np.float64]


class ClusterTables(NamedTuple):
    """The arrays of a cluster with D devices and L links; a named tuple, because Numba can take it apart.

    Attributes:
        num_devices: D.
        route_offsets: Shape [D * D + 1]; the route from device i to j is
            ``route_links[route_offsets[i * D + j] : route_offsets[i * D + j + 1]]``.
        route_links: Link indices of all routes, one after the other.
        route_latency_s: Shape [D * D]; sum of the latencies on the route, in its order.
        route_bandwidth_bytes_per_s: Shape [D * D]; bandwidth of the route's narrowest link, infinite from a
            device to itself.
        link_bandwidth_bytes_per_s: Shape [L].
        link_latency_s: Shape [L].
        device_node: Shape [D]; node of each device, numbered from 0 without gaps.
        device_type: Shape [D]; index of each device's type.
        device_mesh: Shape [D]; devices with the same number are in one node, and each pair of them has a link
            of its own in each direction.
        collective_base_s: Time from the start of a collective to its first step.
        collective_s_per_byte: See `soaprl.cluster.cluster.Overheads`.
        iteration_s: Likewise.
        message_s: Likewise.
        message_s_per_byte: Likewise.
        carry_s_per_byte: Likewise.
        reduced_s_per_byte: Likewise.
        hub: Shape [0, 5] in tables of all pairs. In `collective_tables` the `ends` of
            `soaprl.cluster.hub.HubRoutes`, and the arrays of routes are over its numbered routes.
        given: All-reduces whose times are given (`Cluster.all_reduces`): their number n; for each its number
            of devices, where they begin in this array, its bytes, where its links begin in this array, their
            number; then devices and links. Behind the number of devices and each link, `given_s` has a time.
        given_s: As long as `given`; the time of an all-reduce where `given` has its number of devices, the
            time that a link is busy where `given` has the link.
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
    collective_s_per_byte: float
    iteration_s: float
    message_s: float
    message_s_per_byte: float
    carry_s_per_byte: float
    reduced_s_per_byte: float
    hub: IntArray
    given: IntArray
    given_s: FloatArray


def cluster_tables(cluster: Cluster, *, paper: bool = False) -> ClusterTables:
    """The arrays of `cluster`, with the routes of all pairs of devices.

    With `paper` every latency and overhead is 0: a transfer of s bytes over a link of bandwidth b takes s / b
    and nothing else (assumptions A2 and A4 of the paper).

    Raises:
        ClusterError: The cluster is too large for the routes of all pairs.
    """
    if cluster.num_devices > MAX_TABLE_DEVICES:
        raise ClusterError(
            f"cluster {cluster.name!r}: {cluster.num_devices} devices, more than the {MAX_TABLE_DEVICES} that"
            " can be simulated one by one. Larger clusters can be simulated under strategies that"
            " repeat themselves on groups of devices (see soaprl.simulator.folding), and not searched."
        )
    return _tables(cluster, *_all_routes(cluster), np.zeros((0, 5), np.int64), paper=paper)


def collective_tables(cluster: Cluster, *, paper: bool = False) -> ClusterTables:
    """The arrays of `cluster` for the kernels of collectives: of any size, for any pair of devices.

    Small clusters get those of `cluster_tables`. No other kernels can use them.
    """
    if not isinstance(cluster.routes, HubRoutes):
        return cluster_tables(cluster, paper=paper)
    hub = cluster.routes
    return _tables(cluster, hub.offsets, hub.links, hub.ends, paper=paper)


def _tables(
    cluster: Cluster, offsets: IntArray, route_links: IntArray, hub: IntArray, *, paper: bool
) -> ClusterTables:
    bandwidth = np.array([link.bandwidth_bytes_per_s for link in cluster.links], np.float64)
    latency = np.array([0.0 if paper else link.latency_s for link in cluster.links], np.float64)
    nodes = np.array([device.node for device in cluster.devices], np.int64)
    given, given_s = _given(cluster.all_reduces)
    overheads = Overheads(collective_s=0.0) if paper else cluster.overheads
    return ClusterTables(
        num_devices=cluster.num_devices,
        route_offsets=offsets,
        route_links=route_links,
        route_latency_s=_route_reduce(np.add, latency, route_links, offsets, 0.0),
        route_bandwidth_bytes_per_s=_route_reduce(np.minimum, bandwidth, route_links, offsets, np.inf),
        link_bandwidth_bytes_per_s=bandwidth,
        link_latency_s=latency,
        device_node=np.unique(nodes, return_inverse=True)[1].astype(np.int64),
        device_type=np.array([device.type for device in cluster.devices], np.int64),
        device_mesh=_meshes(cluster),
        collective_base_s=overheads.collective_s,
        collective_s_per_byte=overheads.collective_s_per_byte,
        iteration_s=overheads.iteration_s,
        message_s=overheads.message_s,
        message_s_per_byte=overheads.message_s_per_byte,
        carry_s_per_byte=overheads.carry_s_per_byte,
        reduced_s_per_byte=overheads.reduced_s_per_byte,
        hub=hub,
        given=given,
        given_s=given_s,
    )


def _all_routes(cluster: Cluster) -> tuple[IntArray, IntArray]:
    """Where the links of each route begin, and the links."""
    count = cluster.num_devices
    if isinstance(cluster.routes, HubRoutes):
        devices = np.arange(count)
        return cluster.routes.between(np.repeat(devices, count), np.tile(devices, count))
    flat = [route for row in cluster.routes for route in row]
    offsets = np.zeros(len(flat) + 1, np.int64)
    np.cumsum(np.fromiter((len(route) for route in flat), np.int64, len(flat)), out=offsets[1:])
    return offsets, np.fromiter((link for route in flat for link in route), np.int64, int(offsets[-1]))


def _route_reduce(
    function: np.ufunc, values: FloatArray, links: IntArray, offsets: IntArray, empty: float
) -> FloatArray:
    """`function` over the links of each route, one after the other; `empty` for routes without links."""
    lengths = offsets[1:] - offsets[:-1]
    reduced = np.full(len(lengths), empty, np.float64)
    for k in range(int(lengths.max(initial=0))):
        longer = lengths > k
        reduced[longer] = function(reduced[longer], values[links[offsets[:-1][longer] + k]])
    return reduced


def _given(all_reduces: tuple[GivenAllReduce, ...]) -> tuple[IntArray, FloatArray]:
    """All-reduces as `ClusterTables` has them."""
    header, at = [len(all_reduces)], 1 + 5 * len(all_reduces)
    header_s, body, body_s = [0.0], list[int](), list[float]()
    for known in all_reduces:
        first, links = at + len(body), at + len(body) + len(known.devices)
        header += [len(known.devices), first, known.num_bytes, links, len(known.links)]
        header_s += [known.time_s, 0.0, 0.0, 0.0, 0.0]
        body += [*known.devices, *known.links]
        body_s += [*(0.0 for _ in known.devices), *known.busy_s]
    return np.array(header + body, np.int64), np.array(header_s + body_s, np.float64)


def _meshes(cluster: Cluster) -> IntArray:
    """For each device the number of its mesh: it joins the first of its node to which it is fully linked."""
    numbers = np.zeros(cluster.num_devices, np.int64)
    kinds = _kinds_of_nodes(cluster)
    known: dict[int, list[int]] = {}
    first, num_meshes = 0, 0
    while first < cluster.num_devices:
        node, kind = cluster.devices[first].node, kinds.get(first)
        end = first + 1
        while end < cluster.num_devices and cluster.devices[end].node == node:
            end += 1
        found = known.get(kind) if kind is not None else None
        if found is None:
            found = _node_meshes(cluster, first, end)
        if kind is not None:
            known[kind] = found
        numbers[first:end] = num_meshes + np.array(found)
        num_meshes += max(found) + 1
        first = end
    return numbers


def _kinds_of_nodes(cluster: Cluster) -> dict[int, int]:
    """For the first device of nodes that are groups around a hub, how the group is wired."""
    if not isinstance(cluster.routes, HubRoutes):
        return {}
    nodes = np.array([device.node for device in cluster.devices], np.int64)
    group = cluster.routes.ends[:, GROUP]
    pairs = np.unique(np.stack([nodes, group]), axis=1)
    one_to_one = len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]
    if not one_to_one:
        return {}
    firsts = np.unique(group, return_index=True)[1]
    return dict(zip(firsts.tolist(), cluster.routes.shape.tolist(), strict=True))


def _node_meshes(cluster: Cluster, first: int, end: int) -> list[int]:
    """The mesh of each device of a node, numbered from 0."""
    meshes: list[list[int]] = []
    numbers = []
    for i in range(first, end):
        fits = (n for n, mesh in enumerate(meshes) if _fully_linked(cluster, [*mesh, i]))
        number = next(fits, len(meshes))
        if number == len(meshes):
            meshes.append([])
        meshes[number].append(i)
        numbers.append(number)
    return numbers


def _fully_linked(cluster: Cluster, devices: list[int]) -> bool:
    """Whether each ordered pair has a route of one link that no other pair uses."""
    routes = [cluster.routes[i][j] for i in devices for j in devices if i != j]
    return all(len(route) == 1 for route in routes) and len(set(routes)) == len(routes)
