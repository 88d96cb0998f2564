"""Calls that put tensors together or make them larger: cat, stack, pad, repeat, upsample, pixel shuffle."""

from functools import partial
from itertools import accumulate

from soaprl.graph.rules.base import (
    WHOLE,
    Dim,
    Label,
    Node,
    Rule,
    RuleResult,
    RuleTable,
    Value,
    offset,
    plain,
    product,
)
from soaprl.graph.rules.labels import (
    Operand,
    arguments,
    build,
    dim_index,
    dim_labels,
    each,
    flag,
    integer,
    integers,
    plain_dims,
    results,
    spatial_names,
    tensor_list,
)
from soaprl.graph.rules.views import identity


def register(table: RuleTable) -> None:
    """Adds the rules of this file to `table`."""
    table.register("aten.cat", "aten.concat", "aten.concatenate")(cat)
    table.register("aten.hstack")(partial(stacked_along, dim=1))
    table.register("aten.vstack", "aten.row_stack")(partial(stacked_along, dim=0))
    table.register("aten.stack")(stack)
    table.register("aten.pad", "aten.constant_pad_nd")(pad)
    table.register("aten.repeat", "aten.tile")(repeat)
    table.register("aten.repeat_interleave.self_int")(repeat_interleave)
    for n, smooth in ((1, "linear"), (2, "bilinear"), (3, "trilinear")):
        table.register(f"aten.upsample_nearest{n}d")(partial(upsample, num_spatial=n, smooth=False))
        table.register(f"aten.upsample_{smooth}{n}d")(partial(upsample, num_spatial=n, smooth=True))
    table.register("aten.upsample_bicubic2d")(partial(resample, num_spatial=2))
    table.register("aten.pixel_shuffle")(partial(pixel_shuffle, forward=True))
    table.register("aten.pixel_unshuffle")(partial(pixel_shuffle, forward=False))
    table.register("aten.channel_shuffle")(channel_shuffle)


