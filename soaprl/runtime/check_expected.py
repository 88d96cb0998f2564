"""What a task should read, by the rules of the operators alone: what the checker compares a program with."""

from collections.abc import Collection, Sequence

from soaprl.graph.operators import Access, OperatorGraph
from soaprl.runtime.boxes import common, num_elements
from soaprl.runtime.layout import Regions, Tasks, carries_gradient
from soaprl.runtime.program import SUMMED, Block, Piece, Read


def expected_reads(
    graph: OperatorGraph,
    tasks: Sequence[Tasks],
    operator: int,
    part: int,
    totals: Collection[Piece] = (),
) -> tuple[Read, ...]:
    """What a task reads of each input: every part of it that any task writes, local or delivered.

    Args:
        graph: The operators.
        tasks: The tasks of each.
        operator: Whose task.
        part: Which task.
        totals: Sums that its rank has in the place of all tasks that write their boxes.
    """
    here = tasks[operator].ranks[part]
    reads = []
    for access, boxes in zip(graph.operators[operator].inputs, tasks[operator].inputs, strict=True):
        pieces: list[Piece] = []
        for writer, rank, written in _writers(graph, tasks, access.tensor):
            shared = common(written, boxes[part])
            total = Piece(tensor=access.tensor, part=SUMMED, box=written)
            if num_elements(shared) and total in totals:
                pieces += [] if total in pieces else [total]
            elif num_elements(shared):
                box = written if rank == here else shared
                pieces.append(Piece(tensor=access.tensor, part=writer, box=box))
        flows = carries_gradient(graph, operator, access)
        reads.append(Read(tensor=access.tensor, box=boxes[part], pieces=tuple(pieces), gradient=flows))
    return tuple(reads)


def _writers(
    graph: OperatorGraph, tasks: Sequence[Tasks], tensor: int
) -> list[tuple[int, int, tuple[tuple[int, int], ...]]]:
    """Part, rank and box of each task that writes some of a tensor."""
    producer = graph.producer.get(tensor)
    if producer is None:
        return []
    output = [access.tensor for access in graph.operators[producer].outputs].index(tensor)
    layout = tasks[producer]
    return [
        (part, rank, box)
        for part, (rank, box) in enumerate(zip(layout.ranks, layout.outputs[output], strict=True))
    ]


def expected_partials(graph: OperatorGraph, tasks: Sequence[Tasks], total: Piece) -> dict[int, Piece]:
    """What is summed to `total`, by rank; nothing where that is not the sum of one piece on each rank."""
    outputs = graph.operators[graph.producer[total.tensor]].outputs
    how = next(access.combine for access in outputs if access.tensor == total.tensor)
    writers = [(part, rank) for part, rank, box in _writers(graph, tasks, total.tensor) if box == total.box]
    found = {rank: Piece(tensor=total.tensor, part=part, box=total.box) for part, rank in writers}
    return dict(sorted(found.items())) if how == "sum" and len(found) == len(writers) else {}


def expected_blocks(accesses: Sequence[Access], regions: Regions, part: int) -> tuple[Block, ...]:
    """The regions of parameters or buffers of a task."""
    return tuple(
        Block(tensor=access.tensor, box=boxes[part]) for access, boxes in zip(accesses, regions, strict=True)
    )


def expected_loss(
    graph: OperatorGraph, tasks: Sequence[Tasks], rank: int, loss: int
) -> tuple[tuple[Piece, ...], bool]:
    """The pieces of the tensor `loss` that a rank combines, and whether it counts them."""
    writers = _writers(graph, tasks, loss)
    outputs = graph.operators[graph.producer[loss]].outputs
    how = next(access.combine for access in outputs if access.tensor == loss)
    summed = how == "sum" or len(writers) == 1
    whole = not summed and any(writer == rank for _, writer, _ in writers)
    pieces = tuple(
        Piece(tensor=loss, part=part, box=box) for part, writer, box in writers if writer == rank or whole
    )
    return pieces, bool(pieces) and (summed or rank == writers[0][1])
