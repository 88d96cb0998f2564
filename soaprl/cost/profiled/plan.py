"""Which shards are measured: anchors on a grid of halvings, between which times are interpolated.

The grid of a factor of extent E are the sizes of the first part when E is cut into 1, 2, 4, ... parts, up to
as many as the factor allows, and that many. A shard whose extents are all on the grid is measured itself;
any other lies in a cell of the grid, at whose corners shards are measured.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, prod

from soaprl.cost.profiled.family import family_of
from soaprl.cost.profiled.measurement import Extents
from soaprl.graph.factors import Factor
from soaprl.graph.operators import Operator, OperatorGraph, TensorRole

# Updates are measured at sizes that differ by this.
_UPDATE_RATIO = 8
_SMALLEST_UPDATE_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A shard to measure.

    Attributes:
        operator: Index of an operator of its family.
        family: Its family.
        extents: Of the shard.
    """

    operator: int
    family: str
    extents: Extents


def grid(factor: Factor) -> tuple[int, ...]:
    """Sizes of parts on the grid, ascending."""
    degrees = {1, factor.max_degree}
    degree = 2
    while degree < factor.max_degree:
        degrees.add(degree)
        degree *= 2
    return tuple(sorted({ceil(factor.extent / d) for d in degrees}))


def corners(operator: Operator, extents: Extents) -> list[tuple[int, ...]]:
    """For each factor the one or two sizes on the grid between which the shard's is."""
    found: list[tuple[int, ...]] = []
    for factor, extent in zip(operator.factors, extents, strict=True):
        sizes = grid(factor)
        below = max((s for s in sizes if s <= extent), default=sizes[0])
        above = min((s for s in sizes if s >= extent), default=sizes[-1])
        found.append((below,) if below == above else (below, above))
    return found


def plan_anchors(graph: OperatorGraph, num_devices: int) -> list[Anchor]:
    """The shards to measure so that every strategy for `num_devices` devices is covered, large ones first.

    Degrees that are no powers of two lie between those that are, so the grid goes up to the power of two at
    or above the number of devices.
    """
    anchors: dict[tuple[str, Extents], Anchor] = {}
    for index, operator in enumerate(graph.operators):
        family = family_of(graph, operator)
        for degrees in _degrees(operator.factors, 2 ** (num_devices - 1).bit_length()):
            extents = tuple(ceil(f.extent / d) for f, d in zip(operator.factors, degrees, strict=True))
            anchors.setdefault((family, extents), Anchor(operator=index, family=family, extents=extents))
    return sorted(anchors.values(), key=lambda a: (-prod(a.extents), a.operator))


def _degrees(factors: Sequence[Factor], most: int) -> Iterator[tuple[int, ...]]:
    """The degrees of the grid whose product is at most `most`."""
    choices = []
    for factor in factors:
        powers = [2**k for k in range(most.bit_length()) if 2**k <= factor.max_degree]
        choices.append(sorted({*powers, min(factor.max_degree, most)}))
    yield from _bounded(choices, most)


def _bounded(choices: list[list[int]], most: int) -> Iterator[tuple[int, ...]]:
    """The product of the choices without what is above `most`: operators may have many factors."""
    if not choices:
        yield ()
        return
    for degree in choices[0]:
        if degree <= most:
            for rest in _bounded(choices[1:], most // degree):
                yield (degree, *rest)


def update_sizes(graph: OperatorGraph, num_devices: int) -> list[int]:
    """Bytes of parameters whose updates are measured: from the smallest shard to the largest parameter."""
    sizes = [t.num_bytes for t in graph.tensors if t.role is TensorRole.PARAMETER and t.requires_grad]
    if not sizes:
        return []
    smallest = max(min(sizes) // num_devices, 4)
    size, found = _SMALLEST_UPDATE_BYTES, []
    while size * _UPDATE_RATIO <= smallest:
        size *= _UPDATE_RATIO
    while size < max(sizes):
        found.append(size)
        size *= _UPDATE_RATIO
    return [*found, size]
