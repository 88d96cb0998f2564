"""Which ways to split an operator, and which groups of devices, a learned policy chooses between.

A candidate is a *split* (a degree vector with k tasks) on a *group* of k devices. On 64 devices there are
thousands, so both are dealt out:

- *Groups* (`device_groups`), the same menu for all operators of a problem, so that neighbours can be where
  their producers are: the whole cluster; halves, quarters and so on as aligned blocks; the nodes; one device
  of each node, and equal shares of each node; the devices of each type; single devices. Of many groups of one
  kind an evenly spaced part is kept.
- *Splits* (`splits`): degrees that divide the extents, fewest factors first, and among those with equally
  many factors the kinds (sample, parameter, attribute, reduction) in turn.

`dealt` gives every group its first split before any gets its second; the whole cluster, where most operators
belong, gets several in each round.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from math import log, prod
from typing import TypeAlias

from soaprl.cluster.cluster import Cluster
from soaprl.graph.factors import Factor, FactorKind
from soaprl.graph.operators import Operator
from soaprl.strategy.placing import nodes_of
from soaprl.strategy.strategy import OpConfig

Group: TypeAlias = tuple[int, ...]

MAX_SPLITS = 24
_SMALL_CLUSTER = 16
_SPLITS_A_ROUND = {1: 4, 2: 2}
_RANK = {FactorKind.SAMPLE: 0, FactorKind.PARAMETER: 1, FactorKind.ATTRIBUTE: 2, FactorKind.REDUCTION: 3}


def device_groups(cluster: Cluster) -> tuple[Group, ...]:
    """The menu of groups of a cluster, largest first, single devices last; no duplicates."""
    count, nodes = cluster.num_devices, nodes_of(cluster)
    found: dict[Group, None] = {tuple(range(count)): None}
    for group in _type_groups(cluster):
        found.setdefault(group)
    for size in range(count // 2, 1, -1):
        blocks = [tuple(range(s, s + size)) for s in range(0, count, size)] if count % size == 0 else []
        for group in _spread(blocks, 8 if count <= _SMALL_CLUSTER else 4):
            found.setdefault(group)
        for group in _spread([node for node in nodes if len(node) == size], 8):
            found.setdefault(group)
        for group in _spread(_across_nodes(nodes, size), 4):
            found.setdefault(group)
    for device in _spread([(d,) for d in range(count)], 16):
        found.setdefault(device)
    return tuple(found)


def splits(operator: Operator, num_tasks: int) -> tuple[tuple[int, ...], ...]:
    """Degree vectors with `num_tasks` tasks, best first, at most `MAX_SPLITS`.

    Without one whose degrees divide the extents, those of a single factor in uneven parts.
    """
    return _splits(operator.factors, num_tasks)


def dealt(operator: Operator, groups: tuple[Group, ...], *, limit: int) -> tuple[OpConfig, ...]:
    """At most `limit` candidates of `operator` on the groups of a menu."""
    return tuple(islice(_dealt(operator, groups), limit))


def _dealt(operator: Operator, groups: tuple[Group, ...]) -> Iterator[OpConfig]:
    whole = len(groups[0])
    vectors = {len(group): splits(operator, len(group)) for group in groups}
    for turn in range(MAX_SPLITS):
        for group in groups:
            a_round = _SPLITS_A_ROUND.get(whole // len(group), 1) if whole % len(group) == 0 else 1
            for degrees in vectors[len(group)][turn * a_round : (turn + 1) * a_round]:
                yield OpConfig(degrees, group)


def _type_groups(cluster: Cluster) -> list[Group]:
    """The devices of each type, where there are several types."""
    kinds = range(len(cluster.device_types))
    groups = [tuple(d for d, device in enumerate(cluster.devices) if device.type == kind) for kind in kinds]
    return [group for group in groups if 0 < len(group) < cluster.num_devices]


def _across_nodes(nodes: tuple[Group, ...], size: int) -> list[Group]:
    """Equal shares of every node that have `size` devices together: the first devices, the next ones, ..."""
    per_node = len(nodes[0])
    if len(nodes) == 1 or size % len(nodes) or any(len(node) != per_node for node in nodes):
        return []
    share = size // len(nodes)
    firsts = range(0, per_node - share + 1, share) if per_node % share == 0 else ()
    return [tuple(d for node in nodes for d in node[first : first + share]) for first in firsts]


def _spread(groups: list[Group], limit: int) -> list[Group]:
    """At most `limit` of `groups`, evenly spaced, the first among them."""
    if len(groups) <= limit:
        return groups
    return [groups[i * len(groups) // limit] for i in range(limit)]


@lru_cache(maxsize=4096)
def _splits(factors: tuple[Factor, ...], num_tasks: int) -> tuple[tuple[int, ...], ...]:
    found = list(_even_vectors(factors, num_tasks))
    if not found:
        found = [
            tuple(num_tasks if i == f else 1 for i in range(len(factors)))
            for f, factor in enumerate(factors)
            if factor.max_degree >= num_tasks
        ]
    ranked = sorted(found, key=lambda vector: _split_rank(factors, vector))
    # Of one set of kinds the most balanced comes first; then the sets take turns.
    turns: dict[tuple[int, ...], int] = {}
    keyed = []
    for position, vector in enumerate(ranked):
        kinds = _kinds(factors, vector)
        turn = turns[kinds] = turns.get(kinds, -1) + 1
        keyed.append(((len(kinds), turn, sum(kinds), position), vector))
    return tuple(vector for _, vector in sorted(keyed)[:MAX_SPLITS])


def _even_vectors(factors: tuple[Factor, ...], num_tasks: int) -> Iterator[tuple[int, ...]]:
    if not factors:
        if num_tasks == 1:
            yield ()
        return
    first, rest = factors[0], factors[1:]
    for degree in range(1, min(first.max_degree, num_tasks) + 1):
        if num_tasks % degree == 0 and first.extent % degree == 0:
            for vector in _even_vectors(rest, num_tasks // degree):
                yield (degree, *vector)


def _kinds(factors: tuple[Factor, ...], vector: tuple[int, ...]) -> tuple[int, ...]:
    """The ranks of the kinds of the factors that are split, ascending."""
    split = zip(factors, vector, strict=True)
    return tuple(sorted(_RANK[factor.kind] for factor, degree in split if degree > 1))


def _split_rank(factors: tuple[Factor, ...], vector: tuple[int, ...]) -> tuple[float, ...]:
    """Fewest factors first, then the most balanced, then in the order of the factors."""
    degrees = [degree for degree in vector if degree > 1]
    mean = log(prod(vector)) / max(1, len(degrees))
    spread = sum((log(degree) - mean) ** 2 for degree in degrees)
    return (len(degrees), round(spread, 9), *(-degree for degree in vector))
