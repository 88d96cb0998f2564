"""Times of transfers and collectives, in closed form, over the arrays of a cluster.

A transfer of s bytes from device i to j takes the sum of its links' latencies plus s / b of its narrowest
link, and occupies each link for s / (its own b). Implemented in `transfer_time`.

A collective is a number of rounds in which devices send pieces over their routes at the same time. With
``busy(l)`` the bytes that all rounds put on link l, divided by its bandwidth,

    time = base + extra * s + (sum over rounds of the slowest route's latency) + (max over links of busy(l))

with s the bytes that each device has in the end, and `extra` what software takes for each of them.

Routes that share a link (a NIC, a PCIe uplink) therefore wait for each other. Large messages are cut into
pieces that follow each other, so phases on different links overlap and the busiest link alone decides.
Algorithms, for n devices and s bytes (n = m * k for m devices in each of k nodes):

- *ring*, in device order: 2(n-1) rounds, each sends s / n to the next device. Implemented in `_ring`.
- *mesh*, where each pair of devices has a link of its own: 2 rounds, each sends s / n to every
  other device; the bandwidth that several rings over disjoint links reach. Implemented in `_mesh`.
- *hierarchical*: reduce-scatter in each node (ring or mesh), a ring over the nodes for each of the m local
  ranks with s / m bytes, all-gather in each node. Implemented in `_hierarchical`.
- *tree*: two binary trees of s / 2 each, in which the inner devices of one are mostly leaves of the other;
  2 log2(n) rounds (Sanders, Speck, Traeff 2009). Implemented in `_tree`.

Rings and meshes make an all-gather or reduce-scatter in half the rounds of an all-reduce; a tree makes them
by a whole all-reduce, which pays where latency is all that counts. The quickest algorithm counts.

On links of equal bandwidth b that nobody shares, a ring takes 2(n-1)/n * s / b for an all-reduce and
(n-1)/n * s / b for an all-gather, as all pairs do for an all-to-all.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from soaprl.cluster.hub import DOWN, GROUP, INSIDE, PLACE, UP, WIDTH
from soaprl.cluster.tables import ClusterTables, FloatArray, IntArray
from soaprl.cost.kernels import filling_kernel, inner_kernel

ALGORITHMS = ("none", "ring", "mesh", "hierarchical", "tree", "pairwise")
_NONE, _RING, _MESH, _HIERARCHICAL, _TREE, _PAIRWISE = range(6)


class CollectiveScratch(NamedTuple):
    """Working memory of the collective kernels: one for each thread; all zero between calls.

    Attributes:
        busy_s: Shape [2, L]; the best plan so far and the one tried.
        links: Shape [2, L]; the links that have entries in `busy_s`.
        num_links: Shape [2].
    """

    busy_s: FloatArray
    links: IntArray
    num_links: IntArray


def collective_scratch(tables: ClusterTables) -> CollectiveScratch:
    """Working memory for the kernels on the cluster of `tables`."""
    num_links = len(tables.link_latency_s)
    return CollectiveScratch(
        busy_s=np.zeros((2, num_links), np.float64),
        links=np.zeros((2, num_links), np.int64),
        num_links=np.zeros(2, np.int64),
    )


@filling_kernel
def transfer_time(tables: ClusterTables, source: int, target: int, num_bytes: float) -> float:
    """Seconds of a transfer of `num_bytes` on an idle route; 0 from a device to itself."""
    route = source * tables.num_devices + target
    time_s: float = tables.route_latency_s[route] + num_bytes / tables.route_bandwidth_bytes_per_s[route]
    return time_s


@inner_kernel
def _send(
    tables: ClusterTables, scratch: CollectiveScratch, row: int, source: int, target: int, num_bytes: float
) -> float:
    """Put `num_bytes` on the route; returns the route's latency."""
    if len(tables.hub) == 0:
        route = source * tables.num_devices + target
        _occupy(tables, scratch, row, route, num_bytes, 0.0)
        latency_s: float = tables.route_latency_s[route]
        return latency_s
    if tables.hub[source, GROUP] == tables.hub[target, GROUP]:
        return _occupy(
            tables, scratch, row, tables.hub[source, INSIDE] + tables.hub[target, PLACE], num_bytes, 0.0
        )
    up_s = _occupy(tables, scratch, row, tables.hub[source, UP], num_bytes, 0.0)
    down = tables.hub[target, DOWN + tables.hub[source, WIDTH]]
    return _occupy(tables, scratch, row, down, num_bytes, up_s)


