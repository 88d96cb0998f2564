"""Pointwise operators: one result element from the same element of each argument, with broadcasting.

    y[d0, d1] = f(a[d0, d1], b[d1], ...)

What the backward pass keeps follows PyTorch's derivative formulas: the arguments, the result (where the
derivative is a function of it, as for `relu`), the other arguments (a product), or nothing (a sum).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial

from soaprl.graph.rules.base import (
    WHOLE,
    Dim,
    Label,
    Node,
    Rule,
    RuleResult,
    RuleTable,
    Value,
    plain,
    product,
)
from soaprl.graph.rules.labels import (
    TRANSCENDENTAL_FLOPS,
    Operand,
    arguments,
    broadcast,
    build,
    dim_index,
    dim_labels,
    each,
    integer,
    plain_dims,
    results,
    work,
)
from soaprl.graph.rules.views import identity


class _Keeps(Enum):
    """What the backward pass reads."""

    NOTHING = auto()
    ARGUMENTS = auto()
    OTHERS = auto()  # an argument, if one beside it needs a gradient
    FACTORS = auto()  # the arguments that are multiplied, which follow the one they are added to
    CONDITION = auto()  # arguments that cannot have a gradient
    RESULT = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """Operators that cost and keep the same.

    Attributes:
        names: Their names, with spaces between them.
        keeps: What the backward pass reads.
        flops: FLOPs for each element.
        additive: See `Rule.additive`.
        differentiable: Whether they have a gradient other than zero.
    """

    names: str
    keeps: _Keeps
    flops: float = 1.0
    additive: bool = False
    differentiable: bool = True


_KINDS = (
    _Kind(names="add sub subtract rsub true_add", keeps=_Keeps.NOTHING),
    _Kind(names="neg negative positive", keeps=_Keeps.NOTHING, additive=True),
    _Kind(
        names="clone _to_copy to type_as float half bfloat16 double copy",
        keeps=_Keeps.NOTHING,
        flops=0.0,
        additive=True,
    ),
    _Kind(names="mul multiply", keeps=_Keeps.OTHERS, additive=True),
    _Kind(names="div divide true_divide", keeps=_Keeps.OTHERS, flops=TRANSCENDENTAL_FLOPS),
    _Kind(names="relu sqrt", keeps=_Keeps.RESULT),
    _Kind(
        names="sigmoid tanh exp exp2 expm1 rsqrt reciprocal tan special_expit",
        keeps=_Keeps.RESULT,
        flops=TRANSCENDENTAL_FLOPS,
    ),
    _Kind(
        names=(
            "abs absolute square leaky_relu relu6 hardtanh hardswish hardsigmoid threshold clamp clip "
            "clamp_min clamp_max maximum minimum fmax fmin nan_to_num softshrink hardshrink rrelu"
        ),
        keeps=_Keeps.ARGUMENTS,
        flops=2.0,
    ),
    _Kind(
        names=(
            "gelu silu mish softplus elu selu celu log_sigmoid logit log log2 log10 log1p sin cos "
            "sinh cosh asin acos atan atan2 arctan2 asinh acosh atanh erf erfc erfinv sinc xlogy "
            "logaddexp logaddexp2 hypot pow digamma lgamma float_power copysign"
        ),
        keeps=_Keeps.ARGUMENTS,
        flops=TRANSCENDENTAL_FLOPS,
    ),
    _Kind(names="where masked_fill", keeps=_Keeps.CONDITION),
    _Kind(names="addcmul addcdiv lerp", keeps=_Keeps.FACTORS, flops=2.0),
    _Kind(names="remainder fmod", keeps=_Keeps.ARGUMENTS, flops=TRANSCENDENTAL_FLOPS),
    _Kind(
        names=(
            "eq ne lt le gt ge less less_equal greater greater_equal not_equal logical_and logical_or "
            "logical_xor logical_not bitwise_and bitwise_or bitwise_xor bitwise_not "
            "bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__ __lshift__ __rshift__ "
            "isnan isinf isfinite isclose floor ceil round trunc fix frac sign sgn signbit heaviside "
            "floor_divide fill zero zeros_like ones_like full_like empty_like rand_like randn_like "
            "bernoulli exponential uniform normal bool int long"
        ),
        keeps=_Keeps.NOTHING,
        differentiable=False,
    ),
)

# Other overloads of these names are no pointwise operators (a reduction, a search for indices).
_OVERLOADS = {
    "where": ("self", "ScalarSelf", "ScalarOther", "Scalar"),
    "to": ("dtype", "device", "dtype_layout", "other"),
}
_INPLACE_DUNDERS = ("__and__", "__or__", "__xor__", "__lshift__", "__rshift__")


def register(table: RuleTable) -> None:
    """Adds the rules of this file to `table`."""
    for kind in _KINDS:
        rule = partial(_cast if kind.names.startswith("clone") else elementwise, kind=kind)
        for name in kind.names.split():
            overloads = _OVERLOADS.get(name)
            table.register(*([f"aten.{name}.{o}" for o in overloads] if overloads else [f"aten.{name}"]))(
                rule
            )
            if name not in _INPLACE_DUNDERS and not overloads:
                table.register(f"aten.{name}_")(rule)
    larger = _Kind(names="max min", keeps=_Keeps.ARGUMENTS)
    table.register("aten.max.other", "aten.min.other")(partial(elementwise, kind=larger))
    table.register("aten.prelu", "aten._prelu_kernel")(prelu)
    table.register("aten.glu")(glu)
    table.register("aten.dropout", "aten.dropout_", "aten.native_dropout")(partial(dropout, whole_from=None))
    table.register("aten.alpha_dropout", "aten.alpha_dropout_")(partial(dropout, whole_from=None))
    table.register("aten.feature_dropout", "aten.feature_dropout_")(partial(dropout, whole_from=2))
    table.register("aten.zeros", "aten.ones", "aten.full", "aten.empty", "aten.rand", "aten.randn")(creation)
    table.register("aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.new_empty")(creation)
    table.register("aten.arange", "aten.linspace", "aten.eye", "aten.scalar_tensor")(counting)


def elementwise(node: Node, values: tuple[Value, ...], *, kind: _Kind) -> Rule | None:
    """The rule of every operator in `_KINDS`."""
    outputs = results(node, values)
    if len(outputs) != 1:
        return None
    labels = dim_labels(outputs[0].shape)
    tensors = arguments(node, values)
    operands = []
    for position, value in enumerate(tensors):
        dims = broadcast(value.shape, labels)
        if dims is None:
            return None
        gradient = each(kind.flops, labels) if kind.differentiable and value.is_float else ()
        saved = _saved(kind.keeps, position, tensors)
        operands.append(Operand(value=value, dims=dims, gradient=gradient, saved=saved))
    return build(
        node,
        values,
        labels=labels,
        operands=operands,
        result_dims=[plain_dims(labels)],
        forward_flops=each(kind.flops, labels) if kind.flops else (),
        saves_results=[kind.keeps is _Keeps.RESULT],
        pointwise=True,
        additive=_additive(node, kind),
    )


def _additive(node: Node, kind: _Kind) -> bool:
    if kind.names.startswith("div"):
        return node.argument(9, "rounding_mode") is None and bool(node.tensor_arguments())
    return kind.additive


def _saved(keeps: _Keeps, position: int, tensors: tuple[Value, ...]) -> bool:
    if keeps is _Keeps.OTHERS:
        return any(v.requires_grad for i, v in enumerate(tensors) if i != position)
    if keeps is _Keeps.CONDITION:
        return not tensors[position].is_float
    if keeps is _Keeps.FACTORS:
        return position > 0 and len(tensors) > 2
    return keeps is _Keeps.ARGUMENTS


def _cast(node: Node, values: tuple[Value, ...], *, kind: _Kind) -> RuleResult:
    """A copy into another type; without a change of type only `clone` and its like copy anything."""
    (source, *others), (result, *_) = arguments(node, values), results(node, values)
    always_copies = node.target.split(".")[1].rstrip("_") in ("clone", "_to_copy", "copy")
    if not always_copies and source.dtype == result.dtype:
        return identity(node, values)
    rule: Callable[[], Rule | None] = partial(elementwise, node, values, kind=kind)
    if others and "copy" not in node.target:
        # What `type_as` is told to be like gives its type alone.
        return _only_first(node, values, kind)
    return rule()


def _only_first(node: Node, values: tuple[Value, ...], kind: _Kind) -> Rule | None:
    first, *others = arguments(node, values)
    labels = dim_labels(first.shape)
    operands = [Operand(value=first, dims=plain_dims(labels), gradient=each(kind.flops, labels))]
    operands += [Operand(value=v, dims=(WHOLE,) * len(v.shape)) for v in others]
    return build(
        node, values, labels=labels, operands=operands, result_dims=[plain_dims(labels)], additive=True
    )


def prelu(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``y[n, c, ..] = max(x, 0) + w[c] min(x, 0)``; one weight may serve all channels."""
    x, weight = arguments(node, values)
    labels = dim_labels(x.shape)
    if len(weight.shape) == 1:
        shared = weight.shape[0] == 1 or len(labels) < 2
        weight_dims: tuple[Dim, ...] = (WHOLE,) if shared else (plain(labels[1].name),)
    else:
        weight_dims = broadcast(weight.shape, labels) or ()
    operands = [
        Operand(value=x, dims=plain_dims(labels), gradient=each(1, labels), saved=True),
        Operand(value=weight, dims=weight_dims, gradient=each(2, labels), saved=True),
    ]
    return build(
        node,
        values,
        labels=labels,
        operands=operands,
        result_dims=[plain_dims(labels)],
        forward_flops=each(1, labels),
    )


