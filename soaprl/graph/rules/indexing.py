"""Reading and writing by index, sorting, and calls that need a dimension whole: roll, flip, triangles.

    gather along d1: x[d0, :] index[d0, d1] -> y[d0, d1]

A dimension that indices point into is whole in what they point into; the dimensions of the indices
themselves can be split.
"""

from functools import partial

from soaprl.graph.rules.base import (
    WHOLE,
    Dim,
    Label,
    Node,
    NodeArgument,
    Rule,
    RuleTable,
    Value,
    plain,
    window,
)
from soaprl.graph.rules.labels import (
    Operand,
    arguments,
    broadcast,
    broadcast_shape,
    build,
    dim_index,
    dim_labels,
    each,
    integer,
    integers,
    plain_dims,
    results,
    spatial_names,
    tensor,
    tensor_list,
)


def register(table: RuleTable) -> None:
    """Adds the rules of this file to `table`."""
    table.register("aten.gather")(partial(gather, index_position=2, dim_position=1))
    table.register("aten.take_along_dim")(partial(gather, index_position=1, dim_position=2))
    table.register("aten.index_select")(index_select)
    table.register("aten.index.Tensor")(index)
    table.register("aten.index_put", "aten.index_put_")(index_put)
    scatters = ("scatter", "scatter_add", "scatter_reduce")
    table.register(*(f"aten.{name}{suffix}" for name in scatters for suffix in ("", "_")))(scatter)
    index_writes = ("index_add", "index_copy", "index_fill")
    table.register(*(f"aten.{name}{suffix}" for name in index_writes for suffix in ("", "_")))(index_write)
    table.register("aten.topk")(partial(ordered, dim_position=2))
    table.register("aten.sort.default", "aten.argsort.default", "aten.msort")(
        partial(ordered, dim_position=1)
    )
    table.register("aten.sort.stable", "aten.argsort.stable")(partial(ordered, dim_position=2))
    table.register("aten.one_hot")(one_hot)
    table.register("aten.roll")(partial(whole_dims, dims_position=2))
    table.register("aten.flip")(partial(whole_dims, dims_position=1))
    table.register("aten.tril", "aten.triu", "aten.tril_", "aten.triu_")(triangle)
    table.register("aten.unfold")(unfold)
    table.register("aten.diagonal")(diagonal)
    table.register("aten.grid_sampler")(grid_sample)


def gather(node: Node, values: tuple[Value, ...], *, index_position: int, dim_position: int) -> Rule | None:
    """``y[i, j] = x[i, index[i, j]]``; a dimension that indices do not fill cannot be split."""
    x, indices = tensor(node, values, 0), tensor(node, values, index_position)
    if x is None or indices is None or len(x.shape) != len(indices.shape):
        return None
    (result, *_) = results(node, values)
    dim = dim_index(integer(node, dim_position, "dim", 0), len(x.shape))
    if dim is None or node.argument(dim_position, "dim") is None:
        return None
    exact = "gather" not in node.target
    uneven = [d for d, e in enumerate(result.shape) if d != dim and x.shape[d] != e and not exact]
    labels = dim_labels(result.shape, uneven)
    pairs = list(zip(x.shape, labels, strict=True))
    x_dims = tuple(
        WHOLE if d == dim or extent != label.extent else plain(label.name)
        for d, (extent, label) in enumerate(pairs)
    )
    index_dims = broadcast(indices.shape, labels)
    if index_dims is None:
        return None
    found = {
        x.name: Operand(value=x, dims=x_dims, gradient=each(1, labels), saved="gather" in node.target),
        indices.name: Operand(value=indices, dims=index_dims, saved=True),
    }
    operands = [found[v.name] for v in arguments(node, values) if v.name in found]
    return build(node, values, labels=labels, operands=operands, result_dims=[plain_dims(labels)])


