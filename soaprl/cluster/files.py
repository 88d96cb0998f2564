"""Clusters from and to files: YAML (or JSON, which is YAML), and the same as plain dictionaries."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from soaprl.atomic import write_text_atomic
from soaprl.cluster.cluster import Cluster, Device, DeviceType, Link, Overheads
from soaprl.cluster.devices import device_type, device_type_names
from soaprl.cluster.hub import HubRoutes, Route
from soaprl.cluster.presets import FABRIC, cluster_from_name
from soaprl.cluster.routing import search_routes
from soaprl.cluster.sections import (
    FileSection,
    LinkSection,
    LinksSection,
    NetworkSection,
    NodesSection,
    PairsSection,
    RouteSection,
    SwitchSection,
    TopologySection,
    TreeSection,
    TypeSection,
    WireSection,
    parse_file,
)
from soaprl.cluster.topology import (
    Wire,
    both_ways,
    check_num_devices,
    connect,
    pairs,
    pcie_tree,
    star,
)
from soaprl.errors import ClusterError, UnknownNameError, unknown_name

_SUFFIXES = (".yaml", ".yml", ".json")


def load_cluster(name_or_path: str | Path) -> Cluster:
    """The cluster of a preset name (``p100-4x4``) or in a file.

    Raises:
        UnknownNameError: The name's kind, or a device type in the file, is not known.
        ClusterError: The name has another form; the file is missing, cannot be read or is wrong.
    """
    text = str(name_or_path)
    path = Path(name_or_path)
    if path.suffix.lower() not in _SUFFIXES and "/" not in text and not path.is_file():
        return cluster_from_name(text)
    where = f"cluster file {text!r}"
    return cluster_from_dict(_read(path, where), where=where)


def save_cluster(cluster: Cluster, path: str | Path) -> None:
    """Write all of `cluster` to `path`, whole or not at all; loading it gives the same fingerprint.

    Raises:
        OutputError: The file cannot be written.
    """
    write_text_atomic(path, yaml.dump(cluster_to_dict(cluster), Dumper=yaml.CSafeDumper, sort_keys=False))


def cluster_from_dict(data: object, *, where: str = "cluster") -> Cluster:
    """The cluster in `data`, which has the keys of a cluster file.

    Args:
        data: Mappings, lists, strings and numbers.
        where: What messages call the source.

    Raises:
        UnknownNameError: A device type is not known.
        ClusterError: Anything else is wrong; the message names the key.
    """
    file = parse_file(data, where)
    try:
        return _build(file)
    except (ClusterError, UnknownNameError) as error:
        raise type(error)(f"{where}: {error}") from error


def cluster_to_dict(cluster: Cluster) -> dict[str, object]:
    """All of `cluster` as mappings, lists, strings and numbers; `cluster_from_dict` turns it back.

    Routes are listed only where they are not those that `connect` finds.

    Raises:
        ClusterError: Two device types have one name.
    """
    names = [kind.name for kind in cluster.device_types]
    if len(set(names)) < len(names):
        raise ClusterError(f"cluster {cluster.name!r}: names of device types must differ; found {names}.")
    devices = {device.name for device in cluster.devices}
    ends = (end for link in cluster.links for end in (link.source, link.target))
    written: dict[str, object] = {
        "format": "soaprl-cluster",
        "version": 1,
        "name": cluster.name,
        "device_types": [_type_to_dict(kind) for kind in cluster.device_types],
        "devices": [{"name": d.name, "type": names[d.type], "node": d.node} for d in cluster.devices],
        "switches": [end for end in dict.fromkeys(ends) if end and end not in devices],
        "links": [_link_to_dict(link) for link in cluster.links],
        "routes": _unusual_routes(cluster),
    }
    if cluster.overheads != Overheads():
        written["overheads"] = asdict(cluster.overheads)
    return written


def _build(file: FileSection) -> Cluster:
    types = _Types(file.device_types)
    if file.nodes is not None:
        devices, links = _build_nodes(file, file.nodes, types)
        routes: dict[tuple[int, int], Route] = {}
    else:
        listed = file.devices or []
        devices = [Device(name=d.name, node=d.node, type=types.index(d.type)) for d in listed]
        links = _build_links(file.links, [d.name for d in devices] + file.switches, prefix="")
        routes = _build_routes(file.routes, devices, len(links))
    cluster = connect(
        name=file.name,
        device_types=tuple(types.found),
        devices=tuple(devices),
        links=tuple(links),
        listed_routes=routes,
    )
    return replace(cluster, overheads=Overheads(**file.overheads.model_dump()))


def _read(path: Path, where: str) -> object:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ClusterError(f"{where}: there is no such file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(f"{where}: expected a readable text file; {error}.") from error
    try:
        return yaml.load(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ClusterError(f"{where}: expected YAML; {reason}.") from error


class _Types:
    """Device types of a cluster: those of the file first, presets as they are named."""

    def __init__(self, sections: Iterable[TypeSection]) -> None:
        self.found = [_type_from_section(section) for section in sections]
        names = [kind.name for kind in self.found]
        if len(set(names)) < len(names):
            raise ClusterError(f"device_types: names must differ; found {', '.join(names)}.")

    def index(self, name: str) -> int:
        """Index of the type called `name`; a preset is added on first use."""
        names = [kind.name for kind in self.found]
        if name not in names:
            if name not in device_type_names():
                raise unknown_name("device type", name, {*names, *device_type_names()})
            self.found.append(device_type(name))
            return len(names)
        return names.index(name)


def _type_from_section(section: TypeSection) -> DeviceType:
    return DeviceType(
        name=section.name,
        peak_flops_per_s=tuple(section.peak_flops_per_s.items()),
        memory_bytes=section.memory_bytes,
        memory_bandwidth_bytes_per_s=section.memory_bandwidth_bytes_per_s,
        kernel_launch_s=section.kernel_launch_s,
        matmul_efficiency=section.matmul_efficiency,
        memory_efficiency=section.memory_efficiency,
        provenance=tuple(section.provenance.items()),
    )


def _build_nodes(
    file: FileSection, groups: list[NodesSection], types: _Types
) -> tuple[list[Device], list[Link]]:
    check_num_devices(file.name, sum(group.count * sum(group.devices.values()) for group in groups))
    devices: list[Device] = []
    links: list[Link] = []
    node = 0
    for group in groups:
        kinds = [types.index(kind) for kind, count in group.devices.items() for _ in range(count)]
        for _ in range(group.count):
            names = [f"node{node}/gpu{i}" for i in range(len(kinds))]
            devices += [Device(name=n, node=node, type=k) for n, k in zip(names, kinds, strict=True)]
            links += _inside(group.topology, f"node{node}", names)
            network = group.network or file.network
            if network is not None and (len(groups) > 1 or group.count > 1):
                links += _outside(network, group.topology, f"node{node}", names)
            node += 1
    return devices, links


def _wire(section: WireSection) -> Wire:
    return Wire(
        bandwidth_bytes_per_s=section.bandwidth_bytes_per_s,
        latency_s=section.latency_s,
        provenance=section.provenance,
    )


def _inside(topology: TopologySection | None, node: str, names: list[str]) -> list[Link]:
    """The links of one node."""
    match topology:
        case None:
            return []
        case SwitchSection():
            return star(f"{node}/switch", names, _wire(topology))
        case PairsSection():
            return pairs(names, _wire(topology))
        case TreeSection():
            uplink = Wire(
                bandwidth_bytes_per_s=topology.uplink_bandwidth_bytes_per_s,
                latency_s=topology.uplink_latency_s,
                provenance=topology.provenance,
            )
            return pcie_tree(
                node,
                names,
                per_switch=topology.devices_per_switch,
                device_wire=_wire(topology),
                uplink_wire=uplink,
            )
        case LinksSection():
            vertices = names + [f"{node}/{switch}" for switch in topology.switches]
            return _build_links(topology.links, vertices, prefix=f"{node}/")


def _outside(
    network: NetworkSection, topology: TopologySection | None, node: str, names: list[str]
) -> list[Link]:
    """The links of one node to the fabric."""
    nic = _wire(network)
    if network.per == "device":
        return star(FABRIC, names, nic)
    host = f"{node}/host"
    links = both_ways(host, FABRIC, nic)
    if not isinstance(topology, TreeSection):
        to_host = Wire(
            bandwidth_bytes_per_s=network.device_bandwidth_bytes_per_s or network.bandwidth_bytes_per_s,
            latency_s=0.0,
            provenance=network.provenance,
        )
        links += star(host, names, to_host)
    return links


def _build_links(sections: Iterable[LinkSection], vertices: Iterable[str], *, prefix: str) -> list[Link]:
    known = set(vertices)
    links: list[Link] = []
    for section in sections:
        ends = [prefix + section.source, prefix + section.target] if section.source else ["", ""]
        for end in ends:
            if end and end not in known:
                raise ClusterError(f"links: {unknown_name('device or switch', end, known)}")
        for source, target in [ends, ends[::-1]] if section.both_ways else [ends]:
            links.append(
                Link(
                    name=section.name or f"{source}->{target}",
                    bandwidth_bytes_per_s=section.bandwidth_bytes_per_s,
                    latency_s=section.latency_s,
                    provenance=section.provenance,
                    source=source,
                    target=target,
                )
            )
    return links


def _build_routes(
    sections: Iterable[RouteSection], devices: list[Device], num_links: int
) -> dict[tuple[int, int], Route]:
    index = {device.name: i for i, device in enumerate(devices)}
    routes = {}
    for section in sections:
        for end in (section.source, section.target):
            if end not in index:
                raise ClusterError(f"routes: {unknown_name('device', end, index)}")
        if max(section.links) >= num_links:
            raise ClusterError(
                f"routes: expected indices of links below {num_links}, found {max(section.links)}"
                f" from {section.source!r} to {section.target!r}."
            )
        routes[index[section.source], index[section.target]] = tuple(section.links)
    return routes


def _type_to_dict(kind: DeviceType) -> dict[str, object]:
    return {
        "name": kind.name,
        "peak_flops_per_s": dict(kind.peak_flops_per_s),
        "memory_bytes": kind.memory_bytes,
        "memory_bandwidth_bytes_per_s": float(kind.memory_bandwidth_bytes_per_s),
        "kernel_launch_s": kind.kernel_launch_s,
        "matmul_efficiency": kind.matmul_efficiency,
        "memory_efficiency": kind.memory_efficiency,
        "provenance": dict(kind.provenance),
    }


def _link_to_dict(link: Link) -> dict[str, object]:
    entry: dict[str, object] = {}
    if link.source:
        entry |= {"from": link.source, "to": link.target}
    if link.name != f"{link.source}->{link.target}":
        entry["name"] = link.name
    entry |= {"bandwidth_bytes_per_s": link.bandwidth_bytes_per_s, "latency_s": link.latency_s}
    if link.provenance:
        entry["provenance"] = link.provenance
    return entry


def _unusual_routes(cluster: Cluster) -> list[dict[str, object]]:
    """The routes that a search would not find."""
    unusual: list[dict[str, object]] = []
    if isinstance(cluster.routes, HubRoutes):
        return unusual  # they are made by searching
    searched = search_routes(cluster.devices, cluster.links)
    for i, (source, row) in enumerate(zip(cluster.devices, cluster.routes, strict=True)):
        for j, (target, route) in enumerate(zip(cluster.devices, row, strict=True)):
            if i != j and searched[i].get(target.name) != route:
                unusual.append({"from": source.name, "to": target.name, "links": list(route)})
    return unusual
