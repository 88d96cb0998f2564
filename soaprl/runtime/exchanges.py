"""Exchanges: pieces packed into one message for each pair of ranks, and uniform patterns among them."""

from collections.abc import Iterable, Iterator

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.boxes import num_elements
from soaprl.runtime.deliveries import Route
from soaprl.runtime.program import Block, Direction, Exchange, Message, Pattern, Piece

# Two ranks gain nothing by a collective.
_SMALLEST_COLLECTIVE = 3


def total_bytes(graph: OperatorGraph, boxes: Iterable[Piece | Block]) -> int:
    """Bytes of all `boxes` together."""
    return sum(num_elements(b.box) * graph.tensors[b.tensor].itemsize for b in boxes)


def exchange_steps(
    graph: OperatorGraph,
    number: int,
    direction: Direction,
    operator: int,
    routes: dict[Route, list[Piece]],
) -> Iterator[tuple[int, Exchange]]:
    """One exchange, as each of its ranks sees it: rank and step.

    Args:
        graph: The operators.
        number: The step's id.
        direction: Of which pass.
        operator: The operator after whose tasks the exchange comes.
        routes: The pieces that go from rank to rank, by (source, target).
    """
    sizes = {route: total_bytes(graph, pieces) for route, pieces in routes.items()}
    group = tuple(sorted({rank for route in routes for rank in route}))
    pattern = _pattern(graph, routes, sizes, group)
    for rank in group:
        yield (
            rank,
            Exchange(
                id=number,
                direction=direction,
                operator=operator,
                sends=_messages(routes, sizes, rank, sent=True),
                receives=_messages(routes, sizes, rank, sent=False),
                pattern=pattern,
                group=group,
            ),
        )


def _pattern(
    graph: OperatorGraph, routes: dict[Route, list[Piece]], sizes: dict[Route, int], group: tuple[int, ...]
) -> Pattern:
    every = len(group) * (len(group) - 1)
    dtypes = {graph.tensors[p.tensor].dtype for pieces in routes.values() for p in pieces}
    if len(group) < _SMALLEST_COLLECTIVE or len(routes) < every or len(dtypes) > 1:
        return "point_to_point"
    if len(set(sizes.values())) > 1:
        return "point_to_point"
    same = all(len({tuple(p) for (s, _), p in routes.items() if s == source}) == 1 for source in group)
    return "all_gather" if same else "all_to_all"


def _messages(
    routes: dict[Route, list[Piece]], sizes: dict[Route, int], rank: int, *, sent: bool
) -> tuple[Message, ...]:
    """The messages that `rank` sends, or receives, by peer."""
    here, there = (0, 1) if sent else (1, 0)
    found = [
        Message(peer=route[there], pieces=tuple(pieces), num_bytes=sizes[route])
        for route, pieces in routes.items()
        if route[here] == rank
    ]
    return tuple(sorted(found, key=lambda message: message.peer))