def index_select(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``y[i, j] = x[i, index[j]]``."""
    x, indices = tensor(node, values, 0), tensor(node, values, 2)
    (result, *_) = results(node, values)
    dim = None if x is None else dim_index(integer(node, 1, "dim", 0), len(x.shape))
    if x is None or indices is None or dim is None or len(indices.shape) != 1:
        return None
    labels = dim_labels(result.shape)
    dims = plain_dims(labels)
    operands = [
        Operand(value=x, dims=(*dims[:dim], WHOLE, *dims[dim + 1 :]), gradient=each(1, labels)),
        Operand(value=indices, dims=(dims[dim],), saved=True),
    ]
    return build(node, values, labels=labels, operands=operands, result_dims=[dims])


def _index_list(
    argument: NodeArgument, values: tuple[Value, ...], rank: int
) -> list[tuple[int, Value]] | None:
    """(dimension, index tensor) pairs of ``x[:, i, j]``; None for masks, which give data-dependent shapes."""
    if not isinstance(argument, tuple) or len(argument) > rank:
        return None
    found: list[tuple[int, Value]] = []
    for d, item in enumerate(argument):
        if item is None:
            continue
        one = tensor_list((item,), values)
        if not one or one[0].dtype in ("bool", "uint8"):
            return None
        found.append((d, one[0]))
    return found or None


def index(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``x[:, i, j]``: index tensors broadcast; theirs are the first dimensions unless they are neighbours."""
    x = tensor(node, values, 0)
    pairs = None if x is None else _index_list(node.argument(1, "indices"), values, len(x.shape))
    if x is None or pairs is None:
        return None
    (result, *_) = results(node, values)
    common = broadcast_shape([v.shape for _, v in pairs])
    indexed = [d for d, _ in pairs]
    if common is None or len(result.shape) != len(x.shape) - len(indexed) + len(common):
        return None
    labels = dim_labels(result.shape)
    together = indexed[-1] - indexed[0] == len(indexed) - 1
    first = indexed[0] if together else 0
    looked_up = labels[first : first + len(common)]
    rest = iter(plain_dims((*labels[:first], *labels[first + len(common) :])))
    x_dims = tuple(WHOLE if d in indexed else next(rest) for d in range(len(x.shape)))
    index_dims = [broadcast(v.shape, looked_up) for _, v in pairs]
    operands = [Operand(value=x, dims=x_dims, gradient=each(1, labels))]
    operands += [
        Operand(value=v, dims=dims, saved=True)
        for (_, v), dims in zip(pairs, index_dims, strict=True)
        if dims is not None
    ]
    return build(node, values, labels=labels, operands=operands, result_dims=[plain_dims(labels)])


def index_put(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``x[i, j] = v``: indexed dimensions stay whole, the others are split in `x` and `v` alike."""
    x, new = tensor(node, values, 0), tensor(node, values, 2)
    pairs = None if x is None else _index_list(node.argument(1, "indices"), values, len(x.shape))
    if x is None or new is None or pairs is None:
        return None
    indexed = [d for d, _ in pairs]
    common = broadcast_shape([v.shape for _, v in pairs])
    if common is None or indexed[-1] - indexed[0] != len(indexed) - 1:
        return None
    labels = dim_labels(x.shape, indexed)
    slots = [Label(name=f"index{d}", extent=e) for d, e in enumerate(common)]
    new_dims = broadcast(new.shape, [*labels[: indexed[0]], *slots, *labels[indexed[-1] + 1 :]])
    if new_dims is None:
        return None
    slot_names = {slot.name for slot in slots}
    operands = [
        Operand(value=x, dims=plain_dims(labels), gradient=each(1, labels)),
        *(Operand(value=v, dims=(WHOLE,) * len(v.shape), saved=True) for _, v in pairs),
        Operand(
            value=new,
            dims=tuple(WHOLE if d.label in slot_names else d for d in new_dims),
            gradient=each(1, labels),
        ),
    ]
    return build(node, values, labels=labels, operands=operands, result_dims=[plain_dims(labels)])


def scatter(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``y[i, index[i, j]] = (or +=) source[i, j]``; dimensions that indices do not fill stay whole."""
    x, indices, source = (tensor(node, values, p) for p in (0, 2, 3))
    if x is None or indices is None or len(indices.shape) != len(x.shape):
        return None
    dim = dim_index(integer(node, 1, "dim", 0), len(x.shape))
    if dim is None:
        return None
    others = [v for v in (indices, source) if v is not None and v.shape]
    whole = {
        d
        for d, e in enumerate(x.shape)
        if d == dim or any(len(v.shape) != len(x.shape) or v.shape[d] != e for v in others)
    }
    labels = dim_labels(x.shape, tuple(whole))
    read = tuple(WHOLE if d in whole else plain(b.name) for d, b in enumerate(labels))
    operands = [
        Operand(value=x, dims=plain_dims(labels), gradient=each(1, labels)),
        Operand(value=indices, dims=read, saved=True),
    ]
    if source is not None:
        operands.append(Operand(value=source, dims=read if source.shape else (), gradient=each(1, labels)))
    return build(node, values, labels=labels, operands=operands, result_dims=[plain_dims(labels)])


def index_write(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``y[i, index[j]] = (or +=) source[i, j]``."""
    x, indices, source = (tensor(node, values, p) for p in (0, 2, 3))
    dim = None if x is None else dim_index(integer(node, 1, "dim", 0), len(x.shape))
    if x is None or indices is None or dim is None:
        return None
    labels = dim_labels(x.shape, (dim,))
    dims = plain_dims(labels)
    operands = [
        Operand(value=x, dims=dims, gradient=each(1, labels)),
        Operand(value=indices, dims=(WHOLE,) * len(indices.shape), saved=True),
    ]
    if source is not None:
        read = (*dims[:dim], WHOLE, *dims[dim + 1 :]) if source.shape else ()
        operands.append(Operand(value=source, dims=read, gradient=each(1, labels)))
    return build(node, values, labels=labels, operands=operands, result_dims=[dims])


def ordered(node: Node, values: tuple[Value, ...], *, dim_position: int) -> Rule | None:
    """Sorted (or the largest) elements along one dimension, and where they were."""
    (x,), outputs = arguments(node, values), results(node, values)
    last = 0 if "msort" in node.target else -1
    dim = dim_index(integer(node, dim_position, "dim", last), len(x.shape))
    if dim is None:
        return None
    labels = dim_labels(outputs[0].shape, (dim,))
    dims = plain_dims(labels)
    read = WHOLE if x.shape[dim] != labels[dim].extent else dims[dim]
    comparisons = max(x.shape[dim], 2).bit_length() * x.shape[dim] / max(labels[dim].extent, 1)
    operand = Operand(value=x, dims=(*dims[:dim], read, *dims[dim + 1 :]), gradient=each(1, labels))
    return build(
        node,
        values,
        labels=labels,
        operands=[operand],
        result_dims=[dims] * len(outputs),
        forward_flops=each(comparisons, labels),
        saves_results=[False, True][: len(outputs)],
    )


def one_hot(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``ids[..] -> y[.., class]``; classes stay whole."""
    (ids,), (result,) = arguments(node, values), results(node, values)
    labels = dim_labels(result.shape, (len(ids.shape),))
    operand = Operand(value=ids, dims=plain_dims(labels[:-1]))
    return build(node, values, labels=labels, operands=[operand], result_dims=[plain_dims(labels)])


def whole_dims(node: Node, values: tuple[Value, ...], *, dims_position: int) -> Rule | None:
    """Calls that move elements about inside the dimensions they name (``roll`` of none: all)."""
    (x,) = arguments(node, values)
    rank = len(x.shape)
    moved = integers(node.argument(dims_position, "dims", ())) or tuple(range(rank))
    return _kept_whole(node, values, [d % rank for d in moved if rank])


def triangle(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """Zeroes what is above or below a diagonal of the last two dimensions."""
    rank = len(arguments(node, values)[0].shape)
    return _kept_whole(node, values, list(range(max(rank - 2, 0), rank)))


def _kept_whole(node: Node, values: tuple[Value, ...], dims: list[int]) -> Rule | None:
    (x,) = arguments(node, values)
    labels = dim_labels(x.shape, dims)
    operand = Operand(value=x, dims=plain_dims(labels), gradient=each(0, labels))
    return build(
        node, values, labels=labels, operands=[operand], result_dims=[plain_dims(labels)], additive=True
    )


def unfold(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """Windows of a dimension, their elements in a new last one."""
    (x,), (result,) = arguments(node, values), results(node, values)
    dim = dim_index(integer(node, 1, "dimension", 0), len(x.shape))
    size, step = integer(node, 2, "size", 1), integer(node, 3, "step", 1)
    if dim is None or not size or not step:
        return None
    labels = dim_labels(result.shape, (len(x.shape),))
    dims: tuple[Dim, ...] = plain_dims(labels)
    read = window(labels[dim].name, kernel=size, stride=step, padding=0)
    operand = Operand(value=x, dims=(*dims[:dim], read, *dims[dim + 1 : -1]), gradient=each(1, labels))
    return build(node, values, labels=labels, operands=[operand], result_dims=[dims])


def diagonal(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """A diagonal of two dimensions, as a new last one that stays whole."""
    (x,), (result,) = arguments(node, values), results(node, values)
    rank = len(x.shape)
    first = dim_index(integer(node, 2, "dim1", 0), rank)
    second = dim_index(integer(node, 3, "dim2", 1), rank)
    if first is None or second is None:
        return None
    labels = dim_labels(result.shape, (rank - 2,))
    rest = iter(plain_dims(labels))
    dims = tuple(WHOLE if d in (first, second) else next(rest) for d in range(rank))
    operand = Operand(value=x, dims=dims, gradient=each(0, labels))
    return build(node, values, labels=labels, operands=[operand], result_dims=[plain_dims(labels)])


def grid_sample(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``x[n, c, ..]`` interpolated at the places ``grid[n, h, w, :]``, which may be anywhere in the image."""
    x, grid = tensor(node, values, 0), tensor(node, values, 1)
    (result,) = results(node, values)
    names_of = spatial_names(len(result.shape) - 2)
    if x is None or grid is None or names_of is None:
        return None
    labels = tuple(
        Label(name=n, extent=e) for n, e in zip(("sample", "channel", *names_of), result.shape, strict=True)
    )
    dims = plain_dims(labels)
    taps = 4.0 * 2 ** len(names_of)
    operands = [
        Operand(
            value=x, dims=(*dims[:2], *(WHOLE,) * len(names_of)), gradient=each(taps, labels), saved=True
        ),
        Operand(value=grid, dims=(dims[0], *dims[2:], WHOLE), gradient=each(taps, labels), saved=True),
    ]
    return build(
        node,
        values,
        labels=labels,
        operands=operands,
        result_dims=[dims],
        forward_flops=each(taps, labels),
    )
