"""Which region of each tensor each task touches, and on which rank it runs."""

from dataclasses import dataclass

from soaprl.graph.factors import part_box
from soaprl.graph.operators import Access, Operator, OperatorGraph
from soaprl.runtime.program import Box
from soaprl.runtime.shards import region
from soaprl.strategy.strategy import OpConfig, Strategy

Regions = tuple[tuple[Box, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """The tasks of one operator.

    Attributes:
        ranks: Where each runs.
        boxes: The factor intervals of each.
        inputs: For each input access, the region of each task.
        parameters: The same for each parameter access.
        buffers: The same for each buffer access.
        outputs: The same for each output access.
    """

    ranks: tuple[int, ...]
    boxes: tuple[Box, ...]
    inputs: Regions
    parameters: Regions
    buffers: Regions
    outputs: Regions


def operator_tasks(operator: Operator, config: OpConfig) -> Tasks:
    """The tasks of `operator` as `config` splits and places it."""
    boxes = tuple(part_box(operator.extents, config.degrees, p) for p in range(config.num_tasks))

    def regions(accesses: tuple[Access, ...]) -> Regions:
        return tuple(tuple(region(access, box) for box in boxes) for access in accesses)

    return Tasks(
        ranks=config.devices,
        boxes=boxes,
        inputs=regions(operator.inputs),
        parameters=regions(operator.parameters),
        buffers=regions(operator.buffers),
        outputs=regions(operator.outputs),
    )


def graph_tasks(graph: OperatorGraph, strategy: Strategy) -> tuple[Tasks, ...]:
    """The tasks of every operator."""
    return tuple(operator_tasks(op, c) for op, c in zip(graph.operators, strategy.configs, strict=True))


def carries_gradient(graph: OperatorGraph, consumer: int, access: Access) -> bool:
    """Whether a gradient flows back through the reading of an activation by operator `consumer`."""
    producer = graph.producer.get(access.tensor)
    if producer is None or not access.gradient:
        return False
    return graph.operators[consumer].has_backward and graph.operators[producer].has_backward
