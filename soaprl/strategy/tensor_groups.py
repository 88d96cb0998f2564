"""Which factors of which operators can be cut together so that nothing between them is exchanged.

The idea of Megatron's layers (Shoeybi et al. 2019), found in any graph from the factors alone. A *column*
operator has a weight and writes a dimension along a parameter factor: its parts read all of the input and
write different channels. A *row* operator sums over that dimension: its parts read what the column parts
wrote and write partial sums. Operators in between carry the dimension as it is. All of these factors, cut
into the same number of parts, are a `TensorGroup`: part k of everything runs on one device and reads from
that device alone. Found by following the dimension from a column operator to all its readers, and from there
to what else they read along it; implemented in `_followed`.

The kinds of groups: *attention* (between column and row, activations are multiplied with each other, head by
head), *pair* (nothing but pointwise operators between them, as in a feed-forward layer), and *vocabulary*
(no row: the channels are summed by operators without weights, as in a cross-entropy over classes).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from soaprl.graph.factors import FactorKind
from soaprl.graph.operators import Access, Operator, OperatorGraph


class GroupKind(StrEnum):
    """What a group is; see the module. In the order in which groups take operators."""

    ATTENTION = "attention"
    PAIR = "pair"
    VOCABULARY = "vocabulary"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorGroup:
    """Operators that can be cut together.

    Attributes:
        kind: What it is.
        factors: The factor of each operator, by operator index.
        columns: Operators that begin it.
        rows: Operators with weights that end it.
    """

    kind: GroupKind
    factors: Mapping[int, int]
    columns: tuple[int, ...]
    rows: tuple[int, ...]


def tensor_groups(graph: OperatorGraph) -> tuple[TensorGroup, ...]:
    """All groups, no operator in two of them: attention first, then pairs, then vocabularies."""
    found = sorted(find_groups(graph), key=lambda group: list(GroupKind).index(group.kind))
    taken: set[int] = set()
    chosen = []
    for group in found:
        if taken.isdisjoint(group.factors):
            taken.update(group.factors)
            chosen.append(group)
    return tuple(chosen)


def lookups(graph: OperatorGraph) -> dict[int, int]:
    """Operators that look up rows of a table, with the factor that runs over the rows.

    Cut along it, each part finds the rows that it holds, and writes zeros for the others: partial sums.
    """
    found = {}
    for index, operator in enumerate(graph.operators):
        read = {span.factor for access in operator.inputs for span in access.spans}
        for access in operator.parameters:
            for span in access.spans:
                if not operator.matmul and _splits(operator, span.factor, FactorKind.REDUCTION):
                    found.update({index: span.factor} if span.factor not in read else {})
    return found


def find_groups(graph: OperatorGraph) -> Iterator[TensorGroup]:
    """All groups in the order of their columns; an operator may be in several, with different factors."""
    seen: set[tuple[int, int]] = set()
    for index, operator in enumerate(graph.operators):
        if not (operator.matmul and operator.parameters):
            continue
        for factor in range(len(operator.factors)):
            if (index, factor) in seen or not _splits(operator, factor, FactorKind.PARAMETER):
                continue
            factors = _followed(graph, index, factor)
            group = None if factors is None else _classified(graph, factors)
            if group is not None:
                seen.update(group.factors.items())
                yield group


def _followed(graph: OperatorGraph, operator: int, factor: int) -> dict[int, int] | None:
    """The factors that must be cut with a column's, by operator; None if one of them cannot be."""
    factors = {operator: factor}
    pending = [operator]
    while pending:
        index = pending.pop()
        for neighbour, joined in _neighbours(graph, index, factors[index]):
            if neighbour in factors:
                if factors[neighbour] != joined:
                    return None
                continue
            if not _splits(graph.operators[neighbour], joined):
                return None
            factors[neighbour] = joined
            pending.append(neighbour)
    return factors


def _neighbours(graph: OperatorGraph, index: int, factor: int) -> Iterator[tuple[int, int]]:
    """Operators that share a dimension along `factor` with operator `index`, with their factors for it.

    A factor of -1 stands for one that is no factor: a window, a slice, or a dimension that is read whole.
    """
    operator = graph.operators[index]
    for access in operator.outputs:
        for dim in _dims(access, factor):
            for reader, position in graph.consumers.get(access.tensor, ()):
                yield reader, _plain_factor(graph.operators[reader].inputs[position], dim)
    for access in operator.inputs:
        producer = graph.producer.get(access.tensor)
        if producer is None:
            continue
        for dim in _dims(access, factor):
            written = next(a for a in graph.operators[producer].outputs if a.tensor == access.tensor)
            plain = access.spans[dim].plain
            yield producer, _plain_factor(written, dim) if plain else -1


def _classified(graph: OperatorGraph, factors: dict[int, int]) -> TensorGroup | None:
    """The group of these factors, or None if it is none: without an end, or with a sum in the middle."""
    columns, rows, ends, attention = [], [], 0, False
    for index in sorted(factors):
        operator, factor = graph.operators[index], factors[index]
        kind = operator.factors[factor].kind
        weighted = operator.matmul and bool(operator.parameters)
        if kind is FactorKind.REDUCTION:
            ends += 1
            if weighted:
                rows.append(index)
            elif operator.matmul:
                return None
        elif weighted and kind is FactorKind.PARAMETER:
            columns.append(index)
        attention = attention or (operator.matmul and not weighted)
    if not columns or not ends:
        return None
    without_attention = GroupKind.PAIR if rows else GroupKind.VOCABULARY
    kind_of_group = GroupKind.ATTENTION if attention else without_attention
    return TensorGroup(kind=kind_of_group, factors=factors, columns=tuple(columns), rows=tuple(rows))


def position_factors(graph: OperatorGraph, groups: tuple[TensorGroup, ...]) -> dict[int, int]:
    """For operators outside of the groups, the factor that runs over the positions of a sequence, if any.

    The positions are what columns and rows carry from input to output besides the samples: their largest
    attribute factor. From there the dimension is followed through the operators outside of the groups.
    """
    taken = {index for group in groups for index in group.factors}
    ends = {index for group in groups for index in (*group.columns, *group.rows)}
    known: dict[int, int] = {}
    for index in sorted(ends):
        factors = graph.operators[index].factors
        carried = [f for f, factor in enumerate(factors) if factor.kind is FactorKind.ATTRIBUTE]
        if carried:
            known[index] = max(carried, key=lambda f: factors[f].extent)
    pending = sorted(known)
    while pending:
        index = pending.pop()
        for neighbour, factor in _neighbours(graph, index, known[index]):
            splits = factor >= 0 and _splits(graph.operators[neighbour], factor)
            if splits and neighbour not in known and neighbour not in taken:
                known[neighbour] = factor
                pending.append(neighbour)
    return {index: factor for index, factor in known.items() if index not in taken}


def _dims(access: Access, factor: int) -> list[int]:
    return [dim for dim, span in enumerate(access.spans) if span.factor == factor]


def _plain_factor(access: Access, dim: int) -> int:
    span = access.spans[dim]
    return span.factor if span.plain else -1


def _splits(operator: Operator, factor: int, kind: FactorKind | None = None) -> bool:
    """Whether `factor` is one that can be cut, does not run over samples, and is of this kind."""
    if factor < 0 or not operator.factors[factor].splittable:
        return False
    found = operator.factors[factor].kind
    return found is not FactorKind.SAMPLE if kind is None else found is kind
