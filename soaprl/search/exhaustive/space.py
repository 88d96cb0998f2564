"""Which configurations an exhaustive search looks at, and which of them are the same but for device numbers.

*Degrees*. ``even``: each degree divides its factor's extent and the number of tasks divides the number of
devices n. ``all``: every legal vector with at most n tasks.

*Placements* of the k tasks of an operator. ``drawn``: the aligned, block, strided and single ones that
`soaprl.search.proposals` draws. ``structured``: also all that exchanging exchangeable devices makes of them
(on n devices that are all exchangeable these are: n different devices in any order, or the same device for
all tasks). ``all``: every list of k devices.

*Tied*. ``none``: each operator has a configuration of its own. ``parameters``: operators that share
parameters and have the same factors (the layers of an unrolled recurrent model) have one together. ``steps``:
so do operators without parameters of the same kind and factors that read the same of different operators that
are tied (the losses of each step): all steps of such a model are alike.

Exchangeable devices. On a cluster of one node in which every pair of devices has a link of its own in each
direction, all of equal bandwidth and latency, devices of one type can exchange their numbers without changing
the simulated time. Proof: times of tasks and transfers depend on types and links alone. Task ids, which break
ties, are numbered by operator, part and order of reading, not by device, except for (a) the transfers of one
exchange under the paper's assumptions, which go over links of their own, so that their order among each other
has no effect, and (b) the updates, one a device, which nothing waits for. A collective over m devices is a
mesh (`soaprl.cost.transfers`), which treats its members alike: for m > 2 it takes fewer rounds than a ring,
and no more time on its busiest link than a ring or a tree; for m = 2 ring and mesh use the same links. On any
other cluster no devices count as exchangeable, because rings and trees run in the order of device numbers.

A strategy is *canonical* if, operator by operator and part by part, devices of one type appear for the first
time in ascending order. Every strategy has exactly one canonical one among those that exchanges make of it,
and ``structured`` and ``all`` placements contain all of these; so it is enough to look at canonical ones. In
a space of ``drawn`` placements, which do not, no devices count as exchangeable.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product
from math import prod

import numpy as np

from soaprl.cluster.cluster import Cluster
from soaprl.cluster.tables import IntArray, cluster_tables
from soaprl.errors import SearchError, unknown_name
from soaprl.graph.operators import Operator, OperatorGraph
from soaprl.search.proposals import even_rows, tied_groups
from soaprl.strategy.candidates import DegreeLimits, legal_degrees
from soaprl.strategy.strategy import OpConfig, Strategy

MAX_DEVICES = 8
MAX_CONFIGS = 200_000
DEGREES = ("even", "all")
PLACEMENTS = ("drawn", "structured", "all")
TIED = ("none", "parameters", "steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceSettings:
    """Which space is searched; see the module.

    Attributes:
        degrees: ``even`` or ``all``.
        placements: ``drawn``, ``structured`` or ``all``.
        reductions: Whether factors that make partial sums may be split.
        tied: ``none``, ``parameters`` or ``steps``.
    """

    degrees: str = "even"
    placements: str = "structured"
    reductions: bool = True
    tied: str = "none"

    def __post_init__(self) -> None:
        if self.degrees not in DEGREES:
            raise unknown_name("kind of degrees", self.degrees, DEGREES)
        if self.placements not in PLACEMENTS:
            raise unknown_name("kind of placements", self.placements, PLACEMENTS)
        if self.tied not in TIED:
            raise unknown_name("kind of ties", self.tied, TIED)


def full_space() -> SpaceSettings:
    """Every legal configuration with at most as many tasks as there are devices."""
    return SpaceSettings(degrees="all", placements="all")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Space:
    """The configurations of every operator.

    Attributes:
        configs: For each operator its configurations.
        degrees: For each operator its degree vectors.
        leaders: For each operator the one whose configuration it has; itself if it has its own.
        classes: For each device the number of its class of exchangeable devices.
    """

    configs: tuple[tuple[OpConfig, ...], ...]
    degrees: tuple[tuple[tuple[int, ...], ...], ...]
    leaders: tuple[int, ...]
    classes: tuple[int, ...]

    def contains(self, strategy: Strategy) -> bool:
        """Whether `strategy` is one of the space."""
        configs = strategy.configs
        if any(config != configs[leader] for config, leader in zip(configs, self.leaders, strict=True)):
            return False
        return all(config in own for config, own in zip(configs, self.configs, strict=True))

    @property
    def num_strategies(self) -> int:
        """Number of strategies in the space, those that differ by exchanges counted each."""
        return prod(len(self.configs[leader]) for leader in set(self.leaders))


def make_space(graph: OperatorGraph, cluster: Cluster, settings: SpaceSettings) -> Space:
    """The space of `settings` for a model on a cluster.

    Raises:
        SearchError: There are too many devices, or an operator has too many configurations.
    """
    n = cluster.num_devices
    if n > MAX_DEVICES:
        raise SearchError(
            f"exhaustive search is for at most {MAX_DEVICES} devices, found {n} in {cluster.name!r}. Use a"
            " smaller cluster, or another method."
        )
    classes = tuple(range(n)) if settings.placements == "drawn" else exchangeable_classes(cluster)
    degrees = tuple(_degree_vectors(operator, n, settings) for operator in graph.operators)
    counts = {prod(vector) for vectors in degrees for vector in vectors}
    placements = {k: _placements(k, classes, settings) for k in counts}
    configs = []
    for operator, vectors in zip(graph.operators, degrees, strict=True):
        count = sum(len(placements[prod(vector)]) for vector in vectors)
        if count > MAX_CONFIGS:
            raise SearchError(
                f"operator {operator.name!r} has {count:,} configurations in this space, more than"
                f" {MAX_CONFIGS:,}. Use even degrees, structured placements, or fewer devices."
            )
        configs.append(tuple(OpConfig(v, devices) for v in vectors for devices in placements[prod(v)]))
    leaders = _leaders(graph, settings.tied)
    return Space(configs=tuple(configs), degrees=degrees, leaders=leaders, classes=classes)


def exchangeable_classes(cluster: Cluster) -> tuple[int, ...]:
    """For each device its class; devices of one class may exchange their numbers (see the module)."""
    tables, n = cluster_tables(cluster), cluster.num_devices
    lengths = np.diff(tables.route_offsets).reshape(n, n)
    alone = bool((lengths == 1 - np.eye(n)).all()) and len(set(tables.route_links.tolist())) == n * (n - 1)
    bandwidth, latency_s = tables.link_bandwidth_bytes_per_s, tables.link_latency_s
    numbers = {(bandwidth[link], latency_s[link]) for link in tables.route_links.tolist()}
    if alone and len(set(tables.device_mesh.tolist())) == 1 and len(numbers) <= 1:
        return tuple(device.type for device in cluster.devices)
    return tuple(range(n))


def canonical_rows(configs: tuple[OpConfig, ...], classes: tuple[int, ...], used: int) -> IntArray:
    """The configurations that keep a strategy canonical when the devices of the bit set `used` are in use."""
    rows = [row for row, config in enumerate(configs) if _is_canonical(config.devices, classes, used)]
    return np.array(rows, np.int64)


def with_devices(used: int, config: OpConfig) -> int:
    """The bit set `used` with the devices of `config`."""
    for device in config.devices:
        used |= 1 << device
    return used


def _is_canonical(devices: tuple[int, ...], classes: tuple[int, ...], used: int) -> bool:
    for device in devices:
        if used >> device & 1:
            continue
        if any(classes[d] == classes[device] and not used >> d & 1 for d in range(device)):
            return False
        used |= 1 << device
    return True


def _leaders(graph: OperatorGraph, tied: str) -> tuple[int, ...]:
    """For each operator the first one that it is tied to; itself if it is tied to none."""
    n = len(graph.operators)
    leaders = list(range(n)) if tied == "none" else [group[0] for group in tied_groups(graph)]
    if tied != "steps":
        return tuple(leaders)
    port = {out.tensor: i for operator in graph.operators for i, out in enumerate(operator.outputs)}
    first: dict[object, tuple[int, tuple[int, ...]]] = {}
    for o, operator in enumerate(graph.operators):
        tensors = tuple(access.tensor for access in operator.inputs)
        made = tuple(tensor for tensor in tensors if tensor in port)
        if operator.parameters or not made:
            continue
        read = tuple((leaders[graph.producer[tensor]], port[tensor]) for tensor in made)
        leader, own = first.setdefault((operator.kind, operator.factors, read), (o, made))
        if own != made:
            leaders[o] = leader
    return tuple(leaders)


def _degree_vectors(
    operator: Operator, num_devices: int, settings: SpaceSettings
) -> tuple[tuple[int, ...], ...]:
    limits = DegreeLimits(max_tasks=num_devices, reductions=settings.reductions)
    vectors = [tuple(row) for row in legal_degrees(operator, limits).tolist()]
    if settings.degrees == "all":
        return tuple(vectors)
    even = even_rows(operator.extents, vectors, num_devices)
    return tuple(vector for vector, flag in zip(vectors, even.tolist(), strict=True) if flag)


def _placements(
    num_tasks: int, classes: tuple[int, ...], settings: SpaceSettings
) -> tuple[tuple[int, ...], ...]:
    n = len(classes)
    if settings.placements == "all":
        if n**num_tasks > MAX_CONFIGS:
            raise SearchError(
                f"{num_tasks} tasks have {n**num_tasks:,} placements on {n} devices, more than"
                f" {MAX_CONFIGS:,}. Use structured placements, or fewer devices."
            )
        return tuple(product(range(n), repeat=num_tasks))
    found = set(_structured(num_tasks, n))
    exchanges = list(_exchanges(classes))
    closed = {tuple(exchange[d] for d in devices) for devices in found for exchange in exchanges}
    return tuple(sorted(closed))


def _structured(num_tasks: int, n: int) -> Iterator[tuple[int, ...]]:
    """Blocks, strided and single placements, as `soaprl.search.proposals` has them."""
    strides = [1, *(s for s in range(2, n) if n % s == 0)]
    for start in range(n):
        yield (start,) * num_tasks
        for stride in strides:
            offsets = (j * stride + (j * stride // n if stride > 1 else 0) for j in range(num_tasks))
            yield tuple((start + offset) % n for offset in offsets)


def _exchanges(classes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """All permutations of device numbers within their classes."""
    members = [[d for d, c in enumerate(classes) if c == kind] for kind in sorted(set(classes))]
    for chosen in product(*(permutations(group) for group in members)):
        exchange = [0] * len(classes)
        for group, images in zip(members, chosen, strict=True):
            for device, image in zip(group, images, strict=True):
                exchange[device] = image
        yield tuple(exchange)
