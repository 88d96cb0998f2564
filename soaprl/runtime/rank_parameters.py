"""The parameters of one rank: what its tasks read, what its optimizer updates, and the gradients of both.

Without sharding the optimizer updates what tasks read. With it (`soaprl.runtime.sharding`) it updates parts:
under ``zero1`` and ``zero2`` they are views of what tasks read; under ``zero3`` they are all that is kept of
it between passes, and what tasks read has memory only from a gather to a release.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.boxes import common, inside, num_elements
from soaprl.runtime.program import (
    Block,
    GatherParameters,
    RankProgram,
    ReleaseParameters,
    ScatterGradients,
    Update,
)
from soaprl.runtime.segments import enter
from soaprl.runtime.sharding import in_order
from soaprl.runtime.stores import BlockStore, Fetch, ParameterGradients
from soaprl.strategy.strategy import Sharding

Content = TypeVar("Content")


class RankParameters:
    """The parameters of one rank.

    Args:
        graph: The graph that the program's steps name.
        program: The rank's program.
        fetch: Gives the initial content of blocks.
        device: Where they are.
        sharding: What is sharded.

    Attributes:
        blocks: What tasks read, by block.
        kept: What is there between iterations, by block.
        updated: What the optimizer updates, by block; its gradients are complete when `fill` has run.
    """

    def __init__(
        self,
        graph: OperatorGraph,
        program: RankProgram,
        fetch: Fetch,
        device: torch.device,
        sharding: Sharding,
    ) -> None:
        self._graph, self._rank, self._device = graph, program.rank, device
        self._gathered = _gathered(program) if sharding is Sharding.ZERO3 else frozenset[Block]()
        self.blocks: dict[Block, nn.Parameter] = {}
        self.kept: dict[Block, nn.Parameter] = {}
        self._read, self._arriving, self._stored = BlockStore(), BlockStore(), BlockStore()
        for block in program.parameters:
            self.blocks[block] = parameter = self._new(block, None if block in self._gathered else fetch)
            self._read.put(block, parameter.data)
            # Another `data`: autograd should not take what is gathered again between passes for a change.
            self._arriving.put(block, parameter.data)
            if block not in self._gathered:
                self.kept[block] = parameter
                self._stored.put(block, parameter.data)
        for block in program.owned:
            if any(_overlaps(other, ((block,),)) for other in self._gathered):
                self.kept[block] = self._new(block, fetch)
                self._stored.put(block, self.kept[block].data)
        self._gradients = ParameterGradients(self.blocks)
        updates = [step for step in program.steps if isinstance(step, Update)]
        self.updated = {block: self._updated(block) for step in updates for block in step.parameters}
        self._only_updated = [p for block, p in self.updated.items() if p is not self.blocks.get(block)]
        self._updated_of = _by_tensor(self.updated)
        self._present: Counter[Block] = Counter()
        self._taken = self._summed_blocks(program)
        self._filled = {
            step.id: [block for block in self._gathered if _overlaps(block, step.parts)]
            for step in program.steps
            if isinstance(step, GatherParameters)
        }
        self._landings = self._landing_blocks(program)
        # What others may still be writing to.
        self._landing: set[Block] = set()

    def _new(self, block: Block, fetch: Fetch | None) -> nn.Parameter:
        """A parameter with content, or with a shape alone."""
        stored = self._graph.tensors[block.tensor]
        if fetch is None:
            shape = [stop - start for start, stop in block.box]
            content = torch.empty(shape, dtype=getattr(torch, stored.dtype), device=self._device)
            content.untyped_storage().resize_(0)
        else:
            content = fetch(block).detach().to(self._device).contiguous().clone()
        return nn.Parameter(content, requires_grad=stored.requires_grad)

    def _updated(self, block: Block) -> nn.Parameter:
        """What the optimizer updates: something kept, or a view of it."""
        return self.kept[block] if block in self.kept else nn.Parameter(self._stored.read(block))

    def _summed_blocks(self, program: RankProgram) -> dict[int, list[tuple[nn.Parameter, bool]]]:
        """Whose gradients each `ScatterGradients` takes, by its id: each with whether it takes all of it."""
        held = _by_tensor(self.blocks)
        found: dict[int, list[tuple[nn.Parameter, bool]]] = {}
        for step in program.steps:
            if not isinstance(step, ScatterGradients):
                continue
            parts = list(chain(*step.parts))
            for block, parameter in chain(*(held[t] for t in dict.fromkeys(part.tensor for part in parts))):
                shares = (common(block.box, part.box) for part in parts if part.tensor == block.tensor)
                taken = sum(num_elements(share) for share in shares)
                if taken:
                    found.setdefault(step.id, []).append((parameter, taken == num_elements(block.box)))
        return found

    def _landing_blocks(self, program: RankProgram) -> dict[int, Block]:
        """By the id of each gather whose parts follow each other in memory, the block that they make up."""
        found: dict[int, Block] = {}
        for step in program.steps:
            block = in_order(step.parts) if isinstance(step, GatherParameters) else None
            if isinstance(step, GatherParameters) and block is not None and self._arriving.holds(block):
                filled = self._filled[step.id]
                if filled in ([], [block]) and self._arriving.read(block).is_contiguous():
                    found[step.id] = block
        return found

    # What tasks read.

    def content(self, block: Block, wanted: bool) -> Tensor | None:
        """A block as tasks read it in every iteration; None where it must be entered each time.

        Args:
            block: What they read.
            wanted: Whether they give a gradient to it.
        """
        parameter = self.blocks.get(block)
        if parameter is not None:
            return parameter if wanted else parameter.detach()
        trained = wanted and self._graph.tensors[block.tensor].requires_grad
        return self._part(block) if self._read.holds(block) and not trained else None

    def entered(self, block: Block) -> Tensor:
        """A block that is not held as it is, in a task's graph."""
        content = self._part(block)
        if not (torch.is_grad_enabled() and self._graph.tensors[block.tensor].requires_grad):
            return content
        return enter(content, lambda gradient: self._gradients.add(block, gradient))

    def _part(self, block: Block) -> Tensor:
        if num_elements(block.box):
            return self._read.read(block)
        shape = [stop - start for start, stop in block.box]
        dtype: torch.dtype = getattr(torch, self._graph.tensors[block.tensor].dtype)
        return torch.zeros(shape, dtype=dtype, device=self._device)

    # What is kept.

    def read(self, block: Block) -> Tensor:
        """The content of a block that is kept."""
        return self._stored.read(block)

    def write(self, block: Block, content: Tensor) -> None:
        """Overwrites what is kept of a block."""
        self._stored.write(block, content)

    # Gradients.

    def clear(self) -> None:
        """Forgets all gradients: they are zero; and what an interrupted iteration may have left."""
        self._gradients.clear()
        for parameter in self._only_updated:
            parameter.grad = None
        for block in self._present:
            if block not in self._landing:
                self.blocks[block].untyped_storage().resize_(0)
        self._present.clear()

    def fill(self) -> None:
        """Completes the gradients of all that is updated; what nothing contributed to has zeros."""
        for block, parameter in self.updated.items():
            if parameter.grad is None:
                known = self._gradients.known(block) if block not in self.blocks else None
                parameter.grad = torch.zeros_like(parameter) if known is None else known

    def gradient(self, block: Block) -> Tensor:
        """The gradient of a block that this rank holds, or of its own part where state is sharded."""
        self.fill()
        return self._gradient(block)

    def squared_norm(self, blocks: Iterable[Block]) -> Tensor:
        """The sum of the squares of the gradients of some blocks, float64."""
        self.fill()
        squares = [torch.linalg.vector_norm(self._gradient(block)).double().square() for block in blocks]
        return torch.stack([torch.zeros((), dtype=torch.float64, device=self._device), *squares]).sum()

    def _gradient(self, block: Block) -> Tensor:
        parts = [(b, p, common(b.box, block.box)) for b, p in self._updated_of.get(block.tensor, ())]
        parts = [(b, p, shared) for b, p, shared in parts if num_elements(shared)]
        if sum(num_elements(shared) for _, _, shared in parts) < num_elements(block.box):
            return self._gradients.read(block)
        contents = [_gradient_of(p)[inside(shared, b.box)] for b, p, shared in parts]
        if len(contents) == 1:
            return contents[0]
        whole = contents[0].new_empty([stop - start for start, stop in block.box])
        for (_, _, shared), content in zip(parts, contents, strict=True):
            whole[inside(shared, block.box)] = content
        return whole

    def whole_gradients(self, cells: tuple[Block, ...]) -> list[Tensor]:
        """The gradients of some cells."""
        return self._gradients.read_all(cells)

    def enter_gradients(self, cells: tuple[Block, ...], totals: Sequence[Tensor]) -> None:
        """Overwrites the gradients of some cells; `totals` may be kept."""
        self._gradients.write_all(cells, totals)

    # Sharded state.

    def summands(self, step: ScatterGradients) -> list[Tensor]:
        """This rank's gradients of the parts of all ranks, which it then has no longer."""
        parts, taken = list(chain(*step.parts)), self._taken[step.id]
        found = [self._gradients.read(part) for part in parts]
        if not all(whole for _, whole in taken):
            found = [gradient.clone() for gradient in found]
            self._gradients.write_zeros(parts)
        for parameter, whole in taken:
            if whole:
                parameter.grad = None
        return found

    def enter_sums(self, step: ScatterGradients, totals: Sequence[Tensor]) -> None:
        """Adds the sums of the gradients of its own parts, which may be kept."""
        for part, total in zip(self._own(step), totals, strict=True):
            for block, parameter in self._updated_of[part.tensor]:
                shared = common(block.box, part.box)
                if num_elements(shared):
                    own = total if shared == part.box else total[inside(shared, part.box)]
                    parameter.grad = own if parameter.grad is None else parameter.grad.add_(own)

    def given(self, step: GatherParameters) -> list[Tensor]:
        """The content of its own parts."""
        return [self._stored.read(part) for part in self._own(step)]

    def enter_gathered(self, step: GatherParameters, contents: Sequence[Tensor]) -> None:
        """Takes the content of the parts of all ranks."""
        self._make_room(step)
        parts = [(rank, part) for rank, parts in zip(step.group, step.parts, strict=True) for part in parts]
        for (rank, part), content in zip(parts, contents, strict=True):
            if rank != self._rank or self._filled[step.id]:
                self._arriving.write(part, content)

    def _make_room(self, step: GatherParameters) -> None:
        for block in self._filled[step.id]:
            self._present[block] += 1
            storage, parameter = self.blocks[block].untyped_storage(), self.blocks[block]
            if not storage.nbytes():
                storage.resize_(parameter.numel() * parameter.itemsize)

    def landing(self, step: GatherParameters) -> Tensor | None:
        """Where a gather may write what ranks give, a row each; that of this rank is there."""
        block, filled = self._landings.get(step.id), self._filled[step.id]
        if block is None or any(self._present[held] for held in filled):
            # What is there for another micro-batch is not written to while tasks read it.
            return None
        self._make_room(step)
        self._landing.update(filled)
        rows = self._arriving.read(block).view(len(step.group), -1)
        if filled:
            (own,) = self.given(step)
            rows[step.group.index(self._rank)] = own.reshape(-1)
        return rows

    def landed(self, step: GatherParameters) -> None:
        """All rows are there."""
        self._landing.difference_update(self._filled[step.id])

    def release(self, step: ReleaseParameters) -> None:
        """Gives up what was gathered, unless it was gathered for another micro-batch, too."""
        for block in step.blocks:
            self._present[block] -= 1
            if not self._present[block]:
                self.blocks[block].untyped_storage().resize_(0)

    def _own(self, step: ScatterGradients | GatherParameters) -> tuple[Block, ...]:
        return step.parts[step.group.index(self._rank)]


def _gathered(program: RankProgram) -> frozenset[Block]:
    """The blocks of a rank that it gathers."""
    parts = [
        part
        for step in program.steps
        if isinstance(step, GatherParameters)
        for parts in step.parts
        for part in parts
    ]
    found = _by_tensor(dict.fromkeys(program.parameters))
    return frozenset(
        block for part in parts for block, _ in found[part.tensor] if _overlaps(block, ((part,),))
    )


def _overlaps(block: Block, parts: Iterable[Iterable[Block]]) -> bool:
    """Whether any of the parts of any rank has elements of a block."""
    return any(
        part.tensor == block.tensor and num_elements(common(part.box, block.box)) > 0
        for own in parts
        for part in own
    )


def _gradient_of(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "gradients are filled first"
    return parameter.grad


def _by_tensor(blocks: Mapping[Block, Content]) -> dict[int, list[tuple[Block, Content]]]:
    found: dict[int, list[tuple[Block, Content]]] = {}
    for block, content in blocks.items():
        found.setdefault(block.tensor, []).append((block, content))
    return found
