"""The tasks of one rank: what carries out their forward and backward passes, worked out once.

An iteration runs the same steps on the same places, so that what a step touches is looked up when it is first
carried out: `RankTasks.bound` gives a function without arguments. Pieces are kept by number; which regions
are one piece, a parameter or a buffer as it is, which results leave the segment, and whether anything is
differentiated are known then. What is left for an iteration is to call the library.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from soaprl.graph.operators import OperatorGraph, TensorRole
from soaprl.runtime.calls import Kernel
from soaprl.runtime.local import PartRun
from soaprl.runtime.program import Backward, Block, CompileOptions, Forward, Piece, RankProgram
from soaprl.runtime.rank_buffers import RankBuffers
from soaprl.runtime.rank_parameters import RankParameters
from soaprl.runtime.segments import Task, differentiate, enter
from soaprl.runtime.statistics_tables import StatisticsTables
from soaprl.runtime.stores import BlockStore, GradientSums
from soaprl.runtime.task_plans import ReadPlan, TaskPlan, TaskPlans
from soaprl.runtime.tasks import StagedTask
from soaprl.strategy.strategy import OpConfig

# Carries out a step.
Run: TypeAlias = Callable[[], None]
_Regions: TypeAlias = Callable[[], list[Tensor]]


class RankTasks:
    """The tasks of one rank, and what goes between them in one iteration.

    Args:
        graph: The graph that the program's steps name.
        program: The rank's program.
        configs: The configuration of each operator.
        options: How the program was compiled.
        table: Kernels.
        parameters: The rank's parameters.
        buffers: The rank's buffers.
        device: Where everything is.

    Attributes:
        seed: Of the random numbers of the iteration.
        places: The number of each piece that the rank has at some time.
        values: The pieces that are there, by number.
        gradients: What was given to pieces so far.
        inputs: The blocks of the graph inputs.
        statistics: Batch statistics on their way.
        staged: The tasks that are between two of their stages.
    """

    def __init__(
        self,
        graph: OperatorGraph,
        program: RankProgram,
        configs: tuple[OpConfig, ...],
        options: CompileOptions,
        table: Mapping[str, Kernel],
        parameters: RankParameters,
        buffers: RankBuffers,
        device: torch.device,
    ) -> None:
        self._graph, self._configs, self._device = graph, configs, device
        self._exact = options.precision == "stored"
        self._parameters, self._buffers = parameters, buffers
        self._plans = TaskPlans(graph, program, configs, options, table, parameters, buffers.in_place)
        self._last = _last_tasks(program, self._plans.segment_of)
        self.places: dict[Piece, int] = {}
        self.values: dict[int, Tensor] = {}
        self.seed = 0
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Forgets the last iteration; `seed` is that of the next one's random numbers."""
        self.seed = seed
        self.values.clear()
        self.gradients, self.inputs, self.statistics = GradientSums(), BlockStore(), StatisticsTables()
        self.staged: dict[Task, StagedTask] = {}
        # By segment: what it wrote whose gradients come from elsewhere.
        self._outputs: dict[int, list[tuple[Piece, GradientEdge | None]]] = {}

    def __len__(self) -> int:
        """Pieces, gradients and tasks that are still held."""
        return len(self.values) + len(self.gradients) + len(self.staged) + len(self._outputs)

    def place(self, piece: Piece) -> int:
        """The number of a piece."""
        return self.places.setdefault(piece, len(self.places))

    def keep(self, piece: Piece, content: Tensor) -> None:
        """Takes the content of a piece."""
        self.values[self.place(piece)] = content

    def value(self, piece: Piece) -> Tensor:
        """The content of a piece that has not been dropped."""
        return self.values[self.places[piece]].detach()

    def exact(self, piece: Piece) -> Tensor:
        """The same, in the type that others see."""
        return self.value(piece).to(self.dtype_of(piece.tensor))

    def bound(self, step: Forward | Backward) -> Run | None:
        """What carries out a step in any iteration; None where there is nothing to be done."""
        return self._forward(step) if isinstance(step, Forward) else self._backward(step)

    # Forward passes.

    def _forward(self, step: Forward) -> Run:
        plan = self._plans.of(step)
        results = self._results(step, plan)
        if plan.segment < 0:
            results = torch.no_grad()(results)
        if not step.writes:
            return partial(self._keep_row, (step.operator, step.part), results)
        places, values = [self.place(piece) for piece in step.writes], self.values
        if any(plan.outer):
            return partial(self._keep_outer, plan, step.writes, places, results)
        if len(places) > 1:
            return lambda: values.update(zip(places, results(), strict=True))
        (place,) = places

        def run() -> None:
            (values[place],) = results()

        return run

    def _keep_row(self, key: Task, results: Callable[[], list[Tensor]]) -> None:
        (self.statistics.rows[key],) = results()

    def _keep_outer(
        self, plan: TaskPlan, pieces: Sequence[Piece], places: Sequence[int], results: _Regions
    ) -> None:
        """Keeps what a task wrote, and the edges of what leaves its segment."""
        for piece, place, result, outer in zip(pieces, places, results(), plan.outer, strict=True):
            if outer:
                # With autocast it may be in a shorter type; what leaves the segment is not.
                result = result.to(self.dtype_of(piece.tensor))
                # A task that reads nothing gives zeros, which are not differentiable.
                edge = get_gradient_edge(result) if result.requires_grad else None
                self._outputs.setdefault(plan.segment, []).append((piece, edge))
            self.values[place] = result

    def dtype_of(self, tensor: int) -> torch.dtype:
        """The type of what tasks write of a tensor, as others see it."""
        dtype: torch.dtype = getattr(torch, self._graph.tensors[tensor].dtype)
        return dtype

    def _results(self, step: Forward, plan: TaskPlan) -> Callable[[], list[Tensor]]:
        regions = self._regions(plan)
        if plan.stops or plan.recorded:
            return partial(self._staged, step, plan, regions)
        part = plan.part
        return lambda: PartRun(part, regions(), seed=self.seed).finish()

    def _staged(self, step: Forward, plan: TaskPlan, regions: _Regions) -> list[Tensor]:
        key = (step.operator, step.part)
        if step.stage == 0:
            self.staged[key] = StagedTask(
                plan.part, regions(), seed=self.seed, stops=plan.stops, recorded=plan.recorded
            )
        task = self.staged[key]
        results = task.forward(self.statistics.tables.get(key) if step.stage else None)
        if step.writes:
            if task.statistics:
                self._buffers.running.record(
                    step.operator, self._configs[step.operator], step.part, task.statistics
                )
            if plan.segment < 0 or not plan.stops:
                del self.staged[key]
        return results

    # What a task reads: inputs, parameters, buffers.

    def _regions(self, plan: TaskPlan) -> _Regions:
        known: list[Any] = [*(self._input(read, plan) for read in plan.reads)]
        known += [
            partial(self._parameters.entered, block) if content is None else content
            for content, block in zip(plan.parameters, plan.blocks, strict=True)
        ]
        known += [self._buffers.bound(block) for block in plan.buffers]
        made = [(number, content) for number, content in enumerate(known) if not isinstance(content, Tensor)]

        def regions() -> list[Tensor]:
            found = known.copy()
            for number, make in made:
                found[number] = make()
            return found

        return regions

    def _input(self, read: ReadPlan, task: TaskPlan) -> Callable[[], Tensor] | Tensor:
        if read.piece is not None:
            return partial(self.values.__getitem__, self.place(read.piece))
        wanted = read.assembly.read
        role, block = self._graph.tensors[wanted.tensor].role, Block(tensor=wanted.tensor, box=wanted.box)
        if role is TensorRole.INPUT:
            return lambda: self.inputs.read(block)
        if role is not TensorRole.ACTIVATION:
            return self._buffers.bound(block)
        return partial(self._assembled, read, task, [self.place(piece) for piece in wanted.pieces])

    def _assembled(self, plan: ReadPlan, task: TaskPlan, places: Sequence[int]) -> Tensor:
        """A region that is not simply a piece in the task's graph."""
        assembly, read = plan.assembly, plan.assembly.read
        contents = [self.values[place] for place in places]
        if any(plan.inner):
            given = [
                content if inner else self._source(piece, content)
                for piece, content, inner in zip(read.pieces, contents, plan.inner, strict=True)
            ]
            return assembly.joined(given, self._device)
        content, combination = assembly.assemble([c.detach() for c in contents], self._device)
        if task.segment < 0 or not read.gradient:
            return content

        def receive(gradient: Tensor) -> None:
            for piece, box, part in assembly.gradients(gradient, combination):
                self.gradients.add(piece, box, part)

        return enter(content, receive)

    def _source(self, piece: Piece, content: Tensor) -> Tensor:
        return enter(content, lambda gradient: self.gradients.add(piece, piece.box, gradient))

    # Backward passes.

    def _backward(self, step: Backward) -> Run | None:
        key = (step.operator, step.part)
        segment = self._plans.segment_of[key]
        if step.stage == 0 and self._last[segment] != key:
            # A later task of the segment has its turn first, and with it this one.
            return None
        return partial(self._differentiate, key, segment, step.stage)

    def _differentiate(self, key: Task, segment: int, stage: int) -> None:
        task = self.staged.get(key)
        if task is not None and key in self.statistics.row_gradients:
            task.enter_row_gradient(self.statistics.row_gradients.pop(key))
        if stage > 0:
            assert task is not None, "stages have tasks of their own"
            written = self._outputs.get(segment, [])
            known = [(edge, self.gradients.get(piece)) for piece, edge in written]
            with self._arithmetic():
                self.statistics.table_gradients[key] = task.backward_statistics(known)
            return
        written = self._outputs.pop(segment, [])
        outputs = [(edge, self.gradients.pop(piece)) for piece, edge in written]
        with self._arithmetic():
            if task is None:
                differentiate(outputs)
            else:
                task.backward(outputs)
                del self.staged[key]

    def _arithmetic(self) -> AbstractContextManager[object]:
        """Gradients are computed in the types of what was computed."""
        return nullcontext() if self._exact else torch.autocast(self._device.type, enabled=False)


def _last_tasks(program: RankProgram, segment_of: Mapping[Task, int]) -> dict[int, Task]:
    """The task of each segment whose backward pass comes first."""
    found: dict[int, Task] = {}
    for step in program.steps:
        if isinstance(step, Backward):
            key = (step.operator, step.part)
            found.setdefault(segment_of[key], key)
    return found