@inner_kernel
def _occupy(
    tables: ClusterTables,
    scratch: CollectiveScratch,
    row: int,
    route: int,
    num_bytes: float,
    latency_s: float,
) -> float:
    """Put `num_bytes` on the route with this number; returns `latency_s` plus the route's latency."""
    for position in range(tables.route_offsets[route], tables.route_offsets[route + 1]):
        link = tables.route_links[position]
        if scratch.busy_s[row, link] == 0.0:
            scratch.links[row, scratch.num_links[row]] = link
            scratch.num_links[row] += 1
        scratch.busy_s[row, link] += num_bytes / tables.link_bandwidth_bytes_per_s[link]
        latency_s += tables.link_latency_s[link]
    return latency_s


@inner_kernel
def _ring(
    tables: ClusterTables,
    scratch: CollectiveScratch,
    row: int,
    members: IntArray,
    first: int,
    stride: int,
    size: int,
    num_bytes: float,
    passes: int,
) -> float:
    """A ring over ``members[first + i * stride]`` for i below `size`; returns its latency.

    One pass is a reduce-scatter or an all-gather of `num_bytes`, two are an all-reduce.
    """
    rounds = passes * (size - 1)
    sent = rounds * num_bytes / size
    slowest = 0.0
    source = members[first + (size - 1) * stride]
    for i in range(size):
        target = members[first + i * stride]
        slowest = max(slowest, _send(tables, scratch, row, source, target, sent))
        source = target
    return rounds * slowest


@inner_kernel
def _mesh(
    tables: ClusterTables,
    scratch: CollectiveScratch,
    row: int,
    members: IntArray,
    first: int,
    size: int,
    num_bytes: float,
    passes: int,
) -> float:
    """Every one of `size` members from `first` on sends its piece to every other; returns the latency."""
    slowest = 0.0
    for i in range(first, first + size):
        for j in range(first, first + size):
            if i != j:
                latency = _send(tables, scratch, row, members[i], members[j], passes * num_bytes / size)
                slowest = max(slowest, latency)
    return passes * slowest


@inner_kernel
def _is_mesh(tables: ClusterTables, members: IntArray, first: int, size: int) -> bool:
    """Whether each pair of `size` members from `first` on has a link of its own."""
    for i in range(first + 1, first + size):
        if tables.device_mesh[members[i]] != tables.device_mesh[members[first]]:
            return False
    return True


@inner_kernel
def _hierarchical(
    tables: ClusterTables,
    scratch: CollectiveScratch,
    row: int,
    members: IntArray,
    num_members: int,
    per_node: int,
    num_bytes: float,
    passes: int,
) -> float:
    """Scatter in each node, rings over the nodes, gather in each node; returns the latency."""
    inside = 0.0
    for first in range(0, num_members, per_node):
        if _is_mesh(tables, members, first, per_node):
            latency = _mesh(tables, scratch, row, members, first, per_node, num_bytes, passes)
        else:
            latency = _ring(tables, scratch, row, members, first, 1, per_node, num_bytes, passes)
        inside = max(inside, latency)
    across = 0.0
    piece = num_bytes / per_node
    for local in range(per_node):
        size = num_members // per_node
        latency = _ring(tables, scratch, row, members, local, per_node, size, piece, passes)
        across = max(across, latency)
    return inside + across


@inner_kernel
def _tree(
    tables: ClusterTables,
    scratch: CollectiveScratch,
    row: int,
    members: IntArray,
    num_members: int,
    num_bytes: float,
) -> float:
    """Two binary trees, each reduces and broadcasts half of `num_bytes`; returns the latency.

    The parent of rank r in the first tree: clear its lowest set bit, set the next higher one; where that is
    no rank, only clear. Rank 0 is the root. The second tree is the first one with the ranks reversed.
    """
    total = 0.0
    bit = 1
    while bit < num_members:
        slowest = 0.0
        for rank in range(bit, num_members, 2 * bit):
            parent = (rank ^ bit) | (2 * bit)
            if parent >= num_members:
                parent = rank ^ bit
            for mirrored in range(2):
                low = members[num_members - 1 - rank] if mirrored else members[rank]
                high = members[num_members - 1 - parent] if mirrored else members[parent]
                slowest = max(slowest, _send(tables, scratch, row, low, high, num_bytes / 2))
                slowest = max(slowest, _send(tables, scratch, row, high, low, num_bytes / 2))
        total += 2 * slowest
        bit *= 2
    return total


