"""What operators cost inside of a stage: the largest task of each, as the cost model sees it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from soaprl.cost.model import Shard
from soaprl.graph.factors import part_box
from soaprl.graph.operators import Access, Operator, OperatorGraph, TensorRole, evaluate_terms
from soaprl.search.pipeline.moves import Moves
from soaprl.simulator.problem import Problem
from soaprl.strategy.strategy import OpConfig

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cost:
    """What the largest task of an operator costs; seconds are by device type."""

    time_s: FloatArray
    trained_bytes: int
    frozen_bytes: int
    kept_bytes: int


class OperatorCosts:
    """Times and sizes of the operators of one micro-batch under given configurations.

    Equal operators (a transformer's layers) with equal degrees are asked for once.

    Attributes:
        moves: What they send each other.
        crossing_bytes: Activations that operators before a position make and later ones read, shape [n + 1].

    Args:
        problem: Of the whole batch.
        graph: Of one micro-batch.
    """

    def __init__(self, problem: Problem, graph: OperatorGraph) -> None:
        self.problem = problem
        self.graph = graph
        kinds: dict[object, int] = {}
        self._kept = _outputs_kept(graph)
        self._kind = [
            kinds.setdefault((_shape(graph, op), *(a.tensor in self._kept for a in op.outputs)), len(kinds))
            for op in graph.operators
        ]
        self.moves = Moves(graph, self._kind)
        self._known: dict[tuple[int, tuple[int, ...]], _Cost] = {}
        self.crossing_bytes = _crossing_bytes(graph)

    def times_s(self, configs: Sequence[OpConfig]) -> FloatArray:
        """Forward and backward seconds of the largest task by device type and operator."""
        return np.stack([self._costs(o, c.degrees).time_s for o, c in enumerate(configs)], axis=1)

    def held_bytes(self, configs: Sequence[OpConfig]) -> FloatArray:
        """Parameters with gradients and optimizer state that the largest task of each operator needs."""
        copies = 2 + self.problem.options.state_per_parameter_byte
        costs = [self._costs(o, c.degrees) for o, c in enumerate(configs)]
        return np.array([copies * c.trained_bytes + c.frozen_bytes for c in costs], np.float64)

    def trained_bytes(self, configs: Sequence[OpConfig]) -> FloatArray:
        """Gradients of parameters that the largest task of each operator computes."""
        return np.array([self._costs(o, c.degrees).trained_bytes for o, c in enumerate(configs)], np.float64)

    def kept_bytes(self, configs: Sequence[OpConfig]) -> FloatArray:
        """Activations that the largest task of each operator keeps for its backward pass."""
        return np.array([self._costs(o, c.degrees).kept_bytes for o, c in enumerate(configs)], np.float64)

    def _costs(self, o: int, degrees: tuple[int, ...]) -> "_Cost":
        key = (self._kind[o], degrees)
        if key not in self._known:
            self._known[key] = self._asked(o, degrees)
        return self._known[key]

    def _asked(self, o: int, degrees: tuple[int, ...]) -> "_Cost":
        operator = self.graph.operators[o]
        # The remainder of an uneven split goes to the first parts, so the first is the largest.
        box = part_box(operator.extents, degrees, 0)
        sizes = [
            tuple(self._bytes(a, box) for a in accesses)
            for accesses in (operator.inputs, operator.parameters, operator.outputs)
        ]
        shard = Shard(
            extents=tuple(end - begin for begin, end in box),
            input_bytes=sizes[0],
            parameter_bytes=sizes[1],
            output_bytes=sizes[2],
        )
        times = [
            self.problem.cost.task_time(self.graph, operator, shard, kind)
            for kind in self.problem.cluster.device_types
        ]
        trained = sum(
            size
            for a, size in zip(operator.parameters, sizes[1], strict=True)
            if self.graph.tensors[a.tensor].requires_grad
        )
        return _Cost(
            time_s=np.array([t.forward_s + t.backward_s for t in times], np.float64),
            trained_bytes=trained,
            frozen_bytes=sum(sizes[1]) - trained,
            kept_bytes=self._kept_by(operator, box),
        )

    def _kept_by(self, operator: Operator, box: tuple[tuple[int, int], ...]) -> int:
        kept = sum(self._bytes(a, box) for a in operator.outputs if a.tensor in self._kept)
        if operator.has_backward:
            kept += sum(
                self._bytes(a, box)
                for a in operator.inputs
                if a.saved and self.graph.tensors[a.tensor].role is not TensorRole.ACTIVATION
            )
            extents = tuple(end - begin for begin, end in box)
            kept += round(evaluate_terms(operator.internal_saved_bytes, extents))
        return kept

    def _bytes(self, access: Access, box: tuple[tuple[int, int], ...]) -> int:
        size = self.graph.tensors[access.tensor].itemsize
        for span in access.spans:
            begin, end = span.interval(*(box[span.factor] if span.factor >= 0 else (0, 1)))
            size *= max(0, end - begin)
        return size


def _shape(graph: OperatorGraph, operator: Operator) -> Operator:
    """What an operator's cost depends on: equal for operators that cost the same."""

    def sizes(accesses: tuple[Access, ...]) -> tuple[Access, ...]:
        # The place of the tensor's number takes what matters of it: element size and whether it is trained.
        return tuple(
            replace(a, tensor=2 * graph.tensors[a.tensor].itemsize + graph.tensors[a.tensor].requires_grad)
            for a in accesses
        )

    return replace(
        operator,
        name="",
        inputs=sizes(operator.inputs),
        parameters=sizes(operator.parameters),
        buffers=(),
        outputs=sizes(operator.outputs),
        body=(),
        body_outputs=(),
    )


def _outputs_kept(graph: OperatorGraph) -> set[int]:
    """The activations that their producer or a reader keeps for the backward pass."""
    kept = set()
    for operator in graph.operators:
        if operator.has_backward:
            kept |= {a.tensor for a in (*operator.inputs, *operator.outputs) if a.saved}
    return kept


def _crossing_bytes(graph: OperatorGraph) -> FloatArray:
    """Bytes of the activations that operators before a position make and later ones read, shape [n + 1]."""
    crossing = np.zeros(len(graph.operators) + 1, np.float64)
    for tensor, readers in graph.consumers.items():
        if readers:
            last = max(reader for reader, _ in readers)
            crossing[graph.producer[tensor] + 1 : last + 1] += graph.tensors[tensor].num_bytes
    return crossing
