"""Local content by box: parameters and inputs as blocks, regions made of pieces, gradients being summed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from soaprl.graph.operators import OperatorGraph
from soaprl.graph.operators import Tensor as StoredTensor
from soaprl.runtime.boxes import common, inside, num_elements
from soaprl.runtime.program import Block, Box, Piece, Read
from soaprl.runtime.reference import combined

# Gives the content of a block of a graph input, parameter or buffer, in refined coordinates.
Fetch: TypeAlias = Callable[[Block], Tensor]


class BlockStore:
    """Blocks of tensors, in refined coordinates."""

    def __init__(self) -> None:
        self._held: dict[int, list[tuple[Box, Tensor]]] = {}
        self._views: dict[Block, Tensor] = {}

    def put(self, block: Block, content: Tensor) -> None:
        """Keeps `content`, whose shape is that of the block."""
        shape = tuple(stop - start for start, stop in block.box)
        assert tuple(content.shape) == shape, f"expected the block {shape}, found {tuple(content.shape)}"
        self._held.setdefault(block.tensor, []).append((block.box, content))
        self._views[block] = content

    def holds(self, block: Block) -> bool:
        """Whether one held block has all of `block`, so that `read` gives a view."""
        return any(common(box, block.box) == block.box for box, _ in self._held.get(block.tensor, ()))

    def overlapping(self, block: Block) -> Iterator[tuple[Box, Tensor]]:
        """The held content of `block`: boxes, and views of what is held."""
        for box, content in self._held.get(block.tensor, ()):
            shared = common(box, block.box)
            if num_elements(shared):
                yield shared, content[inside(shared, box)]

    def read(self, block: Block) -> Tensor:
        """The content of `block`: a view where one held block has all of it, else put together."""
        known = self._views.get(block)
        if known is not None:
            return known
        for box, content in self._held.get(block.tensor, ()):
            if common(box, block.box) == block.box:
                found = self._views[block] = content[inside(block.box, box)]
                return found
        held = self._held.get(block.tensor)
        assert held, f"tensor {block.tensor} is not held"
        whole = held[0][1].new_empty([stop - start for start, stop in block.box])
        filled = 0
        for shared, view in self.overlapping(block):
            whole[inside(shared, block.box)] = view
            filled += view.numel()
        assert filled == whole.numel(), f"not all of {block} is held"
        return whole

    def write(self, block: Block, content: Tensor) -> None:
        """Overwrites `block`, all of which is held."""
        for shared, view in self.overlapping(block):
            view.copy_(content[inside(shared, block.box)])


class ParameterGradients:
    """The gradients of the blocks of parameters that a rank trains, while summands arrive.

    They are kept as ``grad`` of the parameters, where optimizers look for them, and where PyTorch itself adds
    up what tasks give that read a block as it is held.

    Args:
        parameters: The parameters, by block.
    """

    def __init__(self, parameters: Mapping[Block, nn.Parameter]) -> None:
        self._held: dict[int, list[tuple[Box, nn.Parameter]]] = {}
        for block, parameter in parameters.items():
            if parameter.requires_grad:
                self._held.setdefault(block.tensor, []).append((block.box, parameter))
        self._trained = [parameter for held in self._held.values() for _, parameter in held]
        self._overlaps: dict[Block, list[tuple[Box, Box, nn.Parameter]]] = {}
        self._wholes: dict[int, tuple[tuple[Block, ...], tuple[nn.Parameter, ...] | None]] = {}

    def clear(self) -> None:
        """Forgets all gradients: they are zero."""
        for parameter in self._trained:
            parameter.grad = None

    def known(self, block: Block) -> Tensor | None:
        """The gradient of a part of one held block: a view; None for zero."""
        ((shared, box, parameter),) = self._overlapping(block)
        return None if parameter.grad is None else parameter.grad[inside(shared, box)]

    def _overlapping(self, block: Block) -> list[tuple[Box, Box, nn.Parameter]]:
        """The held blocks that have a part of `block`: what they share, their box, their parameter."""
        if block not in self._overlaps:
            pairs = [(common(box, block.box), box, p) for box, p in self._held.get(block.tensor, ())]
            self._overlaps[block] = [(shared, box, p) for shared, box, p in pairs if num_elements(shared)]
        return self._overlaps[block]

    def add(self, block: Block, content: Tensor) -> None:
        """Adds to the gradient of `block`, all of which is held."""
        for shared, box, parameter in self._overlapping(block):
            _gradient_of(parameter)[inside(shared, box)].add_(content[inside(shared, block.box)])

    def read_all(self, cells: tuple[Block, ...]) -> list[Tensor]:
        """The gradients of some cells."""
        held = self._held_as(cells)
        return [self.read(cell) for cell in cells] if held is None else [_gradient_of(p) for p in held]

    def write_all(self, cells: tuple[Block, ...], contents: Sequence[Tensor]) -> None:
        """Overwrites the gradients of some cells; they may keep `contents` until they are cleared."""
        held = self._held_as(cells)
        if held is None:
            for cell, content in zip(cells, contents, strict=True):
                self.write(cell, content)
        else:
            for parameter, content in zip(held, contents, strict=True):
                parameter.grad = content

    def _held_as(self, cells: tuple[Block, ...]) -> tuple[nn.Parameter, ...] | None:
        """The parameters that cells are, if each is one; worked out once."""
        if id(cells) not in self._wholes:
            found = [self._overlapping(cell) for cell in cells]
            each = all(len(o) == 1 and o[0][0] == o[0][1] == c.box for o, c in zip(found, cells, strict=True))
            # The cells are kept, so that their id stays their own.
            self._wholes[id(cells)] = (cells, tuple(o[0][2] for o in found) if each else None)
        return self._wholes[id(cells)][1]

    def write_zeros(self, blocks: Iterable[Block]) -> None:
        """Sets the gradients of `blocks` to zero."""
        for block in blocks:
            for shared, box, parameter in self._overlapping(block):
                _gradient_of(parameter)[inside(shared, box)] = 0

    def read(self, block: Block) -> Tensor:
        """The gradient of `block`: itself where one parameter has all of it, else put together."""
        overlapping = self._overlapping(block)
        if len(overlapping) == 1 and overlapping[0][0] == block.box:
            ((shared, box, parameter),) = overlapping
            gradient = _gradient_of(parameter)
            return gradient if shared == box else gradient[inside(shared, box)]
        assert overlapping, f"tensor {block.tensor} is not held"
        whole = overlapping[0][2].new_empty([stop - start for start, stop in block.box])
        for shared, box, parameter in overlapping:
            whole[inside(shared, block.box)] = _gradient_of(parameter)[inside(shared, box)]
        return whole

    def write(self, block: Block, content: Tensor) -> None:
        """Overwrites the gradient of `block`, which may keep `content` as it is until it is cleared."""
        for shared, box, parameter in self._overlapping(block):
            part = content if shared == block.box else content[inside(shared, block.box)]
            if shared == box and part.is_contiguous() and part.dtype == parameter.dtype:
                parameter.grad = part
            else:
                _gradient_of(parameter)[inside(shared, box)] = part


def _gradient_of(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


# For parts that are combined other than by sum: the region, as a function of what each piece gives.
Combination: TypeAlias = tuple[Tensor, list[Tensor]]


class Assembly:
    """How a region is made of pieces, and its gradient taken apart.

    Args:
        stored: The tensor.
        read: Which region, and of which pieces.
        how: How partial results are combined, as in `Access.combine`.
    """

    def __init__(self, stored: StoredTensor, read: Read, how: str) -> None:
        self.read = read
        self._how = how
        self._dtype: torch.dtype = getattr(torch, stored.dtype)
        self._pairs = tuple((piece, common(piece.box, read.box)) for piece in read.pieces)
        # What is taken of each piece; None for all of it.
        self._cuts = [None if box == p.box else inside(box, p.box) for p, box in self._pairs]
        self._gradient_cuts = [None if box == read.box else inside(box, read.box) for _, box in self._pairs]
        self._groups: dict[Box, list[int]] = {}
        for number, (_, box) in enumerate(self._pairs):
            self._groups.setdefault(box, []).append(number)
        partial = how != "sum" and len(self._groups) < len(self._pairs)
        self._differentiated = partial and read.gradient

    def assemble(self, contents: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Combination | None]:
        """The region, and what `gradients` needs to take its gradient apart.

        Args:
            contents: The pieces.
            device: Where an empty region is made.
        """
        if not self._differentiated:
            return self.joined(contents, device), None
        given = self._taken(contents)
        with torch.enable_grad():
            leaves = [part.detach().requires_grad_() for part in given]
            whole = self._combined(leaves, device)
        return whole.detach(), (whole, leaves)

    def joined(self, contents: Sequence[Tensor], device: torch.device) -> Tensor:
        """The region as a function of the pieces."""
        return self._combined(self._taken(contents), device)

    def _taken(self, contents: Sequence[Tensor]) -> list[Tensor]:
        return [c if cut is None else c[cut] for c, cut in zip(contents, self._cuts, strict=True)]

    def _combined(self, given: list[Tensor], device: torch.device) -> Tensor:
        if len(self._groups) == 1 and self.read.box in self._groups:
            return combined(given, self._how)
        shape = [max(0, stop - start) for start, stop in self.read.box]
        whole = torch.zeros(shape, dtype=self._dtype, device=device)
        for box, numbers in self._groups.items():
            whole[inside(box, self.read.box)] = combined([given[k] for k in numbers], self._how)
        return whole

    def gradients(
        self, gradient: Tensor, combination: Combination | None
    ) -> Iterator[tuple[Piece, Box, Tensor]]:
        """What each piece gets of the gradient of the region: piece, box, gradient."""
        if combination is not None:
            whole, parts = combination
            found = torch.autograd.grad(whole, parts, gradient, retain_graph=True)
            for (piece, box), part in zip(self._pairs, found, strict=True):
                yield piece, box, part
            return
        for (piece, box), cut in zip(self._pairs, self._gradient_cuts, strict=True):
            yield piece, box, gradient if cut is None else gradient[cut]


class GradientSums:
    """Gradients of pieces, while summands arrive."""

    def __init__(self) -> None:
        self._sums: dict[Piece, Tensor] = {}
        # What autograd returns may be shared with others, so that only sums made here are changed in place.
        self._owned: set[Piece] = set()

    def add(self, piece: Piece, box: Box, gradient: Tensor) -> None:
        """Adds the gradient of the `box` of `piece`."""
        known = self._sums.get(piece)
        if box != piece.box:
            if known is None:
                known = gradient.new_zeros([stop - start for start, stop in piece.box])
            elif piece not in self._owned:
                known = known.clone()
            known[inside(box, piece.box)] += gradient
        elif known is None:
            self._sums[piece] = gradient
            return
        elif piece in self._owned:
            known += gradient
        else:
            known = known + gradient
        self._sums[piece] = known
        self._owned.add(piece)

    def get(self, piece: Piece) -> Tensor | None:
        """The sum so far; None for zero."""
        return self._sums.get(piece)

    def pop(self, piece: Piece) -> Tensor | None:
        """The sum, which is then forgotten; None for zero."""
        self._owned.discard(piece)
        return self._sums.pop(piece, None)

    def __len__(self) -> int:
        return len(self._sums)


def blocks_of(graph: OperatorGraph, tensors: Mapping[int, Tensor]) -> Fetch:
    """Gives blocks of whole tensors, by index in the graph."""

    def fetch(block: Block) -> Tensor:
        shape = graph.tensors[block.tensor].refined_shape
        whole = tensors[block.tensor].reshape(shape)
        return whole[inside(block.box, tuple((0, extent) for extent in shape))]

    return fetch
