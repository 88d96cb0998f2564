"""Segments: tasks of one rank whose backward passes follow each other, with nothing of other ranks between.

Within a segment the graph of a task goes on from that of the tasks that it reads from, so that one backward
pass serves all of them. What a segment reads from elsewhere, and the parameters, are the beginnings of its
graph. Where a reduction or an exchange comes between two backward passes, a segment ends: what others wait
for is sent as early as if every task had a graph of its own.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from soaprl.runtime.program import Backward, Exchange, Forward, RankProgram, ReduceLoss, SumPartials

Task: TypeAlias = tuple[int, int]
# The tensor and the task that wrote it: what a rank wrote, whatever box of it is meant.
Written: TypeAlias = tuple[int, int]
Receive: TypeAlias = Callable[[Tensor], None]
# Something computed, where it is differentiable, and its gradient (None for zero).
Output: TypeAlias = tuple[GradientEdge | None, Tensor | None]


def segments_of(program: RankProgram) -> dict[Task, int]:
    """The number of the segment of each task with a backward pass; tasks that run in stages are alone."""
    found: dict[Task, int] = {}
    number, last = -1, -2
    for index, step in enumerate(program.steps):
        if not isinstance(step, Backward):
            continue
        task = (step.operator, step.part)
        if task in found:
            # A later stage of a task whose last stage came before.
            last = -2
            continue
        if step.stage > 0 or last != index - 1 or step.waits:
            number += 1
        found[task] = number
        last = index if step.stage == 0 else -2
    return found


def outer_outputs(program: RankProgram, segment_of: dict[Task, int]) -> set[Written]:
    """What a rank writes whose gradient comes from elsewhere than the segment that it is written in."""
    writer: dict[Written, int] = {}
    outer: set[Written] = set()
    for step in program.steps:
        if isinstance(step, Forward):
            own = segment_of.get((step.operator, step.part), -1)
            read = [(p.tensor, p.part) for r in step.reads if r.gradient for p in r.pieces]
            outer.update(name for name in read if writer.get(name, own) != own)
            writer.update({(piece.tensor, piece.part): own for piece in step.writes})
        elif isinstance(step, ReduceLoss) or (isinstance(step, SumPartials) and step.direction == "forward"):
            outer.update((piece.tensor, piece.part) for piece in step.pieces)
        elif isinstance(step, Exchange) and step.direction == "forward":
            outer.update((piece.tensor, piece.part) for m in step.sends for piece in m.pieces)
    return outer & writer.keys()


def differentiate(outputs: Iterable[Output]) -> None:
    """Runs the backward pass from some outputs.

    Parameters add up what they get in ``grad``; what was entered by `enter` gets its gradient there.
    """
    edges, given = _differentiable(outputs)
    if edges:
        torch.autograd.backward(edges, given)


def enter(content: Tensor, receive: Receive) -> Tensor:
    """`content` as the beginning of a graph, which holds it only as far as something saves it.

    Args:
        content: What is entered; where it came from is not differentiated.
        receive: Called with the gradient.
    """
    # Something to differentiate with respect to, so that the library keeps a graph.
    anchor = torch.empty(0, requires_grad=True)
    entered: Tensor = _Entry.apply(anchor, content.detach(), receive)  # type: ignore[no-untyped-call]
    return entered


class _Entry(torch.autograd.Function):
    """The identity, whose gradient goes to a function."""

    @staticmethod
    def forward(context: Any, anchor: Tensor, content: Tensor, receive: Receive) -> Tensor:
        context.receive = receive
        return content.view_as(content)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[None, None, None]:
        context.receive(gradients[0])
        return None, None, None


def gradients_of(outputs: Iterable[Output], sources: Sequence[GradientEdge]) -> list[Tensor | None]:
    """The gradients of `sources`, by a graph that is needed again; None for zero."""
    edges, given = _differentiable(outputs)
    if not edges:
        return [None] * len(sources)
    return list(torch.autograd.grad(edges, sources, given, allow_unused=True, retain_graph=True))


def _differentiable(outputs: Iterable[Output]) -> tuple[list[GradientEdge], list[Tensor]]:
    pairs = [(edge, given) for edge, given in outputs if edge is not None and given is not None]
    return [edge for edge, _ in pairs], [given for _, given in pairs]
