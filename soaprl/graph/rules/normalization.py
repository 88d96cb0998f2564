"""Normalizations and softmax: dimensions that statistics are taken over stay whole.

The exception is `batch_norm`, which takes statistics over the samples (and positions) of a part alone, as
data-parallel training does; all its dimensions can be split.
"""

from functools import partial

from soaprl.graph.rules.base import Dim, Label, Node, Rule, RuleTable, Value, plain, product
from soaprl.graph.rules.labels import (
    TRANSCENDENTAL_FLOPS,
    Operand,
    arguments,
    build,
    dim_index,
    dim_labels,
    each,
    integer,
    integers,
    plain_dims,
    spatial_names,
    tensor,
)

# Mean, variance and scaling, for each element; the gradient needs two more sums.
_FORWARD_FLOPS, _BACKWARD_FLOPS = 7.0, 11.0
_STATISTIC_BYTES = 4


def register(table: RuleTable) -> None:
    """Adds the rules of this file to `table`."""
    table.register("aten.batch_norm")(partial(channel_norm, over_samples=True))
    table.register("aten.instance_norm")(partial(channel_norm, over_samples=False))
    table.register("aten.group_norm")(group_norm)
    table.register("aten.layer_norm")(partial(last_dims_norm, num_statistics=2))
    table.register("aten.rms_norm")(partial(last_dims_norm, num_statistics=1))
    table.register("aten.softmax", "aten._softmax", "aten.special_softmax")(softmax)
    table.register("aten.log_softmax", "aten._log_softmax", "aten.special_log_softmax", "aten.softmin")(
        softmax
    )


def channel_norm(node: Node, values: tuple[Value, ...], *, over_samples: bool) -> Rule | None:
    """``x[n, c, ..] w[c] b[c] mean[c] variance[c] -> y[n, c, ..]``."""
    x, *vectors = arguments(node, values)
    names_of = spatial_names(len(x.shape) - 2) if len(x.shape) > 2 else ()
    if names_of is None or len(x.shape) < 2:
        return None
    sample, channel = (Label(name=n, extent=e) for n, e in zip(("sample", "channel"), x.shape, strict=False))
    spatial = tuple(
        Label(name=n, extent=e, splittable=over_samples) for n, e in zip(names_of, x.shape[2:], strict=True)
    )
    labels = (sample, channel, *spatial)
    statistics = each(2 * _STATISTIC_BYTES, (channel,) if over_samples else (sample, channel))
    return build(
        node,
        values,
        labels=labels,
        operands=[
            Operand(value=x, dims=plain_dims(labels), gradient=each(_BACKWARD_FLOPS, labels), saved=True),
            *_vectors(node, values, vectors, plain("channel"), labels),
        ],
        result_dims=[plain_dims(labels)],
        forward_flops=each(_FORWARD_FLOPS, labels),
        internal_saved_bytes=statistics,
    )


def _vectors(
    node: Node, values: tuple[Value, ...], vectors: list[Value], dim: Dim, labels: tuple[Label, ...]
) -> list[Operand]:
    """Scale and shift, and running statistics, which have no gradient."""
    scale = tensor(node, values, 2 if node.target.startswith("aten.group") else 1, "weight")
    return [
        Operand(
            value=v, dims=(dim,), gradient=each(2, labels), saved=scale is not None and v.name == scale.name
        )
        for v in vectors
    ]


def group_norm(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``x[n, g * c, ..] w[g * c] b[g * c] -> y[n, g * c, ..]`` with statistics for each sample and group."""
    x, *vectors = arguments(node, values)
    num_groups = integer(node, 1, "num_groups", 1)
    names_of = spatial_names(len(x.shape) - 2) if len(x.shape) > 2 else ()
    if names_of is None or len(x.shape) < 2 or not num_groups or x.shape[1] % num_groups:
        return None
    sample, group = Label(name="sample", extent=x.shape[0]), Label(name="group", extent=num_groups)
    inside = Label(name="channel", extent=x.shape[1] // num_groups, splittable=False)
    spatial = tuple(
        Label(name=n, extent=e, splittable=False) for n, e in zip(names_of, x.shape[2:], strict=True)
    )
    labels = (sample, group, inside, *spatial)
    channel = product("group", "channel")
    dims = (plain("sample"), channel, *plain_dims(spatial))
    return build(
        node,
        values,
        labels=labels,
        operands=[
            Operand(value=x, dims=dims, gradient=each(_BACKWARD_FLOPS, labels), saved=True),
            *_vectors(node, values, vectors, channel, labels),
        ],
        result_dims=[dims],
        forward_flops=each(_FORWARD_FLOPS, labels),
        internal_saved_bytes=each(2 * _STATISTIC_BYTES, (sample, group)),
    )


def last_dims_norm(node: Node, values: tuple[Value, ...], *, num_statistics: int) -> Rule | None:
    """Normalizes over the last dimensions, as many as ``normalized_shape`` has."""
    x, *vectors = arguments(node, values)
    normalized = integers(node.argument(1, "normalized_shape"))
    if normalized is None or not 0 < len(normalized) <= len(x.shape):
        return None
    rank, first = len(x.shape), len(x.shape) - len(normalized)
    labels = dim_labels(x.shape, range(first, rank))
    dims = plain_dims(labels)
    scale = tensor(node, values, 2, "weight")
    return build(
        node,
        values,
        labels=labels,
        operands=[
            Operand(value=x, dims=dims, gradient=each(_BACKWARD_FLOPS, labels), saved=True),
            *(
                Operand(value=v, dims=dims[first:], gradient=each(2, labels), saved=v is scale)
                for v in vectors
            ),
        ],
        result_dims=[dims],
        forward_flops=each(_FORWARD_FLOPS, labels),
        internal_saved_bytes=each(num_statistics * _STATISTIC_BYTES, labels[:first]),
    )


def softmax(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``exp(x)`` over its sum along one dimension, or the logarithm of that."""
    (x,) = arguments(node, values)
    dim = dim_index(integer(node, 1, "dim", -1), len(x.shape))
    if dim is None:
        return None
    labels = dim_labels(x.shape, (dim,))
    dims = plain_dims(labels)
    return build(
        node,
        values,
        labels=labels,
        operands=[Operand(value=x, dims=dims, gradient=each(4, labels))],
        result_dims=[dims],
        forward_flops=each(TRANSCENDENTAL_FLOPS + 3, labels),
        saves_results=[True],
    )