@inner_kernel
def _busiest(scratch: CollectiveScratch, row: int) -> float:
    """The largest entry of a row."""
    busiest = 0.0
    for k in range(scratch.num_links[row]):
        busiest = max(busiest, scratch.busy_s[row, scratch.links[row, k]])
    return busiest


@inner_kernel
def _clear(scratch: CollectiveScratch, row: int) -> None:
    """Make a row all zero."""
    for k in range(scratch.num_links[row]):
        scratch.busy_s[row, scratch.links[row, k]] = 0.0
    scratch.num_links[row] = 0


@inner_kernel
def _devices_per_node(tables: ClusterTables, members: IntArray, num_members: int) -> int:
    """How many members each node has; 0 where nodes differ."""
    run, expected = 0, 0
    for i in range(num_members):
        run += 1
        node = tables.device_node[members[i]]
        if i + 1 == num_members or tables.device_node[members[i + 1]] != node:
            if expected not in (0, run):
                return 0
            run, expected = 0, run
    return expected


@inner_kernel
def _plan(
    tables: ClusterTables,
    scratch: CollectiveScratch,
    row: int,
    algorithm: int,
    members: IntArray,
    num_members: int,
    per_node: int,
    num_bytes: float,
    passes: int,
) -> float:
    """Fill a row with one algorithm's link times; returns the collective's time."""
    if algorithm == _RING:
        latency = _ring(tables, scratch, row, members, 0, 1, num_members, num_bytes, passes)
    elif algorithm == _HIERARCHICAL:
        latency = _hierarchical(tables, scratch, row, members, num_members, per_node, num_bytes, passes)
    elif algorithm == _TREE:
        latency = _tree(tables, scratch, row, members, num_members, num_bytes)
    else:
        latency = _mesh(tables, scratch, row, members, 0, num_members, num_bytes, passes)
    software_s = tables.collective_base_s + num_bytes * tables.collective_s_per_byte
    return software_s + latency + _busiest(scratch, row)


@inner_kernel
def _offered(
    tables: ClusterTables, algorithm: int, members: IntArray, num_members: int, per_node: int
) -> bool:
    """Whether `algorithm` can run the collective."""
    if algorithm == _MESH:
        return _is_mesh(tables, members, 0, num_members)
    if algorithm == _HIERARCHICAL:
        return 1 < per_node < num_members
    return True


@inner_kernel
def _finish(scratch: CollectiveScratch, row: int, links: IntArray, busy_s: FloatArray) -> int:
    """Move a row into the caller's arrays; returns how many links it has."""
    count: int = scratch.num_links[row]
    for k in range(count):
        links[k] = scratch.links[row, k]
        busy_s[k] = scratch.busy_s[row, links[k]]
    _clear(scratch, row)
    return count


@inner_kernel
def _best(
    tables: ClusterTables,
    scratch: CollectiveScratch,
    members: IntArray,
    num_members: int,
    num_bytes: float,
    passes: int,
    links: IntArray,
    busy_s: FloatArray,
) -> tuple[float, int, int]:
    """The quickest algorithm's time, number of links and index; links and their times into the arrays."""
    if num_members < 2 or num_bytes <= 0:
        return 0.0, 0, _NONE
    per_node = _devices_per_node(tables, members, num_members)
    best_s, best_algorithm, row = np.inf, _NONE, 0
    for algorithm in range(_RING, _TREE + 1):
        if _offered(tables, algorithm, members, num_members, per_node):
            time_s = _plan(tables, scratch, row, algorithm, members, num_members, per_node, num_bytes, passes)
            if time_s < best_s:
                best_s, best_algorithm, row = time_s, algorithm, 1 - row
            _clear(scratch, row)
    return best_s, _finish(scratch, 1 - row, links, busy_s), best_algorithm


@filling_kernel
def all_reduce(
    tables: ClusterTables,
    scratch: CollectiveScratch,
    members: IntArray,
    num_members: int,
    num_bytes: float,
    links: IntArray,
    busy_s: FloatArray,
) -> tuple[float, int, int]:
    """Sum `num_bytes` over the first `num_members` of `members` (distinct devices, ascending).

    Writes the links used and the seconds each is busy into the first entries of `links` and `busy_s` (room
    for all links of the cluster). Returns seconds, number of links, and index into `ALGORITHMS`; all 0
    for less than two members or no bytes.
    """
    return _best(tables, scratch, members, num_members, num_bytes, 2, links, busy_s)


