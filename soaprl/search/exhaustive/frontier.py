"""The open nodes of a search: beginnings of strategies that may still lead to something better."""

import heapq
from collections.abc import Iterable
from math import inf
from typing import NamedTuple


class Node(NamedTuple):
    """Configurations of the first operators.

    Attributes:
        bound_s: No strategy that begins with them takes less.
        minus_depth: Minus their number: among equal bounds the longest beginning goes first.
        number: Nodes are numbered as they are made, which breaks the last ties.
        rows: Rows of `soaprl.search.exhaustive.tables.BoundTables`.
    """

    bound_s: float
    minus_depth: int
    number: int
    rows: tuple[int, ...]


class Frontier:
    """Nodes by bound, lowest first; beyond `max_open` of them, what comes last goes first.

    Best first looks at no node whose bound is above the optimum, but remembers many; depth first remembers
    few. Either way every node is looked at once.
    """

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._heap: list[Node] = []
        self._stack: list[Node] = []

    def __len__(self) -> int:
        """Number of open nodes."""
        return len(self._heap) + len(self._stack)

    def nodes(self) -> Iterable[Node]:
        """All open nodes, in no particular order."""
        return [*self._heap, *self._stack]

    @property
    def bound_s(self) -> float:
        """The least bound of an open node; infinite if there is none."""
        lowest = self._heap[0].bound_s if self._heap else inf
        return min(lowest, min((node.bound_s for node in self._stack), default=inf))

    def push(self, node: Node) -> None:
        """Opens a node."""
        if len(self._heap) < self._max_open:
            heapq.heappush(self._heap, node)
        else:
            self._stack.append(node)

    def first(self) -> Node:
        """The node to look at next, which stays open."""
        return self._stack[-1] if self._stack else self._heap[0]

    def pop(self) -> Node:
        """The node to look at next, which is not open any more."""
        return self._stack.pop() if self._stack else heapq.heappop(self._heap)
