"""What one rank holds, and how it carries out the steps of its program, as far as no other rank is involved.

An executor runs the steps in order, lets ranks talk in the shared ones, and calls the methods here for all
that is local; `soaprl.runtime.logical` does so for all ranks in one process.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.boxes import inside, num_elements
from soaprl.runtime.calls import Kernel
from soaprl.runtime.compression import EncodedSum, shortens, summed_blocks
from soaprl.runtime.lifetimes import last_uses
from soaprl.runtime.micro_batches import Unrolled, unrolled
from soaprl.runtime.program import (
    Backward,
    Block,
    Collective,
    Direction,
    Forward,
    GatherParameters,
    LoadInputs,
    MakeConstants,
    Message,
    Piece,
    Program,
    ReduceGradients,
    ReduceLoss,
    ReduceNorm,
    ReduceStatistics,
    ReleaseParameters,
    ScatterGradients,
    SumPartials,
    Update,
)
from soaprl.runtime.rank_buffers import RankBuffers
from soaprl.runtime.rank_parameters import RankParameters
from soaprl.runtime.rank_tasks import RankTasks, Run
from soaprl.runtime.reference import combined
from soaprl.runtime.stores import Fetch


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
        sharding: What is sharded.
        parameters: The blocks that its tasks read.
        updated: What its optimizer updates, with ``grad`` when its ``Update`` comes: some of the above or,
            where state is sharded, parts of them.
        kept: What is there between iterations: the first, or, where parameters are sharded, parts of them.
        all_updated: What all ranks update, as rank and block.
        buffers: The buffers that it holds, whole and in their stored shapes.
        tasks: What carries out its tasks.
        apart: Whether somebody follows the rank, so that each pass is to be bound alone.
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
        self.sharding = program.sharding
        self._options = program.options
        self.all_updated = tuple(
            (other.rank, block)
            for other in program.ranks
            for step in other.steps
            if isinstance(step, Update)
            for block in step.parameters
        )
        self._held = RankParameters(self.graph, self.program, state, device, self.sharding)
        self.parameters, self.updated, self.kept = self._held.blocks, self._held.updated, self._held.kept
        self._own = {
            (piece.tensor, piece.part): piece
            for step in self.program.steps
            if isinstance(step, Forward)
            for piece in step.writes
        }
        self._buffers = RankBuffers(self.graph, self.program, state, device, table)
        self.buffers = self._buffers.content
        self.apart = False
        self.tasks = RankTasks(
            self.graph,
            self.program,
            work.strategy.configs,
            self._options,
            table,
            self._held,
            self._buffers,
            device,
        )
        self.gradient_norm = torch.zeros((), dtype=torch.float64, device=device)
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Begins an iteration; `seed` is that of its random numbers."""
        self.tasks.begin(seed)
        self._buffers.begin()
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)

    def clear_gradients(self) -> None:
        """Sets all gradients of parameters to zero."""
        self._held.clear()

    def fill_gradients(self) -> None:
        """Completes the gradients of what is updated: zeros where nothing contributed."""
        self._held.fill()

    def load_inputs(self, step: LoadInputs, batch: Fetch) -> None:
        """Takes the blocks of the step from the batch."""
        for block in step.blocks:
            self.tasks.inputs.put(block, batch(self._work.origin(block)).to(self.device))

    def make_constants(self, step: MakeConstants) -> None:
        """Runs the calls of the step."""
        self._buffers.make_constants(step, self.tasks.seed)

    # Tasks.

    def forward(self, steps: Sequence[tuple[int, Forward, tuple[int, ...]]]) -> Run:
        """What carries out forward passes that follow each other; see `RankTasks.forward`."""
        return self.tasks.forward(steps)

    def backward(self, step: Backward) -> Run | None:
        """What carries out a backward pass; None where that of another task takes it with it."""
        return self.tasks.backward(step)

    def arithmetic(self) -> AbstractContextManager[object]:
        """The context in which iterations run."""
        if self._options.precision == "stored":
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self._options.precision))

    def buffer(self, block: Block) -> Tensor:
        """The content of a block of a buffer or constant."""
        return self._buffers.read(block)

    # What goes between ranks.

    def outgoing(self, message: Message, direction: Direction) -> list[Tensor]:
        """The content of the pieces of a message, each flat."""
        found = []
        for piece in message.pieces:
            if direction == "forward":
                own = self._own[piece.tensor, piece.part]
                content = self.tasks.exact(own)
                if piece.box != own.box:
                    content = content[inside(piece.box, own.box)]
            else:
                gradient = self.tasks.gradients.pop(piece)
                content = self._zeros(piece) if gradient is None else gradient
            found.append(content.reshape(-1))
        return found

    def _zeros(self, piece: Piece) -> Tensor:
        dtype = self.tasks.dtype_of(piece.tensor)
        return torch.zeros(num_elements(piece.box), dtype=dtype, device=self.device)

    def incoming(self, message: Message, direction: Direction, contents: Sequence[Tensor]) -> None:
        """Takes the pieces of an awaited message, each flat."""
        for piece, content in zip(message.pieces, contents, strict=True):
            shaped = content.reshape([stop - start for start, stop in piece.box])
            if direction == "forward":
                self.tasks.keep(piece, shaped)
            else:
                self.tasks.gradients.add(self._own[piece.tensor, piece.part], piece.box, shaped)

    def drops(self) -> tuple[tuple[int, ...], ...]:
        """What each step of the program needs for the last time, for `drop`."""
        return tuple(tuple(self.tasks.place(p) for p in pieces) for pieces in last_uses(self.program))

    def drop(self, pieces: Iterable[int]) -> None:
        """Forgets the content of pieces, as `drops` has them."""
        for piece in pieces:
            del self.tasks.values[piece]

    def value(self, piece: Piece) -> Tensor:
        """The content of a piece that has not been dropped."""
        return self.tasks.value(piece)

    @property
    def num_held(self) -> int:
        """Pieces, gradients and tasks that are still held."""
        return len(self.tasks)

    def release(self, step: ReleaseParameters) -> None:
        """Gives up parameters that were gathered."""
        self._held.release(step)

    # What a group of ranks does together.

    def encoded_sum(self, step: Collective) -> EncodedSum | None:
        """This rank's part in a sum of gradients that travel in fewer bits; None for anything else."""
        how = self._options.compression
        if not isinstance(step, ReduceGradients | ScatterGradients) or how == "none" or len(step.group) == 1:
            return None
        if not shortens(how, self.tasks.dtype_of(summed_blocks(step)[0].tensor)):
            return None
        return EncodedSum(step, self.contribution(step), how, rank=self.program.rank, seed=self.tasks.seed)

    def contribution(self, step: Collective, scale: float = 1.0) -> list[Tensor]:
        """What this rank gives to a step of a group.

        That is its summands; of a `ScatterGradients` those of the parts of all ranks, one after the other; of
        a `GatherParameters` the content of its own parts.

        Args:
            step: Which; a `ReduceLoss` also seeds the backward pass.
            scale: For a `ReduceLoss`, the gradient of what is minimized with respect to the loss.
        """
        if isinstance(step, ReduceLoss):
            return [self._loss(step, scale)]
        if isinstance(step, SumPartials):
            return [self._partial(step)]
        if isinstance(step, ReduceStatistics):
            return [self.tasks.statistics.contribution(step)]
        if isinstance(step, ReduceGradients):
            return self._held.whole_gradients(step.cells)
        if isinstance(step, ScatterGradients):
            return self._held.summands(step)
        if isinstance(step, GatherParameters):
            return self._held.given(step)
        if isinstance(step, ReduceNorm):
            return [self._held.squared_norm(step.cells)]
        return self._buffers.contribution(step)

    def enter(self, step: Collective, totals: Sequence[Tensor]) -> None:
        """Takes what an awaited step brought; it may keep the tensors.

        That is the sums of the contributions of all ranks; of a `ScatterGradients` those of its own parts; of
        a `GatherParameters` the contents of the parts of all ranks, one after the other.
        """
        if isinstance(step, ReduceLoss):
            self.loss = self.loss + totals[0]
        elif isinstance(step, SumPartials):
            self._enter_sum(step, totals[0])
        elif isinstance(step, ReduceStatistics):
            self.tasks.statistics.enter(step, totals[0], self.tasks.staged)
        elif isinstance(step, ReduceGradients):
            self._held.enter_gradients(step.cells, totals)
        elif isinstance(step, ScatterGradients):
            self._held.enter_sums(step, totals)
        elif isinstance(step, GatherParameters):
            self._held.enter_gathered(step, totals)
        elif isinstance(step, ReduceNorm):
            self.gradient_norm = totals[0].sqrt()
        else:
            self._buffers.enter(step, totals)

    def landing(self, step: GatherParameters) -> Tensor | None:
        """Memory that a gather may fill in the place of `enter`, shape [ranks, elements of each].

        The row of this rank has its content; when the others have theirs, `landed` is to be called. None
        where the parts of all ranks do not follow each other in memory.
        """
        return self._held.landing(step)

    def landed(self, step: GatherParameters) -> None:
        """Takes what came into the memory that `landing` gave."""
        self._held.landed(step)

    def _partial(self, step: SumPartials) -> Tensor:
        """What this rank wrote, or what its readers gave as the gradient of the sum."""
        if step.direction == "forward":
            own = step.pieces[step.group.index(self.program.rank)]
            return self.tasks.exact(own)
        gradient = self.tasks.gradients.pop(step.total)
        if gradient is not None:
            return gradient
        shape = [stop - start for start, stop in step.total.box]
        return self._zeros(step.total).view(shape)

    def _enter_sum(self, step: SumPartials, total: Tensor) -> None:
        if step.direction == "forward":
            self.tasks.keep(step.total, total)
        else:
            own = step.pieces[step.group.index(self.program.rank)]
            self.tasks.gradients.add(own, own.box, total)

    def _loss(self, step: ReduceLoss, scale: float) -> Tensor:
        if not step.pieces:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        loss = step.pieces[0].tensor
        operator = self.graph.operators[self.graph.producer[loss]]
        how = next(access.combine for access in operator.outputs if access.tensor == loss)
        parts = [self.tasks.value(piece) for piece in step.pieces]
        whole = combined(parts, how)
        if operator.has_backward:
            for piece, gradient in zip(step.pieces, _seeds(parts, how, scale * step.weight), strict=True):
                if (piece.tensor, piece.part) in self._own and gradient is not None:
                    self.tasks.gradients.add(piece, piece.box, gradient)
        if not step.counted:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        value = whole.reshape(()).double()
        return value if step.weight == 1.0 else value * step.weight

    # Parameters and buffers.

    def gradient(self, block: Block) -> Tensor:
        """The gradient of a block of parameters: a view where the rank has it as a whole."""
        return self._held.gradient(block)

    def parameter(self, block: Block) -> Tensor:
        """The content of a block of parameters that the rank keeps between iterations."""
        return self._held.read(block)

    def set_parameter(self, block: Block, content: Tensor) -> None:
        """Overwrites what the rank keeps of a block of parameters."""
        self._held.write(block, content)

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
