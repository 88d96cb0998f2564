"""Clusters: devices of some types, directed links, and a route for every pair of devices."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from typing import Protocol

from soaprl.cluster.hub import HubRoutes, Route

# Start of a collective before its first step: NCCL's ring algorithm, low-latency protocol (published in
# its tuning table, 6.6 us; its other protocols start in 8.4 and 14 us).
COLLECTIVE_BASE_S = 6.6e-6
MAX_TABLE_DEVICES = 2048  # the table of routes grows with the square: 4 million routes here


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


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenAllReduce:
    """An all-reduce whose time is given, not computed from routes.

    Attributes:
        devices: Over which devices, ascending.
        num_bytes: Bytes that are summed.
        time_s: Seconds from its start to its end on idle links.
        links: The links it uses.
        busy_s: Seconds that each of them is busy.
    """

    devices: tuple[int, ...]
    num_bytes: int
    time_s: float
    links: tuple[int, ...]
    busy_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """What software takes beside the work of tasks and the time on wires; nothing, unless it was measured.

    The processor of a device hands messages over, packs and unpacks them, and copies every byte where no
    hardware does. Meanwhile it computes nothing: the overhead *o* of the LogP model (Culler et al. 1993), for
    each message and for each byte. With such overheads a cluster is one that ranks were measured on, and its
    devices do their tasks as ranks do: in the order of the program.

    Attributes:
        task_s: Of each pass of a task: finding its regions, calling its kernels.
        iteration_s: Of an iteration, on each device that trains.
        message_s: Of a transfer, for the processor at each of its ends.
        message_s_per_byte: Of each byte that goes out or comes in, for the processor at that end.
        collective_s: From the start of a collective to its first step.
        collective_s_per_byte: Of each byte that a collective sums, beyond the time on its links.
        reduced_s_per_byte: Of each byte that a collective moves, for the processor that it goes out of or
            comes into, beyond `message_s_per_byte`: it is copied together with others, summed and copied
            back. Many cells travel as one, so that for itself a collective takes nothing.
        carry_s_per_byte: Of each byte that goes out or comes in, for the processor at that end, while it is
            on its way: what the device does next starts later, the message takes no longer.
        provenance: Where the numbers come from.
    """

    task_s: float = 0.0
    iteration_s: float = 0.0
    message_s: float = 0.0
    message_s_per_byte: float = 0.0
    collective_s: float = COLLECTIVE_BASE_S
    collective_s_per_byte: float = 0.0
    carry_s_per_byte: float = 0.0
    reduced_s_per_byte: float = 0.0
    provenance: str = ""

    @property
    def occupy(self) -> bool:
        """Whether messages take time of processors."""
        taken = self.message_s, self.message_s_per_byte, self.carry_s_per_byte, self.reduced_s_per_byte
        return max(taken) > 0


class Routes(Protocol):
    """Something that reads like ``routes[i][j]``: a table of tuples, or `soaprl.cluster.hub.HubRoutes`."""

    def __len__(self) -> int: ...

    def __getitem__(self, source: int, /) -> "RouteRow": ...

    def __iter__(self) -> "Iterator[RouteRow]": ...


class RouteRow(Protocol):
    """The routes from one device."""

    def __len__(self) -> int: ...

    def __getitem__(self, target: int, /) -> Route: ...

    def __iter__(self) -> Iterator[Route]: ...


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
        overheads: What software takes.
        all_reduces: For a cluster that stands for a larger one (`soaprl.simulator.folding`): all all-reduces
            that there will be. Empty: they follow from the routes.
    """

    name: str
    device_types: tuple[DeviceType, ...]
    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    routes: Routes
    overheads: Overheads = Overheads()
    all_reduces: tuple[GivenAllReduce, ...] = ()

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
        content: dict[str, object] = {
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
            "routes": self._routes_content(),
        }
        if replace(self.overheads, provenance="") != Overheads():
            values = [float(value) for value in astuple(self.overheads)[:-1]]
            # As before there was the last one, where it is 0: files carry fingerprints.
            content["overheads"] = values if self.overheads.carry_s_per_byte else values[:-1]
        if self.all_reduces:
            content["all_reduces"] = [astuple(given) for given in self.all_reduces]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _routes_content(self) -> object:
        """The routes for the fingerprint: the same however they are kept, as far as tables are possible."""
        if isinstance(self.routes, HubRoutes) and self.num_devices > MAX_TABLE_DEVICES:
            return self.routes.digest()
        return [list(row) for row in self.routes]
