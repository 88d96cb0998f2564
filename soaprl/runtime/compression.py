"""Gradients in fewer bits while a group of ranks sums them.

A gradient is cut into a row for each rank of the group. Each rank sends every other its row, encoded; each
adds the rows that it gets, in the order of ranks, and, if all want the whole sum, sends its part of it,
encoded, to all. So all ranks have the same sum, to the last bit, and each sends as much as for an all-reduce
of that size.

Formats are those of `soaprl.cost.compression`. Each row has a scale of its own. For ``fp16`` and ``bf16`` it
is a power of two, so that nothing overflows. Integers count steps between zero and the row's largest
magnitude, and are rounded at random to one of the two neighbours, so that the expectation is exact (Alistarh
et al.: QSGD, NeurIPS 2017; with one step, ``ternary``, Wen et al.: TernGrad, NeurIPS 2017). A row with
anything that is no finite number is decoded as NaN alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from soaprl.cost.compression import find_compression
from soaprl.runtime.boxes import num_elements
from soaprl.runtime.program import Block, ReduceGradients, ScatterGradients
from soaprl.runtime.sharding import own_parts

SumsGradients: TypeAlias = ReduceGradients | ScatterGradients
# The scale of a row; rows have multiples of it, so that the next scale is aligned.
_HEAD_BYTES = 8
_FLOATS = {"fp16": torch.float16, "bf16": torch.bfloat16}
# The largest magnitude is brought below two to this power, the last below what float16 overflows at.
_EXPONENT = 15
_LEVELS = {"int8": 127, "ternary": 1}
_CODES_PER_BYTE = 4


def shortens(how: str, dtype: torch.dtype) -> bool:
    """Whether gradients of a type are encoded: compression never enlarges one."""
    compression = find_compression(how)
    return compression.active and compression.bits_of(dtype.itemsize) < 8 * dtype.itemsize


def summed_blocks(step: SumsGradients) -> tuple[Block, ...]:
    """What is summed, of one data type."""
    if isinstance(step, ReduceGradients):
        return step.cells
    return tuple(part for own in step.parts for part in own)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCodec:
    """Rows of numbers in a format.

    Attributes:
        how: The format; not ``none``.
        num_elements: Of a row.
        dtype: Of the numbers.
    """

    how: str
    num_elements: int
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Size of an encoded row."""
        bits = find_compression(self.how).bits_of(self.dtype.itemsize)
        size = _HEAD_BYTES + -(-self.num_elements * bits // 8)
        return -(-size // _HEAD_BYTES) * _HEAD_BYTES

    def encode(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Rows [n, elements] as bytes [n, row_bytes]; the generator decides how integers are rounded."""
        encoded = torch.zeros(len(rows), self.row_bytes, dtype=torch.uint8, device=rows.device)
        largest = rows.abs().amax(1, keepdim=True)
        scale = self._scale(largest.double())
        encoded[:, :_HEAD_BYTES].view(torch.float64).copy_(scale)
        # What is not finite makes the scale NaN; codes of NaN would be undefined.
        scaled = (rows / scale.to(self.dtype)).nan_to_num_(0.0)
        if self.how in _FLOATS:
            codes = scaled.to(_FLOATS[self.how]).view(torch.uint8)
        else:
            levels = _LEVELS[self.how]
            draws = torch.rand(rows.shape, generator=generator, dtype=self.dtype, device=rows.device)
            codes = (scaled + draws).floor_().clamp_(-levels, levels).to(torch.int8)
            codes = _packed(codes) if self.how == "ternary" else codes.view(torch.uint8)
        encoded[:, _HEAD_BYTES : _HEAD_BYTES + codes.shape[1]] = codes
        return encoded

    def decode(self, encoded: Tensor) -> Tensor:
        """What bytes [n, row_bytes] stand for, [n, elements]."""
        scale = encoded[:, :_HEAD_BYTES].view(torch.float64)
        codes = encoded[:, _HEAD_BYTES:]
        if self.how in _FLOATS:
            numbers = codes.view(_FLOATS[self.how])
        else:
            numbers = _unpacked(codes) if self.how == "ternary" else codes.view(torch.int8)
        return numbers[:, : self.num_elements].to(self.dtype) * scale.to(self.dtype)

    def _scale(self, largest: Tensor) -> Tensor:
        if self.how in _FLOATS:
            exponent = torch.frexp(largest).exponent
            scale = torch.ldexp(torch.ones_like(largest), exponent - _EXPONENT)
        else:
            scale = largest / _LEVELS[self.how]
        # Neither may a scale be 0, nor be lost where it is rounded to the type of the numbers.
        scale = scale.clamp(min=torch.finfo(self.dtype).tiny)
        return torch.where(largest.isfinite(), scale, torch.nan)


def _packed(codes: Tensor) -> Tensor:
    """Codes -1, 0 and 1, four a byte."""
    padded = functional.pad(codes + 1, (0, -codes.shape[1] % _CODES_PER_BYTE)).to(torch.uint8)
    fours = padded.view(len(codes), -1, _CODES_PER_BYTE)
    return fours[..., 0] | fours[..., 1] << 2 | fours[..., 2] << 4 | fours[..., 3] << 6


def _unpacked(encoded: Tensor) -> Tensor:
    fours = torch.stack([encoded >> shift & 3 for shift in (0, 2, 4, 6)], dim=2)
    return fours.view(len(encoded), -1).to(torch.int8) - 1


class EncodedSum:
    """One rank's part in the sum of a gradient over a group.

    Args:
        step: What is summed.
        contributions: What this rank gives to it.
        how: The format.
        rank: The rank.
        seed: Of the iteration; ranks and steps draw from streams of their own.

    Attributes:
        sent: The encoded rows of all ranks of the group, in its order.
    """

    def __init__(
        self, step: SumsGradients, contributions: Sequence[Tensor], how: str, *, rank: int, seed: int
    ) -> None:
        self._step, self._rank, self._seed = step, rank, seed
        self._shapes = [content.shape for content in contributions]
        rows = _rows(step, contributions)
        self._codec = RowCodec(how=how, num_elements=rows.shape[1], dtype=rows.dtype)
        self.sent = self._codec.encode(rows, self._generator(rows.device, "rows"))

    def added(self, received: Tensor) -> Tensor:
        """The sum of this rank's rows, which all ranks sent; [elements of a row]."""
        return self._codec.decode(received).sum(0)

    def encoded(self, total: Tensor) -> Tensor:
        """What `added` gave, to be sent to all; [1, row_bytes]."""
        return self._codec.encode(total[None], self._generator(total.device, "sums"))

    def totals(self, received: Tensor) -> list[Tensor]:
        """The sums of all that the ranks contributed, from what all ranks `encoded`."""
        return _cut(self._codec.decode(received).view(-1), self._shapes)

    def own_totals(self, total: Tensor) -> list[Tensor]:
        """The sums of this rank's parts of a `ScatterGradients`, from what `added` gave."""
        assert isinstance(self._step, ScatterGradients), "others want the whole sum"
        return _cut(total, self._shapes[own_parts(self._step, self._rank)])

    def _generator(self, device: torch.device, what: Literal["rows", "sums"]) -> torch.Generator:
        stream = random.Random(f"{self._seed} {self._step.id} {self._rank} {what}")
        return torch.Generator(device).manual_seed(stream.getrandbits(63))


def _rows(step: SumsGradients, contributions: Sequence[Tensor]) -> Tensor:
    """A row for each rank of the group, as long as the longest, filled up with zeros."""
    flat = [content.reshape(-1) for content in contributions]
    if isinstance(step, ScatterGradients):
        whole = torch.cat(flat)
        sizes = [sum(map(num_elements, (part.box for part in own))) for own in step.parts]
        rows = [functional.pad(row, (0, max(sizes) - len(row))) for row in torch.split(whole, sizes)]
        return torch.stack(rows)
    whole = torch.cat(flat)
    return functional.pad(whole, (0, -len(whole) % len(step.group))).view(len(step.group), -1)


def _cut(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Tensors of these shapes, which follow each other in `flat`: views."""
    ends = list(accumulate(shape.numel() for shape in shapes))
    return [
        flat[first:last].view(shape) for first, last, shape in zip([0, *ends], ends, shapes, strict=False)
    ]
