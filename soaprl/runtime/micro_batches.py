"""What a program's steps name: the graph of a strategy, with a copy of every operator for each micro-batch.

Passes come in the order of the strategy's schedule; without one, all forward passes, then all backward
passes in reverse. Parameters are shared by the copies, so that their gradients add up before they are reduced
and the optimizer steps once: one pipeline stage with several micro-batches is gradient accumulation. Where
ranks keep parts of gradients, these are reduced after each micro-batch instead, and add up in parts. The
losses of the micro-batches, times a weight, add up to the loss of the batch. Batch normalization and dropout
see micro-batches as batches of their own.
"""

from dataclasses import dataclass, replace

from soaprl.graph.operators import OperatorGraph
from soaprl.graph.repeat import loss_weight, repeated
from soaprl.runtime.program import Block, Direction
from soaprl.strategy.schedules import Schedule, program_steps
from soaprl.strategy.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrolled:
    """A graph and a strategy without micro-batches, and the order of its passes.

    Attributes:
        graph: The graph; parameters, buffers and constants have the indices of the original one.
        strategy: A configuration for each of its operators; the batch is not cut.
        order: All passes, as direction and operator.
        stages: The stage of each operator.
        losses: The loss of each micro-batch.
        loss_weight: What each of them counts in the loss of the batch.
        origins: For each graph input of the original graph its tensor in each micro-batch; empty if the graph
            is the original one.
    """

    graph: OperatorGraph
    strategy: Strategy
    order: tuple[tuple[Direction, int], ...]
    stages: tuple[int, ...]
    losses: tuple[int, ...]
    loss_weight: float
    origins: dict[int, tuple[int, tuple[int, ...]]]

    def origin(self, block: Block) -> Block:
        """A block of an input of a micro-batch as a block of the batch."""
        if block.tensor not in self.origins:
            return block
        tensor, offsets = self.origins[block.tensor]
        box = tuple((lo + shift, hi + shift) for (lo, hi), shift in zip(block.box, offsets, strict=True))
        return Block(tensor=tensor, box=box)

    @property
    def backward_places(self) -> tuple[int, ...]:
        """For each operator, how many backward passes come before its own."""
        backward = [operator for direction, operator in self.order if direction == "backward"]
        places = [0] * len(backward)
        for place, operator in enumerate(backward):
            places[operator] = place
        return tuple(places)


def unrolled(graph: OperatorGraph, strategy: Strategy) -> Unrolled:
    """What is run for `strategy` on `graph`.

    Raises:
        GraphError: The batch cannot be cut so.
    """
    number, stages = strategy.micro_batches, strategy.stages or (0,) * len(graph.operators)
    whole = replace(strategy, configs=strategy.configs * number, micro_batches=1, stages=())
    whole = replace(whole, schedule=Schedule.NONE)
    if number == 1:
        return Unrolled(
            graph=graph,
            strategy=whole,
            order=_order(graph, strategy),
            stages=stages,
            losses=(graph.loss,),
            loss_weight=1.0,
            origins={},
        )
    copies = repeated(graph, number)
    originals = [i for i, tensor in enumerate(graph.tensors) if tensor.role == "input"]
    return Unrolled(
        graph=copies.graph,
        strategy=whole,
        order=_order(graph, strategy),
        stages=stages * number,
        losses=copies.losses,
        loss_weight=loss_weight(graph, number),
        origins={
            copy: (original, _offsets(graph, copies.graph, original, copy, place))
            for original, tensors in zip(originals, copies.inputs, strict=True)
            for place, copy in enumerate(tensors)
        },
    )


def _offsets(
    graph: OperatorGraph, copies: OperatorGraph, original: int, copy: int, place: int
) -> tuple[int, ...]:
    """Where the samples of a micro-batch begin in each refined dimension of an input."""
    whole, part = graph.tensors[original].refined_shape, copies.tensors[copy].refined_shape
    return tuple(0 if w == p else place * p for w, p in zip(whole, part, strict=True))


def _order(graph: OperatorGraph, strategy: Strategy) -> tuple[tuple[Direction, int], ...]:
    count = len(graph.operators) * strategy.micro_batches
    if strategy.schedule is Schedule.NONE:
        forward: list[tuple[Direction, int]] = [("forward", k) for k in range(count)]
        return (*forward, *(("backward", k) for k in reversed(range(count))))
    stages = strategy.stages or (0,) * len(graph.operators)
    forwards, backwards = program_steps(strategy.schedule, stages, strategy.micro_batches)
    order: list[tuple[Direction, int]] = [("forward", 0)] * (2 * count)
    for operator, (f, b) in enumerate(zip(forwards, backwards, strict=True)):
        order[f], order[b] = ("forward", operator), ("backward", operator)
    return tuple(order)