def cat(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """Index ``i`` of the result is index ``i - start`` of the tensor whose range it falls in."""
    (result, *_) = results(node, values)
    dim = dim_index(integer(node, 1, "dim", 0), len(result.shape))
    return None if dim is None else _joined(node, values, dim)


def stacked_along(node: Node, values: tuple[Value, ...], *, dim: int) -> Rule | None:
    """`cat` of matrices (or larger) along a dimension that the name of the call fixes."""
    if any(len(v.shape) < 2 for v in arguments(node, values)):
        return None
    return _joined(node, values, dim)


def _joined(node: Node, values: tuple[Value, ...], dim: int) -> Rule | None:
    tensors = tensor_list(node.argument(0, "tensors"), values)
    (result, *_) = results(node, values)
    if tensors is None or any(len(v.shape) != len(result.shape) for v in tensors):
        return None
    labels = dim_labels(result.shape)
    dims = plain_dims(labels)
    starts = accumulate((v.shape[dim] for v in tensors), initial=0)
    if sum(v.shape[dim] for v in tensors) != result.shape[dim]:
        return None
    operands = [
        Operand(
            value=v,
            dims=(*dims[:dim], _part(labels[dim], start, v.shape[dim]), *dims[dim + 1 :]),
            gradient=each(0, labels),
        )
        for v, start in zip(tensors, starts, strict=False)
    ]
    return build(node, values, labels=labels, operands=operands, result_dims=[dims], kind="cat")


def _part(label: Label, start: int, length: int) -> Dim:
    return plain(label.name) if length == label.extent else offset(label.name, -start)


def stack(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """Tensors side by side in a new dimension, which stays whole: one part holds all of them."""
    tensors = tensor_list(node.argument(0, "tensors"), values)
    (result, *_) = results(node, values)
    dim = dim_index(integer(node, 1, "dim", 0), len(result.shape))
    if tensors is None or dim is None:
        return None
    labels = dim_labels(result.shape, (dim,))
    dims = plain_dims(labels)
    operands = [
        Operand(value=v, dims=(*dims[:dim], *dims[dim + 1 :]), gradient=each(0, labels)) for v in tensors
    ]
    return build(node, values, labels=labels, operands=operands, result_dims=[dims])


def pad(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """Adds (or with negative numbers removes) elements at both ends; pads come last dimension first.

    Padding with a constant shifts indices. The other modes read elements from elsewhere in the dimension,
    which then stays whole.
    """
    (x,), (result,) = arguments(node, values), results(node, values)
    pads = integers(node.argument(1, "pad"))
    constant = node.target.startswith("aten.constant") or node.argument(2, "mode", "constant") == "constant"
    if pads is None or len(pads) % 2 or len(pads) > 2 * len(x.shape):
        return None
    before = {len(x.shape) - 1 - i: pads[2 * i] for i in range(len(pads) // 2)}
    changed = {d for d in before if pads[2 * (len(x.shape) - 1 - d)] or pads[2 * (len(x.shape) - 1 - d) + 1]}
    if not changed:
        return identity(node, values)
    labels = dim_labels(result.shape, () if constant else tuple(changed))
    dims = tuple(
        plain(label.name) if d not in changed else offset(label.name, -before[d]) if constant else WHOLE
        for d, label in enumerate(labels)
    )
    operand = Operand(value=x, dims=dims, gradient=each(0, labels), saved=not constant)
    return build(
        node, values, labels=labels, operands=[operand], result_dims=[plain_dims(labels)], kind="pad"
    )


def repeat(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """The tensor over and over: a dimension is ``(repetition, index)``."""
    return _repeated(node, values, inside=False, counts=integers(node.argument(1, "repeats")))


def repeat_interleave(node: Node, values: tuple[Value, ...]) -> RuleResult:
    """Every index several times in a row: a dimension is ``(index, repetition)``."""
    (x,) = arguments(node, values)
    dim, count = dim_index(integer(node, 2, "dim", 0), len(x.shape)), integer(node, 1, "repeats", 1)
    if dim is None or count is None or node.argument(2, "dim") is None:
        return None
    return _repeated(
        node, values, inside=True, counts=tuple(count if d == dim else 1 for d in range(len(x.shape)))
    )


def _repeated(
    node: Node, values: tuple[Value, ...], *, inside: bool, counts: tuple[int, ...] | None
) -> Rule | None:
    """Repetitions stay whole, so that a part is the same call on a part of the tensor."""
    (x,) = arguments(node, values)
    if counts is None:
        return None
    counts = (1,) * (len(x.shape) - len(counts)) + counts
    shape = (1,) * (len(counts) - len(x.shape)) + x.shape
    labels: list[Label] = []
    source: list[Dim] = []
    target: list[Dim] = []
    for d, (extent, count) in enumerate(zip(shape, counts, strict=True)):
        index = Label(name=f"dim{d}", extent=extent)
        source.append(plain(index.name))
        if count == 1:
            labels.append(index)
            target.append(plain(index.name))
            continue
        repetition = Label(name=f"repeat{d}", extent=count, splittable=False)
        pair = (index, repetition) if inside else (repetition, index)
        labels += pair
        target.append(product(*(label.name for label in pair)))
    operand = Operand(value=x, dims=tuple(source[len(shape) - len(x.shape) :]), gradient=each(1, labels))
    return build(node, values, labels=labels, operands=[operand], result_dims=[tuple(target)], kind="repeat")


def upsample(node: Node, values: tuple[Value, ...], *, num_spatial: int, smooth: bool) -> Rule | None:
    """Nearest or linear interpolation, split in space where one extent divides the other.

    Enlarging ``r`` times, nearest reads input ``floor(i / r)``; linear interpolation reads the two inputs
    around ``(i + 1/2) / r - 1/2``. Shrinking by ``r`` reads around ``(i + 1/2) * r - 1/2``.
    """
    (x,), (y,) = arguments(node, values), results(node, values)
    names_of = spatial_names(num_spatial)
    if names_of is None or len(x.shape) != num_spatial + 2:
        return None
    corners = smooth and flag(node, 2, "align_corners")
    before, after = x.shape[2:], y.shape[2:]
    labels, dims = list(_image_labels(y)), [plain("sample"), plain("channel")]
    for name, n, m in zip(names_of, before, after, strict=True):
        whole = corners or (m % n != 0 and n % m != 0) or not _plain_scales(node, before, after)
        labels.append(Label(name=name, extent=m, splittable=not whole))
        dims.append(WHOLE if whole else _source(name, n, m, smooth=smooth))
    taps = 2.0**num_spatial if smooth else 1.0
    return _resampled(node, values, x, labels, dims, taps)


def _source(name: str, n: int, m: int, *, smooth: bool) -> Dim:
    """The inputs that an output reads when `n` inputs become `m` outputs and one divides the other."""
    if n == m:
        return plain(name)
    enlarge, shrink = max(m // n, 1), max(n // m, 1)
    if not smooth:
        return Dim(label=name, mul=shrink, div=enlarge)
    add = shrink - enlarge
    return Dim(label=name, mul=2 * shrink, div=2 * enlarge, add_first=add, add_last=add + 2 * enlarge)


def _plain_scales(node: Node, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether scale factors, which take precedence over sizes in the formula, are the ratio of sizes."""
    given = (*node.args[1:], *(value for _, value in node.kwargs))
    scales = [s for a in given for s in (a if isinstance(a, tuple) else (a,)) if isinstance(s, float)]
    ratios = zip(before, after, strict=True)
    return not scales or (
        len(scales) == len(after) and all(s * n == m for s, (n, m) in zip(scales, ratios, strict=True))
    )


def resample(node: Node, values: tuple[Value, ...], *, num_spatial: int) -> Rule | None:
    """Interpolation that reads wide neighbourhoods: space stays whole."""
    (x,), (y,) = arguments(node, values), results(node, values)
    names_of = spatial_names(num_spatial)
    if names_of is None or len(x.shape) != num_spatial + 2:
        return None
    spatial = [Label(name=n, extent=e, splittable=False) for n, e in zip(names_of, y.shape[2:], strict=True)]
    dims = [plain("sample"), plain("channel"), *(WHOLE,) * num_spatial]
    return _resampled(node, values, x, [*_image_labels(y), *spatial], dims, 4.0**num_spatial)


def _image_labels(y: Value) -> tuple[Label, Label]:
    return Label(name="sample", extent=y.shape[0]), Label(name="channel", extent=y.shape[1])


def _resampled(
    node: Node, values: tuple[Value, ...], x: Value, labels: list[Label], dims: list[Dim], taps: float
) -> Rule | None:
    return build(
        node,
        values,
        labels=labels,
        operands=[Operand(value=x, dims=tuple(dims), gradient=each(2 * taps, labels))],
        result_dims=[plain_dims(labels)],
        forward_flops=each(2 * taps, labels),
        kind="upsample",
    )


def pixel_shuffle(node: Node, values: tuple[Value, ...], *, forward: bool) -> Rule | None:
    """``x[n, c * r * s, h, w] <-> y[n, c, h * r, w * s]``; the pixels inside a block stay together."""
    (x,), (y,) = arguments(node, values), results(node, values)
    factor = integer(node, 1, "upscale_factor" if forward else "downscale_factor", 1)
    deep = x if forward else y
    if not factor or len(x.shape) < 3 or deep.shape[-3] % factor**2:
        return None
    leading = tuple(
        Label(name="sample" if len(x.shape) == 4 else f"dim{d}", extent=e) for d, e in enumerate(x.shape[:-3])
    )
    channel = Label(name="channel", extent=deep.shape[-3] // factor**2)
    spatial = [Label(name=n, extent=e) for n, e in zip(("height", "width"), deep.shape[-2:], strict=True)]
    block = [Label(name=n, extent=factor, splittable=False) for n in ("block_row", "block_column")]
    outer = plain_dims(leading)
    deep_dims = (*outer, product("channel", "block_row", "block_column"), *plain_dims(spatial))
    wide_dims = (*outer, plain("channel"), product("height", "block_row"), product("width", "block_column"))
    labels = (*leading, channel, *spatial, *block)
    x_dims, y_dims = (deep_dims, wide_dims) if forward else (wide_dims, deep_dims)
    operand = Operand(value=x, dims=x_dims, gradient=each(0, labels))
    return build(node, values, labels=labels, operands=[operand], result_dims=[y_dims])


def channel_shuffle(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``x[n, g * c, ..] -> y[n, c * g, ..]``; groups stay whole."""
    (x,) = arguments(node, values)
    groups = integer(node, 1, "groups", 1)
    if not groups or len(x.shape) < 3 or x.shape[1] % groups:
        return None
    sample = Label(name="sample", extent=x.shape[0])
    group = Label(name="group", extent=groups, splittable=False)
    channel = Label(name="channel", extent=x.shape[1] // groups)
    rest = dim_labels(x.shape)[2:]
    labels = (sample, channel, group, *rest)
    before, after = product("group", "channel"), product("channel", "group")
    operand = Operand(value=x, dims=(plain("sample"), before, *plain_dims(rest)), gradient=each(0, labels))
    result = (plain("sample"), after, *plain_dims(rest))
    return build(node, values, labels=labels, operands=[operand], result_dims=[result])
