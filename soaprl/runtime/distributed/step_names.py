"""Steps as a reader of an error knows them: by operator and pass."""

from collections.abc import Iterable
from itertools import chain

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.program import (
    Backward,
    Block,
    Exchange,
    Forward,
    GatherParameters,
    LoadInputs,
    MakeConstants,
    ReduceGradients,
    ReduceLoss,
    ReduceNorm,
    ReduceStatistics,
    ReleaseParameters,
    ScatterGradients,
    Step,
    SumPartials,
    Update,
)


def step_name(graph: OperatorGraph, step: Step) -> str:
    """What a step does, and for which operator or parameter."""
    if isinstance(step, Forward | Backward):
        return f"{type(step).__name__.lower()} pass of operator {_operator(graph, step)}, task {step.part}"
    if isinstance(step, Exchange):
        return f"exchange after operator {_operator(graph, step)}, {step.direction}"
    if isinstance(step, SumPartials):
        return f"sum of parts after operator {_operator(graph, step)}, {step.direction}"
    if isinstance(step, ReduceStatistics):
        return f"batch statistics of operator {_operator(graph, step)}, {step.direction}"
    if isinstance(step, ReduceGradients):
        return f"sum of the gradients of {_tensors(graph, step.cells)}"
    if isinstance(step, ScatterGradients):
        return f"sum of the gradients of parts of {_tensors(graph, chain(*step.parts))}"
    if isinstance(step, GatherParameters):
        return f"gathering of {_tensors(graph, chain(*step.parts))}"
    if isinstance(step, ReduceLoss):
        which = f" of micro-batch {step.micro_batch}" if step.micro_batch or step.weight != 1 else ""
        name = graph.operators[graph.producer[graph.loss]].name
        return f"sum of the loss{which}, after operator {name!r}"
    if isinstance(step, ReduceNorm):
        return "norm of all gradients"
    if isinstance(step, LoadInputs):
        return "loading of the batch"
    if isinstance(step, MakeConstants):
        return "constants"
    if isinstance(step, ReleaseParameters):
        return f"release of {_tensors(graph, step.blocks)}"
    return "update of the parameters" if isinstance(step, Update) else "running statistics"


def _tensors(graph: OperatorGraph, blocks: Iterable[Block]) -> str:
    first, *others = dict.fromkeys(graph.tensors[block.tensor].name for block in blocks)
    return f"{first!r} and {len(others)} more" if others else repr(first)


def _operator(
    graph: OperatorGraph, step: Forward | Backward | Exchange | SumPartials | ReduceStatistics
) -> str:
    return repr(graph.operators[step.operator].name)
