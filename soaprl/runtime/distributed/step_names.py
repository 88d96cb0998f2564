"""Steps as a reader of an error knows them: by operator and pass."""

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.program import (
    Backward,
    Exchange,
    Forward,
    LoadInputs,
    MakeConstants,
    ReduceGradients,
    ReduceLoss,
    ReduceNorm,
    ReduceStatistics,
    Step,
    Update,
)


def step_name(graph: OperatorGraph, step: Step) -> str:
    """What a step does, and for which operator or parameter."""
    if isinstance(step, Forward | Backward):
        return f"{type(step).__name__.lower()} pass of operator {_operator(graph, step)}, task {step.part}"
    if isinstance(step, Exchange):
        return f"exchange after operator {_operator(graph, step)}, {step.direction}"
    if isinstance(step, ReduceStatistics):
        return f"batch statistics of operator {_operator(graph, step)}, {step.direction}"
    if isinstance(step, ReduceGradients):
        names = dict.fromkeys(graph.tensors[cell.tensor].name for cell in step.cells)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"sum of the gradients of {next(iter(names))!r}{more}"
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
    return "update of the parameters" if isinstance(step, Update) else "running statistics"


def _operator(graph: OperatorGraph, step: Forward | Backward | Exchange | ReduceStatistics) -> str:
    return repr(graph.operators[step.operator].name)
