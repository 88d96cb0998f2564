"""Parameter cells on their way to be reduced: small ones with the same holders wait for each other."""

from collections.abc import Iterable

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.cells import Cell
from soaprl.runtime.exchanges import total_bytes

FIRST_BUCKET_BYTES = 2**20


def packed(graph: OperatorGraph, cells: Iterable[Cell], bucket_bytes: int) -> list[list[Cell]]:
    """Cells with the same holders and data type together, until they have `bucket_bytes`."""
    full: list[list[Cell]] = []
    filling: dict[tuple[tuple[int, ...], str], list[Cell]] = {}
    sizes: dict[tuple[tuple[int, ...], str], int] = {}
    for cell in cells:
        key = (cell.holders, graph.tensors[cell.block.tensor].dtype)
        filling.setdefault(key, []).append(cell)
        sizes[key] = sizes.get(key, 0) + total_bytes(graph, [cell.block])
        if sizes[key] >= bucket_bytes:
            del sizes[key]
            full.append(filling.pop(key))
    return [*full, *filling.values()]


class Buckets:
    """Cells by holders and data type, in the order in which backward passes complete them.

    Args:
        graph: The operators.
        cells: All cells.
        trained: The parameters that are trained.
        bucket_bytes: A bucket of at least this size is full. The first of each kind is full earlier, so that
            there is something to reduce while the backward pass goes on.
        last: The operator whose backward pass comes last of those that complete cells here.
    """

    def __init__(
        self, graph: OperatorGraph, cells: list[Cell], trained: set[int], bucket_bytes: int, last: int
    ) -> None:
        self.graph = graph
        self.bucket_bytes, self.last = bucket_bytes, last
        self.sizes: dict[tuple[tuple[int, ...], str], int] = {}
        self.open: dict[tuple[tuple[int, ...], str], list[Cell]] = {}
        self.by_operator: dict[int, list[Cell]] = {}
        self.begun: set[tuple[tuple[int, ...], str]] = set()
        for cell in cells:
            if len(cell.holders) > 1 and cell.completed_by >= 0 and cell.block.tensor in trained:
                self.by_operator.setdefault(cell.completed_by, []).append(cell)

    def completed(self, operator: int) -> list[list[Cell]]:
        """The buckets that are full once the backward pass of `operator` has run."""
        full = []
        for cell in self.by_operator.get(operator, ()):
            key = (cell.holders, self.graph.tensors[cell.block.tensor].dtype)
            self.open.setdefault(key, []).append(cell)
            self.sizes[key] = self.sizes.get(key, 0) + total_bytes(self.graph, [cell.block])
            limit = self.bucket_bytes if key in self.begun else min(self.bucket_bytes, FIRST_BUCKET_BYTES)
            if self.sizes[key] >= limit:
                self.begun.add(key)
                del self.sizes[key]
                full.append(self.open.pop(key))
        return full

    def rest(self) -> list[list[Cell]]:
        """What is left."""
        return list(self.open.values())
