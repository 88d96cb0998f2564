"""Wires between devices, switches and hosts, and the route for every pair of devices.

Vertices have names: those of devices, and any other name for a switch, a host or the fabric. A route takes
the fewest links; among those the one whose narrowest link is widest; among those the one that arrives over
the link with the lowest index. Devices forward what is not for them (two NVLink hops), as switches do.
Implemented in `_routes_from`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

from soaprl.cluster.cluster import Cluster, Device, DeviceType, Link
from soaprl.errors import ClusterError

MAX_DEVICES = 2048  # the table of routes grows with the square: 4 million routes here

Route = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """The numbers of a kind of link: bandwidth and latency of one direction, and where they come from."""

    bandwidth_bytes_per_s: float
    latency_s: float
    provenance: str


def one_way(source: str, target: str, wire: Wire) -> Link:
    """A link from `source` to `target`."""
    return Link(
        name=f"{source}->{target}",
        bandwidth_bytes_per_s=wire.bandwidth_bytes_per_s,
        latency_s=wire.latency_s,
        provenance=wire.provenance,
        source=source,
        target=target,
    )


def both_ways(first: str, second: str, wire: Wire) -> list[Link]:
    """A link in each direction."""
    return [one_way(first, second, wire), one_way(second, first, wire)]


def star(center: str, others: Iterable[str], wire: Wire) -> list[Link]:
    """A link to and from `center` for each of `others`: a switch, a host, a fabric."""
    return [link for other in others for link in both_ways(other, center, wire)]


def pairs(devices: Sequence[str], wire: Wire) -> list[Link]:
    """A link of its own for each ordered pair of devices."""
    return [
        link
        for i, first in enumerate(devices)
        for second in devices[i + 1 :]
        for link in both_ways(first, second, wire)
    ]


def pcie_tree(
    node: str, devices: Sequence[str], *, per_switch: int, device_wire: Wire, uplink_wire: Wire
) -> list[Link]:
    """Switches with `per_switch` devices each, joined by the node's host (vertex ``node/host``)."""
    links: list[Link] = []
    for number, first in enumerate(range(0, len(devices), per_switch)):
        switch = f"{node}/pcie{number}"
        links += star(switch, devices[first : first + per_switch], device_wire)
        links += both_ways(switch, f"{node}/host", uplink_wire)
    return links


def connect(
    *,
    name: str,
    device_types: tuple[DeviceType, ...],
    devices: tuple[Device, ...],
    links: tuple[Link, ...],
    listed_routes: dict[tuple[int, int], Route] | None = None,
) -> Cluster:
    """The cluster with these devices and links, and a route for every pair.

    Args:
        name: Name of the cluster.
        device_types: The types.
        devices: The devices; names are vertices.
        links: The links; those without ends take part only in `listed_routes`.
        listed_routes: Routes that are not to be searched, by device pair.

    Raises:
        ClusterError: There is no device, or too many; a number is not positive; a pair has no route.
    """
    _check(name, device_types, devices, links)
    listed = listed_routes or {}
    outgoing = _links_by_source(links)
    table = []
    for i, device in enumerate(devices):
        # A search is wasted where all routes of the device are listed.
        complete = all((i, j) in listed for j in range(len(devices)) if j != i)
        found = {} if complete else _routes_from(device.name, outgoing, links)
        row: list[Route] = []
        for j, target in enumerate(devices):
            route = () if i == j else listed.get((i, j), found.get(target.name))
            if route is None:
                raise ClusterError(
                    f"cluster {name!r}: no route from device {device.name!r} to {target.name!r}. Every device"
                    " must reach every other one; add links in both directions."
                )
            row.append(route)
        table.append(tuple(row))
    return Cluster(
        name=name, device_types=device_types, devices=devices, links=links, routes=tuple(table)
    )


def search_routes(devices: Sequence[Device], links: Sequence[Link]) -> list[dict[str, Route]]:
    """For each device the routes to all vertices that it reaches; see the module's rule."""
    outgoing = _links_by_source(links)
    return [_routes_from(device.name, outgoing, links) for device in devices]


