"""Clusters by name: ``KIND-NODESxGPUS``, for example ``p100-4x4``.

| kind | inside a node | between nodes |
|---|---|---|
| k80 | PCIe switches with a pair of dies each, joined by the host | one FDR NIC a node, on the host |
| p100 | an NVLink for each pair up to 4; DGX-1 hybrid cube mesh up to 8 | one EDR NIC a node, on the host |
| v100 | a double NVLink for each pair up to 4; DGX-1 hybrid cube mesh up to 8 | one EDR NIC for two GPUs |
| a100 h100 h200 b200 | NVSwitch: one port a GPU and direction | one NIC a GPU |
| cpu | loopback of one machine: one port a process and direction | 10 Gb/s Ethernet, one NIC a node |

The fabric between nodes is non-blocking: only NICs limit. On k80, p100 and v100, traffic between nodes also
crosses PCIe (on k80 the same links that traffic between GPUs uses); from a100 on, each GPU's NIC hangs on a
PCIe link of its own that is at least as fast, so the NIC stands for both. Latencies are NCCL's per hop
(0.6 us NVLink, 1 us PCIe, 2.7 us network), shared equally by the links of the hop.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from soaprl.cluster.cluster import Cluster, Device, Link
from soaprl.cluster.devices import device_type
from soaprl.cluster.topology import Wire, both_ways, check_num_devices, connect, pairs, pcie_tree, star
from soaprl.errors import ClusterError, unknown_name

FABRIC = "fabric"
_FORM = "KIND-NODESxGPUS, for example p100-4x4"
_HOP = "latency: NCCL's tuning constants, low-latency protocol"

_NVLINK1 = Wire(
    bandwidth_bytes_per_s=18.3e9,
    latency_s=0.6e-6,
    provenance=f"published measurement of one NVLink 1.0 between P100s, a direction; {_HOP}",
)
_NVLINK2_DOUBLE = Wire(
    bandwidth_bytes_per_s=47.9e9,
    latency_s=0.6e-6,
    provenance=f"published measurement of two NVLink 2.0 between V100s, a direction; {_HOP}",
)
_NVLINK2_SINGLE = Wire(
    bandwidth_bytes_per_s=23.95e9,
    latency_s=0.6e-6,
    provenance=f"half of the published measurement of two NVLink 2.0 between V100s; {_HOP}",
)
_K80_PCIE = Wire(
    bandwidth_bytes_per_s=11e9,
    latency_s=0.5e-6,
    provenance=f"published measurements under one PCIe 3.0 switch are 10 to 12 GB/s; {_HOP}, half a PCIe hop",
)
_K80_UPLINK = Wire(
    bandwidth_bytes_per_s=6e9,
    latency_s=0.5e-6,
    provenance=f"published measurements across PCIe switches are 5 to 7 GB/s; {_HOP}, half a PCIe hop",
)
_HOST_PCIE = Wire(
    bandwidth_bytes_per_s=12e9,
    latency_s=0.5e-6,
    provenance=f"published measurements of PCIe 3.0 x16 are 11 to 13 GB/s; {_HOP}, half a PCIe hop",
)
_FDR = Wire(
    bandwidth_bytes_per_s=6e9,
    latency_s=1.35e-6,
    provenance=f"InfiniBand FDR: 7 GB/s raw, about 6 reached; {_HOP}, half a network hop",
)
_EDR = Wire(
    bandwidth_bytes_per_s=11e9,
    latency_s=1.35e-6,
    provenance=f"InfiniBand EDR: 12.5 GB/s raw, about 11 reached; {_HOP}, half a network hop",
)
_LOOPBACK = Wire(
    bandwidth_bytes_per_s=6e9,
    latency_s=17.5e-6,
    provenance="measured 2026-11-22: gloo between two processes of a 2-core AMD EPYC virtual machine, 6 GB/s"
    " for 16 MiB and more, 35 us for 4 bytes, half of it on each port",
)
_ETHERNET = Wire(
    bandwidth_bytes_per_s=1.1e9,
    latency_s=15e-6,
    provenance="assumed: 10 Gb/s Ethernet less headers, 30 us with TCP, half of it on each side",
)
_TO_NIC = Wire(
    bandwidth_bytes_per_s=6e9,
    latency_s=0.0,
    provenance="assumed: memory to a network card is as quick as the loopback",
)

# Pairs of a DGX-1V with two NVLinks (nvidia-smi topo -m); all other linked pairs have one.
_DGX1V_DOUBLE = frozenset({(0, 3), (0, 4), (1, 2), (1, 5), (2, 3), (4, 7), (5, 6), (6, 7)})


def _port(bandwidth_bytes_per_s: float, generation: str) -> Wire:
    return Wire(
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        latency_s=0.3e-6,
        provenance=f"datasheet: {generation}, a GPU and direction; {_HOP}, half an NVLink hop",
    )


def _gpu_nic(bandwidth_bytes_per_s: float, what: str) -> Wire:
    return Wire(
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        latency_s=1.35e-6,
        provenance=f"datasheet: {what}, one a GPU; {_HOP}, half a network hop",
    )


Wiring = Callable[[str, list[str]], list[Link]]


def _k80_node(node: str, gpus: list[str]) -> list[Link]:
    tree = pcie_tree(node, gpus, per_switch=2, device_wire=_K80_PCIE, uplink_wire=_K80_UPLINK)
    return tree + both_ways(f"{node}/host", FABRIC, _FDR)


def _cube_mesh(gpus: list[str], wire: Callable[[int, int], Wire]) -> list[Link]:
    """Two quads of fully linked GPUs, and a link between those in the same place of each quad."""
    return [
        link
        for i in range(len(gpus))
        for j in range(i + 1, len(gpus))
        if i // 4 == j // 4 or j == i + 4
        for link in both_ways(gpus[i], gpus[j], wire(i, j))
    ]


def _p100_node(node: str, gpus: list[str]) -> list[Link]:
    host = f"{node}/host"
    mesh = _cube_mesh(gpus, lambda i, j: _NVLINK1)
    return mesh + star(host, gpus, _HOST_PCIE) + both_ways(host, FABRIC, _EDR)


def _v100_node(node: str, gpus: list[str]) -> list[Link]:
    if len(gpus) <= 4:
        links = pairs(gpus, _NVLINK2_DOUBLE)
    else:
        links = _cube_mesh(gpus, lambda i, j: _NVLINK2_DOUBLE if (i, j) in _DGX1V_DOUBLE else _NVLINK2_SINGLE)
    for number, first in enumerate(range(0, len(gpus), 2)):
        nic = f"{node}/nic{number}"
        links += star(nic, gpus[first : first + 2], _HOST_PCIE) + both_ways(nic, FABRIC, _EDR)
    return links


def _switched_node(port: Wire, nic: Wire) -> Wiring:
    def wiring(node: str, gpus: list[str]) -> list[Link]:
        return star(f"{node}/nvswitch", gpus, port) + star(FABRIC, gpus, nic)

    return wiring


def _cpu_node(node: str, processes: list[str]) -> list[Link]:
    nic = f"{node}/nic"
    loopback = star(f"{node}/loopback", processes, _LOOPBACK)
    return loopback + star(nic, processes, _TO_NIC) + both_ways(nic, FABRIC, _ETHERNET)


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetKind:
    """A kind of cluster.

    Attributes:
        name: The first part of the cluster's name; also the name of its device type.
        description: What a node is made of, for people.
        max_devices_per_node: The largest node that is built like this.
        wiring: From a node's name and its devices' names to its links.
    """

    name: str
    description: str
    max_devices_per_node: int
    wiring: Wiring


def preset_kinds() -> tuple[PresetKind, ...]:
    """All kinds that `cluster_from_name` knows."""
    nvlink3 = _port(300e9, "NVLink 3 through NVSwitch")
    nvlink4 = _port(450e9, "NVLink 4 through NVSwitch")
    nvlink5 = _port(900e9, "NVLink 5 through NVSwitch")
    hdr, ndr = _gpu_nic(25e9, "InfiniBand HDR 200 Gb/s"), _gpu_nic(50e9, "InfiniBand NDR 400 Gb/s")
    return (
        PresetKind(
            name="k80",
            max_devices_per_node=16,
            wiring=_k80_node,
            description="K80 dies in pairs under PCIe switches, one FDR InfiniBand NIC a node",
        ),
        PresetKind(
            name="p100",
            max_devices_per_node=8,
            wiring=_p100_node,
            description="P100 with direct NVLinks (hybrid cube mesh above 4), one EDR InfiniBand NIC a node",
        ),
        PresetKind(
            name="v100",
            max_devices_per_node=8,
            wiring=_v100_node,
            description="V100 with direct NVLinks (hybrid cube mesh above 4), an EDR InfiniBand NIC for two",
        ),
        PresetKind(
            name="a100",
            max_devices_per_node=16,
            wiring=_switched_node(nvlink3, hdr),
            description="A100 80 GB on NVSwitch at 300 GB/s, a 25 GB/s NIC a GPU",
        ),
        PresetKind(
            name="h100",
            max_devices_per_node=8,
            wiring=_switched_node(nvlink4, ndr),
            description="H100 80 GB on NVSwitch at 450 GB/s, a 50 GB/s NIC a GPU",
        ),
        PresetKind(
            name="h200",
            max_devices_per_node=8,
            wiring=_switched_node(nvlink4, ndr),
            description="H200 141 GB on NVSwitch at 450 GB/s, a 50 GB/s NIC a GPU",
        ),
        PresetKind(
            name="b200",
            max_devices_per_node=72,
            wiring=_switched_node(nvlink5, ndr),
            description="B200 192 GB on NVSwitch at 900 GB/s, a 50 GB/s NIC a GPU",
        ),
        PresetKind(
            name="cpu",
            max_devices_per_node=64,
            wiring=_cpu_node,
            description="processes of one core each on machines like this one, 10 Gb/s Ethernet",
        ),
    )


def cluster_from_name(name: str) -> Cluster:
    """The cluster called `name`: KIND-NODESxGPUS.

    Raises:
        UnknownNameError: There is no such kind.
        ClusterError: The name has another form, or no node of the kind is that large.
    """
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9]*)-(\d+)[xX](\d+)", name)
    if match is None:
        raise ClusterError(f"cluster {name!r}: expected {_FORM}, or the path of a cluster file.")
    kinds = {kind.name: kind for kind in preset_kinds()}
    kind = kinds.get(match[1].lower())
    if kind is None:
        raise unknown_name("cluster kind", match[1], kinds)
    num_nodes, per_node = int(match[2]), int(match[3])
    if num_nodes < 1 or not 1 <= per_node <= kind.max_devices_per_node:
        raise ClusterError(
            f"cluster {name!r}: expected {_FORM}, with at least 1 node and 1 to"
            f" {kind.max_devices_per_node} devices in a {kind.name} node; found {num_nodes} and {per_node}."
        )
    check_num_devices(name, num_nodes * per_node)
    return _build(kind, num_nodes, per_node)


def _build(kind: PresetKind, num_nodes: int, per_node: int) -> Cluster:
    devices: list[Device] = []
    links: list[Link] = []
    what = "process" if kind.name == "cpu" else "gpu"
    for node in range(num_nodes):
        names = [f"node{node}/{what}{i}" for i in range(per_node)]
        devices += [Device(name=name, node=node, type=0) for name in names]
        links += kind.wiring(f"node{node}", names)
    if num_nodes == 1:
        links = _without_network(links)
    return connect(
        name=f"{kind.name}-{num_nodes}x{per_node}",
        device_types=(device_type(kind.name),),
        devices=tuple(devices),
        links=tuple(links),
    )


def _without_network(links: list[Link]) -> list[Link]:
    """Links that a single node needs: nothing to the fabric, and nothing to a NIC that leads only there."""
    return [link for link in links if not any(_is_network(end) for end in (link.source, link.target))]


def _is_network(vertex: str) -> bool:
    return vertex == FABRIC or "/nic" in vertex
