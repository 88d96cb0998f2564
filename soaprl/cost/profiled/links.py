"""A cluster from measured links."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from soaprl.cluster.cluster import Cluster, Device, DeviceType, Link
from soaprl.cluster.tables import cluster_tables
from soaprl.cluster.topology import Wire, both_ways, connect, star
from soaprl.cost.profiled.fitting import fit_collective
from soaprl.cost.transfers import all_reduce, collective_scratch

_FABRIC = "fabric"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLink:
    """What a transfer between two ranks takes: seconds for its first byte, and bytes per second."""

    latency_s: float
    bandwidth_bytes_per_s: float


def measured_cluster(
    name: str,
    hosts: Sequence[str],
    device_type: DeviceType,
    pairs: Mapping[tuple[int, int], PairLink],
    *,
    provenance: str,
) -> Cluster:
    """A cluster with a device for each rank.

    Ranks of one host have a link of their own for each pair. Hosts meet in a fabric, each over one wire that
    its ranks share: its bandwidth is the largest of any pair with a rank there, its latency half of the
    median.

    Args:
        name: Of the cluster.
        hosts: The host of each rank; ranks of a host follow each other.
        device_type: Of all devices.
        pairs: The link of each pair of ranks, lower first.
        provenance: Of all links.
    """
    nodes = {host: number for number, host in enumerate(dict.fromkeys(hosts))}
    names = [f"node{nodes[host]}/rank{rank}" for rank, host in enumerate(hosts)]
    links: list[Link] = []
    for (first, second), pair in sorted(pairs.items()):
        if hosts[first] == hosts[second]:
            links += both_ways(names[first], names[second], _wire(pair, provenance))
    if len(nodes) > 1:
        for host, node in nodes.items():
            links += _outside(host, f"node{node}/nic", hosts, names, pairs, provenance)
    devices = tuple(Device(name=n, node=nodes[h], type=0) for n, h in zip(names, hosts, strict=True))
    return connect(name=name, device_types=(device_type,), devices=devices, links=tuple(links))


def _wire(pair: PairLink, provenance: str) -> Wire:
    return Wire(
        bandwidth_bytes_per_s=pair.bandwidth_bytes_per_s, latency_s=pair.latency_s, provenance=provenance
    )


def _outside(
    host: str,
    nic: str,
    hosts: Sequence[str],
    names: Sequence[str],
    pairs: Mapping[tuple[int, int], PairLink],
    provenance: str,
) -> list[Link]:
    """The wire of one host to the fabric, and how its ranks reach it."""
    crossing = [p for (a, b), p in pairs.items() if (hosts[a] == host) != (hosts[b] == host)]
    bandwidth = max(p.bandwidth_bytes_per_s for p in crossing)
    latency = median(p.latency_s for p in crossing) / 2
    own = [name for name, at in zip(names, hosts, strict=True) if at == host]
    inner = Wire(bandwidth_bytes_per_s=bandwidth, latency_s=0.0, provenance=provenance)
    outer = Wire(bandwidth_bytes_per_s=bandwidth, latency_s=latency, provenance=provenance)
    return star(nic, own, inner) + both_ways(nic, _FABRIC, outer)


def with_collectives(cluster: Cluster, sizes: Sequence[int], times_s: Sequence[float]) -> Cluster:
    """The cluster with what software adds to collectives, from measured sums over all devices.

    Args:
        cluster: With measured links.
        sizes: Bytes of the sums.
        times_s: What each took.
    """
    bare = replace(cluster, overheads=replace(cluster.overheads, collective_s=0.0, collective_s_per_byte=0.0))
    base_s, s_per_byte = fit_collective(sizes, times_s, predicted_all_reduces(bare, sizes))
    return replace(
        cluster,
        overheads=replace(cluster.overheads, collective_s=base_s, collective_s_per_byte=s_per_byte),
    )


def predicted_all_reduces(cluster: Cluster, sizes: Sequence[int]) -> list[float]:
    """Seconds that the collective model says of a sum over all devices, for each number of bytes."""
    tables = cluster_tables(cluster)
    scratch, count = collective_scratch(tables), len(cluster.links)
    links, busy_s = np.zeros(count, np.int64), np.zeros(count, np.float64)
    members = np.arange(cluster.num_devices, dtype=np.int64)
    return [
        float(all_reduce(tables, scratch, members, len(members), float(size), links, busy_s)[0])
        for size in sizes
    ]
