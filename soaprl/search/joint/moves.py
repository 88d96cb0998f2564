"""How joint search changes the configurations of a strategy.

Half of the steps are proposals as `soaprl.search.proposals` draws them: of one operator, of operators that
share parameters, or of all operators of its *kind* that are configured alike. Operators are of one kind if
they do the same with tensors of the same shape, as the layers of a transformer do: what a layer gains from
another configuration, it gains in all layers together, and a single one of them seldom gains anything.

The other half are crossovers, as in evolution, but by kinds: a connected set of kinds takes the
configurations of another strategy that is known for the same micro-batches, an expert's or the best of
another sharding.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from soaprl.graph.operators import OperatorGraph
from soaprl.search.evolution import neighbours, subgraph
from soaprl.search.proposals import BLOCK_SIZE, Draws, Proposals, ProposalSettings
from soaprl.search.stepping import moved_together
from soaprl.strategy.strategy import Strategy

_CROSSOVER = 0.5
_BY_KIND = 0.5


class Moves:
    """Draws changes; those of a step are a function of (seed, stream, step) and the strategies.

    Args:
        graph: Of one micro-batch.
        num_devices: Of the cluster.
        seed: Of the search.
    """

    def __init__(self, graph: OperatorGraph, num_devices: int, seed: int) -> None:
        self._proposals = Proposals(graph, num_devices, ProposalSettings())
        self._kinds = kinds(graph)
        self._members: tuple[tuple[int, ...], ...] = tuple(
            tuple(o for o, kind in enumerate(self._kinds) if kind == number)
            for number in range(max(self._kinds) + 1)
        )
        self._near = _between(self._kinds, neighbours(graph))
        self._seed = seed
        self._block: tuple[tuple[int, int], Draws] | None = None

    def energy(self, stream: int, step: int) -> float:
        """The standard exponential number of a step."""
        draws, row = self._draw(stream, step)
        return draws.exponentials[row]

    def changed(self, stream: int, step: int, current: Strategy, donors: Sequence[Strategy]) -> Strategy:
        """What `current` becomes in a step.

        Args:
            stream: Number of the walk.
            step: Number of the step.
            current: A strategy.
            donors: Others with as many micro-batches.
        """
        rng = np.random.default_rng((self._seed, 1, stream, step))
        if donors and rng.random() < _CROSSOVER:
            donor = donors[int(rng.integers(len(donors)))]
            crossed = self._crossed(current, donor, rng)
            if crossed.configs != current.configs:
                return crossed
        draws, row = self._draw(stream, step)
        operator = draws.operators[row]
        group: tuple[int, ...] = (operator,)
        if rng.random() < _BY_KIND:
            group = self._members[self._kinds[operator]]
        elif draws.tied[row]:
            group = self._proposals.tied(operator)
        return moved_together(current, group, operator, draws.config(row))

    def _crossed(self, current: Strategy, donor: Strategy, rng: np.random.Generator) -> Strategy:
        configs = list(current.configs)
        for kind in subgraph(self._near, rng):
            for operator in self._members[kind]:
                configs[operator] = donor.configs[operator]
        return replace(current, configs=tuple(configs))

    def _draw(self, stream: int, step: int) -> tuple[Draws, int]:
        """The block and the row that hold the proposal of a step."""
        index, row = divmod(step, BLOCK_SIZE)
        if self._block is None or self._block[0] != (stream, index):
            self._block = (stream, index), self._proposals.block(self._seed, stream + 1, index)
        return self._block[1], row


def kinds(graph: OperatorGraph) -> tuple[int, ...]:
    """A number for each operator; those of one kind, which do the same with equal shapes, have the same."""
    numbers: dict[object, int] = {}
    found = []
    for operator in graph.operators:
        shapes = tuple(
            tuple(graph.tensors[access.tensor].refined_shape for access in accesses)
            for accesses in (operator.inputs, operator.parameters, operator.outputs)
        )
        found.append(numbers.setdefault((operator.kind, operator.factors, shapes), len(numbers)))
    return tuple(found)


def _between(kind_of: Sequence[int], near: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """For each kind those of which an operator exchanges an activation with one of its own, ascending."""
    found: list[set[int]] = [set() for _ in range(max(kind_of) + 1)]
    for operator, others in enumerate(near):
        found[kind_of[operator]].update(kind_of[other] for other in others)
    return tuple(tuple(sorted(others - {kind})) for kind, others in enumerate(found))
