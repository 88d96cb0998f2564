"""Pieces that rules are made of: reading arguments, naming dimensions, broadcasting, building a `Rule`.

Readers return None for arguments of an unexpected form, and `build` returns None for a rule that does not
fit the shapes of its node; a rule then passes the None on, so that nothing odd is ever an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from soaprl.graph.rules.base import (
    WHOLE,
    Dim,
    Label,
    Node,
    NodeArgument,
    Rule,
    Value,
    ValueRef,
    Work,
    plain,
)

# FLOPs of an exponential, logarithm, division or the like, beside 1 for an addition or multiplication.
# Pointwise operators are bound by memory traffic on every device, so the exact number decides nothing.
TRANSCENDENTAL_FLOPS = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """A tensor argument of a node, as a rule sees it.

    Attributes:
        value: The tensor.
        dims: One `Dim` for each dimension.
        gradient: FLOPs of computing its gradient, if it needs one.
        saved: Whether the backward pass reads it, if there is one.
    """

    value: Value
    dims: tuple[Dim, ...]
    gradient: tuple[Work, ...] = ()
    saved: bool = False


def operation(node: Node) -> str:
    """The bare name of what is called: ``add`` for ``aten.add_.Tensor``."""
    return node.target.split(".")[1].rstrip("_") if "." in node.target else node.target


def spatial_names(num_dims: int) -> tuple[str, ...] | None:
    """Names of the spatial dimensions of an image, signal or volume."""
    return {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}.get(num_dims)


def arguments(node: Node, values: tuple[Value, ...]) -> tuple[Value, ...]:
    """The tensor arguments in order of appearance."""
    return tuple(values[i] for i in node.tensor_arguments())


def results(node: Node, values: tuple[Value, ...]) -> tuple[Value, ...]:
    """The results."""
    return tuple(values[i] for i in node.results)


def tensor(node: Node, values: tuple[Value, ...], position: int, name: str = "") -> Value | None:
    """The tensor argument at `position` or called `name`; None if it is absent or not a tensor."""
    argument = node.argument(position, name)
    return values[argument.index] if isinstance(argument, ValueRef) else None


def tensor_list(argument: NodeArgument, values: tuple[Value, ...]) -> tuple[Value, ...] | None:
    """The tensors of a list argument; None if it holds anything else."""
    if not isinstance(argument, tuple):
        return None
    found = tuple(values[a.index] for a in argument if isinstance(a, ValueRef))
    return found if len(found) == len(argument) else None


def integer(node: Node, position: int, name: str, default: int) -> int | None:
    """The integer argument at `position` or called `name`; None if it is something else."""
    argument = node.argument(position, name, default)
    return argument if isinstance(argument, int) else None


def flag(node: Node, position: int, name: str, default: bool = False) -> bool:
    """The boolean argument at `position` or called `name`."""
    return bool(node.argument(position, name, default))


def integers(argument: NodeArgument, count: int | None = None) -> tuple[int, ...] | None:
    """A list of integers; a single one stands for `count` equal ones, as it does in PyTorch."""
    if isinstance(argument, int):
        return (argument,) * (1 if count is None else count)
    if not isinstance(argument, tuple):
        return None
    found = tuple(a for a in argument if isinstance(a, int))
    if len(found) != len(argument):
        return None
    if count is not None and len(found) == 1:
        return found * count
    return found if count is None or len(found) == count else None


def dim_index(dim: int | None, rank: int) -> int | None:
    """A dimension counted from the front; None if there is no such dimension."""
    if dim is None or not -rank <= dim < rank:
        return None
    return dim % rank


def dim_labels(shape: Sequence[int], whole: Sequence[int] = ()) -> tuple[Label, ...]:
    """Labels ``dim0``, ``dim1``, ... for a shape; those of the dimensions in `whole` cannot be split."""
    return tuple(Label(name=f"dim{d}", extent=e, splittable=d not in whole) for d, e in enumerate(shape))


def names(labels: Sequence[Label]) -> tuple[str, ...]:
    """The names of `labels`."""
    return tuple(label.name for label in labels)


def plain_dims(labels: Sequence[Label]) -> tuple[Dim, ...]:
    """One plain dimension for each label."""
    return tuple(plain(label.name) for label in labels)


def broadcast(shape: tuple[int, ...], labels: Sequence[Label]) -> tuple[Dim, ...] | None:
    """The dimensions of an operand that broadcasts against `labels`, aligned at the last dimension."""
    if len(shape) > len(labels):
        return None
    aligned = labels[len(labels) - len(shape) :]
    if any(extent not in (1, label.extent) for extent, label in zip(shape, aligned, strict=True)):
        return None
    return tuple(
        plain(label.name) if extent == label.extent else WHOLE
        for extent, label in zip(shape, aligned, strict=True)
    )


def broadcast_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape that `shapes` broadcast to; None if they do not."""
    rank = max((len(s) for s in shapes), default=0)
    padded = [(1,) * (rank - len(s)) + s for s in shapes]
    columns = [{s[d] for s in padded} - {1} for d in range(rank)]
    if any(len(column) > 1 for column in columns):
        return None
    return tuple(column.pop() if column else 1 for column in columns)