def glu(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``y = a sigmoid(b)``, where ``x`` is ``a`` and ``b`` one after the other in one dimension."""
    (x,), (y,) = arguments(node, values), results(node, values)
    dim = dim_index(integer(node, 1, "dim", -1), len(x.shape))
    if dim is None:
        return None
    labels = dim_labels(y.shape)
    half = Label(name="half", extent=2, splittable=False)
    dims = plain_dims(labels)
    both = product("half", labels[dim].name)
    operand = Operand(
        value=x,
        dims=(*dims[:dim], both, *dims[dim + 1 :]),
        gradient=each(2 * TRANSCENDENTAL_FLOPS, labels),
        saved=True,
    )
    return build(
        node,
        values,
        labels=(*labels, half),
        operands=[operand],
        result_dims=[dims],
        forward_flops=each(TRANSCENDENTAL_FLOPS, labels),
    )


def dropout(node: Node, values: tuple[Value, ...], *, whole_from: int | None) -> RuleResult:
    """Zeroes elements at random and scales the rest; keeps the mask, one byte for each random number.

    With `whole_from`, dimensions from there on share one random number, and stay whole.
    """
    if node.argument(2, "train", True) is False:
        return identity(node, values)
    (x,) = arguments(node, values)
    outputs = results(node, values)
    rank = len(x.shape)
    labels = dim_labels(x.shape, range(rank if whole_from is None else whole_from, rank))
    masked = labels[:whole_from]
    return build(
        node,
        values,
        labels=labels,
        operands=[Operand(value=x, dims=plain_dims(labels), gradient=each(2, labels))],
        result_dims=[plain_dims(labels)] * len(outputs),
        forward_flops=each(2, labels),
        internal_saved_bytes=each(1, masked) if len(outputs) == 1 else (),
        saves_results=[False, True][: len(outputs)],
        kind="dropout",
        pointwise=True,
        additive=True,
    )


def creation(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """A tensor of equal (or independent random) elements; arguments give their type alone."""
    (result, *_) = results(node, values)
    labels = dim_labels(result.shape)
    return build(
        node,
        values,
        labels=labels,
        operands=[Operand(value=v, dims=(WHOLE,) * len(v.shape)) for v in arguments(node, values)],
        result_dims=[plain_dims(labels)],
    )


def counting(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """A tensor whose elements depend on their index, made whole by whoever needs it."""
    (result, *_) = results(node, values)
    labels = dim_labels(result.shape, range(len(result.shape)))
    return build(
        node,
        values,
        labels=labels,
        operands=[Operand(value=v, dims=(WHOLE,) * len(v.shape)) for v in arguments(node, values)],
        result_dims=[plain_dims(labels)],
        forward_flops=(work(1, *(label.name for label in labels)),),
    )
