"""What shards are measured on: regions of the right shapes, with contents that every operator accepts.

Floating-point numbers are between 0 and 1, which logarithms, roots and probabilities take. Whole numbers are
indices (tokens, labels): they are spread below the extent of what they index, so that lookups touch memory as
real ones do.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from soaprl.cost.profiled.family import wants_gradient
from soaprl.graph.operators import Operator, OperatorGraph
from soaprl.graph.operators import Tensor as Stored
from soaprl.runtime.plans import PartPlan
from soaprl.runtime.segments import enter


def index_bounds(operator: Operator) -> Iterator[int]:
    """Below what indices may have to be, the likeliest first, 1 at last.

    The extents of what the operator's other operands are indexed by: the factors that no operand of whole
    numbers has (a vocabulary, classes), the largest first.
    """
    yield from sorted({f.extent for f in operator.factors if f.extent > 1}, reverse=True)
    yield 1


class Regions:
    """What one task reads, made once and entered into a new graph for each run.

    Args:
        graph: The model.
        plan: Of the task.
        device: Where they are made.
        bound: Below what indices are.
    """

    def __init__(self, graph: OperatorGraph, plan: PartPlan, device: torch.device, *, bound: int) -> None:
        operator = plan.operator
        accesses = (*operator.inputs, *operator.parameters, *operator.buffers)
        made = [
            content(graph.tensors[access.tensor], shape, device, bound=bound)
            for access, shape in zip(accesses, plan.shapes, strict=True)
        ]
        first, end = len(operator.inputs), len(operator.inputs) + len(operator.parameters)
        wanted = [operator.has_backward and wants_gradient(graph, access) for access in accesses[:end]]
        self._inputs, self._wanted = made[:first], wanted[:first]
        self._parameters = [
            nn.Parameter(region, requires_grad=gradient)
            for region, gradient in zip(made[first:end], wanted[first:], strict=True)
        ]
        self._buffers = made[end:]

    def entered(self) -> list[Tensor]:
        """The regions as a task gets them: inputs, parameters, buffers; gradients begin at nothing."""
        for parameter in self._parameters:
            parameter.grad = None
        inputs = [
            enter(region, _forget) if gradient else region
            for region, gradient in zip(self._inputs, self._wanted, strict=True)
        ]
        return [*inputs, *self._parameters, *self._buffers]


def _forget(gradient: Tensor) -> None:
    """What becomes of gradients that nobody reads."""


def content(stored: Stored, shape: tuple[int, ...], device: torch.device, *, bound: int) -> Tensor:
    """A region of a tensor."""
    dtype: torch.dtype = getattr(torch, stored.dtype)
    generator = torch.Generator(device).manual_seed(0)
    if dtype is torch.bool:
        return torch.rand(shape, generator=generator, device=device) > 0.5
    if not (dtype.is_floating_point or dtype.is_complex):
        return torch.randint(bound, shape, generator=generator, device=device).to(dtype)
    return torch.rand(shape, generator=generator, device=device).to(dtype)


def output_gradients(operator: Operator, outputs: list[Tensor]) -> list[Tensor | None]:
    """A gradient for each output that has one."""
    return [
        torch.ones_like(output) / max(output.numel(), 1)
        if access.gradient and output.is_floating_point()
        else None
        for access, output in zip(operator.outputs, outputs, strict=True)
    ]
