"""The buffers of one rank, the constants that it makes of them, and their running statistics."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.boxes import inside
from soaprl.runtime.calls import Kernel
from soaprl.runtime.program import Block, MakeConstants, RankProgram, UpdateBuffers
from soaprl.runtime.reference import run_constants
from soaprl.runtime.running import RunningStatistics
from soaprl.runtime.sources import read_elsewhere
from soaprl.runtime.stores import Fetch


class RankBuffers:
    """The buffers of one rank.

    Args:
        graph: The graph that the program's steps name.
        program: The rank's program.
        fetch: Gives the initial content of whole buffers.
        device: Where they are.
        table: Kernels.

    Attributes:
        content: The buffers by tensor, whole and in their stored shapes.
        running: What tasks recorded of their batches in this iteration.
        in_place: The running statistics that need not be recorded: normalizations alone read them, and this
            rank alone updates what it has of them.
    """

    def __init__(
        self,
        graph: OperatorGraph,
        program: RankProgram,
        fetch: Fetch,
        device: torch.device,
        table: Mapping[str, Kernel],
    ) -> None:
        self._graph, self._device, self._table = graph, device, table
        self.running = RunningStatistics(graph)
        self._constants: dict[int, Tensor] = {}
        self.content: dict[int, Tensor] = {}
        for tensor in program.buffers:
            stored = graph.tensors[tensor]
            whole = fetch(Block(tensor=tensor, box=tuple((0, extent) for extent in stored.refined_shape)))
            self.content[tensor] = whole.detach().to(device).reshape(stored.shape).clone()
        alone = [s for s in program.steps if isinstance(s, UpdateBuffers) and len(s.group) == 1]
        self.in_place = {tensor for step in alone for tensor in step.buffers} - read_elsewhere(graph)

    def begin(self) -> None:
        """Forgets constants and batch statistics of the last iteration."""
        self._constants = {}
        self.running.clear()

    def make_constants(self, step: MakeConstants, seed: int) -> None:
        """Runs the calls of the step; `seed` is that of the iteration's random numbers."""
        self._constants = run_constants(
            self._graph, self.content, seed=seed, device=self._device, table=self._table, calls=step.calls
        )

    def read(self, block: Block) -> Tensor:
        """The content of a block of a buffer or constant."""
        known = self._constants if block.tensor in self._constants else self.content
        shape = self._graph.tensors[block.tensor].refined_shape
        return known[block.tensor].reshape(shape)[inside(block.box, tuple((0, e) for e in shape))]

    def bound(self, block: Block) -> Tensor | Callable[[], Tensor]:
        """The content of a block in all iterations, or what reads it in each."""
        return self.read(block) if block.tensor in self.content else partial(self.read, block)

    def contribution(self, step: UpdateBuffers) -> list[Tensor]:
        """What this rank recorded of buffers that several ranks update; nothing where it is alone."""
        if len(step.group) == 1:
            return []
        return [self.running.contribution(tensor, self.content[tensor]) for tensor in step.buffers]

    def enter(self, step: UpdateBuffers, totals: Sequence[Tensor]) -> None:
        """Updates buffers by what this rank recorded, or by the sums of what all did."""
        if len(step.group) == 1:
            for tensor in step.buffers:
                self.running.update(tensor, self.content[tensor])
        else:
            for tensor, total in zip(step.buffers, totals, strict=True):
                self.running.enter(tensor, self.content[tensor], total)