def _links_by_source(links: Sequence[Link]) -> dict[str, list[tuple[int, str, float]]]:
    """For each vertex its outgoing links: index, target, bandwidth."""
    outgoing: dict[str, list[tuple[int, str, float]]] = {}
    for index, link in enumerate(links):
        if link.source:
            outgoing.setdefault(link.source, []).append((index, link.target, link.bandwidth_bytes_per_s))
    return outgoing


def _routes_from(
    start: str, outgoing: dict[str, list[tuple[int, str, float]]], links: Sequence[Link]
) -> dict[str, Route]:
    """The route to every vertex that can be reached from `start`; see the module's rule."""
    routes: dict[str, Route] = {start: ()}
    layer = {start: float("inf")}
    while layer:
        best: dict[str, tuple[float, int]] = {}
        for vertex, bottleneck in layer.items():
            for index, target, bandwidth in outgoing.get(vertex, ()):
                if target not in routes:
                    offer = (-min(bottleneck, bandwidth), index)
                    if target not in best or offer < best[target]:
                        best[target] = offer
        for target, (_, index) in best.items():
            routes[target] = (*routes[links[index].source], index)
        layer = {target: -negative for target, (negative, _) in best.items()}
    return routes


def check_num_devices(name: str, num_devices: int) -> None:
    """Refuse a cluster without devices, and one whose routes do not fit in memory.

    Raises:
        ClusterError: With the number found.
    """
    if num_devices < 1:
        raise ClusterError(f"cluster {name!r} is empty: expected at least one device.")
    if num_devices > MAX_DEVICES:
        raise ClusterError(f"cluster {name!r}: expected at most {MAX_DEVICES} devices, found {num_devices}.")


def _check(
    name: str, device_types: Sequence[DeviceType], devices: Sequence[Device], links: Sequence[Link]
) -> None:
    check_num_devices(name, len(devices))
    names = [device.name for device in devices]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise ClusterError(f"cluster {name!r}: device name {twice!r} is there twice; names must differ.")
    if any(later.node < earlier.node for earlier, later in pairwise(devices)):
        raise ClusterError(f"cluster {name!r}: devices must be grouped by node, in ascending order.")
    for kind in device_types:
        _check_type(name, kind)
    for link in links:
        where = f"cluster {name!r}: link {link.name!r}"
        _check_positive(where, "bandwidth_bytes_per_s", link.bandwidth_bytes_per_s)
        if not (isfinite(link.latency_s) and link.latency_s >= 0):
            raise ClusterError(f"{where}: expected a latency_s of 0 or more, found {link.latency_s}.")


def _check_type(name: str, kind: DeviceType) -> None:
    where = f"cluster {name!r}: device type {kind.name!r}"
    peaks = dict(kind.peak_flops_per_s)
    if "float32" not in peaks:
        raise ClusterError(
            f"{where}: peak_flops_per_s must have float32; found {', '.join(peaks) or 'none'}."
        )
    for dtype, peak in peaks.items():
        _check_positive(where, f"peak_flops_per_s of {dtype}", peak)
    _check_positive(where, "memory_bytes", kind.memory_bytes)
    _check_positive(where, "memory_bandwidth_bytes_per_s", kind.memory_bandwidth_bytes_per_s)
    if not (isfinite(kind.kernel_launch_s) and kind.kernel_launch_s >= 0):
        raise ClusterError(f"{where}: expected a kernel_launch_s of 0 or more, found {kind.kernel_launch_s}.")
    for key, share in (
        ("matmul_efficiency", kind.matmul_efficiency), ("memory_efficiency", kind.memory_efficiency)
    ):
        if not 0 < share <= 1:
            raise ClusterError(f"{where}: expected a {key} above 0 and at most 1, found {share}.")


def _check_positive(where: str, key: str, value: float) -> None:
    if not (isfinite(value) and value > 0):
        raise ClusterError(f"{where}: expected a positive {key}, found {value}.")
