"""What one rank holds, and how it carries out the steps of its program, as far as no other rank is involved.

An executor runs the steps in order, lets ranks talk in the shared ones, and calls the methods here for all
that is local; `soaprl.runtime.logical` does so for all ranks in one process.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from soaprl.graph.factors import part_box
from soaprl.graph.operators import OperatorGraph, TensorRole
from soaprl.runtime.boxes import inside, num_elements
from soaprl.runtime.calls import Kernel
from soaprl.runtime.local import PartRun
from soaprl.runtime.micro_batches import Unrolled, unrolled
from soaprl.runtime.plans import PartPlan
from soaprl.runtime.program import (
    Backward,
    Block,
    Direction,
    Forward,
    LoadInputs,
    MakeConstants,
    Message,
    Piece,
    Program,
    Read,
    ReduceGradients,
    ReduceLoss,
    ReduceNorm,
    ReduceStatistics,
    UpdateBuffers,
)
from soaprl.runtime.reference import combined, run_constants
from soaprl.runtime.running import RunningStatistics
from soaprl.runtime.segments import differentiate, enter, outer_outputs, segments_of
from soaprl.runtime.shards import region
from soaprl.runtime.statistics import synchronized_calls
from soaprl.runtime.stores import Assembly, BlockStore, GradientSums, ParameterGradients
from soaprl.runtime.tasks import StagedTask

# Gives the content of a block of a graph input, parameter or buffer, in refined coordinates.
Fetch = Callable[[Block], Tensor]
Reduction: TypeAlias = ReduceStatistics | ReduceLoss | ReduceGradients | ReduceNorm | UpdateBuffers


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReadPlan:
    """How a task gets a region of an input.

    Attributes:
        assembly: How it is put together.
        piece: The piece that it is, where it is one piece and needs nothing more.
        inner: For each piece, whether it is differentiated in the graph that the task is in.
    """

    assembly: Assembly
    piece: Piece | None
    inner: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _TaskPlan:
    """What stays the same in all iterations of one task.

    Attributes:
        part: The part of the operator.
        segment: The number of the segment whose graph it is in; -1 without a backward pass.
        reads: How it gets each input.
        parameters: For each parameter its content, or None where that must be entered.
        blocks: The blocks of these parameters.
        buffers: The blocks of buffers that it reads.
        stops: The calls of the body at whose statistics it waits for others.
        recorded: The calls whose batch statistics are to be recorded.
        written: What it writes.
        outer: For each of these, whether gradients come from elsewhere than the segment.
    """

    part: PartPlan
    segment: int
    reads: tuple[_ReadPlan, ...]
    parameters: tuple[Tensor | None, ...]
    blocks: tuple[Block, ...]
    buffers: tuple[Block, ...]
    stops: tuple[int, ...]
    recorded: tuple[int, ...]
    written: tuple[Piece, ...]
    outer: tuple[bool, ...]


class RankState:
    """The state of one rank.

    Args:
        graph: The operators.
        program: The programs of all ranks.
        rank: Which one this is.
        state: Gives the initial content of blocks of parameters and of whole buffers.
        device: Where everything is.
        table: Kernels, as `soaprl.runtime.local.kernels` gives them.
        work: What `unrolled` gives for graph and program, where the caller already has it.

    Attributes:
        graph: The graph that the program's steps name.
        program: The rank's program.
        parameters: The blocks that the rank holds; ``grad`` of those that are trained is there when its
            ``Update`` comes.
        buffers: The buffers that it holds, whole and in their stored shapes.
        loss: The loss of the last iteration, float64, once its reduction has been entered.
        gradient_norm: The norm of all gradients, once its reduction has been entered.
    """

    def __init__(
        self,
        graph: OperatorGraph,
        program: Program,
        rank: int,
        state: Fetch,
        device: torch.device,
        table: Mapping[str, Kernel],
        *,
        work: Unrolled | None = None,
    ) -> None:
        self._work = work = unrolled(graph, program.strategy) if work is None else work
        self.graph, self.device, self.program = work.graph, device, program.ranks[rank]
        self._configs, self._options, self._table = work.strategy.configs, program.options, table
        self._running = RunningStatistics(self.graph)
        self._parameters = BlockStore()
        self.parameters: dict[Block, nn.Parameter] = {}
        for block in self.program.parameters:
            content = state(block).detach().to(device).contiguous().clone()
            trained = graph.tensors[block.tensor].requires_grad
            parameter = nn.Parameter(content, requires_grad=trained)
            self.parameters[block] = parameter
            self._parameters.put(block, parameter.detach())
        self._parameter_gradients = ParameterGradients(self.parameters)
        self._plans: dict[tuple[int, int], _TaskPlan] = {}
        self._segment_of = segments_of(self.program)
        self._outer = outer_outputs(self.program, self._segment_of)
        self._own = {
            (piece.tensor, piece.part): piece
            for step in self.program.steps
            if isinstance(step, Forward)
            for piece in step.writes
        }
        self.buffers: dict[int, Tensor] = {}
        for tensor in self.program.buffers:
            stored = graph.tensors[tensor]
            content = state(Block(tensor=tensor, box=tuple((0, e) for e in stored.refined_shape)))
            self.buffers[tensor] = content.detach().to(device).reshape(stored.shape).clone()
        self.gradient_norm = torch.zeros((), dtype=torch.float64, device=device)
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Begins an iteration; `seed` is that of its random numbers."""
        self._seed = seed
        self._values: dict[Piece, Tensor] = {}
        self._gradients = GradientSums()
        self._inputs, self._constants = BlockStore(), dict[int, Tensor]()
        self._tasks: dict[tuple[int, int], StagedTask] = {}
        # By segment: what it wrote whose gradients come from elsewhere.
        self._outputs: dict[int, list[tuple[Piece, GradientEdge | None]]] = {}
        # By task: rows of statistics, their combined table, the gradients of both.
        self._rows: dict[tuple[int, int], Tensor] = {}
        self._tables: dict[tuple[int, int], Tensor] = {}
        self._table_gradients: dict[tuple[int, int], Tensor | None] = {}
        self._row_gradients: dict[tuple[int, int], Tensor] = {}
        self._running.clear()
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)

    def clear_gradients(self) -> None:
        """Sets all gradients of parameters to zero."""
        self._parameter_gradients.clear()

    def fill_gradients(self) -> None:
        """Gives zeros to the parameters that nothing contributed to."""
        self._parameter_gradients.fill()

    def load_inputs(self, step: LoadInputs, batch: Fetch) -> None:
        """Takes the blocks of the step from the batch."""
        for block in step.blocks:
            self._inputs.put(block, batch(self._work.origin(block)).to(self.device))

    def make_constants(self, step: MakeConstants) -> None:
        """Runs the calls of the step."""
        self._constants = run_constants(
            self.graph,
            self.buffers,
            seed=self._seed,
            device=self.device,
            table=self._table,
            calls=step.calls,
        )

    # Tasks.

    def forward(self, step: Forward) -> None:
        """Runs a task, or a stage of it."""
        key = (step.operator, step.part)
        plan = self._plans.get(key) or self._new_plan(step)
        if plan.segment >= 0:
            results = self._results(step, plan)
        else:
            with torch.no_grad():
                results = self._results(step, plan)
        if not step.writes:
            (self._rows[key],) = results
            return
        for piece, result, outer in zip(step.writes, results, plan.outer, strict=True):
            self._values[piece] = result
            if outer:
                # With autocast it may be in a shorter type; what leaves the segment is not.
                result = self._values[piece] = result.to(self._dtype_of(piece.tensor))
                # A task that reads nothing gives zeros, which are not differentiable.
                edge = get_gradient_edge(result) if result.requires_grad else None
                self._outputs[plan.segment].append((piece, edge))

    def _results(self, step: Forward, plan: _TaskPlan) -> list[Tensor]:
        if plan.stops or plan.recorded:
            return self._staged(step, plan)
        return PartRun(plan.part, self._regions(plan), seed=self._seed).finish()

    def arithmetic(self) -> AbstractContextManager[object]:
        """The context in which iterations run."""
        if self._options.precision == "stored":
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self._options.precision))

    def _backward_arithmetic(self) -> AbstractContextManager[object]:
        """Gradients are computed in the types of what was computed."""
        if self._options.precision == "stored":
            return nullcontext()
        return torch.autocast(self.device.type, enabled=False)

    def _dtype_of(self, tensor: int) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.graph.tensors[tensor].dtype)
        return dtype

    def _staged(self, step: Forward, plan: _TaskPlan) -> list[Tensor]:
        key = (step.operator, step.part)
        if step.stage == 0:
            self._tasks[key] = StagedTask(
                plan.part,
                self._regions(plan),
                seed=self._seed,
                stops=plan.stops,
                recorded=plan.recorded,
            )
        task = self._tasks[key]
        results = task.forward(self._tables.get(key) if step.stage else None)
        if step.writes:
            if task.statistics:
                self._running.record(step.operator, self._configs[step.operator], step.part, task.statistics)
            if plan.segment < 0 or not plan.stops:
                del self._tasks[key]
        return results

    def _regions(self, plan: _TaskPlan) -> list[Tensor]:
        """What a task reads: inputs, parameters, buffers."""
        if plan.segment >= 0 and plan.segment not in self._outputs:
            self._outputs[plan.segment] = []
        found = [
            self._values[read.piece] if read.piece is not None else self._region(read, plan)
            for read in plan.reads
        ]
        for content, block in zip(plan.parameters, plan.blocks, strict=True):
            found.append(self._entered(block) if content is None else content)
        found += [self.buffer(block) for block in plan.buffers]
        return found

    def _new_plan(self, step: Forward) -> _TaskPlan:
        operator, config = self.graph.operators[step.operator], self._configs[step.operator]
        key = (step.operator, step.part)
        boxes = tuple(part_box(operator.extents, config.degrees, p) for p in range(config.num_tasks))
        box = boxes[step.part]
        written = tuple(Piece(tensor=a.tensor, part=step.part, box=region(a, box)) for a in operator.outputs)
        plan = self._plans[key] = _TaskPlan(
            part=PartPlan(operator, config.degrees, step.part, self._table),
            segment=self._segment_of.get(key, -1),
            reads=tuple(self._read_plan(read, self._segment_of.get(key, -1)) for read in step.reads),
            parameters=tuple(
                self._content(block, access.gradient and operator.has_backward)
                for block, access in zip(step.parameters, operator.parameters, strict=True)
            ),
            blocks=step.parameters,
            buffers=step.buffers,
            stops=tuple(n.call for n in synchronized_calls(operator, boxes, self._options.batch_norm)),
            recorded=step.statistics,
            written=written,
            outer=tuple(
                operator.has_backward and (piece.tensor, piece.part) in self._outer for piece in written
            ),
        )
        return plan

    def _read_plan(self, read: Read, segment: int) -> _ReadPlan:
        how = "sum"
        if read.tensor in self.graph.producer:
            producer = self.graph.producer[read.tensor]
            outputs = self.graph.operators[producer].outputs
            how = next(access.combine for access in outputs if access.tensor == read.tensor)
            inner = tuple(
                read.gradient and segment >= 0 and self._segment_of.get((producer, piece.part), -1) == segment
                for piece in read.pieces
            )
        else:
            inner = ()
        only = read.pieces[0] if len(read.pieces) == 1 and read.pieces[0].box == read.box else None
        return _ReadPlan(
            assembly=Assembly(self.graph.tensors[read.tensor], read, how),
            piece=only if inner == (True,) or segment < 0 else None,
            inner=inner,
        )

    def _region(self, plan: _ReadPlan, task: _TaskPlan) -> Tensor:
        """A region that is not simply a piece in the task's graph."""
        assembly, read = plan.assembly, plan.assembly.read
        role = self.graph.tensors[read.tensor].role
        if role is not TensorRole.ACTIVATION:
            block = Block(tensor=read.tensor, box=read.box)
            return self._inputs.read(block) if role is TensorRole.INPUT else self.buffer(block)
        contents = [self._values[piece] for piece in read.pieces]
        if any(plan.inner):
            given = [
                content if inner else self._source(piece, content)
                for piece, content, inner in zip(read.pieces, contents, plan.inner, strict=True)
            ]
            return assembly.joined(given, self.device)
        content, combination = assembly.assemble([c.detach() for c in contents], self.device)
        if task.segment < 0 or not read.gradient:
            return content

        def receive(gradient: Tensor) -> None:
            for piece, box, part in assembly.gradients(gradient, combination):
                self._gradients.add(piece, box, part)

        return enter(content, receive)

    def _source(self, piece: Piece, content: Tensor) -> Tensor:
        return enter(content, lambda gradient: self._gradients.add(piece, piece.box, gradient))

    def _content(self, block: Block, wanted: bool) -> Tensor | None:
        """A block of parameters as tasks read it in every iteration; None where it must be put together."""
        parameter = self.parameters.get(block)
        if parameter is not None:
            return parameter if wanted else parameter.detach()
        trained = wanted and self.graph.tensors[block.tensor].requires_grad
        return self._parameter(block) if self._parameters.holds(block) and not trained else None

    def _entered(self, block: Block) -> Tensor:
        """A block of parameters that is not held as it is, in a task's graph."""
        content = self._parameter(block)
        if not (torch.is_grad_enabled() and self.graph.tensors[block.tensor].requires_grad):
            return content
        return enter(content, lambda gradient: self._parameter_gradients.add(block, gradient))

    def buffer(self, block: Block) -> Tensor:
        """The content of a block of a buffer or constant."""
        known = self._constants if block.tensor in self._constants else self.buffers
        shape = self.graph.tensors[block.tensor].refined_shape
        return known[block.tensor].reshape(shape)[inside(block.box, tuple((0, e) for e in shape))]

    def _parameter(self, block: Block) -> Tensor:
        if num_elements(block.box):
            return self._parameters.read(block)
        shape = [stop - start for start, stop in block.box]
        return torch.zeros(shape, dtype=self._dtype_of(block.tensor), device=self.device)

    def backward(self, step: Backward) -> None:
        """Runs the backward pass of a task, or a stage of it."""
        key = (step.operator, step.part)
        segment = self._segment_of[key]
        written = self._outputs.get(segment)
        if written is None:
            # A later task of the segment had its turn, and with it this one.
            return
        task = self._tasks.get(key)
        if task is not None and key in self._row_gradients:
            task.enter_row_gradient(self._row_gradients.pop(key))
        if step.stage > 0:
            assert task is not None, "stages have tasks of their own"
            outputs = [(edge, self._gradients.get(piece)) for piece, edge in written]
            with self._backward_arithmetic():
                self._table_gradients[key] = task.backward_statistics(outputs)
            return
        outputs = [(edge, self._gradients.pop(piece)) for piece, edge in written]
        with self._backward_arithmetic():
            if task is None:
                differentiate(outputs)
            else:
                task.backward(outputs)
                del self._tasks[key]
        del self._outputs[segment]

    # What goes between ranks.

    def outgoing(self, message: Message, direction: Direction) -> list[Tensor]:
        """The content of the pieces of a message, each flat."""
        found = []
        for piece in message.pieces:
            if direction == "forward":
                own = self._own[piece.tensor, piece.part]
                content = self._values[own].detach().to(self._dtype_of(piece.tensor))
                if piece.box != own.box:
                    content = content[inside(piece.box, own.box)]
            else:
                gradient = self._gradients.pop(piece)
                content = self._zeros(piece) if gradient is None else gradient
            found.append(content.reshape(-1))
        return found

    def _zeros(self, piece: Piece) -> Tensor:
        return torch.zeros(num_elements(piece.box), dtype=self._dtype_of(piece.tensor), device=self.device)

    def incoming(self, message: Message, direction: Direction, contents: Sequence[Tensor]) -> None:
        """Takes the pieces of an awaited message, each flat."""
        for piece, content in zip(message.pieces, contents, strict=True):
            shaped = content.reshape([stop - start for start, stop in piece.box])
            if direction == "forward":
                self._values[piece] = shaped
            else:
                self._gradients.add(self._own[piece.tensor, piece.part], piece.box, shaped)

    def drop(self, pieces: Iterable[Piece]) -> None:
        """Forgets the content of pieces; see `soaprl.runtime.lifetimes.last_uses`."""
        for piece in pieces:
            del self._values[piece]

    def value(self, piece: Piece) -> Tensor:
        """The content of a piece that has not been dropped."""
        return self._values[piece].detach()

    @property
    def num_held(self) -> int:
        """Pieces, gradients and tasks that are still held."""
        return len(self._values) + len(self._gradients) + len(self._tasks) + len(self._outputs)

    # Sums over ranks.

    def contribution(self, step: Reduction, scale: float = 1.0) -> list[Tensor]:
        """This rank's summands of a step that sums over ranks.

        Args:
            step: Which; a `ReduceLoss` also seeds the backward pass.
            scale: For a `ReduceLoss`, the gradient of what is minimized with respect to the loss.
        """
        if isinstance(step, ReduceLoss):
            return [self._loss(step, scale)]
        if isinstance(step, ReduceStatistics):
            return [self._statistics(step)]
        if isinstance(step, ReduceGradients):
            return self._parameter_gradients.read_all(step.cells)
        if isinstance(step, ReduceNorm):
            return [self._squared_norm(step.cells)]
        if len(step.group) == 1:
            return []
        return [self._running.contribution(t, self.buffers[t]) for t in step.buffers]

    def enter(self, step: Reduction, totals: Sequence[Tensor]) -> None:
        """Takes the sums of the contributions of all ranks of an awaited step; it may keep the tensors."""
        if isinstance(step, ReduceLoss):
            self.loss = self.loss + totals[0]
        elif isinstance(step, ReduceStatistics):
            self._enter_statistics(step, totals[0])
        elif isinstance(step, ReduceGradients):
            self._parameter_gradients.write_all(step.cells, totals)
        elif isinstance(step, ReduceNorm):
            self.gradient_norm = totals[0].sqrt()
        elif len(step.group) == 1:
            for tensor in step.buffers:
                self._running.update(tensor, self.buffers[tensor])
        else:
            for tensor, total in zip(step.buffers, totals, strict=True):
                self._running.enter(tensor, self.buffers[tensor], total)

    def _statistics(self, step: ReduceStatistics) -> Tensor:
        keys = [(step.operator, part) for part in step.parts]
        if step.direction == "forward":
            first = next(self._rows[key] for key in keys if key in self._rows)
            table = first.new_zeros(len(keys), *first.shape)
            for row, key in enumerate(keys):
                if key in self._rows:
                    table[row] = self._rows.pop(key)
            return table
        given = [self._table_gradients.pop(key) for key in keys if key in self._table_gradients]
        total = torch.zeros_like(next(self._tables[key] for key in keys if key in self._tables))
        for gradient in given:
            total = total if gradient is None else total + gradient
        return total

    def _enter_statistics(self, step: ReduceStatistics, total: Tensor) -> None:
        for row, part in enumerate(step.parts):
            if (step.operator, part) in self._tasks:
                if step.direction == "forward":
                    self._tables[step.operator, part] = total
                else:
                    self._row_gradients[step.operator, part] = total[row]

    def _loss(self, step: ReduceLoss, scale: float) -> Tensor:
        if not step.pieces:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        loss = step.pieces[0].tensor
        operator = self.graph.operators[self.graph.producer[loss]]
        how = next(access.combine for access in operator.outputs if access.tensor == loss)
        parts = [self._values[piece].detach() for piece in step.pieces]
        whole = combined(parts, how)
        if operator.has_backward:
            for piece, gradient in zip(step.pieces, _seeds(parts, how, scale * step.weight), strict=True):
                if (piece.tensor, piece.part) in self._own and gradient is not None:
                    self._gradients.add(piece, piece.box, gradient)
        value = whole.reshape(()).double() * step.weight
        return value if step.counted else torch.zeros_like(value)

    def _squared_norm(self, cells: Iterable[Block]) -> Tensor:
        squares = [torch.linalg.vector_norm(self.gradient(cell)).double().square() for cell in cells]
        return torch.stack([torch.zeros((), dtype=torch.float64, device=self.device), *squares]).sum()

    # Parameters and buffers.

    def gradient(self, block: Block) -> Tensor:
        """The gradient of a block of parameters: a view where the rank holds it as a whole."""
        return self._parameter_gradients.read(block)

    def parameter(self, block: Block) -> Tensor:
        """The content of a block of parameters."""
        return self._parameters.read(block)

    def set_parameter(self, block: Block, content: Tensor) -> None:
        """Overwrites a block of parameters."""
        self._parameters.write(block, content)

    def set_buffer(self, block: Block, content: Tensor) -> None:
        """Overwrites a block of a buffer; any shape with as many elements."""
        target = self.buffer(block)
        target.copy_(content.reshape(target.shape))


def _seeds(parts: Sequence[Tensor], how: str, scale: float) -> Sequence[Tensor | None]:
    """The gradients of the parts of a loss, of which `scale` times the loss is minimized."""
    if how == "sum" or len(parts) == 1:
        return [torch.full_like(part, scale) for part in parts]
    with torch.enable_grad():
        leaves = [part.requires_grad_() for part in parts]
        whole = combined(leaves, how)
    return torch.autograd.grad(whole, leaves, torch.full_like(whole, scale), allow_unused=True)
