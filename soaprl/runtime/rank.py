"""What one rank holds, and how it carries out the steps of its program, as far as no other rank is involved.

An executor runs the steps in order, lets ranks talk in the shared ones, and calls the methods here for all
that is local; `soaprl.runtime.logical` does so for all ranks in one process.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from soaprl.graph.factors import part_box
from soaprl.graph.operators import Operator, OperatorGraph, TensorRole
from soaprl.runtime.boxes import inside, num_elements
from soaprl.runtime.calls import Kernel
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
from soaprl.runtime.stores import Assembled, BlockStore, GradientSums, assemble
from soaprl.runtime.tasks import TaskInputs, TaskRun

# Gives the content of a block of a graph input, parameter or buffer, in refined coordinates.
Fetch = Callable[[Block], Tensor]
Reduction: TypeAlias = ReduceStatistics | ReduceLoss | ReduceGradients | ReduceNorm | UpdateBuffers


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
        parameters: The blocks that the rank holds; ``grad`` of those that require it is always there.
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
        self._parameters, self._parameter_gradients = BlockStore(), BlockStore()
        self.parameters: dict[Block, nn.Parameter] = {}
        for block in self.program.parameters:
            content = state(block).detach().to(device).contiguous().clone()
            trained = graph.tensors[block.tensor].requires_grad
            parameter = nn.Parameter(content, requires_grad=trained)
            self.parameters[block] = parameter
            self._parameters.put(block, parameter.detach())
            if trained:
                parameter.grad = torch.zeros_like(parameter)
                self._parameter_gradients.put(block, parameter.grad)
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
        self._assembled: dict[tuple[int, int], list[tuple[Read, Assembled]]] = {}
        # By task: rows of statistics, their combined table, the gradients of both.
        self._rows: dict[tuple[int, int], Tensor] = {}
        self._tables: dict[tuple[int, int], Tensor] = {}
        self._table_gradients: dict[tuple[int, int], Tensor | None] = {}
        self._row_gradients: dict[tuple[int, int], Tensor] = {}
        self._running.clear()

    def clear_gradients(self) -> None:
        """Sets all gradients of parameters to zero."""
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                parameter.grad.zero_()

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
        self._running.record(step.operator, self._configs[step.operator], step.part, task.statistics)
        if not operator.has_backward:
            del self._tasks[key], self._assembled[key]

    def _new_task(self, step: Forward, operator: Operator) -> TaskRun:
        config = self._configs[step.operator]
        regions = [self._region(read) for read in step.reads]
        self._assembled[step.operator, step.part] = [
            (read, assembled) for read, (_, assembled) in zip(step.reads, regions, strict=True)
        ]
        boxes = tuple(part_box(operator.extents, config.degrees, p) for p in range(config.num_tasks))
        shared = synchronized_calls(operator, boxes, self._options.batch_norm)
        return TaskRun(
            operator,
            config.degrees,
            step.part,
            TaskInputs(
                inputs=[content for content, _ in regions],
                parameters=[self._parameter(block) for block in step.parameters],
                buffers=[self.buffer(block) for block in step.buffers],
                input_gradients=[read.gradient for read in step.reads],
                parameter_gradients=[access.gradient for access in operator.parameters],
            ),
            self._table,
            seed=self._seed,
            stops=[n.call for n in shared],
            recorded=step.statistics,
        )

    def _region(self, read: Read) -> tuple[Tensor, Assembled]:
        stored = self.graph.tensors[read.tensor]
        if stored.role is TensorRole.INPUT:
            return self._inputs.read(Block(tensor=read.tensor, box=read.box)), Assembled((), None)
        if stored.role is not TensorRole.ACTIVATION:
            return self.buffer(Block(tensor=read.tensor, box=read.box)), Assembled((), None)
        outputs = self.graph.operators[self.graph.producer[read.tensor]].outputs
        how = next(access.combine for access in outputs if access.tensor == read.tensor)
        contents = [self._values[piece] for piece in read.pieces]
        return assemble(stored, read, contents, how, self.device)

    def buffer(self, block: Block) -> Tensor:
        """The content of a block of a buffer or constant."""
        known = self._constants if block.tensor in self._constants else self.buffers
        shape = self.graph.tensors[block.tensor].refined_shape
        return known[block.tensor].reshape(shape)[inside(block.box, tuple((0, e) for e in shape))]

    def _parameter(self, block: Block) -> Tensor:
        if num_elements(block.box):
            return self._parameters.read(block)
        dtype: torch.dtype = getattr(torch, self.graph.tensors[block.tensor].dtype)
        return torch.zeros([stop - start for start, stop in block.box], dtype=dtype, device=self.device)

    def backward(self, step: Backward) -> None:
        """Runs the backward pass of a task, or a stage of it."""
        key, operator = (step.operator, step.part), self.graph.operators[step.operator]
        box = part_box(operator.extents, self._configs[step.operator].degrees, step.part)
        written = [Piece(tensor=a.tensor, part=step.part, box=region(a, box)) for a in operator.outputs]
        task = self._tasks[key]
        if key in self._row_gradients:
            task.enter_row_gradient(self._row_gradients.pop(key))
        if step.stage > 0:
            gradients = [self._gradients.get(piece) for piece in written]
            self._table_gradients[key] = task.backward_statistics(gradients)
            return
        inputs, parameters = task.backward([self._gradients.pop(piece) for piece in written])
        self._give(inputs, self._assembled.pop(key))
        for position, gradient in parameters.items():
            access = operator.parameters[position]
            self._parameter_gradients.add(Block(tensor=access.tensor, box=region(access, box)), gradient)
        del self._tasks[key]

    def _give(self, gradients: dict[int, Tensor], regions: list[tuple[Read, Assembled]]) -> None:
        """Gives the gradients of regions to the pieces they were made of."""
        for position, gradient in gradients.items():
            read, assembled = regions[position]
            for piece, box, part in assembled.gradients(gradient, read.box):
                self._gradients.add(piece, box, part)

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
        """Takes the sums of the contributions of all ranks of an awaited step."""
        if isinstance(step, ReduceLoss):
            (self.loss,) = totals
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
