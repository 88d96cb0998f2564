"""Rules of last resort: calls without a rule, views that are no mere renaming, and views kept as calls."""

from math import prod

from soaprl.graph.refine import reshape_blocks
from soaprl.graph.resolve import Extents
from soaprl.graph.rules.base import (
    WHOLE,
    Dim,
    Label,
    Node,
    NodeArgument,
    Reshape,
    Rule,
    Value,
    ValueRef,
    View,
    offset,
    plain,
    product,
)


def opaque_rule(node: Node, values: tuple[Value, ...]) -> Rule:
    """The rule of a call that cannot be split: one task reads and writes everything; costed by bytes."""
    arguments = node.tensor_arguments()
    return Rule(
        kind=node.target.split(".")[1] if "." in node.target else node.target,
        labels=(),
        arguments=tuple((WHOLE,) * len(values[v].shape) for v in arguments),
        results=tuple((WHOLE,) * len(values[v].shape) for v in node.results),
        forward_flops=(),
        gradient_flops=((),) * len(arguments),
        saves_arguments=(True,) * len(arguments),
        saves_results=(True,) * len(node.results),
    )


def _copying(
    kind: str, labels: tuple[Label, ...], argument: tuple[Dim, ...], result: tuple[Dim, ...]
) -> Rule:
    return Rule(
        kind=kind,
        labels=labels,
        arguments=(argument,),
        results=(result,),
        forward_flops=(),
        gradient_flops=((),),
        saves_arguments=(False,),
        saves_results=(False,),
    )


def copy_rule(value: Value, dims: Extents) -> Rule:
    """The rule of a view kept as a call: it copies, and every refined dimension is a label."""
    names = [[f"dim{d}.{k}" if len(p) > 1 else f"dim{d}" for k in range(len(p))] for d, p in enumerate(dims)]
    labels = [
        Label(name=name, extent=extent)
        for pieces, row in zip(dims, names, strict=True)
        for extent, name in zip(pieces, row, strict=True)
    ]
    uses = tuple(product(*row) if row else WHOLE for row in names)
    return _copying("view", tuple(labels), uses, uses)


def broken_view_call(view: View, values: tuple[Value, ...]) -> tuple[Rule, str, tuple[NodeArgument, ...]]:
    """Rule, target and arguments of a view whose refined dimensions do not match its source's.

    A reshape is split only along dimensions that it leaves alone. The call is ``soaprl.reshape(x)`` to the
    shape of the result, or ``soaprl.rearrange(x, dims)`` with (out, start, length) for each source dimension.
    """
    source, result = values[view.source].shape, values[view.result].shape
    if isinstance(view, Reshape):
        return _broken_reshape(source, result), "soaprl.reshape", (ValueRef(view.source),)
    labels = {d: Label(name=f"dim{d}", extent=extent) for d, extent in enumerate(result)}
    argument = tuple(
        WHOLE if dim.out is None or result[dim.out] == 1 else offset(f"dim{dim.out}", dim.start)
        for dim in view.dims
    )
    rule = _copying("slice", tuple(labels.values()), argument, tuple(plain(f"dim{d}") for d in labels))
    dims = tuple((-1 if dim.out is None else dim.out, dim.start, dim.length) for dim in view.dims)
    return rule, "soaprl.rearrange", (ValueRef(view.source), dims)


def _broken_reshape(source: tuple[int, ...], result: tuple[int, ...]) -> Rule:
    blocks = reshape_blocks(source, result)
    kept = {
        b.source_dims[0]: b.result_dims[0] for b in blocks if len(b.source_dims) == len(b.result_dims) == 1
    }
    labels = tuple(Label(name=f"dim{j}", extent=result[j]) for j in kept.values())
    assert prod(source) == prod(result), "a reshape keeps the number of elements"
    return _copying(
        "reshape",
        labels,
        tuple(plain(f"dim{kept[d]}") if d in kept else WHOLE for d in range(len(source))),
        tuple(plain(f"dim{d}") if d in kept.values() else WHOLE for d in range(len(result))),
    )
