"""One iteration of several micro-batches as one graph: a copy of every operator for each of them.

The copies share parameters, buffers and constants, as tied weights do: the gradients of all micro-batches are
synchronized, and parameters updated, once. Everything else (inputs, activations, losses) each has for itself.
"""

from collections import Counter
from dataclasses import dataclass, replace

from soaprl.errors import GraphError
from soaprl.graph.factors import FactorKind
from soaprl.graph.micro_batch import micro_batch
from soaprl.graph.operators import (
    Access,
    Call,
    Operator,
    OperatorGraph,
    Ref,
    TensorRole,
)

_SHARED = (TensorRole.PARAMETER, TensorRole.BUFFER, TensorRole.CONSTANT)
_MEAN, _SUM = 1, 2
# Where the reduction (0 none, 1 mean, 2 sum) of a loss is among its arguments.
_REDUCTION_AT = {
    "aten.cross_entropy_loss": 3,
    "aten.nll_loss_nd": 3,
    "aten.nll_loss": 3,
    "aten.nll_loss2d": 3,
    "aten.mse_loss": 2,
    "aten.l1_loss": 2,
    "aten.smooth_l1_loss": 2,
    "aten.huber_loss": 2,
    "aten.kl_div": 2,
    "aten.soft_margin_loss": 2,
    "aten.hinge_embedding_loss": 3,
    "aten.binary_cross_entropy": 3,
    "aten.binary_cross_entropy_with_logits": 4,
    "aten.poisson_nll_loss": 5,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedGraph:
    """A graph with a copy of every operator for each micro-batch.

    Attributes:
        graph: The copies, one micro-batch after the other: copy i of operator o has the index
            ``i * num_operators + o``. Its `loss` is that of the last micro-batch.
        num_micro_batches: How many micro-batches there are.
        num_operators: How many operators the original graph has.
        losses: The tensor of each micro-batch's loss.
        inputs: For each graph input of the original graph, its tensor in each micro-batch.
    """

    graph: OperatorGraph
    num_micro_batches: int
    num_operators: int
    losses: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...]

    def copies(self, operator: int) -> range:
        """The indices of the copies of an operator, by micro-batch."""
        return range(operator, self.num_micro_batches * self.num_operators, self.num_operators)


def repeated(graph: OperatorGraph, num_micro_batches: int) -> RepeatedGraph:
    """`graph`, whose batch is cut into micro-batches, as copies for each of them.

    Raises:
        GraphError: The batch cannot be cut so; see `soaprl.graph.micro_batch.micro_batch`.
    """
    part = micro_batch(graph, num_micro_batches)
    tensors = list(part.tensors)
    operators: list[Operator] = []
    losses: list[int] = []
    inputs: dict[int, list[int]] = {}
    for number in range(num_micro_batches):
        place = list(range(len(part.tensors)))
        for index, tensor in enumerate(part.tensors):
            if number > 0 and tensor.role not in _SHARED:
                place[index] = len(tensors)
                tensors.append(replace(tensor, name=_copy_name(tensor.name, number)))
            if tensor.role is TensorRole.INPUT:
                inputs.setdefault(index, []).append(place[index])
        operators += [_copied(operator, place, number) for operator in part.operators]
        losses.append(place[part.loss])
    for index, tensor in enumerate(part.tensors):
        if tensor.role not in _SHARED:
            tensors[index] = replace(tensor, name=_copy_name(tensor.name, 0))
    return RepeatedGraph(
        graph=replace(
            part,
            batch_size=graph.batch_size,
            tensors=tuple(tensors),
            operators=tuple(operators),
            loss=losses[-1],
        ),
        num_micro_batches=num_micro_batches,
        num_operators=len(graph.operators),
        losses=tuple(losses),
        inputs=tuple(tuple(copies) for copies in inputs.values()),
    )


def _copy_name(name: str, number: int) -> str:
    return f"{name}@{number}"


def _copied(operator: Operator, place: list[int], number: int) -> Operator:
    def moved(accesses: tuple[Access, ...]) -> tuple[Access, ...]:
        return tuple(a if place[a.tensor] == a.tensor else _moved(a, place[a.tensor]) for a in accesses)

    return replace(
        operator,
        name=_copy_name(operator.name, number),
        inputs=moved(operator.inputs),
        outputs=moved(operator.outputs),
        # Random numbers are drawn by the names of calls.
        body=tuple(replace(c, name=_copy_name(c.name, number)) if number else c for c in operator.body),
    )


def _moved(access: Access, tensor: int) -> Access:
    """The same of another tensor; spelt out, because there are hundreds of thousands in a large graph."""
    return Access(
        tensor=tensor,
        spans=access.spans,
        layout=access.layout,
        gradient=access.gradient,
        saved=access.saved,
        combine=access.combine,
    )


def loss_weight(graph: OperatorGraph, num_micro_batches: int) -> float:
    """What the losses of equal micro-batches are multiplied by so that their sum is the loss of the batch.

    One over their number if means are taken over the samples, 1 if sums are (a literal that a sum is divided
    by is that of the whole batch).

    Raises:
        GraphError: Both occur, or samples are combined in a way that is neither.
    """
    found: Counter[int] = Counter()
    for operator in graph.operators:
        samples = {f for f, factor in enumerate(operator.factors) if factor.kind is FactorKind.SAMPLE}
        for call in operator.body:
            reads = {f for uses in call.arg_dims for use in uses for f in use.factors}
            writes = {f for uses in call.result_dims for use in uses for f in use.factors}
            if operator.has_backward and (reads - writes) & samples:
                found[_reduction(call)] += 1
    if set(found) == {_MEAN}:
        return 1.0 / num_micro_batches
    if set(found) == {_SUM}:
        return 1.0
    raise GraphError(
        f"{graph.name!r}: expected a loss that is a mean over the samples, or a sum, and found"
        f" {'both' if set(found) == {_MEAN, _SUM} else 'another one'}: the losses of micro-batches do not add"
        " up to that of the batch. Use one micro-batch."
    )


def _reduction(call: Call) -> int:
    """How a call combines samples: mean, sum, or 0 for another way."""
    name = ".".join(call.target.split(".")[:2])
    if name in ("aten.mean", "aten.sum"):
        return _MEAN if name == "aten.mean" else _SUM
    if name == "soaprl.nll_from_log_sum_exp":
        reduction = call.args[5 if isinstance(call.args[3], Ref) or call.args[3] is None else 4]
    elif name in _REDUCTION_AT:
        position = _REDUCTION_AT[name]
        given = dict(call.kwargs)
        reduction = call.args[position] if position < len(call.args) else given.get("reduction", _MEAN)
    else:
        return 0
    return reduction if reduction in (_MEAN, _SUM) and isinstance(reduction, int) else 0
