"""Pooling: each output element reads a window of the input, in every channel by itself."""

from collections.abc import Callable
from functools import partial
from math import prod

from soaprl.graph.rules.base import Dim, Label, Node, Rule, RuleTable, Value, plain, window
from soaprl.graph.rules.labels import (
    Operand,
    arguments,
    build,
    each,
    integers,
    plain_dims,
    results,
    spatial_names,
)


def register(table: RuleTable) -> None:
    """Adds the rules of this file to `table`."""
    for n in (1, 2, 3):
        table.register(f"aten.max_pool{n}d", f"aten.max_pool{n}d_with_indices")(
            partial(pool, num_spatial=n, maximum=True)
        )
        table.register(f"aten.avg_pool{n}d")(partial(pool, num_spatial=n, maximum=False))
        table.register(f"aten.adaptive_max_pool{n}d")(partial(adaptive_pool, num_spatial=n, maximum=True))
        table.register(f"aten.adaptive_avg_pool{n}d", f"aten._adaptive_avg_pool{n}d")(
            partial(adaptive_pool, num_spatial=n, maximum=False)
        )


def pool(node: Node, values: tuple[Value, ...], *, num_spatial: int, maximum: bool) -> Rule | None:
    """Windows of a fixed size; with ``ceil_mode`` the last one may reach over the border, and is clipped."""
    kernels = integers(node.argument(1, "kernel_size"), num_spatial)
    strides = integers(node.argument(2, "stride", ()), num_spatial) or kernels
    paddings = integers(node.argument(3, "padding", 0), num_spatial)
    dilations = integers(node.argument(4, "dilation", 1) if maximum else 1, num_spatial)
    if kernels is None or strides is None or paddings is None or dilations is None:
        return None

    def windows(labels: tuple[Label, ...], extents: tuple[int, ...]) -> tuple[Dim, ...]:
        del extents
        sizes = zip(labels, kernels, strides, paddings, dilations, strict=True)
        return tuple(window(b.name, kernel=k, stride=s, padding=p, dilation=d) for b, k, s, p, d in sizes)

    return _pooling(node, values, num_spatial, windows, taps=prod(kernels), maximum=maximum)


def adaptive_pool(node: Node, values: tuple[Value, ...], *, num_spatial: int, maximum: bool) -> Rule | None:
    """Output ``i`` of ``o`` reads inputs ``floor(i * n / o)`` up to ``ceil((i + 1) * n / o)``."""

    def windows(labels: tuple[Label, ...], extents: tuple[int, ...]) -> tuple[Dim, ...]:
        return tuple(
            Dim(label=b.name, mul=n, div=b.extent, add_last=n - 1)
            for b, n in zip(labels, extents, strict=True)
        )

    x, y = arguments(node, values)[0], results(node, values)[0]
    taps = prod(x.shape[-num_spatial:]) / max(prod(y.shape[-num_spatial:]), 1)
    # The average of a whole plane is a plain mean, whose gradient needs nothing.
    kept = maximum or prod(y.shape[-num_spatial:]) > 1
    return _pooling(node, values, num_spatial, windows, taps=taps, maximum=maximum, kept=kept)


def _pooling(
    node: Node,
    values: tuple[Value, ...],
    num_spatial: int,
    windows: Callable[[tuple[Label, ...], tuple[int, ...]], tuple[Dim, ...]],
    *,
    taps: float,
    maximum: bool,
    kept: bool = True,
) -> Rule | None:
    x, outputs, names_of = arguments(node, values)[0], results(node, values), spatial_names(num_spatial)
    num_leading = len(x.shape) - num_spatial
    if names_of is None or num_leading not in (1, 2) or len(outputs[0].shape) != len(x.shape):
        return None
    # Indices count positions of the whole plane, which a part of it cannot.
    with_indices = len(outputs) > 1
    leading = tuple(
        Label(name=n, extent=e) for n, e in zip(("sample", "channel")[-num_leading:], x.shape, strict=False)
    )
    spatial = tuple(
        Label(name=n, extent=e, splittable=not with_indices)
        for n, e in zip(names_of, outputs[0].shape[num_leading:], strict=True)
    )
    labels = (*leading, *spatial)
    read = windows(spatial, x.shape[num_leading:])
    operand = Operand(
        value=x,
        dims=(*(plain(label.name) for label in leading), *read),
        gradient=each(1 if maximum else taps, labels),
        saved=kept,
    )
    return build(
        node,
        values,
        labels=labels,
        operands=[operand],
        result_dims=[plain_dims(labels)] * len(outputs),
        forward_flops=each(taps, labels),
        saves_results=[False, True][: len(outputs)],
        internal_saved_bytes=each(8, labels) if maximum and not with_indices else (),
        kind=("max" if maximum else "avg") + f"_pool{num_spatial}d",
    )
