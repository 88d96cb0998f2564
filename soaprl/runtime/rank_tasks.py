"""The tasks of one rank: what carries out their forward and backward passes, worked out once.

An iteration runs the same steps on the same places, so that what a step touches is looked up when it is first
bound: which regions are one piece, a parameter or a buffer as it is, which results leave the segment, and
whether anything is differentiated. What is left for an iteration is to call the library, as
`soaprl.runtime.tapes` does.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from soaprl.graph.operators import OperatorGraph, TensorRole
from soaprl.runtime.calls import Kernel
from soaprl.runtime.plans import PartPlan, TensorStep, apply
from soaprl.runtime.program import Backward, Block, CompileOptions, Forward, Piece, RankProgram
from soaprl.runtime.rank_buffers import RankBuffers
from soaprl.runtime.rank_parameters import RankParameters
from soaprl.runtime.segments import Task, differentiate, enter
from soaprl.runtime.statistics_tables import StatisticsTables
from soaprl.runtime.stores import BlockStore, GradientSums
from soaprl.runtime.tapes import Position, Slots, Tape, TapeCall, TapeTask
from soaprl.runtime.task_plans import ReadPlan, TaskPlan, TaskPlans
from soaprl.runtime.tasks import StagedTask
from soaprl.strategy.strategy import OpConfig

# Carries out a step.
Run: TypeAlias = Callable[[], None]


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
        position: Where the rank is in its program.
        places: The number of each piece that the rank has at some time.
        values: What is there, by number.
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
        self.position = Position()
        self.places: dict[Piece, int] = {}
        self.values: Slots = {}
        self._constants: Slots = {}
        self._count = 0
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Forgets the last iteration; `seed` is that of the next one's random numbers."""
        self.seed = seed
        self.values.clear()
        self.values.update(self._constants)
        self.gradients, self.inputs, self.statistics = GradientSums(), BlockStore(), StatisticsTables()
        self.staged: dict[Task, StagedTask] = {}
        # By segment: what it wrote whose gradients come from elsewhere.
        self._outputs: dict[int, list[tuple[Piece, GradientEdge | None]]] = {}

    def __len__(self) -> int:
        """Pieces, gradients and tasks that are still held."""
        found = len(self.values) - len(self._constants)
        return found + len(self.gradients) + len(self.staged) + len(self._outputs)

    def place(self, piece: Piece) -> int:
        """The number of a piece."""
        if piece not in self.places:
            self.places[piece] = self._new()
        return self.places[piece]

    def _new(self) -> int:
        self._count += 1
        return self._count

    def keep(self, piece: Piece, content: Tensor) -> None:
        """Takes the content of a piece."""
        self.values[self.place(piece)] = content

    def value(self, piece: Piece) -> Tensor:
        """The content of a piece that has not been dropped."""
        return self.values[self.places[piece]].detach()

    def exact(self, piece: Piece) -> Tensor:
        """The same, in the type that others see."""
        return self.value(piece).to(self.dtype_of(piece.tensor))

    # Forward passes.

    def on_a_tape(self, step: Forward) -> bool:
        """Whether a task may be on a tape: it runs in one go, and records nothing."""
        plan = self._plans.of(step)
        return not (plan.stops or plan.recorded)

    def differentiated(self, step: Forward) -> bool:
        """Whether a task has a backward pass."""
        return self._plans.of(step).segment >= 0

    def forward(self, steps: Sequence[tuple[int, Forward, tuple[int, ...]]]) -> Run:
        """What carries out forward passes that follow each other, all or none of them differentiated.

        Args:
            steps: One, or several that may be on a tape: the number of each in the program, the step, and
                the numbers of what is not needed after it.
        """
        first = steps[0][1]
        if self.on_a_tape(first):
            shapes: dict[int, Sequence[int]] = {}
            tasks = [self._task(number, step, drops, shapes) for number, step, drops in steps]
            run: Run = Tape(self.values, self.position, tasks, shapes).run
        else:
            ((_, _, drops),) = steps
            run = partial(self._staged, first, self._plans.of(first), self._beginning(first), drops)
        return run if self.differentiated(first) else torch.no_grad()(run)

    def _task(
        self, number: int, step: Forward, drops: tuple[int, ...], shapes: dict[int, Sequence[int]]
    ) -> TapeTask:
        plan, calls, own = self._plans.of(step), list[TapeCall](), list[int]()

        def added(call: Callable[[Slots], Tensor]) -> int:
            own.append(self._new())
            calls.append(TapeCall(own[-1], call, ()))
            return own[-1]

        regions = [
            content if isinstance(content, int) else added(partial(_made, content))
            for content in self._contents(plan)
        ]
        kept = dict[tuple[int, int], int]()

        def numbers(part: PartPlan) -> tuple[int, ...]:
            """Regions are where they are, or arranged; results that are pieces become them."""
            shapes.update(zip(regions, part.shapes, strict=True))
            how = dict(part.arranged)
            operands = [
                added(partial(_applied, how[k], slot)) if k in how else slot for k, slot in enumerate(regions)
            ]
            results = zip(part.operator.body_outputs, plan.written, plan.outer, part.stored, strict=True)
            for result, piece, outer, (_, steps) in results:
                if not outer and not steps:
                    kept.setdefault(result, self.place(piece))
            counts = [len(call.result_dims) for call in part.operator.body]
            made = [(call, result) for call, count in enumerate(counts) for result in range(count)]
            return (*operands, *(kept[key] if key in kept else self._new() for key in made))

        part = plan.part(numbers)
        for index, call in enumerate(part.calls):
            slots = [part.number_of(index, result) for result in range(len(call.shapes))]
            shapes.update(zip(slots, call.shapes, strict=True))
            caller = call.caller(slots, lambda: self.seed, self._device)
            calls.append(TapeCall(slots[0], caller, part.freed[index]))
        for piece, outer, (slot, _, how) in zip(plan.written, plan.outer, part.outputs, strict=True):
            if self.place(piece) != slot:
                leaving = partial(self._leaving, plan.segment, piece) if outer else None
                calls.append(TapeCall(self.place(piece), partial(_stored, slot, how, leaving), ()))
                own += [] if slot in kept.values() else [slot]
        return TapeTask(number, tuple(calls), (*dict.fromkeys(own), *drops))

    def _leaving(self, segment: int, piece: Piece, result: Tensor) -> Tensor:
        """What a task wrote whose gradient comes from elsewhere than its segment."""
        # With autocast it may be in a shorter type; what leaves the segment is not.
        result = result.to(self.dtype_of(piece.tensor))
        # A task that reads nothing gives zeros, which are not differentiable.
        edge = get_gradient_edge(result) if result.requires_grad else None
        self._outputs.setdefault(segment, []).append((piece, edge))
        return result

    def dtype_of(self, tensor: int) -> torch.dtype:
        """The type of what tasks write of a tensor, as others see it."""
        dtype: torch.dtype = getattr(torch, self._graph.tensors[tensor].dtype)
        return dtype

    # Tasks in stages, or that are recorded.

    def _beginning(self, step: Forward) -> Callable[[], StagedTask]:
        """Makes the task of an iteration."""
        plan = self._plans.of(step)
        contents, part = self._contents(plan), plan.part()

        def begun() -> StagedTask:
            regions = [self.values[c] if isinstance(c, int) else c() for c in contents]
            return StagedTask(part, regions, seed=self.seed, stops=plan.stops, recorded=plan.recorded)

        return begun

    def _staged(
        self, step: Forward, plan: TaskPlan, begun: Callable[[], StagedTask], drops: tuple[int, ...]
    ) -> None:
        self._to_next_stage(step, plan, begun)
        for place in drops:
            del self.values[place]

    def _to_next_stage(self, step: Forward, plan: TaskPlan, begun: Callable[[], StagedTask]) -> None:
        key = (step.operator, step.part)
        if step.stage == 0:
            self.staged[key] = begun()
        task = self.staged[key]
        results = task.forward(self.statistics.tables.get(key) if step.stage else None)
        if not step.writes:
            (self.statistics.rows[key],) = results
            return
        if task.statistics:
            self._buffers.running.record(
                step.operator, self._configs[step.operator], step.part, task.statistics
            )
        if plan.segment < 0 or not plan.stops:
            del self.staged[key]
        for piece, result, outer in zip(step.writes, results, plan.outer, strict=True):
            self.keep(piece, self._leaving(plan.segment, piece, result) if outer else result)

    # What a task reads: inputs, parameters, buffers.

    def _contents(self, plan: TaskPlan) -> list[int | Callable[[], Tensor]]:
        """Where each region is, or what gives it."""
        found: list[int | Tensor | Callable[[], Tensor]] = [self._input(read, plan) for read in plan.reads]
        for content, block in zip(plan.parameters, plan.blocks, strict=True):
            found.append(partial(self._parameters.entered, block) if content is None else content)
        found += [self._buffers.bound(block) for block in plan.buffers]
        return [self._constant(content) if isinstance(content, Tensor) else content for content in found]

    def _constant(self, content: Tensor) -> int:
        """The number of something that is there in every iteration."""
        number = self._new()
        self._constants[number] = self.values[number] = content
        return number

    def _input(self, read: ReadPlan, task: TaskPlan) -> int | Tensor | Callable[[], Tensor]:
        if read.piece is not None:
            return self.place(read.piece)
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

    def backward(self, step: Backward) -> Run | None:
        """What carries out a backward pass; None where that of another task takes it with it."""
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


def _made(make: Callable[[], Tensor], slots: Slots) -> Tensor:
    return make()


def _applied(steps: tuple[TensorStep, ...], slot: int, slots: Slots) -> Tensor:
    return apply(steps, slots[slot])


def _stored(
    slot: int, steps: tuple[TensorStep, ...], leaving: Callable[[Tensor], Tensor] | None, slots: Slots
) -> Tensor:
    result = apply(steps, slots[slot])
    return result if leaving is None else leaving(result)


def _last_tasks(program: RankProgram, segment_of: Mapping[Task, int]) -> dict[int, Task]:
    """The task of each segment whose backward pass comes first."""
    found: dict[int, Task] = {}
    for step in program.steps:
        if isinstance(step, Backward):
            key = (step.operator, step.part)
            found.setdefault(segment_of[key], key)
    return found
