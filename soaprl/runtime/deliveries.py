"""What every task reads from where, and so what goes between ranks: the transfers that the simulator counts.

A task that reads on the rank of the writing task reads what was written. On other ranks, one *delivery* for
each writing task, rank and box serves all readers there; the gradients that they give are added up there, and
go back once, after the last reader's backward pass.

Partial results of a box that a group of ranks writes, and exactly that group reads as a whole, are not
delivered but summed (`SumPartials`), if they and the group are large enough: on n ranks a collective moves
2 / n of the bytes, and adds them up on their way, but goes back and forth more often.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.boxes import box_array, common, num_elements, overlaps
from soaprl.runtime.layout import Tasks, carries_gradient
from soaprl.runtime.program import SUMMED, Box, CompileOptions, Piece, Read

Route = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Partials:
    """The partial results of one box.

    Attributes:
        operator: What computes them.
        group: The ranks that have them, ascending.
        pieces: The piece of each of these.
        num_bytes: Bytes of the box.
    """

    operator: int
    group: tuple[int, ...]
    pieces: tuple[Piece, ...]
    num_bytes: int

    @property
    def total(self) -> Piece:
        """Their sum."""
        return replace(self.pieces[0], part=SUMMED)

    @property
    def first_part(self) -> int:
        """The first of the tasks that compute them."""
        return min(piece.part for piece in self.pieces)


@dataclass(slots=True, kw_only=True)
class Deliveries:
    """All readings of a strategy.

    Attributes:
        reads: What each task reads, by (operator, part): one `Read` for each input.
        forward: For each operator, the pieces that go from rank to rank once it has run, by route.
        backward: For each operator, the gradients that are complete once its backward pass has run, by route.
        returns: For each (operator, part), the operators after whose backward passes gradients of what it
            wrote come from other ranks.
        sums: For each operator, the partial results that are summed once it has run.
        summed_back: For each operator, the same once its backward pass has run, with whose gradient they are
            complete.
    """

    reads: dict[tuple[int, int], list[Read]] = field(default_factory=dict)
    forward: dict[int, dict[Route, list[Piece]]] = field(default_factory=dict)
    backward: dict[int, dict[Route, list[Piece]]] = field(default_factory=dict)
    returns: dict[tuple[int, int], set[int]] = field(default_factory=dict)
    sums: dict[int, list[Partials]] = field(default_factory=dict)
    summed_back: dict[int, list[Partials]] = field(default_factory=dict)


def find_deliveries(
    graph: OperatorGraph, tasks: tuple[Tasks, ...], options: CompileOptions, losses: Sequence[int]
) -> Deliveries:
    """All readings of the strategy that `tasks` follow from.

    Args:
        graph: The operators.
        tasks: The tasks of each operator.
        options: From which size on partial results are summed instead of delivered.
        losses: Tensors that are reduced by themselves.
    """
    found = Deliveries()
    pieces: dict[tuple[int, int, int], list[Piece]] = defaultdict(list)
    for producer in range(len(graph.operators)):
        _deliver(graph, tasks, producer, found, pieces, options, losses)
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
    options: CompileOptions,
    losses: Sequence[int],
) -> None:
    """Enters all readings of what one operator writes."""
    writing = tasks[operator]
    forward: dict[Route, dict[Piece, None]] = defaultdict(dict)
    completed_by: dict[tuple[int, Piece], int] = {}
    for k, access in enumerate(graph.operators[operator].outputs):
        tensor, num_dims = access.tensor, len(access.spans)
        summed: dict[int, Partials] = {}
        if access.combine == "sum" and tensor not in losses:
            summed = _summed(graph, tasks, operator, k, options)
        found.sums.setdefault(operator, []).extend({id(s): s for s in summed.values()}.values())
        sums_back: dict[Piece, tuple[int, Partials]] = {}
        written = box_array(writing.outputs[k], num_dims)
        for consumer, position in graph.consumers[tensor]:
            reading = tasks[consumer]
            flows = carries_gradient(graph, consumer, graph.operators[consumer].inputs[position])
            for p, q, box in overlaps(written, box_array(reading.inputs[position], num_dims)):
                if p in summed:
                    if p == summed[p].first_part:
                        pieces[consumer, position, q].append(summed[p].total)
                    if flows:
                        sums_back.setdefault(summed[p].total, (consumer, summed[p]))
                    continue
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
        for consumer, partials in sums_back.values():
            found.summed_back.setdefault(consumer, []).append(partials)
    found.forward[operator] = {route: list(sent) for route, sent in sorted(forward.items())}
    for (target, piece), consumer in completed_by.items():
        routes = found.backward.setdefault(consumer, {})
        routes.setdefault((target, writing.ranks[piece.part]), []).append(piece)
        found.returns.setdefault((operator, piece.part), set()).add(consumer)


def _summed(
    graph: OperatorGraph, tasks: tuple[Tasks, ...], operator: int, output: int, options: CompileOptions
) -> dict[int, Partials]:
    """The partial results of an output that are summed, by part."""
    writing, found = tasks[operator], dict[int, Partials]()
    tensor = graph.operators[operator].outputs[output].tensor
    by_box: dict[Box, list[int]] = defaultdict(list)
    for part, box in enumerate(writing.outputs[output]):
        by_box[box].append(part)
    for box, parts in by_box.items():
        size = num_elements(box) * graph.tensors[tensor].itemsize
        ranks = {writing.ranks[part]: part for part in parts}
        if len(ranks) < max(2, len(parts), options.sum_ranks) or size < options.sum_bytes:
            continue
        if _readers(graph, tasks, tensor, box) != ranks.keys():
            continue
        group = tuple(sorted(ranks))
        pieces = tuple(Piece(tensor=tensor, part=ranks[rank], box=box) for rank in group)
        partials = Partials(operator=operator, group=group, pieces=pieces, num_bytes=size)
        found.update(dict.fromkeys(parts, partials))
    return found


def _readers(graph: OperatorGraph, tasks: tuple[Tasks, ...], tensor: int, box: Box) -> set[int]:
    """The ranks that read a box as a whole; none if any task reads only some of it."""
    ranks = set[int]()
    for consumer, position in graph.consumers[tensor]:
        for rank, region in zip(tasks[consumer].ranks, tasks[consumer].inputs[position], strict=True):
            shared = common(region, box)
            if num_elements(shared) and shared != box:
                return set()
            if num_elements(shared):
                ranks.add(rank)
    return ranks
