"""Running statistics of batch normalization on one rank."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from soaprl.graph.factors import part_box
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.boxes import inside
from soaprl.runtime.program import Box
from soaprl.runtime.shards import region
from soaprl.runtime.statistics import normalizations, running_writers
from soaprl.strategy.strategy import OpConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorded:
    """Statistics of one batch: which call of which operator took them, of which box of the buffer."""

    writer: tuple[int, int]
    box: Box
    value: Tensor


class RunningStatistics:
    """What a rank recorded in one iteration, and how it enters the buffers.

    A buffer that calls 1 to k update in turn, each with momentum m, goes from r to
    ``(1 - m)^k r + sum over i of m (1 - m)^(k - i) s_i``; the sum is taken over all ranks. Implemented in
    `contribution` and `enter`.
    """

    def __init__(self, graph: OperatorGraph) -> None:
        self._graph = graph
        self._writers = running_writers(graph)
        self._momentum = {
            (number, n.call): n.momentum
            for number, operator in enumerate(graph.operators)
            for n in normalizations(operator)
        }
        self._recorded: dict[int, list[_Recorded]] = {}

    def clear(self) -> None:
        """Forgets what was recorded."""
        self._recorded = {}

    def record(
        self, operator: int, config: OpConfig, part: int, statistics: dict[int, tuple[Tensor, Tensor]]
    ) -> None:
        """Records mean and variance of the channels of a part, by call."""
        op = self._graph.operators[operator]
        box = part_box(op.extents, config.degrees, part)
        for n in normalizations(op):
            if n.call in statistics and n.running is not None:
                for position, value in zip(n.running, statistics[n.call], strict=True):
                    access = op.buffers[position]
                    where = region(access, box)
                    content = value.detach().reshape([stop - start for start, stop in where])
                    self._recorded.setdefault(access.tensor, []).append(
                        _Recorded(writer=(operator, n.call), box=where, value=content)
                    )

    def update(self, tensor: int, buffer: Tensor) -> None:
        """Enters what this rank recorded of a buffer, where no other rank recorded any of the same."""
        shape = self._graph.tensors[tensor].refined_shape
        content = buffer.view(shape)
        whole = _whole(shape)
        for found in self._recorded.get(tensor, ()):
            target = content if found.box == whole else content[inside(found.box, whole)]
            target.lerp_(found.value.to(buffer.dtype), self._momentum[found.writer])

    def contribution(self, tensor: int, buffer: Tensor) -> Tensor:
        """This rank's summand to the new content of a whole buffer, in its stored shape."""
        stored = self._graph.tensors[tensor]
        total = torch.zeros(stored.refined_shape, dtype=buffer.dtype, device=buffer.device)
        for found in self._recorded.get(tensor, ()):
            total[inside(found.box, _whole(stored.refined_shape))] += self._weight(
                tensor, found.writer
            ) * found.value.to(buffer.dtype)
        return total.reshape(stored.shape)

    def enter(self, tensor: int, buffer: Tensor, total: Tensor) -> None:
        """Enters the sum of all contributions: everywhere, or where this rank recorded all there is."""
        stored, writers = self._graph.tensors[tensor], self._writers[tensor]
        decay = prod(1 - self._momentum[writer] for writer in writers)
        shape, whole = stored.refined_shape, _whole(stored.refined_shape)
        boxes = [whole] if len(writers) > 1 else [r.box for r in self._recorded.get(tensor, ())]
        for box in boxes:
            target = buffer.view(shape)[inside(box, whole)]
            target.copy_(target * decay + total.view(shape)[inside(box, whole)])

    def _weight(self, tensor: int, writer: tuple[int, int]) -> float:
        writers = self._writers[tensor]
        later = writers[writers.index(writer) + 1 :]
        return self._momentum[writer] * prod(1 - self._momentum[w] for w in later)


def _whole(shape: tuple[int, ...]) -> Box:
    return tuple((0, extent) for extent in shape)
