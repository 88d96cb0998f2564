"""Local content by box: parameters and inputs as blocks, regions made of pieces, gradients being summed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from soaprl.graph.operators import OperatorGraph
from soaprl.graph.operators import Tensor as StoredTensor
from soaprl.runtime.boxes import common, inside, num_elements
from soaprl.runtime.program import Block, Box, Piece, Read
from soaprl.runtime.reference import combined


class BlockStore:
    """Blocks of tensors, in refined coordinates."""

    def __init__(self) -> None:
        self._held: dict[int, list[tuple[Box, Tensor]]] = {}

    def put(self, block: Block, content: Tensor) -> None:
        """Keeps `content`, whose shape is that of the block."""
        shape = tuple(stop - start for start, stop in block.box)
        assert tuple(content.shape) == shape, f"expected the block {shape}, found {tuple(content.shape)}"
        self._held.setdefault(block.tensor, []).append((block.box, content))

    def overlapping(self, block: Block) -> Iterator[tuple[Box, Tensor]]:
        """The held content of `block`: boxes, and views of what is held."""
        for box, content in self._held.get(block.tensor, ()):
            shared = common(box, block.box)
            if num_elements(shared):
                yield shared, content[inside(shared, box)]

    def read(self, block: Block) -> Tensor:
        """The content of `block`: a view where one held block has all of it, else put together."""
        for box, content in self._held.get(block.tensor, ()):
            if common(box, block.box) == block.box:
                return content[inside(block.box, box)]
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

    def add(self, block: Block, content: Tensor) -> None:
        """Adds to `block`, all of which is held."""
        for shared, view in self.overlapping(block):
            view.add_(content[inside(shared, block.box)])


@dataclass(frozen=True, slots=True)
class Assembled:
    """Of what pieces a region was made, without its content.

    Attributes:
        pieces: The pieces, with the box that each gives.
        graph: For parts that are combined other than by sum, the combination as a function of what each piece
            gives; else None: the gradient of each is that of its box.
    """

    pieces: tuple[tuple[Piece, Box], ...]
    graph: tuple[Tensor, list[Tensor]] | None

    def gradients(self, gradient: Tensor, box: Box) -> Iterator[tuple[Piece, Box, Tensor]]:
        """What each piece gets of the gradient of the region `box`: piece, box, gradient."""
        if self.graph is not None:
            whole, parts = self.graph
            found = torch.autograd.grad(whole, parts, gradient, retain_graph=True)
            for (piece, shared), part in zip(self.pieces, found, strict=True):
                yield piece, shared, part
            return
        for piece, shared in self.pieces:
            yield piece, shared, gradient[inside(shared, box)]


def assemble(
    stored: StoredTensor, read: Read, contents: Sequence[Tensor], how: str, device: torch.device
) -> tuple[Tensor, Assembled]:
    """The region of `read`, and how to take its gradient apart.

    Args:
        stored: The tensor.
        read: Which region, and of which pieces.
        contents: The pieces.
        how: How partial results are combined, as in `Access.combine`.
        device: Where an empty region is made.
    """
    pairs = tuple((piece, common(piece.box, read.box)) for piece in read.pieces)
    given = [
        content[inside(shared, piece.box)] for (piece, shared), content in zip(pairs, contents, strict=True)
    ]
    partial = how != "sum" and len({shared for _, shared in pairs}) < len(pairs)
    if not (partial and read.gradient):
        return _joined(stored, read.box, pairs, given, how, device), Assembled(pairs, None)
    with torch.enable_grad():
        leaves = [part.detach().requires_grad_() for part in given]
        whole = _joined(stored, read.box, pairs, leaves, how, device)
    return whole.detach(), Assembled(pairs, (whole, leaves))


def _joined(
    stored: StoredTensor,
    box: Box,
    pairs: tuple[tuple[Piece, Box], ...],
    given: list[Tensor],
    how: str,
    device: torch.device,
) -> Tensor:
    groups: dict[Box, list[Tensor]] = {}
    for (_, shared), part in zip(pairs, given, strict=True):
        groups.setdefault(shared, []).append(part)
    if len(groups) == 1 and box in groups:
        return combined(groups[box], how)
    dtype: torch.dtype = getattr(torch, stored.dtype)
    whole = torch.zeros([max(0, stop - start) for start, stop in box], dtype=dtype, device=device)
    for shared, parts in groups.items():
        whole[inside(shared, box)] = combined(parts, how)
    return whole


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


def blocks_of(graph: OperatorGraph, tensors: Mapping[int, Tensor]) -> Callable[[Block], Tensor]:
    """Gives blocks of whole tensors, by index in the graph."""

    def fetch(block: Block) -> Tensor:
        shape = graph.tensors[block.tensor].refined_shape
        whole = tensors[block.tensor].reshape(shape)
        return whole[inside(block.box, tuple((0, extent) for extent in shape))]

    return fetch
