"""Losses: scalars that every element adds to, so all dimensions can be split into partial sums.

    mse_loss: x[d0, d1] t[d0, d1] -> y[]

A mean is a sum over the whole extent, whatever the parts. A cross-entropy with class indices comes as two
calls, so that a large vocabulary can be split:

    log_sum_exp:              x[n, class] -> z[n]                combined by logaddexp
    nll_from_log_sum_exp:     x[n, class] z[n] t[n] -> y[]       each part picks the targets in its classes
"""

from dataclasses import dataclass
from functools import partial

from soaprl.graph.rules.base import WHOLE, Dim, Label, Node, Rule, RuleTable, Value, plain
from soaprl.graph.rules.labels import (
    TRANSCENDENTAL_FLOPS,
    Operand,
    arguments,
    broadcast,
    broadcast_shape,
    build,
    dim_index,
    dim_labels,
    each,
    integer,
    plain_dims,
    results,
    tensor,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """An elementwise loss.

    Attributes:
        name: Its name.
        reduction_position: Where its reduction is among the arguments.
        flops: FLOPs for each element.
        keeps_difference: Whether the backward pass reads the difference of the arguments, not themselves.
    """

    name: str
    reduction_position: int = 2
    flops: float = 3.0
    keeps_difference: bool = False


_KINDS = (
    _Kind(name="mse_loss"),
    _Kind(name="l1_loss", keeps_difference=True),
    _Kind(name="smooth_l1_loss", flops=5.0),
    _Kind(name="huber_loss", flops=5.0),
    _Kind(name="hinge_embedding_loss", reduction_position=3),
    _Kind(name="soft_margin_loss", flops=2 * TRANSCENDENTAL_FLOPS),
    _Kind(name="kl_div", flops=TRANSCENDENTAL_FLOPS + 3),
    _Kind(name="binary_cross_entropy", reduction_position=3, flops=2 * TRANSCENDENTAL_FLOPS + 5),
    _Kind(name="binary_cross_entropy_with_logits", reduction_position=4, flops=2 * TRANSCENDENTAL_FLOPS + 5),
    _Kind(name="poisson_nll_loss", reduction_position=5, flops=TRANSCENDENTAL_FLOPS + 3),
)
_NONE, _MEAN = 0, 1


def register(table: RuleTable) -> None:
    """Adds the rules of this file to `table`."""
    for kind in _KINDS:
        table.register(f"aten.{kind.name}")(partial(elementwise_loss, kind=kind))
    table.register("aten.cross_entropy_loss")(class_loss)
    table.register("aten.nll_loss_nd", "aten.nll_loss", "aten.nll_loss2d")(class_loss)
    table.register("aten.cosine_similarity", "aten.pairwise_distance")(similarity)
    table.register("soaprl.log_sum_exp")(log_sum_exp)
    table.register("soaprl.nll_from_log_sum_exp")(nll_from_log_sum_exp)


def elementwise_loss(node: Node, values: tuple[Value, ...], *, kind: _Kind) -> Rule | None:
    """A number for each element of the broadcast arguments, and their mean, their sum, or neither."""
    tensors = arguments(node, values)
    shape = broadcast_shape([v.shape for v in tensors])
    reduction = integer(node, kind.reduction_position, "reduction", 1)
    if shape is None or reduction is None:
        return None
    labels = dim_labels(shape)
    operands = []
    for value in tensors:
        dims = broadcast(value.shape, labels)
        if dims is None:
            return None
        operands.append(
            Operand(
                value=value, dims=dims, gradient=each(kind.flops, labels), saved=not kind.keeps_difference
            )
        )
    return build(
        node,
        values,
        labels=labels,
        operands=operands,
        result_dims=[plain_dims(labels) if reduction == _NONE else ()],
        forward_flops=each(kind.flops, labels),
        internal_saved_bytes=each(tensors[0].itemsize, labels) if kind.keeps_difference else (),
        pointwise=reduction == _NONE,
    )


def _class_labels(shape: tuple[int, ...], class_dim: int, *, splittable: bool) -> tuple[Label, ...]:
    return tuple(
        Label(name="class", extent=e, splittable=splittable)
        if d == class_dim
        else Label(name=f"dim{d}", extent=e)
        for d, e in enumerate(shape)
    )


def _target_dims(rows: tuple[Label, ...], reduction: int) -> tuple[Dim, ...]:
    """A mean divides by what all targets weigh (ignored ones nothing), so every part reads them all."""
    return (WHOLE,) * len(rows) if reduction == _MEAN else plain_dims(rows)


def class_loss(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """Cross-entropy or negative log-likelihood over whole classes; targets are indices or probabilities."""
    logits, target = tensor(node, values, 0, "self"), tensor(node, values, 1, "target")
    weight, reduction = tensor(node, values, 2, "weight"), integer(node, 3, "reduction", 1)
    if logits is None or target is None or reduction is None or not logits.shape:
        return None
    class_dim = min(1, len(logits.shape) - 1)
    labels = _class_labels(logits.shape, class_dim, splittable=False)
    rows = tuple(label for d, label in enumerate(labels) if d != class_dim)
    likelihood = "nll" in node.target
    flops = each(1, rows) if likelihood else each(TRANSCENDENTAL_FLOPS + 3, labels)
    operands = [
        Operand(value=logits, dims=plain_dims(labels), gradient=each(2, labels), saved=likelihood),
        Operand(
            value=target,
            dims=plain_dims(labels) if target.is_float else _target_dims(rows, reduction),
            gradient=each(2, labels),
            saved=True,
        ),
    ]
    if weight is not None:
        operands.append(Operand(value=weight, dims=(plain("class"),), saved=True))
    return build(
        node,
        values,
        labels=(*rows, labels[class_dim]),
        operands=operands,
        result_dims=[plain_dims(rows) if reduction == _NONE else (), *(() for _ in node.results[1:])],
        forward_flops=flops,
        # Logarithms of probabilities, as large as the logits.
        internal_saved_bytes=() if likelihood else each(logits.itemsize, labels),
        kind="nll_loss" if likelihood else "cross_entropy",
    )


def similarity(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """Cosine or distance of vectors along one dimension, which stays whole."""
    tensors = arguments(node, values)
    shape = broadcast_shape([v.shape for v in tensors])
    cosine = node.target.startswith("aten.cosine")
    if shape is None or len(tensors) != 2:
        return None
    dim = dim_index(integer(node, 2, "dim", 1) if cosine else -1, len(shape))
    if dim is None:
        return None
    labels = dim_labels(shape, (dim,))
    kept = tuple(label for d, label in enumerate(labels) if d != dim)
    dims = [broadcast(v.shape, labels) for v in tensors]
    operands = [
        Operand(value=v, dims=d, gradient=each(6, labels), saved=True)
        for v, d in zip(tensors, dims, strict=True)
        if d is not None
    ]
    keepdim = len(results(node, values)[0].shape) == len(shape)
    result: tuple[Dim, ...] = plain_dims(kept)
    if keepdim:
        result = tuple(WHOLE if d == dim else plain(b.name) for d, b in enumerate(labels))
    return build(
        node,
        values,
        labels=(*kept, labels[dim]),
        operands=operands,
        result_dims=[result],
        forward_flops=each(6, labels),
    )


def log_sum_exp(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``x[.., class] -> z[..]``: the logarithm of the sum of the exponentials over the classes."""
    logits = tensor(node, values, 0, "logits")
    rank = 0 if logits is None else len(logits.shape)
    class_dim = dim_index(integer(node, 1, "class_dim", 1), rank)
    if logits is None or class_dim is None:
        return None
    labels = _class_labels(logits.shape, class_dim, splittable=True)
    rows = tuple(label for d, label in enumerate(labels) if d != class_dim)
    flops = each(TRANSCENDENTAL_FLOPS + 1, labels)
    return build(
        node,
        values,
        labels=(*rows, labels[class_dim]),
        operands=[Operand(value=logits, dims=plain_dims(labels), gradient=flops, saved=True)],
        result_dims=[plain_dims(rows)],
        forward_flops=flops,
        saves_results=[True],
        combine="logaddexp",
    )


def nll_from_log_sum_exp(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``-x[n, t[n]] + z[n]`` over all rows; a part picks the targets that are among its classes.

    With label smoothing every class counts. A mean divides by what the targets weigh, for which a part needs
    all targets and the weights of all classes; otherwise its own will do.
    """
    logits, normalizer, target, weight = (
        tensor(node, values, p, n) for p, n in enumerate(("logits", "log_sum_exp", "target", "weight"))
    )
    if logits is None or normalizer is None or target is None:
        return None
    # The weight is None, or not there at all.
    first = 4 if weight is not None or node.argument(3, "weight") is None else 3
    class_dim = dim_index(integer(node, first, "class_dim", 1), len(logits.shape))
    reduction = integer(node, first + 1, "reduction", 1)
    if class_dim is None or reduction is None:
        return None
    labels = _class_labels(logits.shape, class_dim, splittable=True)
    rows = tuple(label for d, label in enumerate(labels) if d != class_dim)
    smoothing = node.argument(first + 3, "label_smoothing", 0.0)
    flops = each(2, labels) if smoothing else each(2, rows)
    operands = [
        Operand(value=logits, dims=plain_dims(labels), gradient=each(1, labels)),
        Operand(value=normalizer, dims=plain_dims(rows), gradient=each(1, rows)),
        Operand(value=target, dims=_target_dims(rows, reduction), saved=True),
    ]
    if weight is not None:
        operands.append(
            Operand(value=weight, dims=(WHOLE if reduction == _MEAN else plain("class"),), saved=True)
        )
    return build(
        node,
        values,
        labels=(*rows, labels[class_dim]),
        operands=operands,
        result_dims=[plain_dims(rows) if reduction == _NONE else ()],
        forward_flops=flops,
    )
