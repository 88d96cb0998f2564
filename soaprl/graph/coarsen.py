"""Coarsening: folds an elementwise operator into the operator that makes its input.

Folding is legal where the producer's output goes nowhere else and the factors of both map one to one; then a
split of the producer is a split of both, and no strategy that matters is lost. What is folded: pointwise
operators (activations, dropout, residual additions) and batch normalization.

A partial sum cannot pass through a nonlinear operator, so folding one ends the producer's reductions. That
is accepted for an operator of one input (an activation function after a linear layer); an addition is not
folded into a producer that can still be split along a reduction, since row-parallel layers need that.
"""

from dataclasses import dataclass, replace

from soaprl.graph.factors import Factor, FactorKind, Span
from soaprl.graph.lower import Lowered
from soaprl.graph.operators import (
    Access,
    Argument,
    Broadcast,
    Call,
    DimUse,
    Operator,
    Ref,
    Tensor,
    Term,
    merge_terms,
)

_ELEMENTWISE_KINDS = frozenset({"batch_norm"})


@dataclass(frozen=True, slots=True)
class Coarsened:
    """Operators after folding, and how many were folded."""

    operators: tuple[Operator, ...]
    num_folded: int


@dataclass(frozen=True, slots=True)
class _Item:
    operator: Operator
    foldable: bool
    additive: bool


def coarsen(lowered: Lowered) -> Coarsened:
    """Folds what can be folded, in one pass from the first operator to the last."""
    readers: dict[int, int] = {}
    for operator in lowered.operators:
        for access in operator.inputs:
            readers[access.tensor] = readers.get(access.tensor, 0) + 1
    kept: list[_Item | None] = []
    producer: dict[int, int] = {}
    for k, operator in enumerate(lowered.operators):
        foldable = lowered.pointwise[k] or operator.kind in _ELEMENTWISE_KINDS
        item = _Item(operator, foldable, lowered.additive[k])
        position = _fold_target(item, kept, producer, readers, lowered)
        if position is not None:
            target = kept[position]
            assert target is not None, "a folded operator produces nothing any more"
            item = replace(target, operator=_folded(target.operator, item, lowered.tensors))
            kept[position] = None
        producer.update((access.tensor, len(kept)) for access in operator.outputs)
        kept.append(item)
    operators = tuple(item.operator for item in kept if item is not None)
    return Coarsened(operators, len(lowered.operators) - len(operators))


def _fold_target(
    item: _Item,
    kept: list[_Item | None],
    producer: dict[int, int],
    readers: dict[int, int],
    lowered: Lowered,
) -> int | None:
    """Position of the latest operator that `item` can be folded into."""
    if not item.foldable or len(item.operator.outputs) != 1:
        return None
    found = []
    for access in item.operator.inputs:
        position = producer.get(access.tensor)
        if position is None or readers[access.tensor] != 1 or access.tensor == lowered.loss:
            continue
        target = kept[position]
        if target is not None and _can_fold(target, item, access):
            found.append(position)
    return max(found, default=None)


def _can_fold(target: _Item, item: _Item, access: Access) -> bool:
    mapping = _factor_map(target.operator, item.operator, access)
    if mapping is None:
        return False
    first, second = target.operator.factors, item.operator.factors
    if any(second[g].max_degree < first[f].max_degree for g, f in mapping.items()):
        return False
    reductions = [f for k, f in enumerate(first) if k not in mapping.values() and f.splittable]
    if not reductions or _passes_partial_results(target.operator, item):
        return True
    reads_more = sum(1 for a in item.operator.inputs if a.gradient) > 1
    sums_samples = any(f.kind is FactorKind.SAMPLE for f in reductions)
    return not reads_more and not sums_samples


def _passes_partial_results(target: Operator, item: _Item) -> bool:
    """Whether partial results of `target` combine the same way after the item's operator."""
    return item.additive and all(access.combine == "sum" for access in target.outputs)


def _factor_map(target: Operator, operator: Operator, access: Access) -> dict[int, int] | None:
    """The target's factor for each factor of `operator`, if they map one to one through `access`."""
    if len(target.outputs) != 1 or target.outputs[0].tensor != access.tensor:
        return None
    mapping: dict[int, int] = {}
    for read, written in zip(access.spans, target.outputs[0].spans, strict=True):
        if not (read.plain and written.plain) or read.factor in mapping:
            return None
        mapping[read.factor] = written.factor
    repeats = any(isinstance(part, Broadcast) for dim in access.layout for part in dim)
    return mapping if len(mapping) == len(operator.factors) and not repeats else None


