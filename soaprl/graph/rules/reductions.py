"""Reductions over dimensions.

    sum: x[d0, d1] -> y[d0]

Sums, means, extrema and logarithms of sums of exponentials can be split along what they reduce: parts are
combined by addition, maximum, minimum or addition of exponentials. A mean is a sum scaled by the whole
extent, whatever the parts. Other reductions need whole dimensions.
"""

from dataclasses import dataclass
from functools import partial

from soaprl.graph.rules.base import WHOLE, Dim, Node, NodeArgument, Rule, RuleTable, Value, plain
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
    operation,
    plain_dims,
    results,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """Reductions that are alike.

    Attributes:
        names: Targets, with the overload where others of the name are something else.
        dim_position: Where the dimensions are among the arguments.
        splittable: Whether what is reduced can be split.
        combine: How parts are combined.
        flops: FLOPs for each element read.
        keeps: What the backward pass reads: none, the argument, the indices, or argument and result.
        differentiable: Whether there is a gradient.
    """

    names: tuple[str, ...]
    dim_position: int = 1
    splittable: bool = False
    combine: str = "sum"
    flops: float = 1.0
    keeps: str = "argument"
    differentiable: bool = True


_KINDS = (
    _Kind(names=("sum", "mean"), splittable=True, keeps="none"),
    _Kind(names=("amax", "max.default"), splittable=True, combine="max", keeps="both"),
    _Kind(names=("amin", "min.default"), splittable=True, combine="min", keeps="both"),
    _Kind(
        names=("logsumexp", "special_logsumexp"),
        splittable=True,
        combine="logaddexp",
        flops=TRANSCENDENTAL_FLOPS,
        keeps="both",
    ),
    _Kind(names=("max.dim", "min.dim", "median.dim", "nanmedian.dim", "mode"), keeps="indices"),
    _Kind(names=("kthvalue",), dim_position=2, keeps="indices"),
    _Kind(names=("var", "var_mean"), flops=4.0),
    _Kind(names=("std", "std_mean"), flops=4.0, keeps="both"),
    _Kind(names=("prod", "aminmax", "nansum", "nanmean", "count_nonzero"), keeps="both"),
    _Kind(names=("linalg_vector_norm", "linalg_norm", "norm"), dim_position=2, flops=2.0, keeps="both"),
    _Kind(names=("argmax", "argmin", "any", "all"), differentiable=False),
)
_SCANS = ("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")


def register(table: RuleTable) -> None:
    """Adds the rules of this file to `table`."""
    for kind in _KINDS:
        table.register(*(f"aten.{name}" for name in kind.names))(partial(reduction, kind=kind))
    table.register(*(f"aten.{name}{suffix}" for name in _SCANS for suffix in ("", "_")))(scan)


def reduction(node: Node, values: tuple[Value, ...], *, kind: _Kind) -> Rule | None:
    """The rule of every reduction in `_KINDS`; dimensions that are kept have extent 1."""
    (x,), outputs = arguments(node, values), results(node, values)
    rank = len(x.shape)
    reduced = _reduced(node, kind, rank)
    if reduced is None or not outputs:
        return None
    labels = dim_labels(x.shape, () if kind.splittable else tuple(reduced))
    kept = tuple(label for d, label in enumerate(labels) if d not in reduced)
    if len(outputs[0].shape) == rank:
        dims: tuple[Dim, ...] = tuple(WHOLE if d in reduced else plain(b.name) for d, b in enumerate(labels))
    else:
        dims = plain_dims(kept)
    gradient = each(kind.flops, labels) if kind.differentiable else ()
    indices = kind.keeps == "indices"
    return build(
        node,
        values,
        labels=(*kept, *(label for d, label in enumerate(labels) if d in reduced)),
        operands=[
            Operand(
                value=x, dims=plain_dims(labels), gradient=gradient, saved=kind.keeps in ("argument", "both")
            )
        ],
        result_dims=[dims] * len(outputs),
        forward_flops=each(kind.flops, labels),
        saves_results=[(indices and p == 1) or kind.keeps == "both" for p in range(len(outputs))],
        combine=kind.combine,
    )


def _reduced(node: Node, kind: _Kind, rank: int) -> set[int] | None:
    """The reduced dimensions: those given, or all."""
    default: NodeArgument = -1 if node.target.startswith(("aten.mode", "aten.kthvalue")) else None
    given = node.argument(kind.dim_position, "dim", default)
    # `var.default` has a flag in the place of the dimensions.
    if given is None or isinstance(given, bool) or given == ():
        return set(range(rank))
    dims = integers(given)
    if dims is None or any(dim_index(d, rank) is None for d in dims):
        return set() if rank == 0 else None
    return {d % rank for d in dims}


def scan(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """Running sums and the like along one dimension."""
    (x,), outputs = arguments(node, values), results(node, values)
    dim = dim_index(integer(node, 1, "dim", 0), len(x.shape))
    if dim is None:
        return None
    labels = dim_labels(x.shape, (dim,))
    name = operation(node)
    extremum, keeps_result = name in ("cummax", "cummin"), name in ("cumprod", "logcumsumexp")
    return build(
        node,
        values,
        labels=labels,
        operands=[
            Operand(value=x, dims=plain_dims(labels), gradient=each(1, labels), saved=name != "cumsum")
        ],
        result_dims=[plain_dims(labels)] * len(outputs),
        forward_flops=each(1, labels),
        saves_results=[keeps_result or (extremum and k == 1) for k in range(len(outputs))],
    )