@filling_kernel
def given_all_reduce(
    tables: ClusterTables, members: IntArray, num_bytes: int, links: IntArray, busy_s: FloatArray
) -> tuple[float, int]:
    """Like `all_reduce` over all of `members`, looked up among those that are given with the cluster.

    It must be among them: whoever gives some gives all. Returns seconds and number of links.
    """
    given, given_s = tables.given, tables.given_s
    for k in range(given[0]):
        at = 1 + 5 * k
        first, link, count = given[at + 1], given[at + 3], given[at + 4]
        if given[at] != len(members) or given[at + 2] != num_bytes:
            continue
        same = True
        for i in range(len(members)):
            same = same and given[first + i] == members[i]
        if same:
            for i in range(count):
                links[i] = given[link + i]
                busy_s[i] = given_s[link + i]
            return given_s[at], count
    assert False, "an all-reduce is not among those given with the cluster"  # noqa: B011, PT015


@filling_kernel
def all_gather(
    tables: ClusterTables,
    scratch: CollectiveScratch,
    members: IntArray,
    num_members: int,
    num_bytes: float,
    links: IntArray,
    busy_s: FloatArray,
) -> tuple[float, int, int]:
    """Like `all_reduce`: every member ends with `num_bytes`, of which each had an equal piece.

    A reduce-scatter of `num_bytes` takes the same time.
    """
    return _best(tables, scratch, members, num_members, num_bytes, 1, links, busy_s)


@filling_kernel
def all_to_all(
    tables: ClusterTables,
    scratch: CollectiveScratch,
    members: IntArray,
    num_members: int,
    num_bytes: float,
    links: IntArray,
    busy_s: FloatArray,
) -> tuple[float, int, int]:
    """Like `all_reduce`: every member sends a piece of its own `num_bytes` to every other one."""
    if num_members < 2 or num_bytes <= 0:
        return 0.0, 0, _NONE
    latency = _mesh(tables, scratch, 0, members, 0, num_members, num_bytes, 1)
    software_s = tables.collective_base_s + num_bytes * tables.collective_s_per_byte
    time_s = software_s + latency + _busiest(scratch, 0)
    return time_s, _finish(scratch, 0, links, busy_s), _PAIRWISE


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveTime:
    """What one collective takes.

    Attributes:
        time_s: From its start to its end on idle links.
        algorithm: The quickest one; see `ALGORITHMS`.
        busy_s: Seconds that each link it uses is busy, by link index.
    """

    time_s: float
    algorithm: str
    busy_s: dict[int, float]


def all_reduce_time(
    tables: ClusterTables,
    devices: Iterable[int],
    num_bytes: float,
    *,
    scratch: CollectiveScratch | None = None,
) -> CollectiveTime:
    """What the sum of `num_bytes` over `devices` takes; every device has and gets all of it."""
    return _call(all_reduce, tables, devices, num_bytes, scratch)


def all_gather_time(
    tables: ClusterTables,
    devices: Iterable[int],
    num_bytes: float,
    *,
    scratch: CollectiveScratch | None = None,
) -> CollectiveTime:
    """What gathering `num_bytes` on each of `devices` takes, or scattering their sum."""
    return _call(all_gather, tables, devices, num_bytes, scratch)


def all_to_all_time(
    tables: ClusterTables,
    devices: Iterable[int],
    num_bytes: float,
    *,
    scratch: CollectiveScratch | None = None,
) -> CollectiveTime:
    """What it takes when each of `devices` sends an equal piece of its `num_bytes` to every other one."""
    return _call(all_to_all, tables, devices, num_bytes, scratch)


def _call(
    collective: Callable[..., tuple[float, int, int]],
    tables: ClusterTables,
    devices: Iterable[int],
    num_bytes: float,
    scratch: CollectiveScratch | None,
) -> CollectiveTime:
    members = np.array(sorted({int(device) for device in devices}), np.int64)
    links, busy_s = np.zeros_like(tables.link_latency_s, np.int64), np.zeros_like(tables.link_latency_s)
    time_s, count, algorithm = collective(
        tables, scratch or collective_scratch(tables), members, len(members), float(num_bytes), links, busy_s
    )
    return CollectiveTime(
        time_s=time_s,
        algorithm=ALGORITHMS[algorithm],
        busy_s=dict(zip(links[:count].tolist(), busy_s[:count].tolist(), strict=True)),
    )
