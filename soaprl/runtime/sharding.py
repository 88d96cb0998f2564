"""Sharded state: which part of each parameter cell each of its holders keeps.

See `soaprl.strategy.strategy.Sharding`. A part is a box, so that all that knows boxes (gradients, optimizers
that tell matrices from vectors, checkpoints) knows parts. A cell of n holders is cut along one dimension into
n parts, of which the first have one index more where the extent is not divisible: the dimension by which the
largest part is smallest, the first of equal ones.

Under ``zero1`` and ``zero2`` holders keep parts of what is trained; under ``zero3`` of all parameters.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from soaprl.graph.factors import part_bounds
from soaprl.runtime.boxes import common, num_elements
from soaprl.runtime.cells import Cell
from soaprl.runtime.program import Block, ScatterGradients
from soaprl.strategy.strategy import Sharding


def cell_parts(cell: Cell) -> tuple[Block | None, ...]:
    """The part of each holder of a cell, in their order; None for nothing."""
    box, n = cell.block.box, len(cell.holders)
    if not box:
        return (cell.block, *[None] * (n - 1))
    extents = [stop - start for start, stop in box]
    cut = min(range(len(box)), key=lambda d: -(-extents[d] // n) * (num_elements(box) // extents[d]))
    parts: list[Block | None] = []
    for number in range(n):
        first, last = part_bounds(extents[cut], n, number)
        start = box[cut][0]
        part = (*box[:cut], (start + first, start + last), *box[cut + 1 :])
        parts.append(Block(tensor=cell.block.tensor, box=part) if first < last else None)
    return tuple(parts)


def is_sharded(cell: Cell, sharding: Sharding, trained: set[int]) -> bool:
    """Whether the holders of a cell keep parts of it; `trained` are the tensors that are updated."""
    kept_in_parts = sharding.level > 0 and (sharding is Sharding.ZERO3 or cell.block.tensor in trained)
    return kept_in_parts and len(cell.holders) > 1


def parts_by_holder(cells: Sequence[Cell]) -> tuple[tuple[Block, ...], ...]:
    """For each holder of some cells, which all have the same, its parts of them."""
    cut = [cell_parts(cell) for cell in cells]
    return tuple(
        tuple(part for parts in cut if (part := parts[place]) is not None)
        for place in range(len(cells[0].holders))
    )


def own_parts(step: ScatterGradients, rank: int) -> slice:
    """Which of the parts of all ranks of a step, one after the other, are those of a rank."""
    place = step.group.index(rank)
    first = sum(map(len, step.parts[:place]))
    return slice(first, first + len(step.parts[place]))


def in_order(parts: Sequence[Sequence[Block]]) -> Block | None:
    """The block that parts make up which follow each other in its memory, one of each rank and equally large.

    What is gathered into such a block, or scattered from it, need not be packed. None for other parts.
    """
    if any(len(own) != 1 for own in parts):
        return None
    boxes = [own[0].box for own in parts]
    cut = [d for d, sides in enumerate(zip(*boxes, strict=True)) if len(set(sides)) > 1]
    if len({own[0].tensor for own in parts}) > 1 or len(cut) != 1:
        return None
    (d,) = cut
    extents = {box[d][1] - box[d][0] for box in boxes}
    follow = all(before[d][1] == after[d][0] for before, after in pairwise(boxes))
    if len(extents) > 1 or not follow or num_elements(boxes[0][:d]) > 1:
        return None
    whole = (*boxes[0][:d], (boxes[0][d][0], boxes[-1][d][1]), *boxes[0][d + 1 :])
    return Block(tensor=parts[0][0].tensor, box=whole)


def owned_blocks(
    cells: Iterable[Cell], sharding: Sharding, trained: set[int], num_ranks: int
) -> list[tuple[Block, ...]]:
    """For each rank, what it owns: its parts of sharded cells, and others whole if it is the first holder."""
    owned: list[list[Block]] = [[] for _ in range(num_ranks)]
    for cell in cells:
        if not is_sharded(cell, sharding, trained):
            owned[cell.holders[0]].append(cell.block)
            continue
        for rank, part in zip(cell.holders, cell_parts(cell), strict=True):
            if part is not None:
                owned[rank].append(part)
    return [tuple(blocks) for blocks in owned]


def within(owned: Iterable[Block], held: Iterable[Block]) -> tuple[Block, ...]:
    """What is owned, cut by the blocks that it is held in, which optimizers update as views."""
    by_tensor: dict[int, list[Block]] = {}
    for block in held:
        by_tensor.setdefault(block.tensor, []).append(block)
    found = []
    for block in owned:
        for other in by_tensor[block.tensor]:
            box = common(block.box, other.box)
            if num_elements(box):
                found.append(Block(tensor=block.tensor, box=box))
    return tuple(found)