def work(coefficient: float, *labels: str) -> Work:
    """A summand of a work formula."""
    return Work(coefficient=float(coefficient), labels=labels)


def each(coefficient: float, labels: Sequence[Label]) -> tuple[Work, ...]:
    """`coefficient` for each index of the product of `labels`."""
    return (work(coefficient, *names(labels)),)


def build(
    node: Node,
    values: tuple[Value, ...],
    *,
    labels: Sequence[Label],
    operands: Sequence[Operand],
    result_dims: Sequence[tuple[Dim, ...] | None],
    forward_flops: tuple[Work, ...] = (),
    saves_results: Sequence[bool] | None = None,
    kind: str = "",
    internal_bytes: tuple[Work, ...] = (),
    internal_saved_bytes: tuple[Work, ...] = (),
    num_kernels: int = 1,
    matmul: bool = False,
    pointwise: bool = False,
    additive: bool = False,
    combine: str = "sum",
) -> Rule | None:
    """The rule of `node`, or None if it does not fit the node's tensors.

    Gradients are counted only for operands that require one, and nothing is kept for a backward pass that
    does not exist (no operand, or no result, requires a gradient).
    """
    outputs = results(node, values)
    differentiable = any(o.value.requires_grad and o.gradient for o in operands) and any(
        v.requires_grad and v.is_float for v in outputs
    )
    saved = tuple(saves_results) if saves_results is not None else (False,) * len(outputs)
    given = tuple(dims for dims in result_dims if dims is not None)
    if len(given) != len(outputs) or len(saved) != len(outputs):
        return None
    if tuple(o.value.name for o in operands) != tuple(v.name for v in arguments(node, values)):
        return None
    shapes = [
        *((o.dims, o.value.shape) for o in operands),
        *zip(given, (v.shape for v in outputs), strict=True),
    ]
    extents = {label.name: label.extent for label in labels}
    if len(extents) != len(labels) or min(extents.values(), default=1) < 1:
        return None
    if not all(_fits(dims, shape, extents) for dims, shape in shapes):
        return None
    return Rule(
        kind=kind or operation(node),
        labels=tuple(labels),
        arguments=tuple(o.dims for o in operands),
        results=given,
        forward_flops=forward_flops,
        gradient_flops=tuple(
            o.gradient if differentiable and o.value.requires_grad else () for o in operands
        ),
        saves_arguments=tuple(o.saved and differentiable for o in operands),
        saves_results=tuple(s and differentiable for s in saved),
        internal_bytes=internal_bytes,
        internal_saved_bytes=internal_saved_bytes if differentiable else (),
        num_kernels=num_kernels,
        matmul=matmul,
        pointwise=pointwise,
        additive=additive,
        combine=combine,
    )


def _fits(dims: tuple[Dim, ...], shape: tuple[int, ...], extents: dict[str, int]) -> bool:
    if len(dims) != len(shape):
        return False
    for dim, extent in zip(dims, shape, strict=True):
        if any(label not in extents for label in dim.labels):
            return False
        if dim.labels and dim.affine_identity and prod(extents[label] for label in dim.labels) != extent:
            return False
    return True
