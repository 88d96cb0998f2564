"""A graph for some of the replicas that share a batch.

Under data parallelism every replica executes the same operators on its own part of a factor (the batch). The
graph of fewer replicas has the same operators with a smaller extent of that factor, so that each part has the
size that it had: a task of the smaller graph is a task of the larger one.
"""

from collections.abc import Sequence
from dataclasses import replace

from soaprl.graph.factors import Factor, Span
from soaprl.graph.operators import Access, Operator, OperatorGraph, Tensor


def shrink(graph: OperatorGraph, factors: Sequence[int], *, kept: int, replicas: int) -> OperatorGraph:
    """`graph` with `kept` of `replicas` equal parts of one factor of each operator.

    The graph has what costs and simulation read of it; it cannot be executed. Tensor dimensions shrink with
    the factor that all operators read or write them by.

    Args:
        graph: The whole graph.
        factors: For each operator the factor that shrinks. Its extent is a multiple of `replicas`, and all
            spans of it are plain.
        kept: How many parts are left.
        replicas: How many there were.
    """
    operators = tuple(_shrunk(op, f, kept, replicas) for op, f in zip(graph.operators, factors, strict=True))
    shrinking: dict[int, list[bool]] = {}
    for operator, factor in zip(graph.operators, factors, strict=True):
        for access in _accesses(operator):
            along = [span.factor == factor for span in access.spans]
            before = shrinking.get(access.tensor, along)
            shrinking[access.tensor] = [a and b for a, b in zip(along, before, strict=True)]
    tensors = tuple(
        _shrunk_tensor(tensor, shrinking.get(index, []), kept, replicas)
        for index, tensor in enumerate(graph.tensors)
    )
    return replace(
        graph,
        batch_size=graph.batch_size * kept // replicas,
        tensors=tensors,
        operators=operators,
        constants=(),
        constant_results=(),
    )


def _accesses(operator: Operator) -> tuple[Access, ...]:
    return (*operator.inputs, *operator.parameters, *operator.buffers, *operator.outputs)


def _shrunk(operator: Operator, factor: int, kept: int, replicas: int) -> Operator:
    old = operator.factors[factor]
    extent = old.extent * kept // replicas
    new = Factor(name=old.name, extent=extent, kind=old.kind, max_degree=min(old.max_degree, extent))
    span = Span(factor=factor, lower=0, upper=extent)

    def shrunk(accesses: tuple[Access, ...]) -> tuple[Access, ...]:
        return tuple(
            replace(a, spans=tuple(span if s.factor == factor else s for s in a.spans))
            if any(s.factor == factor for s in a.spans)
            else a
            for a in accesses
        )

    return replace(
        operator,
        factors=(*operator.factors[:factor], new, *operator.factors[factor + 1 :]),
        inputs=shrunk(operator.inputs),
        parameters=shrunk(operator.parameters),
        buffers=shrunk(operator.buffers),
        outputs=shrunk(operator.outputs),
        body=(),
        body_outputs=(),
    )


def _shrunk_tensor(tensor: Tensor, shrinking: list[bool], kept: int, replicas: int) -> Tensor:
    if not any(shrinking):
        return tensor
    extents = iter(
        extent * kept // replicas if shrinks else extent
        for extent, shrinks in zip(tensor.refined_shape, shrinking, strict=True)
    )
    return replace(tensor, refined=tuple(tuple(next(extents) for _ in dims) for dims in tensor.refined))
