"""Parameter cells on their way to be reduced or gathered: small ones with the same holders go together."""

from collections.abc import Iterable

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.cells import Cell
from soaprl.runtime.exchanges import total_bytes
from soaprl.runtime.sharding import in_order, parts_by_holder

FIRST_BUCKET_BYTES = 2**20
# From this size on, cells that need not be packed have a message of their own.
ALONE_BYTES = 2**20


def alone(graph: OperatorGraph, cell: Cell) -> bool:
    """Whether a cell whose holders keep parts is better reduced and gathered where it is than packed."""
    return total_bytes(graph, [cell.block]) >= ALONE_BYTES and in_order(parts_by_holder([cell])) is not None


def packed(graph: OperatorGraph, cells: Iterable[Cell], bucket_bytes: int) -> list[list[Cell]]:
    """Cells that are gathered: those with the same holders and data type together, up to `bucket_bytes`."""
    full: list[list[Cell]] = []
    filling: dict[tuple[tuple[int, ...], str], list[Cell]] = {}
    sizes: dict[tuple[tuple[int, ...], str], int] = {}
    for cell in cells:
        if alone(graph, cell):
            full.append([cell])
            continue
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
        sharded: Whether holders keep parts of cells.
    """

    def __init__(
        self,
        graph: OperatorGraph,
        cells: list[Cell],
        trained: set[int],
        bucket_bytes: int,
        last: int,
        *,
        sharded: bool,
    ) -> None:
        self.graph, self.sharded = graph, sharded
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
            if self.sharded and alone(self.graph, cell):
                full.append([cell])
                continue
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
