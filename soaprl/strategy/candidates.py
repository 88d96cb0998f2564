"""Legal degree vectors, structured device groups, and capped lists of candidate configurations."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from math import prod

import numpy as np
from numpy.typing import NDArray

from soaprl.cluster.cluster import Cluster
from soaprl.errors import StrategyError
from soaprl.graph.factors import FactorKind
from soaprl.graph.operators import Operator
from soaprl.strategy.strategy import OpConfig

MAX_DEGREE_VECTORS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DegreeLimits:
    """Which degree vectors are considered.

    Attributes:
        max_tasks: Largest number of tasks of an operator (product of the degrees).
        reductions: Whether factors that make partial sums may be split (an extension of SOAP).
        divisors_only: Whether degrees must divide the factor's extent; uneven parts are legal otherwise.
    """

    max_tasks: int
    reductions: bool = True
    divisors_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceGroup:
    """Devices for the tasks of one operator, in task order.

    Attributes:
        kind: ``block`` (consecutive), ``strided`` (equally spaced, so spanning nodes), ``single`` (all tasks
            on one device) or ``cyclic`` (more tasks than devices, dealt out in turn).
        devices: One device for each task.
    """

    kind: str
    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """A capped list of candidate configurations.

    Attributes:
        configs: The configurations, best-structured first; no duplicates.
        num_structured: How many there are without the cap.
        explanation: One sentence for people: what is in the list, and what the cap left out.
    """

    configs: tuple[OpConfig, ...]
    num_structured: int
    explanation: str


def degree_choices(operator: Operator, limits: DegreeLimits) -> tuple[tuple[int, ...], ...]:
    """For each factor of `operator`, the degrees that `limits` allow, ascending."""
    if limits.max_tasks < 1:
        raise StrategyError(f"expected a limit of at least 1 task an operator, found {limits.max_tasks}.")
    choices = []
    for factor in operator.factors:
        fixed = factor.kind is FactorKind.REDUCTION and not limits.reductions
        largest = 1 if fixed else min(factor.max_degree, limits.max_tasks)
        degrees = range(1, largest + 1)
        choices.append(tuple(d for d in degrees if not limits.divisors_only or factor.extent % d == 0))
    return tuple(choices)


def count_degrees(operator: Operator, limits: DegreeLimits) -> int:
    """Number of legal degree vectors, without listing them."""
    return _count(degree_choices(operator, limits), limits.max_tasks)


def legal_degrees(operator: Operator, limits: DegreeLimits) -> NDArray[np.int32]:
    """All legal degree vectors in lexicographic order.

    Operators whose factors allow the same degrees share one array.

    Returns:
        Read-only array of shape (number of vectors, number of factors).

    Raises:
        StrategyError: There are more than `MAX_DEGREE_VECTORS`; nothing is left out silently.
    """
    choices = degree_choices(operator, limits)
    count = _count(choices, limits.max_tasks)
    if count > MAX_DEGREE_VECTORS:
        raise StrategyError(
            f"operator {operator.name!r} has {count:,} degree vectors with up to {limits.max_tasks} tasks,"
            f" more than {MAX_DEGREE_VECTORS:,}; allow fewer tasks, or only degrees that divide the extents."
        )
    return _vectors(choices, limits.max_tasks)


def device_groups(num_tasks: int, cluster: Cluster) -> tuple[DeviceGroup, ...]:
    """Structured device groups for `num_tasks` tasks: blocks, then strided ones, then single devices.

    Blocks start at multiples of their size. Strided groups have one device in each of `num_tasks` nodes, or
    spread over the whole cluster. With more tasks than devices there is one cyclic group besides the single
    devices.
    """
    sizes = {sum(d.node == node for d in cluster.devices) for node in {d.node for d in cluster.devices}}
    return _groups(num_tasks, cluster.num_devices, sizes.pop() if len(sizes) == 1 else 1)


def candidate_configs(
    operator: Operator, cluster: Cluster, limits: DegreeLimits, *, max_candidates: int
) -> Candidates:
    """Legal degree vectors times structured device groups, at most `max_candidates` of them.

    The cap keeps what is most regular: degree vectors are ranked by equal parts first, then by task counts
    that divide the number of devices, then by the number of factors split, then by number of tasks (larger
    first). Every vector gets its first device group before any gets its second, so that a small cap covers
    many ways to split on the first devices rather than few on all of them.
    """
    vectors = legal_degrees(operator, limits)
    ranked = _ranked(operator, vectors, cluster.num_devices)
    counts = Counter(vectors.prod(axis=1).tolist())
    total = sum(count * len(device_groups(tasks, cluster)) for tasks, count in counts.items())
    configs = tuple(islice(_dealt(ranked, cluster), max_candidates))
    kept = "all" if len(configs) == total else f"{len(configs):,} of"
    explanation = (
        f"operator {operator.name!r}: {kept} {total:,} candidates ({len(vectors):,} degree vectors times"
        f" their device groups)"
        + ("." if len(configs) == total else f"; the cap of {max_candidates:,} leaves out the least regular.")
    )
    return Candidates(configs=configs, num_structured=total, explanation=explanation)


def _dealt(ranked: list[tuple[int, ...]], cluster: Cluster) -> Iterator[OpConfig]:
    columns = [(degrees, device_groups(prod(degrees), cluster)) for degrees in ranked]
    for position in range(max(len(groups) for _, groups in columns)):
        for degrees, groups in columns:
            if position < len(groups):
                yield OpConfig(degrees, groups[position].devices)


def _ranked(operator: Operator, vectors: NDArray[np.int32], num_devices: int) -> list[tuple[int, ...]]:
    extents = np.array(operator.extents, dtype=np.int64).reshape(1, -1)
    tasks = vectors.prod(axis=1)
    uneven = ((extents % vectors) != 0).any(axis=1)
    misfit = (num_devices % tasks) != 0
    split = (vectors > 1).sum(axis=1)
    # The last key is the first criterion; equal rows keep their lexicographic order.
    order = np.lexsort((-tasks, split, misfit, uneven))
    return [tuple(row) for row in vectors[order].tolist()]


@lru_cache(maxsize=4096)
def _count(choices: tuple[tuple[int, ...], ...], limit: int) -> int:
    # ways[p]: number of vectors over the factors so far with product p.
    ways = np.zeros(limit + 1, dtype=np.int64)
    ways[1] = 1
    for degrees in choices:
        grown = np.zeros_like(ways)
        for degree in degrees:
            grown[degree::degree] += ways[1 : limit // degree + 1]
        ways = grown
    return int(ways.sum())


@lru_cache(maxsize=256)
def _vectors(choices: tuple[tuple[int, ...], ...], limit: int) -> NDArray[np.int32]:
    vectors = np.ones((1, 0), dtype=np.int32)
    products = np.ones(1, dtype=np.int64)
    for degrees in choices:
        fits = [(degree, products * degree <= limit) for degree in degrees]
        grown = [
            np.column_stack((vectors[rows], np.full(int(rows.sum()), degree, dtype=np.int32)))
            for degree, rows in fits
        ]
        products = np.concatenate([products[rows] * degree for degree, rows in fits])
        vectors = np.concatenate(grown)
    if choices:
        vectors = vectors[np.lexsort(vectors.T[::-1])]
    vectors.setflags(write=False)
    return vectors


@lru_cache(maxsize=4096)
def _groups(num_tasks: int, num_devices: int, devices_per_node: int) -> tuple[DeviceGroup, ...]:
    found: dict[tuple[int, ...], str] = {}
    for start in range(0, num_devices - num_tasks + 1, num_tasks):
        found.setdefault(tuple(range(start, start + num_tasks)), "block")
    for stride in sorted({devices_per_node, num_devices // num_tasks}):
        for base in range(0, num_devices - num_tasks * stride + 1, num_tasks * max(stride, 1)):
            for offset in range(base, base + stride):
                found.setdefault(tuple(offset + stride * task for task in range(num_tasks)), "strided")
    if num_tasks > num_devices:
        found.setdefault(tuple(task % num_devices for task in range(num_tasks)), "cyclic")
    for device in range(num_devices):
        found.setdefault((device,) * num_tasks, "single")
    return tuple(DeviceGroup(kind=kind, devices=devices) for devices, kind in found.items())
