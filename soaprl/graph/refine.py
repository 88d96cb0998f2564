"""Refinement: finds for each tensor dimension the finer dimensions that views give it.

A reshape ``[n, t, 3 * h * d] -> [n, t, 3, h, d]`` is a mere renaming if the producer's last dimension is
already thought of as ``3 x h x d``. So each dimension gets *cuts*: strides ``s`` (in elements of that
dimension) at which some view splits it. Dimensions that one label of a rule ties together share their cuts,
and views carry cuts between their source and their result. Cuts of one dimension must form a chain in which
each divides the next; a reshape that would break a chain is not a view but a call of its own.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

from soaprl.graph.program import Program
from soaprl.graph.rules.base import Reshape, Rule, RuleResult, Value, View

# (value, dimension) for a tensor's dimension, (-1 - node, label position) for a label of a node's rule.
_Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Refinement:
    """The refined extents (above 1, outermost first) of all dimensions.

    Attributes:
        dims: For each value and dimension.
        labels: For each node, by label name; empty for nodes without a rule.
        broken_views: Result values of views that have to be calls.
        broken_rules: Nodes whose rule contradicts the views around it: they cannot be split.
    """

    dims: tuple[tuple[tuple[int, ...], ...], ...]
    labels: tuple[dict[str, tuple[int, ...]], ...]
    broken_views: frozenset[int]
    broken_rules: frozenset[int]


@dataclass(frozen=True, slots=True)
class Block:
    """A minimal run of source dimensions and of result dimensions with the same product."""

    source_dims: tuple[int, ...]
    result_dims: tuple[int, ...]


def reshape_blocks(source: tuple[int, ...], result: tuple[int, ...]) -> tuple[Block, ...]:
    """The finest pairing of runs of dimensions with equal products."""
    blocks: list[Block] = []
    i = j = 0
    while i < len(source) or j < len(result):
        first_i, first_j = i, j
        left, i = (source[i], i + 1) if i < len(source) else (1, i)
        right, j = (result[j], j + 1) if j < len(result) else (1, j)
        while left != right:
            if left < right:
                left, i = left * source[i], i + 1
            else:
                right, j = right * result[j], j + 1
        blocks.append(Block(tuple(range(first_i, i)), tuple(range(first_j, j))))
    return tuple(blocks)


def is_chain(strides: Iterable[int]) -> bool:
    """Whether each stride divides the next larger one."""
    return all(large % small == 0 for small, large in pairwise(sorted(strides)))


def refine(program: Program, rules: tuple[RuleResult, ...]) -> Refinement:
    """Works out the refined dimensions of all values and labels of `program`.

    Args:
        program: The captured program.
        rules: For each node, what its rule says.
    """
    cuts = _Cuts()
    for value, v in enumerate(program.values):
        for d, extent in enumerate(v.shape):
            cuts.extent[value, d] = extent
    links = [
        link
        for node, rule in enumerate(rules)
        for link in (
            _rule_links(cuts, program, node, rule)
            if isinstance(rule, Rule)
            else _view_links(cuts, program.values, rule or ())
        )
    ]
    broken: set[_Key] = set()
    changed = True
    while changed:
        before = dict(cuts.cuts)
        broken.update(link.owner for link in links if link.owner not in broken and not link.carry(cuts))
        changed = cuts.cuts != before
    return _refinement(program, rules, cuts, broken)


@dataclass(slots=True)
class _Cuts:
    """Union-find over keys; each class has a chain of cuts."""

    extent: dict[_Key, int] = field(default_factory=dict)
    parent: dict[_Key, _Key] = field(default_factory=dict)
    cuts: dict[_Key, frozenset[int]] = field(default_factory=dict)

    def find(self, key: _Key) -> _Key:
        root = key
        while (above := self.parent.get(root, root)) != root:
            root = above
        while (above := self.parent.get(key, key)) != root:
            self.parent[key] = root
            key = above
        return root

    def union(self, first: _Key, second: _Key) -> None:
        a, b = self.find(first), self.find(second)
        if a != b:
            self.parent[b] = a

    def of(self, key: _Key) -> frozenset[int]:
        return self.cuts.get(self.find(key), frozenset())

    def add(self, key: _Key, new: frozenset[int]) -> bool:
        """Adds cuts; False if they would break the chain, and then nothing changes."""
        root = self.find(key)
        merged = self.cuts.get(root, frozenset()) | new
        if not is_chain(merged):
            return False
        self.cuts[root] = merged
        return True

    def pieces(self, key: _Key) -> tuple[int, ...]:
        extent = self.extent[key]
        inside = sorted((s for s in self.of(key) if 1 < s < extent), reverse=True)
        return tuple(outer // inner for outer, inner in pairwise([extent, *inside, 1]) if outer > inner)


@dataclass(frozen=True, slots=True)
class _ProductLink:
    """The keys of `left` and of `right` are row-major products with the same flat index."""

    owner: _Key
    left: tuple[_Key, ...]
    right: tuple[_Key, ...]

    def carry(self, cuts: _Cuts) -> bool:
        """Gives each side the cuts of the other; False if they do not fit together."""
        strides = (*self._strides(cuts, self.left), *self._strides(cuts, self.right))
        flat = {base for _, base in strides if base > 1}
        flat |= {base * c for key, base in strides for c in cuts.of(key)}
        if not is_chain(flat):
            return False
        return all(
            cuts.add(key, frozenset(s // base for s in flat if base < s < base * cuts.extent[key]))
            for key, base in strides
        )

    @staticmethod
    def _strides(cuts: _Cuts, keys: tuple[_Key, ...]) -> list[tuple[_Key, int]]:
        return [(key, prod(cuts.extent[k] for k in keys[i + 1 :])) for i, key in enumerate(keys)]


@dataclass(frozen=True, slots=True)
class _SliceLink:
    """`result` is an aligned slice of `source`: its cuts are those of the source below its extent."""

    owner: _Key
    source: _Key
    result: _Key

    def carry(self, cuts: _Cuts) -> bool:
        length = cuts.extent[self.result]
        if not cuts.add(self.source, frozenset({length})):
            return False
        inner = frozenset(c for c in cuts.of(self.source) if c < length)
        return cuts.add(self.result, inner) and cuts.add(self.source, cuts.of(self.result))


def _rule_links(cuts: _Cuts, program: Program, node: int, rule: Rule) -> list[_ProductLink]:
    key: dict[str, _Key] = {}
    for position, label in enumerate(rule.labels):
        key[label.name] = (-1 - node, position)
        cuts.extent[key[label.name]] = label.extent
    links = []
    values = (*program.nodes[node].tensor_arguments(), *program.nodes[node].results)
    for value, dims in zip(values, (*rule.arguments, *rule.results), strict=True):
        for d, dim in enumerate(dims):
            if dim.plain:
                cuts.union(key[dim.labels[0]], (value, d))
            elif dim.labels and dim.affine_identity:
                links.append(_ProductLink((-1, node), ((value, d),), tuple(key[n] for n in dim.labels)))
    return links


def _view_links(
    cuts: _Cuts, values: tuple[Value, ...], views: Iterable[View]
) -> list[_ProductLink | _SliceLink]:
    links: list[_ProductLink | _SliceLink] = []
    for view in views:
        owner = (view.result, 0)
        if isinstance(view, Reshape):
            for block in reshape_blocks(values[view.source].shape, values[view.result].shape):
                left = tuple((view.source, d) for d in block.source_dims)
                right = tuple((view.result, d) for d in block.result_dims)
                if len(left) == len(right) == 1:
                    cuts.union(left[0], right[0])
                else:
                    links.append(_ProductLink(owner, left, right))
            continue
        for d, dim in enumerate(view.dims):
            extent = values[view.source].shape[d]
            if dim.out is None:
                continue
            if dim.length == extent:
                cuts.union((view.source, d), (view.result, dim.out))
            elif dim.length > 1 and extent % dim.length == 0 and dim.start % dim.length == 0:
                links.append(_SliceLink(owner, (view.source, d), (view.result, dim.out)))
    return links


def _refinement(
    program: Program, rules: tuple[RuleResult, ...], cuts: _Cuts, broken: set[_Key]
) -> Refinement:
    dims = tuple(
        tuple(cuts.pieces((value, d)) for d in range(len(v.shape))) for value, v in enumerate(program.values)
    )
    labels = tuple(
        {label.name: cuts.pieces((-1 - node, k)) for k, label in enumerate(rule.labels)}
        if isinstance(rule, Rule)
        else {}
        for node, rule in enumerate(rules)
    )
    views = [view for rule in rules if rule is not None and not isinstance(rule, Rule) for view in rule]
    broken_views = {v.result for v in views if not view_is_renaming(v, program.values, dims)}
    return Refinement(dims, labels, frozenset(broken_views), frozenset(n for k, n in broken if k == -1))


def view_is_renaming(
    view: View, values: tuple[Value, ...], dims: tuple[tuple[tuple[int, ...], ...], ...]
) -> bool:
    """Whether the refined dimensions of source and result match one to one, so that no call is needed."""
    source, result = dims[view.source], dims[view.result]
    if isinstance(view, Reshape):
        return [p for pieces in source for p in pieces] == [p for pieces in result for p in pieces]
    for d, dim in enumerate(view.dims):
        if dim.out is None:
            continue
        if dim.length == values[view.source].shape[d]:
            matches = source[d] == result[dim.out]
        elif aligned_pieces(source[d], dim.start, dim.length) is not None:
            matches = inner_pieces(source[d], dim.length) == result[dim.out]
        else:
            matches = len(source[d]) == 1 and len(result[dim.out]) <= 1
        if not matches:
            return False
    return True


def aligned_pieces(pieces: tuple[int, ...], start: int, length: int) -> tuple[int, ...] | None:
    """For a slice along whole pieces, the fixed indices of the outer pieces; None if it is not one."""
    inner = inner_pieces(pieces, length)
    if inner is None or start % length:
        return None
    index, fixed = start // length, []
    for extent in reversed(pieces[: len(pieces) - len(inner)]):
        index, k = divmod(index, extent)
        fixed.append(k)
    return tuple(reversed(fixed))


def inner_pieces(pieces: tuple[int, ...], length: int) -> tuple[int, ...] | None:
    """The trailing pieces whose product is `length`, or None if no run has it."""
    for k in range(len(pieces) + 1):
        if prod(pieces[k:]) == length:
            return pieces[k:]
    return None
