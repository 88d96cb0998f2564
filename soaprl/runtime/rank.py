"""What one rank holds, and how it carries out the steps of its program, as far as no other rank is involved.

An executor runs the steps in order, lets ranks talk in the shared ones, and calls the methods here for all
that is local; `soaprl.runtime.logical` does so for all ranks in one process.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from soaprl.graph.factors import part_box
from soaprl.graph.operators import Operator, OperatorGraph, TensorRole
from soaprl.runtime.boxes import inside, num_elements
from soaprl.runtime.calls import Kernel
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
from soaprl.runtime.shards import region
from soaprl.runtime.statistics import synchronized_calls
from soaprl.runtime.stores import Assembly, BlockStore, Combination, GradientSums, ParameterGradients
from soaprl.runtime.tasks import Leaf, TaskInputs, TaskRun, leaf_of

# Gives the content of a block of a graph input, parameter or buffer, in refined coordinates.
Fetch = Callable[[Block], Tensor]
Reduction: TypeAlias = ReduceStatistics | ReduceLoss | ReduceGradients | ReduceNorm | UpdateBuffers


@dataclass(frozen=True, slots=True, kw_only=True)
class _TaskPlan:
    """What stays the same in all iterations of one task.

    Attributes:
        part: The part of the operator.
        assemblies: How each input is put together.
        stops: The calls of the body at whose statistics it waits for others.
        written: What it writes.
        parameters: The blocks of parameters that it reads.
        input_gradients: For each input, whether it gives a gradient.
        parameter_gradients: The same for each parameter.
    """

    part: PartPlan
    assemblies: tuple[Assembly, ...]
    stops: tuple[int, ...]
    written: tuple[Piece, ...]
    parameters: tuple[Block, ...]
    input_gradients: tuple[bool, ...]
    parameter_gradients: tuple[bool, ...]


class RankState:
    """The state of one rank.

    Args:
        graph: The operators.
        program: The programs of all ranks.
        rank: Which one this is.
        state: Gives the initial content of blocks of parameters and of whole buffers.
        device: Where everything is.
        table: Kernels, as `soaprl.runtime.local.kernels` gives them.

    Attributes:
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
    ) -> None:
        self.graph, self.device, self.program = graph, device, program.ranks[rank]
        self._configs, self._options, self._table = program.configs, program.options, table
        self._running = RunningStatistics(graph)
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
        self._leaves: dict[Block, Leaf] = {}
        self.buffers: dict[int, Tensor] = {}
        for tensor in self.program.buffers:
            stored = graph.tensors[tensor]
            content = state(Block(tensor=tensor, box=tuple((0, e) for e in stored.refined_shape)))
            self.buffers[tensor] = content.detach().to(device).reshape(stored.shape).clone()
        self.loss = self.gradient_norm = torch.zeros((), dtype=torch.float64, device=device)
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Begins an iteration, or a micro-batch of one; `seed` is that of its random numbers."""
        self._seed = seed
        self._values: dict[Piece, Tensor] = {}
        self._own: dict[tuple[int, int], Piece] = {}
        self._gradients = GradientSums()
        self._inputs, self._constants = BlockStore(), dict[int, Tensor]()
        self._tasks: dict[tuple[int, int], TaskRun] = {}
        self._combinations: dict[tuple[int, int], list[Combination | None]] = {}
        # By task: rows of statistics, their combined table, the gradients of both.
        self._rows: dict[tuple[int, int], Tensor] = {}
        self._tables: dict[tuple[int, int], Tensor] = {}
        self._table_gradients: dict[tuple[int, int], Tensor | None] = {}
        self._row_gradients: dict[tuple[int, int], Tensor] = {}
        self._running.clear()

    def clear_gradients(self) -> None:
        """Sets all gradients of parameters to zero."""
        self._parameter_gradients.clear()

    def fill_gradients(self) -> None:
        """Gives zeros to the parameters that nothing contributed to."""
        self._parameter_gradients.fill()

    def load_inputs(self, step: LoadInputs, batch: Fetch) -> None:
        """Takes the blocks of the step from the batch."""
        for block in step.blocks:
            self._inputs.put(block, batch(block).to(self.device))

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
        key, operator = (step.operator, step.part), self.graph.operators[step.operator]
        if step.stage == 0:
            self._tasks[key] = self._new_task(step, operator)
        task = self._tasks[key]
        results = task.forward(self._tables.get(key) if step.stage else None)
        if not step.writes:
            (self._rows[key],) = results
            return
        for piece, result in zip(step.writes, results, strict=True):
            self._values[piece] = result
            self._own[piece.tensor, piece.part] = piece
        if task.statistics:
            self._running.record(step.operator, self._configs[step.operator], step.part, task.statistics)
        if not operator.has_backward:
            del self._tasks[key], self._combinations[key]

    def _new_task(self, step: Forward, operator: Operator) -> TaskRun:
        key = (step.operator, step.part)
        if key not in self._plans:
            self._plans[key] = self._plan(step, operator)
        plan = self._plans[key]
        regions = [self._region(assembly) for assembly in plan.assemblies]
        self._combinations[key] = [combination for _, combination in regions]
        return TaskRun(
            plan.part,
            TaskInputs(
                inputs=[content for content, _ in regions],
                parameters=[self._leaf(block) for block in step.parameters],
                buffers=[self.buffer(block) for block in step.buffers],
                input_gradients=plan.input_gradients,
                parameter_gradients=plan.parameter_gradients,
            ),
            self._table,
            seed=self._seed,
            stops=plan.stops,
            recorded=step.statistics,
        )

    def _plan(self, step: Forward, operator: Operator) -> "_TaskPlan":
        config = self._configs[step.operator]
        boxes = tuple(part_box(operator.extents, config.degrees, p) for p in range(config.num_tasks))
        box = boxes[step.part]
        shared = synchronized_calls(operator, boxes, self._options.batch_norm)
        return _TaskPlan(
            part=PartPlan(operator, config.degrees, step.part),
            assemblies=tuple(self._assembly(read) for read in step.reads),
            stops=tuple(n.call for n in shared),
            written=tuple(
                Piece(tensor=a.tensor, part=step.part, box=region(a, box)) for a in operator.outputs
            ),
            parameters=tuple(Block(tensor=a.tensor, box=region(a, box)) for a in operator.parameters),
            input_gradients=tuple(read.gradient for read in step.reads),
            parameter_gradients=tuple(access.gradient for access in operator.parameters),
        )

    def _assembly(self, read: Read) -> Assembly:
        how = "sum"
        if read.tensor in self.graph.producer:
            outputs = self.graph.operators[self.graph.producer[read.tensor]].outputs
            how = next(access.combine for access in outputs if access.tensor == read.tensor)
        return Assembly(self.graph.tensors[read.tensor], read, how)

    def _region(self, assembly: Assembly) -> tuple[Tensor, Combination | None]:
        read = assembly.read
        role = self.graph.tensors[read.tensor].role
        if role is TensorRole.ACTIVATION:
            return assembly.assemble([self._values[piece] for piece in read.pieces], self.device)
        block = Block(tensor=read.tensor, box=read.box)
        return self._inputs.read(block) if role is TensorRole.INPUT else self.buffer(block), None

    def buffer(self, block: Block) -> Tensor:
        """The content of a block of a buffer or constant."""
        known = self._constants if block.tensor in self._constants else self.buffers
        shape = self.graph.tensors[block.tensor].refined_shape
        return known[block.tensor].reshape(shape)[inside(block.box, tuple((0, e) for e in shape))]

    def _leaf(self, block: Block) -> Leaf:
        """A block of parameters; the same leaf each time, if the rank holds the block as it is."""
        if block in self._leaves:
            return self._leaves[block]
        leaf = leaf_of(self._parameter(block))
        if self._parameters.holds(block):
            self._leaves[block] = leaf
        return leaf

    def _parameter(self, block: Block) -> Tensor:
        if num_elements(block.box):
            return self._parameters.read(block)
        dtype: torch.dtype = getattr(torch, self.graph.tensors[block.tensor].dtype)
        return torch.zeros([stop - start for start, stop in block.box], dtype=dtype, device=self.device)

    def backward(self, step: Backward) -> None:
        """Runs the backward pass of a task, or a stage of it."""
        key = (step.operator, step.part)
        plan, task = self._plans[key], self._tasks[key]
        if key in self._row_gradients:
            task.enter_row_gradient(self._row_gradients.pop(key))
        if step.stage > 0:
            gradients = [self._gradients.get(piece) for piece in plan.written]
            self._table_gradients[key] = task.backward_statistics(gradients)
            return
        given = [self._gradients.pop(piece) for piece in plan.written]
        inputs, parameters = task.backward(given)
        combinations = self._combinations.pop(key)
        for position, gradient in inputs.items():
            for piece, box, part in plan.assemblies[position].gradients(gradient, combinations[position]):
                self._gradients.add(piece, box, part)
        known = [*given, *inputs.values(), *parameters.values()]
        places = Counter(gradient.data_ptr() for gradient in known if gradient is not None)
        for position, gradient in parameters.items():
            own = places[gradient.data_ptr()] == 1 and gradient._base is None
            self._parameter_gradients.add(plan.parameters[position], gradient, own=own)
        del self._tasks[key]

    # What goes between ranks.

    def outgoing(self, message: Message, direction: Direction) -> list[Tensor]:
        """The content of the pieces of a message, each flat."""
        found = []
        for piece in message.pieces:
            if direction == "forward":
                own = self._own[piece.tensor, piece.part]
                content = self._values[own][inside(piece.box, own.box)]
            else:
                gradient = self._gradients.pop(piece)
                content = self._zeros(piece) if gradient is None else gradient
            found.append(content.reshape(-1))
        return found

    def _zeros(self, piece: Piece) -> Tensor:
        dtype: torch.dtype = getattr(torch, self.graph.tensors[piece.tensor].dtype)
        return torch.zeros(num_elements(piece.box), dtype=dtype, device=self.device)

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
        return self._values[piece]

    @property
    def num_held(self) -> int:
        """Pieces, gradients and tasks that are still held."""
        return len(self._values) + len(self._gradients) + len(self._tasks)

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
            return [self._parameter_gradients.read(cell).reshape(-1) for cell in step.cells]
        if isinstance(step, ReduceNorm):
            return [self._squared_norm(step.cells)]
        return [self._running.contribution(t, self.buffers[t]) for t in step.buffers]

    def enter(self, step: Reduction, totals: Sequence[Tensor]) -> None:
        """Takes the sums of the contributions of all ranks of an awaited step; it may keep the tensors."""
        if isinstance(step, ReduceLoss):
            self.loss = totals[0].clone()
        elif isinstance(step, ReduceStatistics):
            self._enter_statistics(step, totals[0])
        elif isinstance(step, ReduceGradients):
            for cell, total in zip(step.cells, totals, strict=True):
                shape = [stop - start for start, stop in cell.box]
                self._parameter_gradients.write(cell, total.reshape(shape))
        elif isinstance(step, ReduceNorm):
            self.gradient_norm = totals[0].sqrt()
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
        operator = self.graph.operators[self.graph.producer[self.graph.loss]]
        how = next(access.combine for access in operator.outputs if access.tensor == self.graph.loss)
        with torch.enable_grad():
            parts = [self._values[piece].detach().requires_grad_() for piece in step.pieces]
            whole = combined(parts, how)
        found = torch.autograd.grad(whole, parts, torch.full_like(whole, scale), allow_unused=True)
        for piece, gradient in zip(step.pieces, found, strict=True):
            mine = (piece.tensor, piece.part) in self._own
            if mine and operator.has_backward and gradient is not None:
                self._gradients.add(piece, piece.box, gradient)
        value = whole.detach().reshape(()).double()
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
