"""Builds one operator from one captured call, its rule, and the refined dimensions of its tensors."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from soaprl.graph.factors import Factor, FactorKind, Span
from soaprl.graph.operators import (
    Access,
    Argument,
    Call,
    DimUse,
    Operator,
    Ref,
    TensorRole,
    Term,
    merge_terms,
)
from soaprl.graph.resolve import Extents, Resolved, root_layout, root_spans, stored
from soaprl.graph.rules.base import Dim, Label, Node, NodeArgument, Rule, Value, ValueRef, Work

Pieces = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What lowering knows when it builds an operator.

    Attributes:
        values: All values of the program.
        extents: Refined extents of each value.
        tensor_of: Tensor index by value, for stored values.
        sample: The (value, refined dimension) pairs that run over the samples of the batch.
    """

    values: tuple[Value, ...]
    extents: tuple[Extents, ...]
    tensor_of: dict[int, int]
    sample: set[tuple[int, int]]

    def dims(self, value: int) -> Extents:
        """Refined extents of each dimension of a value."""
        return self.extents[value]


class OperatorBuilder:
    """Builds the operator of one call.

    Args:
        context: What lowering knows so far.
        node: The call.
        rule: Its rule.
        pieces: Refined extents of each label; labels that are not refined may be left out.
        resolved: For each tensor argument, where it is stored.
    """

    def __init__(
        self, context: Context, node: Node, rule: Rule, pieces: Pieces, resolved: tuple[Resolved, ...]
    ) -> None:
        self.context = context
        self.node = node
        self.rule = rule
        self.values = context.values
        self.arguments = node.tensor_arguments()
        self.resolved = resolved
        self.factors_of: dict[str, tuple[int, ...]] = {}
        self.extent_of: dict[str, tuple[int, ...]] = {}
        for label in rule.labels:
            extents = pieces.get(label.name, (label.extent,) if label.extent > 1 else ())
            first = sum(len(f) for f in self.factors_of.values())
            self.factors_of[label.name] = tuple(range(first, first + len(extents)))
            self.extent_of[label.name] = extents
        self.argument_uses = tuple(
            self._uses(value, dims) for value, dims in zip(self.arguments, rule.arguments, strict=True)
        )
        self.result_uses = tuple(
            self._uses(value, dims) for value, dims in zip(node.results, rule.results, strict=True)
        )

    def build(self) -> Operator:
        """The operator."""
        groups: dict[str, list[Access]] = {"input": [], "parameter": [], "buffer": []}
        refs = []
        for k in range(len(self.arguments)):
            source = self._source(k)
            access = self._argument_access(k)
            if access not in groups[source]:
                groups[source].append(access)
            refs.append(Ref(source=source, index=groups[source].index(access)))
        outputs = tuple(self._output_access(k) for k in range(len(self.node.results)))
        wanted = [k for k, access in enumerate(self.arguments) if self._has_gradient(k)]
        backward = bool(wanted) and any(self.values[v].requires_grad for v in self.node.results)
        rule = self.rule
        gradients = tuple(work for k in wanted for work in rule.gradient_flops[k]) if backward else ()
        return Operator(
            name=self.node.name,
            kind=rule.kind,
            factors=self._factors(groups["input"], groups["parameter"], outputs),
            inputs=tuple(groups["input"]),
            parameters=tuple(groups["parameter"]),
            buffers=tuple(groups["buffer"]),
            outputs=outputs,
            forward_flops=self._terms(rule.forward_flops),
            backward_flops=self._terms(gradients),
            internal_bytes=self._terms(rule.internal_bytes),
            internal_saved_bytes=self._terms(rule.internal_saved_bytes) if backward else (),
            num_forward_kernels=rule.num_kernels,
            num_backward_kernels=rule.num_kernels * min(2, len(wanted)) if backward else 0,
            matmul=rule.matmul,
            body=(self._call(iter(refs)),),
            body_outputs=tuple((0, k) for k in range(len(self.node.results))),
        )

    def constant_call(self) -> Call:
        """The call with references to tensors by their index."""
        return self._call(
            iter(
                Ref(
                    source="tensor",
                    index=self.context.tensor_of[resolved.root],
                    layout=self._argument_access(k).layout,
                )
                for k, resolved in enumerate(self.resolved)
            )
        )

    def _source(self, argument: int) -> str:
        role = self.values[self.resolved[argument].root].role
        return {TensorRole.PARAMETER: "parameter", TensorRole.BUFFER: "buffer"}.get(role, "input")

    def _has_gradient(self, argument: int) -> bool:
        return self.values[self.arguments[argument]].requires_grad

    def _argument_access(self, k: int) -> Access:
        value, resolved = self.arguments[k], self.resolved[k]
        dims = self.context.dims(value)
        spans = self._spans(value, self.rule.arguments[k])
        return Access(
            tensor=self.context.tensor_of[resolved.root],
            spans=root_spans(resolved, spans),
            layout=root_layout(resolved, dims, spans),
            gradient=self._has_gradient(k),
            saved=self.rule.saves_arguments[k]
            and any(self._has_gradient(j) for j in range(len(self.arguments))),
        )

    def _output_access(self, k: int) -> Access:
        value = self.node.results[k]
        dims = self.context.dims(value)
        spans = self._spans(value, self.rule.results[k])
        gradient = self.values[value].requires_grad
        return Access(
            tensor=self.context.tensor_of[value],
            spans=spans,
            layout=root_layout(stored(value, dims), dims, spans),
            gradient=gradient,
            saved=self.rule.saves_results[k] and gradient,
            combine=self.rule.combine,
        )

    def _spans(self, value: int, dims: tuple[Dim, ...]) -> tuple[Span, ...]:
        """One span for each refined dimension of a value."""
        extents = self.context.dims(value)
        return tuple(span for d, dim in enumerate(dims) for span in self._dim_spans(dim, extents[d]))

    def _dim_spans(self, dim: Dim, pieces: tuple[int, ...]) -> list[Span]:
        factors = [f for label in dim.labels for f in self.factors_of[label]]
        if dim.affine_identity and dim.labels:
            assert len(factors) == len(pieces), f"{self.node.name}: refined dimensions do not match"
            return [Span(factor=f, lower=0, upper=e) for f, e in zip(factors, pieces, strict=True)]
        whole = [Span(factor=-1, lower=0, upper=extent) for extent in pieces]
        if not dim.labels or not pieces:
            return whole
        return [self._window_span(dim, pieces), *whole[1:]]

    def _window_span(self, dim: Dim, pieces: tuple[int, ...]) -> Span:
        """The span of the outermost refined dimension of a dimension read through an affine map.

        Only the label's outermost factor can be split then (see `_factors`), so a part is an interval of the
        label; if the dimension itself is refined, the hull of whole inner dimensions is read.
        """
        assert dim.label is not None
        flat = Span(
            factor=0,
            lower=0,
            upper=prod(pieces),
            mul=dim.mul,
            div=dim.div,
            add_first=dim.add_first,
            add_last=dim.add_last,
        )
        factors, extents = self.factors_of[dim.label], self.extent_of[dim.label]
        inner = prod(pieces[1:])
        if not factors:
            first, stop = flat.interval(0, 1)
            return Span(factor=-1, lower=first // inner, upper=-(-stop // inner))
        width = prod(extents[1:])
        return Span(
            factor=factors[0],
            lower=0,
            upper=pieces[0],
            mul=dim.mul * width,
            div=dim.div * inner,
            add_first=dim.add_first,
            add_last=dim.add_last + (width - 1) * dim.mul,
        )

    def _uses(self, value: int, dims: tuple[Dim, ...]) -> tuple[DimUse, ...]:
        uses = []
        for extent, dim in zip(self.values[value].shape, dims, strict=True):
            factors = tuple(f for label in dim.labels for f in self.factors_of[label])
            span = None
            if dim.labels and not dim.affine_identity:
                span = Span(
                    factor=0,
                    lower=0,
                    upper=extent,
                    mul=dim.mul,
                    div=dim.div,
                    add_first=dim.add_first,
                    add_last=dim.add_last,
                )
            uses.append(DimUse(extent=extent, factors=factors, span=span))
        return tuple(uses)

    def _factors(
        self, inputs: list[Access], parameters: list[Access], outputs: tuple[Access, ...]
    ) -> tuple[Factor, ...]:
        rigid = {
            dim.label
            for dims in (*self.rule.arguments, *self.rule.results)
            for dim in dims
            if dim.label is not None and not dim.affine_identity
        }
        sample = self._sample_factors()
        in_parameter = {s.factor for a in parameters for s in a.spans}
        in_output = {s.factor for a in outputs for s in a.spans}
        factors = []
        for label in self.rule.labels:
            for k, index in enumerate(self.factors_of[label.name]):
                extent = self.extent_of[label.name][k]
                kind = factor_kind(
                    sample=index in sample, parameter=index in in_parameter, output=index in in_output
                )
                can_split = label.splittable and (k == 0 or label.name not in rigid)
                factors.append(
                    Factor(
                        name=self._factor_name(label, k, kind),
                        extent=extent,
                        kind=kind,
                        max_degree=extent if can_split else 1,
                    )
                )
        return _unique_names(factors)

    def _sample_factors(self) -> set[int]:
        found = set()
        for k, resolved in enumerate(self.resolved):
            spans = root_spans(resolved, self._spans(self.arguments[k], self.rule.arguments[k]))
            for d, span in enumerate(spans):
                if span.factor >= 0 and span.mul == span.div and (resolved.root, d) in self.context.sample:
                    found.add(span.factor)
        return found

    def _factor_name(self, label: Label, piece: int, kind: FactorKind) -> str:
        if kind is FactorKind.SAMPLE:
            return "sample"
        name = "dim0" if label.name == "sample" else label.name
        return f"{name}.{piece}" if len(self.factors_of[label.name]) > 1 else name

    def _terms(self, work: tuple[Work, ...]) -> tuple[Term, ...]:
        return merge_terms(
            Term(
                coefficient=w.coefficient,
                factors=tuple(sorted(f for label in w.labels for f in self.factors_of[label])),
            )
            for w in work
        )

    def _call(self, refs: Iterator[Ref]) -> Call:
        return Call(
            name=self.node.name,
            target=self.node.target,
            args=tuple(_with_refs(a, refs) for a in self.node.args),
            kwargs=tuple((k, _with_refs(a, refs)) for k, a in self.node.kwargs),
            arg_dims=self.argument_uses,
            result_dims=self.result_uses,
        )


def factor_kind(*, sample: bool, parameter: bool, output: bool) -> FactorKind:
    """The SOAP kind of a factor.

    Args:
        sample: It runs over the samples of the batch (also where a loss sums over them).
        parameter: A parameter has it.
        output: An output has it.
    """
    if sample:
        return FactorKind.SAMPLE
    if not output:
        return FactorKind.REDUCTION
    return FactorKind.PARAMETER if parameter else FactorKind.ATTRIBUTE


def _unique_names(factors: list[Factor]) -> tuple[Factor, ...]:
    """Numbers factors that would share a name."""
    seen: Counter[str] = Counter()
    unique = []
    for factor in factors:
        seen[factor.name] += 1
        count = seen[factor.name]
        unique.append(factor if count == 1 else replace(factor, name=f"{factor.name}{count}"))
    return tuple(unique)


def _with_refs(argument: NodeArgument, refs: Iterator[Ref]) -> Argument:
    """The argument with its tensors replaced by `refs`, in order of appearance."""
    if isinstance(argument, ValueRef):
        return next(refs)
    if isinstance(argument, tuple):
        return tuple(_with_refs(item, refs) for item in argument)
    return argument
