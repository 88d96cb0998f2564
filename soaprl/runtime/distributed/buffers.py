"""Packed buffers: pieces of a message, or summands of a reduction, one after the other."""

from collections.abc import Sequence
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.boxes import num_elements
from soaprl.runtime.program import Block, Message

# Every piece begins where any data type may.
_ALIGNMENT = 16


class MessageBuffer:
    """The packed content of one message.

    Args:
        graph: The operators.
        message: What is packed.
        device: Where.

    Attributes:
        packed: All bytes.
        pieces: The pieces, each flat: views of `packed`.
    """

    def __init__(self, graph: OperatorGraph, message: Message, device: torch.device) -> None:
        starts, end = [], 0
        for piece in message.pieces:
            starts.append(end)
            size = num_elements(piece.box) * graph.tensors[piece.tensor].itemsize
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        self.packed = torch.empty(end, dtype=torch.uint8, device=device)
        self.pieces = []
        for piece, start in zip(message.pieces, starts, strict=True):
            stored = graph.tensors[piece.tensor]
            size = num_elements(piece.box) * stored.itemsize
            dtype: torch.dtype = getattr(torch, stored.dtype)
            self.pieces.append(self.packed[start : start + size].view(dtype))

    def pack(self, contents: Sequence[Tensor]) -> None:
        """Copies the content of all pieces."""
        for piece, content in zip(self.pieces, contents, strict=True):
            piece.copy_(content)


class SumBuffer:
    """The summands of one reduction, one flat buffer for each data type.

    Args:
        like: Tensors of the shapes and types of the summands.
        device: Where.

    Attributes:
        packed: What is summed over ranks.
        summands: Views of `packed`, in the shapes of `like`.
    """

    def __init__(self, like: Sequence[Tensor], device: torch.device) -> None:
        self.packed: list[Tensor] = []
        views: dict[int, Tensor] = {}
        for dtype in dict.fromkeys(tensor.dtype for tensor in like):
            chosen = [k for k, tensor in enumerate(like) if tensor.dtype == dtype]
            flat = torch.empty(sum(like[k].numel() for k in chosen), dtype=dtype, device=device)
            start = 0
            for k in chosen:
                views[k] = flat[start : start + like[k].numel()].view(like[k].shape)
                start += prod(like[k].shape)
            self.packed.append(flat)
        self.summands = [views[k] for k in range(len(like))]

    def pack(self, contents: Sequence[Tensor]) -> None:
        """Copies all summands."""
        torch._foreach_copy_(self.summands, list(contents))


class PartsBuffer:
    """Parts of parameter cells, those of each rank one after the other, and as far from one rank to the next.

    Args:
        graph: The operators.
        parts: The parts of each rank, of one data type.
        device: Where.

    Attributes:
        packed: All parts, shape [ranks, elements of the rank that has most].
        contents: The parts of all ranks, one after the other: views of `packed`.
    """

    def __init__(self, graph: OperatorGraph, parts: Sequence[Sequence[Block]], device: torch.device) -> None:
        sizes = [sum(num_elements(part.box) for part in own) for own in parts]
        dtype: torch.dtype = getattr(torch, graph.tensors[next(p for own in parts for p in own).tensor].dtype)
        self.packed = torch.empty(len(parts), max(sizes), dtype=dtype, device=device)
        for row, size in zip(self.packed, sizes, strict=True):
            # What nobody has is summed, too, so that it must be numbers.
            row[size:].zero_()
        self.contents = [
            view for row, own in zip(self.packed, parts, strict=True) for view in shaped(row, own)
        ]


def shaped(flat: Tensor, parts: Sequence[Block]) -> list[Tensor]:
    """Parts that follow each other in `flat`: views, each in its shape."""
    ends = list(accumulate(num_elements(part.box) for part in parts))
    return [
        flat[first:last].view([stop - start for start, stop in part.box])
        for first, last, part in zip([0, *ends], ends, parts, strict=False)
    ]


def in_a_row(contents: Sequence[Tensor]) -> Tensor | None:
    """Tensors of one size that follow each other in memory, as one: shape [tensors, elements of each].

    None for others.
    """
    first = contents[0]
    size, start = first.numel(), first.data_ptr()
    for number, content in enumerate(contents):
        together = content.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        follows = content.data_ptr() == start + number * size * first.itemsize
        if not (together and follows and content.numel() == size and content.is_contiguous()):
            return None
    return first.as_strided((len(contents), size), (size, 1))
