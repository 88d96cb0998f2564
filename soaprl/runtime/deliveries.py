"""What every task reads from where, and so what goes between ranks: the transfers that the simulator counts.

A task that reads on the rank of the writing task reads what was written. On other ranks, one *delivery* for
each writing task, rank and box serves all readers there; the gradients that they give are added up there, and
go back once, after the last reader's backward pass.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.boxes import box_array, overlaps
from soaprl.runtime.layout import Tasks, carries_gradient
from soaprl.runtime.program import Piece, Read

Route = tuple[int, int]


@dataclass(slots=True, kw_only=True)
class Deliveries:
    """All readings of a strategy.

    Attributes:
        reads: What each task reads, by (operator, part): one `Read` for each input.
        forward: For each operator, the pieces that go from rank to rank once it has run, by route.
        backward: For each operator, the gradients that are complete once its backward pass has run, by route.
        returns: For each (operator, part), the operators after whose backward passes gradients of what it
            wrote come from other ranks.
    """

    reads: dict[tuple[int, int], list[Read]] = field(default_factory=dict)
    forward: dict[int, dict[Route, list[Piece]]] = field(default_factory=dict)
    backward: dict[int, dict[Route, list[Piece]]] = field(default_factory=dict)
    returns: dict[tuple[int, int], set[int]] = field(default_factory=dict)


def find_deliveries(graph: OperatorGraph, tasks: tuple[Tasks, ...]) -> Deliveries:
    """All readings of the strategy that `tasks` follow from."""
    found = Deliveries()
    pieces: dict[tuple[int, int, int], list[Piece]] = defaultdict(list)
    for producer in range(len(graph.operators)):
        _deliver(graph, tasks, producer, found, pieces)
    for consumer, operator in enumerate(graph.operators):
        for part in range(len(tasks[consumer].ranks)):
            found.reads[consumer, part] = [
                Read(
                    tensor=access.tensor,
                    box=tasks[consumer].inputs[position][part],
                    pieces=tuple(pieces[consumer, position, part]),
                    gradient=carries_gradient(graph, consumer, access),
                )
                for position, access in enumerate(operator.inputs)
            ]
    return found


def _deliver(
    graph: OperatorGraph,
    tasks: tuple[Tasks, ...],
    operator: int,
    found: Deliveries,
    pieces: dict[tuple[int, int, int], list[Piece]],
) -> None:
    """Enters all readings of what one operator writes."""
    writing = tasks[operator]
    forward: dict[Route, dict[Piece, None]] = defaultdict(dict)
    completed_by: dict[tuple[int, Piece], int] = {}
    for k, access in enumerate(graph.operators[operator].outputs):
        tensor, num_dims = access.tensor, len(access.spans)
        written = box_array(writing.outputs[k], num_dims)
        for consumer, position in graph.consumers[tensor]:
            reading = tasks[consumer]
            flows = carries_gradient(graph, consumer, graph.operators[consumer].inputs[position])
            for p, q, box in overlaps(written, box_array(reading.inputs[position], num_dims)):
                source, target = writing.ranks[p], reading.ranks[q]
                if source == target:
                    box = writing.outputs[k][p]
                piece = Piece(tensor=tensor, part=p, box=box)
                pieces[consumer, position, q].append(piece)
                if source != target:
                    forward[source, target][piece] = None
                    if flows:
                        # Readers come in ascending order: the first one's backward pass is the last.
                        completed_by.setdefault((target, piece), consumer)
    found.forward[operator] = {route: list(sent) for route, sent in sorted(forward.items())}
    for (target, piece), consumer in completed_by.items():
        routes = found.backward.setdefault(consumer, {})
        routes.setdefault((target, writing.ranks[piece.part]), []).append(piece)
        found.returns.setdefault((operator, piece.part), set()).add(consumer)
