"""Families: operators whose shards of equal extents do the same local work, in whatever model they are.

A family is everything about an operator but its name, the tensors it is wired to, and the extent of its
sample factors: layers that repeat, and models that differ in their batch, share measurements. The extents of
other factors stay a part of it, because windows, masks and vocabularies depend on them.

A shard of a family is measured where it begins at index 0 of every factor (`shard_at`): one position stands
for all. What differs elsewhere is what borders differ in: padding, halos, a bias that only one part adds.
"""

import hashlib
from math import prod

from soaprl.cost.model import Shard
from soaprl.graph.factors import FactorKind, Span
from soaprl.graph.operators import (
    Access,
    Argument,
    Broadcast,
    Call,
    DimUse,
    Operator,
    OperatorGraph,
    Ref,
    TensorRole,
)


def family_of(graph: OperatorGraph, operator: Operator) -> str:
    """The name of the operator's family: 32 hexadecimal digits."""
    samples = {i for i, f in enumerate(operator.factors) if f.kind is FactorKind.SAMPLE}
    groups = (operator.inputs, operator.parameters, operator.buffers, operator.outputs)
    content = (
        operator.kind,
        [(f.kind.value, None if i in samples else f.extent) for i, f in enumerate(operator.factors)],
        [[_access(graph, operator, a, samples) for a in group] for group in groups],
        [wants_gradient(graph, a) for a in (*operator.inputs, *operator.parameters)],
        [_call(call, samples) for call in operator.body],
        operator.body_outputs,
        operator.has_backward,
    )
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]


def wants_gradient(graph: OperatorGraph, access: Access) -> bool:
    """Whether a task computes a gradient for what it reads through `access`."""
    stored = graph.tensors[access.tensor]
    if stored.role is TensorRole.PARAMETER:
        return access.gradient and stored.requires_grad
    producer = graph.producer.get(access.tensor)
    return access.gradient and producer is not None and graph.operators[producer].has_backward


def shard_at(graph: OperatorGraph, operator: Operator, extents: tuple[int, ...]) -> Shard:
    """The shard that has the first `extents` indices of each factor."""

    def sizes(accesses: tuple[Access, ...]) -> tuple[int, ...]:
        return tuple(_num_bytes(graph, access, extents) for access in accesses)

    return Shard(
        extents=extents,
        input_bytes=sizes(operator.inputs),
        parameter_bytes=sizes(operator.parameters),
        output_bytes=sizes(operator.outputs),
    )


def _num_bytes(graph: OperatorGraph, access: Access, extents: tuple[int, ...]) -> int:
    found = [s.interval(0, extents[s.factor] if s.factor >= 0 else 1) for s in access.spans]
    return graph.tensors[access.tensor].itemsize * prod(max(0, stop - start) for start, stop in found)


def _access(graph: OperatorGraph, operator: Operator, access: Access, samples: set[int]) -> object:
    return (
        graph.tensors[access.tensor].dtype,
        [_span(span, operator, samples) for span in access.spans],
        _layout(access.layout, samples),
        access.gradient,
        access.saved,
    )


def _span(span: Span, operator: Operator, samples: set[int]) -> object:
    if span.factor in samples and span.plain:
        extent = operator.factors[span.factor].extent
        if (span.lower, span.upper) == (0, extent):
            return span.factor
    return span.factor, span.lower, span.upper, span.mul, span.div, span.add_first, span.add_last


def _layout(layout: tuple[tuple[int | Broadcast, ...], ...] | None, samples: set[int]) -> object:
    def piece(p: int | Broadcast) -> object:
        if isinstance(p, Broadcast):
            return ("broadcast", p.factor, None if p.factor in samples else p.extent)
        return p

    return None if layout is None else [[piece(p) for p in dim] for dim in layout]


def _call(call: Call, samples: set[int]) -> object:
    groups = (call.arg_dims, call.result_dims)
    uses = [[[_use(use, samples) for use in dims] for dims in group] for group in groups]
    args = [_argument(a, samples) for a in call.args]
    return call.target, args, [(name, _argument(a, samples)) for name, a in call.kwargs], uses


def _use(use: DimUse, samples: set[int]) -> object:
    if use.span is None and samples.intersection(use.factors):
        return use.factors  # the extent follows from those of the factors
    return use.extent, use.factors, use.span


def _argument(argument: Argument, samples: set[int]) -> object:
    if isinstance(argument, Ref):
        return ("ref", argument.source, argument.index, argument.result, _layout(argument.layout, samples))
    if isinstance(argument, tuple):
        return [_argument(a, samples) for a in argument]
    return argument
