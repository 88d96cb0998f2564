"""Clusters: devices of some types, directed links, and a route for every pair of devices."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceType:
    """A kind of device.

    Attributes:
        name: For example ``p100``.
        peak_flops_per_s: Peak FLOP/s of matrix work by dtype (``float32``, ``tf32``, ``float16``,
            ``bfloat16``, ``float64``); ``float32`` is always there.
        memory_bytes: Device memory.
        memory_bandwidth_bytes_per_s: Peak memory bandwidth.
        kernel_launch_s: Time from one kernel's launch to the next on an idle device.
        matmul_efficiency: Share of the peak that large matrix kernels reach.
        memory_efficiency: Share of the memory bandwidth that large pointwise kernels reach.
        provenance: Where each number comes from, by attribute name.
    """

    name: str
    peak_flops_per_s: tuple[tuple[str, float], ...]
    memory_bytes: int
    memory_bandwidth_bytes_per_s: float
    kernel_launch_s: float
    matmul_efficiency: float
    memory_efficiency: float
    provenance: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device: its name, the node it is in, and the index of its type."""

    name: str
    node: int
    type: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One direction of a wire.

    Attributes:
        name: For people and traces, for example ``node0.gpu1->node0.gpu2``.
        bandwidth_bytes_per_s: Bytes per second in this direction.
        latency_s: Time that the first byte takes.
        provenance: Where the numbers come from.
        source: Name of the device or switch where it begins; empty for a link that is only in listed routes.
        target: Name of the device or switch where it ends.
    """

    name: str
    bandwidth_bytes_per_s: float
    latency_s: float
    provenance: str = ""
    source: str = ""
    target: str = ""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Devices, links and routes.

    Attributes:
        name: Preset name (``p100-4x4``) or the name in the file.
        device_types: The types.
        devices: The devices, grouped by node.
        links: All directed links.
        routes: ``routes[i][j]`` are the indices of the links from device i to device j in order; empty for
            ``i == j``.
    """

    name: str
    device_types: tuple[DeviceType, ...]
    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    routes: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def num_devices(self) -> int:
        """Number of devices."""
        return len(self.devices)

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return len({d.node for d in self.devices})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that changes a simulated time (names of devices and links do not)."""
        content = {
            "types": [
                [
                    sorted((dtype, float(peak)) for dtype, peak in t.peak_flops_per_s),
                    int(t.memory_bytes),
                    float(t.memory_bandwidth_bytes_per_s),
                    float(t.kernel_launch_s),
                    float(t.matmul_efficiency),
                    float(t.memory_efficiency),
                ]
                for t in self.device_types
            ],
            "devices": [[d.node, d.type] for d in self.devices],
            "links": [[float(link.bandwidth_bytes_per_s), float(link.latency_s)] for link in self.links],
            "routes": self.routes,
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()