def _folded(target: Operator, item: _Item, tensors: tuple[Tensor, ...]) -> Operator:
    """`target` followed by the item's operator, as one operator."""
    operator = item.operator
    between = next(a for a in operator.inputs if a.tensor == target.outputs[0].tensor)
    mapping = _factor_map(target, operator, between)
    assert mapping is not None, "checked by _can_fold"
    moved = _Renumbering(target, operator, between, mapping)
    parameters = moved.merged(target.parameters, operator.parameters)
    inputs = moved.merged(target.inputs, tuple(a for a in operator.inputs if a is not between))
    buffers = moved.merged(target.buffers, operator.buffers)
    itemsize = tensors[between.tensor].itemsize
    size = tuple(sorted(s.factor for s in target.outputs[0].spans))
    kept = target.outputs[0].saved or between.saved
    between_bytes = (Term(coefficient=2 * itemsize, factors=size),)
    between_saved_bytes = (Term(coefficient=itemsize, factors=size),) if kept else ()
    return replace(
        target,
        factors=_factors(target, item, set(mapping.values()), parameters),
        inputs=inputs,
        parameters=parameters,
        buffers=buffers,
        outputs=tuple(moved.access(a) for a in operator.outputs),
        forward_flops=merge_terms((*target.forward_flops, *moved.terms(operator.forward_flops))),
        backward_flops=merge_terms((*target.backward_flops, *moved.terms(operator.backward_flops))),
        internal_bytes=merge_terms(
            (*target.internal_bytes, *moved.terms(operator.internal_bytes), *between_bytes)
        ),
        internal_saved_bytes=merge_terms(
            (*target.internal_saved_bytes, *moved.terms(operator.internal_saved_bytes), *between_saved_bytes)
        ),
        num_forward_kernels=target.num_forward_kernels + operator.num_forward_kernels,
        num_backward_kernels=target.num_backward_kernels + operator.num_backward_kernels,
        body=(*target.body, *moved.calls(inputs, parameters, buffers)),
        body_outputs=tuple((len(target.body) + call, result) for call, result in operator.body_outputs),
    )


def _factors(
    target: Operator, item: _Item, mapped: set[int], parameters: tuple[Access, ...]
) -> tuple[Factor, ...]:
    """The target's factors; reductions end at an operator that partial results do not pass."""
    in_parameter = {s.factor for a in parameters for s in a.spans}
    factors = []
    for k, factor in enumerate(target.factors):
        if k not in mapped and not _passes_partial_results(target, item):
            factor = replace(factor, max_degree=1)
        if factor.kind is FactorKind.ATTRIBUTE and k in in_parameter:
            factor = replace(factor, kind=FactorKind.PARAMETER)
        factors.append(factor)
    return tuple(factors)


@dataclass(frozen=True, slots=True)
class _Renumbering:
    """Rewrites a folded operator in terms of the factors, accesses and calls of its target."""

    target: Operator
    operator: Operator
    between: Access
    mapping: dict[int, int]

    def span(self, span: Span) -> Span:
        return span if span.factor < 0 else replace(span, factor=self.mapping[span.factor])

    def layout(
        self, layout: tuple[tuple[int | Broadcast, ...], ...]
    ) -> tuple[tuple[int | Broadcast, ...], ...]:
        return tuple(
            tuple(
                replace(part, factor=self.mapping[part.factor])
                if isinstance(part, Broadcast) and part.factor >= 0
                else part
                for part in dim
            )
            for dim in layout
        )

    def access(self, access: Access) -> Access:
        spans = tuple(self.span(s) for s in access.spans)
        return replace(access, spans=spans, layout=self.layout(access.layout))

    def merged(self, first: tuple[Access, ...], second: tuple[Access, ...]) -> tuple[Access, ...]:
        new = tuple(a for a in (self.access(a) for a in second) if a not in first)
        return (*first, *new)

    def terms(self, terms: tuple[Term, ...]) -> tuple[Term, ...]:
        return tuple(
            replace(term, factors=tuple(sorted(self.mapping[f] for f in term.factors))) for term in terms
        )

    def calls(
        self, inputs: tuple[Access, ...], parameters: tuple[Access, ...], buffers: tuple[Access, ...]
    ) -> tuple[Call, ...]:
        groups = {"input": inputs, "parameter": parameters, "buffer": buffers}
        old = {
            "input": self.operator.inputs,
            "parameter": self.operator.parameters,
            "buffer": self.operator.buffers,
        }

        def ref(argument: Argument) -> Argument:
            if isinstance(argument, tuple):
                return tuple(ref(a) for a in argument)
            if not isinstance(argument, Ref):
                return argument
            if argument.source == "call":
                index = argument.index + len(self.target.body)
                return replace(argument, index=index, layout=self.layout(argument.layout or ()))
            access = old[argument.source][argument.index]
            if access is self.between:
                call, result = self.target.body_outputs[0]
                return Ref(source="call", index=call, result=result, layout=self.between.layout)
            return replace(argument, index=groups[argument.source].index(self.access(access)))

        return tuple(
            replace(
                call,
                args=tuple(ref(a) for a in call.args),
                kwargs=tuple((k, ref(a)) for k, a in call.kwargs),
                arg_dims=tuple(self.uses(dims) for dims in call.arg_dims),
                result_dims=tuple(self.uses(dims) for dims in call.result_dims),
            )
            for call in self.operator.body
        )

    def uses(self, dims: tuple[DimUse, ...]) -> tuple[DimUse, ...]:
        return tuple(replace(d, factors=tuple(self.mapping[f] for f in d.factors)) for d in dims)
