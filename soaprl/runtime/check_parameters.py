"""Checks who holds, reduces, owns and updates the elements of every parameter, and of running statistics."""

from collections.abc import Iterable
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from soaprl.errors import ProgramError
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.boxes import num_elements
from soaprl.runtime.cells import Holding, parameter_holdings
from soaprl.runtime.check_errors import wrong_rank
from soaprl.runtime.layout import Tasks
from soaprl.runtime.program import (
    Block,
    Box,
    Forward,
    GatherParameters,
    Program,
    ReduceGradients,
    ReduceNorm,
    ScatterGradients,
    Update,
    UpdateBuffers,
)
from soaprl.runtime.statistics import channel_groups, normalizations
from soaprl.strategy.strategy import Sharding

_Counts = NDArray[np.int64]


def check_parameters(program: Program, graph: OperatorGraph, tasks: tuple[Tasks, ...]) -> None:
    """Raises `ProgramError` unless all elements are held, reduced, owned and updated as they should."""
    holdings = parameter_holdings(graph, tasks)
    found: dict[int, _Found] = {tensor: _Found() for tensor in holdings}
    for rank in program.ranks:
        for what, blocks in _blocks(rank.rank, program):
            for block in blocks:
                if block.tensor not in found:
                    name = graph.tensors[block.tensor].name
                    raise wrong_rank(graph, rank.rank, f"{name!r} is no parameter that an operator reads")
                found[block.tensor].boxes.append((what, rank.rank, block.box))
    for tensor, readings in holdings.items():
        _TensorCheck(program, graph, tensor, readings, found[tensor].boxes).check()
    _check_recorded(program, graph, tasks)


class _Found:
    """What the program says about one tensor: what, which rank, which box."""

    def __init__(self) -> None:
        self.boxes: list[tuple[object, int, Box]] = []


def _blocks(rank: int, program: Program) -> Iterable[tuple[object, tuple[Block, ...]]]:
    """All mentions of parameters in one rank's program: what it does with them, over which group if any."""
    yield "held", program.ranks[rank].parameters
    yield "owned", program.ranks[rank].owned
    for step in program.ranks[rank].steps:
        if isinstance(step, ReduceGradients):
            yield ("reduced", step.group), step.cells
        elif isinstance(step, ScatterGradients):
            yield ("reduced", step.group), tuple(chain(*step.parts))
            yield "scattered", step.parts[step.group.index(rank)]
        elif isinstance(step, GatherParameters):
            yield ("gathered", step.group), tuple(chain(*step.parts))
            yield "given", step.parts[step.group.index(rank)]
        elif isinstance(step, Update):
            yield "updated", step.parameters
        elif isinstance(step, ReduceNorm):
            yield "counted", step.cells


