"""The graph of one micro-batch: the same operators on an equal part of the batch.

The extents of the factors that run over samples are divided, and with them the tensor dimensions that these
factors are maps to, the dimensions of calls, and shapes that constants spell out. It is the graph that a
capture with the smaller batch gives, without the model.

A mean over the samples becomes the mean over those of the micro-batch, and batch normalization sees the
statistics of the micro-batch, as in GPipe (Huang et al., arXiv 1811.06965).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from soaprl.errors import GraphError
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
    Tensor,
    TensorRole,
)

_MADE_ELSEWHERE = (TensorRole.INPUT, TensorRole.CONSTANT)


def micro_batch(graph: OperatorGraph, num_micro_batches: int) -> OperatorGraph:
    """`graph` for one of `num_micro_batches` equal parts of its batch.

    Raises:
        GraphError: The batch has no such parts, or an operator mixes samples in a way that no factor says.
    """
    if num_micro_batches == 1:
        return graph
    if num_micro_batches < 1 or graph.batch_size % num_micro_batches:
        raise GraphError(
            f"{graph.name!r}: expected a number of micro-batches that divides the batch of"
            f" {graph.batch_size}, found {num_micro_batches}. Change one of them."
        )
    sample_dims = _sample_dims(graph)
    tensors = tuple(
        _smaller(graph, tensor, sample_dims[index], num_micro_batches)
        for index, tensor in enumerate(graph.tensors)
    )
    dividing = _Dividing(graph, tensors, sample_dims, num_micro_batches)
    return replace(
        graph,
        batch_size=graph.batch_size // num_micro_batches,
        tensors=tensors,
        operators=tuple(dividing.operator(operator) for operator in graph.operators),
        constants=tuple(
            dividing.constant(call, results)
            for call, results in zip(graph.constants, graph.constant_results, strict=True)
        ),
    )


def _sample_dims(graph: OperatorGraph) -> list[set[int]]:
    """For each tensor, the refined dimensions that run over samples.

    What is read is marked by capture (targets that a loss reads as a whole) or by the factors of its readers
    (constants); what is written, by the factors of its producer.
    """
    found = [set(tensor.sample_dims) for tensor in graph.tensors]
    for operator in graph.operators:
        sample = {f for f, factor in enumerate(operator.factors) if factor.kind is FactorKind.SAMPLE}
        written = [(access, True) for access in operator.outputs]
        for access, made_here in (*written, *((a, False) for a in operator.inputs)):
            if made_here or graph.tensors[access.tensor].role in _MADE_ELSEWHERE:
                dims = {d for d, s in enumerate(access.spans) if s.factor in sample and s.plain}
                found[access.tensor] |= dims
    return found


def _smaller(graph: OperatorGraph, tensor: Tensor, dims: set[int], number: int) -> Tensor:
    if not dims:
        return tensor
    extents = list(tensor.refined_shape)
    for dim in dims:
        if extents[dim] % number:
            raise GraphError(
                f"{graph.name!r}: expected the samples of {tensor.name!r} in {number} equal parts, found a"
                f" dimension of {extents[dim]}. Choose fewer micro-batches."
            )
        extents[dim] //= number
    rest = iter(extents)
    return replace(tensor, refined=tuple(tuple(next(rest) for _ in pieces) for pieces in tensor.refined))


@dataclass(frozen=True, slots=True)
class _Dividing:
    """Rewrites operators; `tensors` are the divided ones."""

    graph: OperatorGraph
    tensors: tuple[Tensor, ...]
    sample_dims: list[set[int]]
    number: int

    def operator(self, operator: Operator) -> Operator:
        accesses = (*operator.inputs, *operator.outputs)
        divided = {
            s.factor for a in accesses for d, s in enumerate(a.spans) if d in self.sample_dims[a.tensor]
        }
        divided.discard(-1)
        if not divided:
            if any(self.sample_dims[access.tensor] for access in accesses):
                raise self._refusal(operator, "reads samples without a factor that runs over them")
            return operator
        factors = tuple(
            replace(factor, extent=factor.extent // self.number, max_degree=self._degree(factor.max_degree))
            if index in divided
            else factor
            for index, factor in enumerate(operator.factors)
        )
        smaller = replace(
            operator,
            factors=factors,
            inputs=tuple(self._access(operator, divided, a) for a in operator.inputs),
            buffers=tuple(self._access(operator, divided, a) for a in operator.buffers),
            parameters=tuple(self._access(operator, divided, a) for a in operator.parameters),
            outputs=tuple(self._access(operator, divided, a) for a in operator.outputs),
        )
        calls: list[Call] = []
        for call in operator.body:
            calls.append(self._call(operator, smaller, divided, call, calls))
        return replace(smaller, body=tuple(calls))

    def _degree(self, max_degree: int) -> int:
        return max(1, max_degree // self.number)

    def _access(self, operator: Operator, divided: set[int], access: Access) -> Access:
        dims, shape = self.sample_dims[access.tensor], self.graph.tensors[access.tensor].refined_shape
        smaller = self.tensors[access.tensor].refined_shape
        spans = list(access.spans)
        for d, span in enumerate(access.spans):
            if d not in dims:
                if span.factor in divided:
                    raise self._refusal(operator, "reads something else by the samples' factor")
                continue
            whole = span.factor == -1 and (span.lower, span.upper) == (0, shape[d])
            if not (whole or (span.plain and (span.lower, span.upper) == (0, shape[d]))):
                raise self._refusal(operator, "reads some of the samples")
            spans[d] = Span(factor=span.factor, lower=0, upper=smaller[d])
        layout = tuple(tuple(self._piece(divided, piece) for piece in dim) for dim in access.layout)
        return replace(access, spans=tuple(spans), layout=layout)

    def _piece(self, divided: set[int], piece: int | Broadcast) -> int | Broadcast:
        if isinstance(piece, Broadcast) and piece.factor in divided:
            return replace(piece, extent=piece.extent // self.number)
        return piece

    def _call(
        self, operator: Operator, smaller: Operator, divided: set[int], call: Call, before: list[Call]
    ) -> Call:
        """A call of the body, whose earlier calls are done."""
        refs = list(_refs((*call.args, *(value for _, value in call.kwargs))))
        arg_dims = []
        for ref, uses in zip(refs, call.arg_dims, strict=True):
            extents = self._whole_extents(smaller, divided, ref, before)
            arg_dims.append(self._uses(operator, smaller, divided, uses, extents))
        # A result that no factor cuts is as large as the operator's output that it is.
        result_dims = []
        for result, uses in enumerate(call.result_dims):
            extents = [use.extent for use in uses]
            for k, (made_by, which) in enumerate(operator.body_outputs):
                if made_by == len(before) and which == result:
                    extents = self._layout_extents(smaller.outputs[k], divided)
            result_dims.append(self._uses(operator, smaller, divided, uses, extents))
        shapes = {
            tuple(use.extent for use in old): tuple(use.extent for use in new)
            for old, new in zip((*call.result_dims, *call.arg_dims), (*result_dims, *arg_dims), strict=True)
        }
        return replace(
            call,
            args=tuple(self._argument(divided, a, shapes) for a in call.args),
            kwargs=tuple((k, self._argument(divided, a, shapes)) for k, a in call.kwargs),
            arg_dims=tuple(arg_dims),
            result_dims=tuple(result_dims),
        )

    def _uses(
        self,
        operator: Operator,
        smaller: Operator,
        divided: set[int],
        uses: tuple[DimUse, ...],
        extents: list[int],
    ) -> tuple[DimUse, ...]:
        """`uses` with new extents; `extents` are those of dimensions that all tasks use as a whole."""
        found = []
        for use, extent in zip(uses, extents, strict=True):
            if use.span is not None:
                if divided.intersection(use.factors):
                    raise self._refusal(operator, "reads some of the samples")
                found.append(use)
            elif use.factors:
                found.append(replace(use, extent=prod(smaller.factors[f].extent for f in use.factors)))
            else:
                found.append(replace(use, extent=extent))
        return tuple(found)

    def _whole_extents(self, smaller: Operator, divided: set[int], ref: Ref, before: list[Call]) -> list[int]:
        """The extents of an argument's dimensions."""
        if ref.source == "call":
            assert ref.layout is not None, "arguments from calls have a layout"
            pieces = [
                extent
                for use in before[ref.index].result_dims[ref.result]
                for extent in ([smaller.factors[f].extent for f in use.factors] or [use.extent])
            ]
            layout = tuple(tuple(self._piece(divided, piece) for piece in dim) for dim in ref.layout)
            return [prod(_extent(piece, pieces) for piece in dim) for dim in layout]
        groups = {"input": smaller.inputs, "parameter": smaller.parameters, "buffer": smaller.buffers}
        return self._layout_extents(groups[ref.source][ref.index], divided)

    def _layout_extents(self, access: Access, divided: set[int]) -> list[int]:
        # An operand has what its spans leave: of a slice, the slice.
        extents = [span.upper - span.lower for span in access.spans]
        return [prod(_extent(piece, extents) for piece in dim) for dim in access.layout]

    def _argument(
        self, divided: set[int], argument: Argument, shapes: dict[tuple[int, ...], tuple[int, ...]]
    ) -> Argument:
        """An argument of a call; a spelt-out shape of one of its tensors becomes the new one."""
        if isinstance(argument, Ref):
            if argument.layout is None:
                return argument
            layout = tuple(tuple(self._piece(divided, piece) for piece in dim) for dim in argument.layout)
            return replace(argument, layout=layout)
        if isinstance(argument, tuple):
            if len(argument) > 0 and argument in shapes:
                return shapes[argument]  # type: ignore[index]
            return tuple(self._argument(divided, a, shapes) for a in argument)
        return argument

    def constant(self, call: Call, results: tuple[int, ...]) -> Call:
        """A call that makes constants."""
        shapes = {self.graph.tensors[t].shape: self.tensors[t].shape for t in results if self.sample_dims[t]}
        if not shapes:
            return call
        refs = list(_refs((*call.args, *(value for _, value in call.kwargs))))
        dims = tuple(
            tuple(replace(use, extent=extent) for use, extent in zip(uses, self._stored(ref), strict=True))
            for ref, uses in zip(refs, call.arg_dims, strict=True)
        )
        args = tuple(_reshaped(a, shapes) for a in call.args)
        if args == call.args and dims == call.arg_dims:
            raise GraphError(
                f"{self.graph.name!r}: the constant {call.name!r} holds something for each sample, but not"
                f" in a way that says how for fewer samples. Make it from the shape of an input, or use one"
                " micro-batch."
            )
        return replace(
            call,
            args=args,
            arg_dims=dims,
            result_dims=tuple(
                tuple(replace(u, extent=e) for u, e in zip(uses, self.tensors[t].shape, strict=True))
                for uses, t in zip(call.result_dims, results, strict=True)
            ),
        )

    def _stored(self, ref: Ref) -> list[int]:
        assert ref.source == "tensor", "constants are made from tensors"
        assert ref.layout is not None, "tensors have a layout"
        shape = self.tensors[ref.index].refined_shape
        return [prod(_extent(piece, shape) for piece in dim) for dim in ref.layout]

    def _refusal(self, operator: Operator, what: str) -> GraphError:
        return GraphError(
            f"{self.graph.name!r} cannot be cut into micro-batches: operator {operator.name!r} {what}, so its"
            " results would not be those of the whole batch. Use one micro-batch."
        )


def _extent(piece: int | Broadcast, extents: tuple[int, ...] | list[int]) -> int:
    return piece.extent if isinstance(piece, Broadcast) else extents[piece]


def _reshaped(argument: Argument, shapes: dict[tuple[int, ...], tuple[int, ...]]) -> Argument:
    """A literal shape, or the length of a vector, replaced."""
    if isinstance(argument, tuple):
        if argument in shapes:
            return shapes[argument]  # type: ignore[index]
        return tuple(_reshaped(a, shapes) for a in argument)
    if isinstance(argument, int) and not isinstance(argument, bool) and (argument,) in shapes:
        return shapes[(argument,)][0]
    return argument


def _refs(arguments: tuple[Argument, ...]) -> Iterator[Ref]:
    """The tensor arguments, in order of appearance."""
    for argument in arguments:
        if isinstance(argument, Ref):
            yield argument
        elif isinstance(argument, tuple):
            yield from _refs(argument)
