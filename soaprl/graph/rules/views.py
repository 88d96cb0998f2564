"""Views: calls that rename, permute, slice or repeat dimensions and compute nothing."""

from functools import partial
from itertools import accumulate

from soaprl.graph.rules.base import (
    Dim,
    Node,
    Rearrange,
    Reshape,
    RuleResult,
    RuleTable,
    SourceDim,
    Value,
    ValueRef,
    View,
)
from soaprl.graph.rules.labels import (
    Operand,
    arguments,
    build,
    dim_index,
    dim_labels,
    each,
    integer,
    integers,
    plain_dims,
    results,
    tensor_list,
)

_SAME_ORDER = (
    "alias",
    "contiguous",
    "detach",
    "detach_",
    "flatten",
    "lift",
    "lift_fresh",
    "lift_fresh_copy",
    "ravel",
    "reshape",
    "reshape_as",
    "unflatten",
    "_unsafe_view",
    "view_as",
)


def register(table: RuleTable) -> None:
    """Adds the rules of this file to `table`."""
    table.register(*(f"aten.{name}" for name in _SAME_ORDER), "aten.view.default")(reshape)
    table.register("aten.squeeze")(squeeze)
    table.register("aten.unsqueeze")(unsqueeze)
    table.register("aten.transpose", "aten.swapaxes", "aten.swapdims")(transpose)
    table.register("aten.t", "aten.numpy_T", "aten.mT", "aten.matrix_H")(reversed_dims)
    table.register("aten.permute")(permute)
    table.register("aten.movedim", "aten.moveaxis")(movedim)
    table.register("aten.expand", "aten.expand_as", "aten.broadcast_to")(expand)
    table.register("aten.broadcast_tensors")(broadcast_tensors)
    table.register("aten.meshgrid")(meshgrid)
    table.register("aten.slice.Tensor")(slice_dim)
    table.register("aten.narrow")(narrow)
    table.register("aten.select.int")(select)
    table.register("aten.unbind")(unbind)
    splits = ("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
    table.register(*(f"aten.{target}" for target in splits))(split)
    for dim, target in enumerate(("vsplit", "hsplit", "dsplit")):
        table.register(f"aten.{target}")(partial(split_along, dim=dim))


def identity(node: Node, values: tuple[Value, ...]) -> tuple[View, ...] | None:
    """The view of the first argument that changes nothing but the name."""
    source = _source(node)
    if source is None or len(node.results) != 1 or values[source].shape != values[node.results[0]].shape:
        return None
    return (Reshape(source=source, result=node.results[0]),)


def reshape(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """Same elements in the same row-major order."""
    source = _source(node)
    return None if source is None else (Reshape(source=source, result=node.results[0]),)


def squeeze(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """Drops dimensions of extent 1: all of them, or those named."""
    (value, *_) = arguments(node, values)
    rank = len(value.shape)
    named = integers(node.argument(1, "dim", tuple(range(rank))))
    if named is None:
        return None
    dropped = {d % rank for d in named if rank and value.shape[d % rank] == 1}
    kept = [d for d in range(rank) if d not in dropped]
    return _rearranged(node, values, [kept.index(d) if d in kept else None for d in range(rank)])


def unsqueeze(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """Adds a dimension of extent 1."""
    (value, *_) = arguments(node, values)
    new = dim_index(integer(node, 1, "dim", 0), len(value.shape) + 1)
    if new is None:
        return None
    return _rearranged(node, values, [d if d < new else d + 1 for d in range(len(value.shape))])


def transpose(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """Exchanges two dimensions."""
    rank = len(arguments(node, values)[0].shape)
    first, second = (dim_index(integer(node, p, n, 0), rank) for p, n in ((1, "dim0"), (2, "dim1")))
    if first is None or second is None:
        return None
    order = list(range(rank))
    order[first], order[second] = second, first
    return _rearranged(node, values, list(order))


def reversed_dims(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """``x.T`` of any rank reverses all dimensions; ``x.mT`` exchanges the last two."""
    rank = len(arguments(node, values)[0].shape)
    if rank < 2:
        return identity(node, values)
    if node.target.startswith("aten.m"):
        return _rearranged(node, values, [*range(rank - 2), rank - 1, rank - 2])
    return _rearranged(node, values, list(reversed(range(rank))))


def permute(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """Result dimension ``d`` is source dimension ``order[d]``."""
    rank = len(arguments(node, values)[0].shape)
    order = integers(node.argument(1, "dims"))
    if order is None or sorted(d % rank for d in order if rank) != list(range(rank)):
        return None
    positions = [d % rank for d in order]
    return _rearranged(node, values, [positions.index(d) for d in range(rank)])


def movedim(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """Moves dimensions to new places; the others keep their order."""
    rank = len(arguments(node, values)[0].shape)
    source, destination = integers(node.argument(1, "source")), integers(node.argument(2, "destination"))
    if source is None or destination is None or len(source) != len(destination) or rank == 0:
        return None
    moved = {s % rank: d % rank for s, d in zip(source, destination, strict=True)}
    free = iter(d for d in range(rank) if d not in moved.values())
    return _rearranged(node, values, [moved[d] if d in moved else next(free) for d in range(rank)])


def expand(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """Repeats dimensions of extent 1 and adds leading ones."""
    source = _source(node)
    return None if source is None else _expanded(source, node.results[0], values)


def broadcast_tensors(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """Every tensor expanded to the common shape."""
    found: list[View] = []
    for source, result in zip(node.tensor_arguments(), node.results, strict=False):
        found.extend(_expanded(source, result, values) or ())
    return tuple(found) if len(found) == len(node.results) == len(node.tensor_arguments()) else None


def meshgrid(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """Vectors (or scalars), each expanded along a dimension of its own."""
    sources = tensor_list(node.argument(0, "tensors"), values)
    if sources is None or len(sources) != len(node.results):
        return None
    order = list(range(len(sources)))
    if node.argument(1, "indexing", "ij") == "xy" and len(order) > 1:
        order[0], order[1] = 1, 0
    found: list[View] = []
    for source, result, out in zip(node.tensor_arguments(), node.results, order, strict=True):
        dims = tuple(SourceDim(out=out, start=0, length=e) for e in values[source].shape)
        if len(dims) > 1:
            return None
        found.append(Rearrange(source=source, result=result, dims=dims))
    return tuple(found)


def slice_dim(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """``x[start:stop:step]`` in one dimension; a call of its own if it takes only every step-th index."""
    (value, *_) = arguments(node, values)
    (result,) = results(node, values)
    dim = dim_index(integer(node, 1, "dim", 0), len(value.shape))
    start, step = node.argument(2, "start"), integer(node, 4, "step", 1)
    if dim is None or step is None or not isinstance(start, int | None):
        return None
    extent, length = value.shape[dim], result.shape[dim]
    first = 0 if start is None else min(max(start + extent if start < 0 else start, 0), extent)
    if step == 1:
        return _sliced(node, values, dim, first, length)
    labels = dim_labels(result.shape)
    taken = Dim(label=labels[dim].name, mul=step, add_first=first, add_last=first)
    dims = plain_dims(labels)
    operand = Operand(value=value, dims=(*dims[:dim], taken, *dims[dim + 1 :]), gradient=each(0, labels))
    return build(node, values, labels=labels, operands=[operand], result_dims=[dims], additive=True)


def narrow(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """``x[start : start + length]`` in one dimension."""
    (value, *_) = arguments(node, values)
    dim = dim_index(integer(node, 1, "dim", 0), len(value.shape))
    start, length = node.argument(2, "start"), integer(node, 3, "length", 0)
    if dim is None or length is None or not isinstance(start, int):
        return None
    return _sliced(node, values, dim, start % max(value.shape[dim], 1), length)


def select(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """``x[index]`` in one dimension, which disappears."""
    (value, *_) = arguments(node, values)
    dim = dim_index(integer(node, 1, "dim", 0), len(value.shape))
    index = None if dim is None else dim_index(integer(node, 2, "index", 0), value.shape[dim])
    if dim is None or index is None:
        return None
    return (_selected(node.tensor_arguments()[0], node.results[0], value, dim, index),)


def unbind(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """One `select` for each index."""
    (value, *_) = arguments(node, values)
    dim = dim_index(integer(node, 1, "dim", 0), len(value.shape))
    if dim is None or len(node.results) != value.shape[dim]:
        return None
    source = node.tensor_arguments()[0]
    return tuple(_selected(source, result, value, dim, i) for i, result in enumerate(node.results))


def split(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """Consecutive slices of one dimension; the results' shapes say how long each is."""
    (value, *_) = arguments(node, values)
    dim = dim_index(integer(node, 2, "dim", 0), len(value.shape))
    return None if dim is None else _parts(node, values, dim)


def split_along(node: Node, values: tuple[Value, ...], *, dim: int) -> RuleResult:
    """Consecutive slices of a dimension that the name of the call fixes (``hsplit`` of a vector: 0)."""
    rank = len(arguments(node, values)[0].shape)
    return _parts(node, values, min(dim, rank - 1)) if rank else None


def _parts(node: Node, values: tuple[Value, ...], dim: int) -> tuple[View, ...] | None:
    value = arguments(node, values)[0]
    lengths = [v.shape[dim] for v in results(node, values)]
    if sum(lengths) != value.shape[dim]:
        return None
    source = node.tensor_arguments()[0]
    starts = accumulate(lengths, initial=0)
    return tuple(
        Rearrange(source=source, result=result, dims=_slice_dims(value, dim, start, length))
        for result, start, length in zip(node.results, starts, lengths, strict=False)
    )


def _sliced(
    node: Node, values: tuple[Value, ...], dim: int, start: int, length: int
) -> tuple[View, ...] | None:
    source = node.tensor_arguments()[0]
    if start + length > values[source].shape[dim] or values[node.results[0]].shape[dim] != length:
        return None
    dims = _slice_dims(values[source], dim, start, length)
    return (Rearrange(source=source, result=node.results[0], dims=dims),)


def _slice_dims(value: Value, dim: int, start: int, length: int) -> tuple[SourceDim, ...]:
    return tuple(
        SourceDim(out=d, start=start, length=length) if d == dim else SourceDim(out=d, start=0, length=extent)
        for d, extent in enumerate(value.shape)
    )


def _selected(source: int, result: int, value: Value, dim: int, index: int) -> Rearrange:
    dims = tuple(
        SourceDim(out=None, start=index, length=1)
        if d == dim
        else SourceDim(out=d if d < dim else d - 1, start=0, length=extent)
        for d, extent in enumerate(value.shape)
    )
    return Rearrange(source=source, result=result, dims=dims)


def _rearranged(node: Node, values: tuple[Value, ...], outs: list[int | None]) -> tuple[View, ...]:
    source = node.tensor_arguments()[0]
    shape = values[source].shape
    dims = tuple(SourceDim(out=out, start=0, length=extent) for out, extent in zip(outs, shape, strict=True))
    return (Rearrange(source=source, result=node.results[0], dims=dims),)


def _expanded(source: int, result: int, values: tuple[Value, ...]) -> tuple[View, ...] | None:
    before, after = values[source].shape, values[result].shape
    new = len(after) - len(before)
    if new < 0:
        return None
    dims = tuple(
        SourceDim(out=new + d if extent == after[new + d] else None, start=0, length=extent)
        for d, extent in enumerate(before)
    )
    return (Rearrange(source=source, result=result, dims=dims),)


def _source(node: Node) -> int | None:
    first = node.args[0] if node.args else None
    return first.index if isinstance(first, ValueRef) else None