class _TensorCheck:
    """The elements of one parameter, on the grid that all its boxes make."""

    def __init__(
        self,
        program: Program,
        graph: OperatorGraph,
        tensor: int,
        readings: list[Holding],
        boxes: list[tuple[object, int, Box]],
    ) -> None:
        self.program, self.graph, self.tensor, self.readings = program, graph, tensor, readings
        shape = graph.tensors[tensor].refined_shape
        every = [r.box for r in readings] + [box for _, _, box in boxes]
        self.cuts = [
            sorted({0, extent, *(edge for box in every for edge in box[d])}) for d, extent in enumerate(shape)
        ]
        self.sides = [len(cut) - 1 for cut in self.cuts]
        self.counts: dict[tuple[object, int], _Counts] = {}
        for what, rank, box in boxes:
            if any(not 0 <= lo < hi <= extent for (lo, hi), extent in zip(box, shape, strict=True)):
                raise self.wrong(rank, f"box {box} is empty or outside")
            self._grid(what, rank)[self._where(box)] += 1

    def wrong(self, rank: int, problem: str) -> ProgramError:
        return wrong_rank(self.graph, rank, f"parameter {self.graph.tensors[self.tensor].name!r}: {problem}")

    def _grid(self, what: object, rank: int) -> _Counts:
        return self.counts.setdefault((what, rank), np.zeros(self.sides, np.int64))

    def _where(self, box: Box) -> tuple[slice, ...]:
        return tuple(slice(c.index(lo), c.index(hi)) for c, (lo, hi) in zip(self.cuts, box, strict=True))

    def check(self) -> None:
        everyone = range(self.program.num_ranks)
        readers = [np.zeros(self.sides, np.bool_) for _ in everyone]
        contributed = np.zeros(self.sides, np.bool_)
        for reading in self.readings:
            readers[reading.rank][self._where(reading.box)] = True
            contributed[self._where(reading.box)] |= reading.contributes
        num_readers = np.sum(readers, axis=0)
        held = [self._grid("held", rank) for rank in everyone]
        for rank in everyone:
            wrong = np.where(num_readers > 0, held[rank] != readers[rank], held[rank] > 1)
            if wrong.any():
                raise self.wrong(rank, "the rank should hold exactly what it reads, once")
        if (np.where(num_readers > 0, 1, np.sum(held, axis=0)) != 1).any():
            raise self.wrong(0, "elements that no task reads should be held by one rank")
        self._check_once("owned", held, np.ones(self.sides, np.bool_))
        trained = self.graph.tensors[self.tensor].requires_grad and bool(contributed.any())
        sharded = self.program.sharding is not Sharding.NONE
        for rank in everyone:
            updated = self._grid("owned", rank) if sharded else held[rank]
            if (self._grid("updated", rank) != (updated if trained else 0)).any():
                expected = f"exactly what it {'owns' if sharded else 'holds'}" if trained else "nothing"
                raise self.wrong(rank, f"the rank should update {expected}")
        if self.program.options.clip_gradients:
            self._check_once("counted", held, np.full(self.sides, trained))
        several = num_readers > 1
        times = self.program.micro_batches if self.program.sharding.synchronizes_each_pass else 1
        self._check_groups("reduced", held, times * (contributed & trained & several))
        if sharded:
            self._check_parts(held, several, times * (contributed & trained), trained=trained)

    def _check_parts(
        self, held: list[_Counts], several: NDArray[np.bool_], reduced: _Counts, *, trained: bool
    ) -> None:
        """What is sharded is scattered to those that own it, and gathered from them."""
        # Parameters that are themselves sharded are gathered as often as passes need them.
        once = None if self.program.sharding is Sharding.ZERO3 else 1 * (several & trained)
        self._check_groups("gathered", held, once)
        for rank in range(len(held)):
            owned = self._grid("owned", rank)
            if (self._grid("scattered", rank) != owned * reduced * several).any():
                raise self.wrong(rank, "the rank should get the gradients of exactly what it owns")
            gathered = sum((self._grid(key, rank) for key in self._groups("gathered")), 0 * owned)
            if (self._grid("given", rank) != owned * gathered).any():
                raise self.wrong(rank, "the rank should give exactly what it owns")

    def _groups(self, what: str) -> set[tuple[str, tuple[int, ...]]]:
        return {key for key, _ in self.counts if isinstance(key, tuple) and key[0] == what}

    def _check_once(self, what: str, held: list[_Counts], wanted: NDArray[np.bool_]) -> None:
        """Every wanted element is `what` on one rank that holds it, and no others are."""
        counts = [self._grid(what, rank) for rank in range(len(held))]
        for rank, (count, holds) in enumerate(zip(counts, held, strict=True)):
            if (count > holds).any():
                raise self.wrong(rank, f"the rank does not hold all that is {what} there")
        if (np.sum(counts, axis=0) != wanted).any():
            raise self.wrong(0, f"every element should be {what} on one rank")

    def _check_groups(self, what: str, held: list[_Counts], wanted: _Counts | None) -> None:
        """Elements are `what` so often (None: however often) over exactly the ranks that hold them."""
        for rank, holds in enumerate(held):
            total = np.zeros(self.sides, np.int64)
            for key in self._groups(what):
                count, group = self._grid(key, rank), key[1]
                total += count
                members = np.array([other in group for other in range(len(held))])
                same = np.array(held).reshape(len(held), -1).astype(bool) == members[:, None]
                if (count.reshape(-1).astype(bool) & ~same.all(axis=0)).any():
                    raise self.wrong(rank, f"{what} over {group}, which are not exactly its holders")
            if wanted is not None and (total != wanted * holds.astype(bool)).any():
                raise self.wrong(rank, f"every element that several ranks hold should be {what} once")


def _check_recorded(program: Program, graph: OperatorGraph, tasks: tuple[Tasks, ...]) -> None:
    """Batch statistics of each channel are recorded once, and their buffers updated there."""
    updated = {
        (rank.rank, tensor)
        for rank in program.ranks
        for step in rank.steps
        if isinstance(step, UpdateBuffers)
        for tensor in step.buffers
    }
    recorded = {
        (step.operator, step.part): step.statistics
        for rank in program.ranks
        for step in rank.steps
        if isinstance(step, Forward) and step.stage == 0
    }
    for number, (operator, layout) in enumerate(zip(graph.operators, tasks, strict=True)):
        for n in normalizations(operator):
            for parts in channel_groups(layout.boxes, n) if n.running is not None else ():
                taken = [p for p in parts if n.call in recorded.get((number, p), ())]
                rank = layout.ranks[parts[0]]
                if len(taken) != 1:
                    problem = f"expected one task that records the statistics of {operator.name!r}"
                    raise wrong_rank(graph, rank, f"{problem}, found {len(taken)}")
                for position in n.running or ():
                    tensor, rank = operator.buffers[position].tensor, layout.ranks[taken[0]]
                    filled = num_elements(layout.buffers[position][taken[0]])
                    if filled and (rank, tensor) not in updated:
                        name = graph.tensors[tensor].name
                        raise wrong_rank(graph, rank, f"the running statistics {name!r} are not updated")
