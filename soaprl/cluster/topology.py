"""Wires between devices, switches and hosts, and clusters from them.

Every pair of devices gets a route by the rule of `soaprl.cluster.routing`: up to `TABLE_DEVICES` devices in a
table, for larger clusters around a hub (`soaprl.cluster.hub`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

from soaprl.cluster.cluster import MAX_TABLE_DEVICES, Cluster, Device, DeviceType, Link, Routes
from soaprl.cluster.grouping import MAX_GROUP, find_hubs, hub_routes
from soaprl.cluster.hub import Route
from soaprl.cluster.routing import links_by_source, routes_from
from soaprl.errors import ClusterError

MAX_DEVICES = 16_384
TABLE_DEVICES = 256  # from here on, a table of routes takes longer to fill than to find a hub


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
    routes: Routes | None = None
    if len(devices) > TABLE_DEVICES and not listed_routes:
        found = (hub_routes(devices, links, hub) for hub in find_hubs(devices, links))
        routes = next((hub for hub in found if hub is not None), None)
    if routes is None and len(devices) > MAX_TABLE_DEVICES:
        raise ClusterError(
            f"cluster {name!r}: {len(devices)} devices, more than a table of routes has room for"
            f" ({MAX_TABLE_DEVICES}). Larger clusters need groups of at most {MAX_GROUP} devices that meet in"
            " one switch (a fabric), every device with a way to and from it, and no listed routes."
        )
    if routes is None:
        routes = _table(name, devices, links, listed_routes or {})
    return Cluster(name=name, device_types=device_types, devices=devices, links=links, routes=routes)


def _table(
    name: str,
    devices: tuple[Device, ...],
    links: tuple[Link, ...],
    listed: dict[tuple[int, int], Route],
) -> tuple[tuple[Route, ...], ...]:
    """The routes of all pairs."""
    outgoing = links_by_source(links, range(len(links)))
    table = []
    for i, device in enumerate(devices):
        # A search is wasted where all routes of the device are listed.
        complete = all((i, j) in listed for j in range(len(devices)) if j != i)
        found = {} if complete else routes_from(device.name, outgoing, links)
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
    return tuple(table)


def check_num_devices(name: str, num_devices: int) -> None:
    """Refuse a cluster without devices, and one with too many.

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
        ("matmul_efficiency", kind.matmul_efficiency),
        ("memory_efficiency", kind.memory_efficiency),
    ):
        if not 0 < share <= 1:
            raise ClusterError(f"{where}: expected a {key} above 0 and at most 1, found {share}.")


def _check_positive(where: str, key: str, value: float) -> None:
    if not (isfinite(value) and value > 0):
        raise ClusterError(f"{where}: expected a positive {key}, found {value}.")
