"""All patterns of a problem that were computed so far, by number.

A pattern is rows of many pools, which belong together by where they are, and then a key by which they are
found. So the key comes last, and what an interrupt leaves without one is dropped before the next.
"""

import numpy as np

from soaprl.cluster.tables import IntArray
from soaprl.simulator.cells import SyncPools
from soaprl.simulator.edges import MOST_NUMBER, Found, edge_ends, no_edges, with_room
from soaprl.simulator.lookup import MISSING, Lookup, key_of
from soaprl.simulator.patterns import EdgePatterns, OperatorPattern, OperatorPools, PatternPools
from soaprl.simulator.pools import Pool
from soaprl.simulator.problem import Problem
from soaprl.simulator.tables import graph_index
from soaprl.strategy.strategy import Sharding

# Of `Found.operators`.
_OPERATOR_COLUMNS = 6


class Patterns:
    """The patterns of a problem by number.

    They are most of what a simulator remembers. Several simulators of one problem may share them, in one
    thread: a pattern never changes, and each simulator asks for what is there before each of its steps.

    Args:
        problem: The problem.
        sharding: Of its strategies.
        num_copies: Of how many equal copies the graph consists, which have their patterns in common.

    Attributes:
        key: The arguments.
        operators: The patterns of operators, by number.
        found: All patterns as compiled code sees them, which adds those of edges; replaced when there are
            more of the others, or there must be more room.
    """

    def __init__(self, problem: Problem, sharding: Sharding = Sharding.NONE, num_copies: int = 1) -> None:
        self.key = problem, sharding, num_copies
        self._graph = problem.graph
        apart = num_copies if sharding.synchronizes_each_pass else 1
        self._index = graph_index(problem.graph, apart)
        self._groups_per_copy = len(self._index.groups) // apart
        device_types = problem.cluster.device_types
        self._num_types = len(device_types)
        self._operator_pools = OperatorPools(
            problem.graph, problem.cost, device_types, task_s=problem.overheads.task_s
        )
        self._sync_pools = SyncPools(
            problem.graph,
            problem.cost,
            device_types,
            compression=problem.options.compression,
            most_pieces=1 if sharding is Sharding.NONE else max(2, problem.cluster.num_devices),
        )
        per_copy = len(problem.graph.operators) // num_copies
        numbers: list[dict[tuple[int, ...], int]] = [{} for _ in range(per_copy)]
        self._numbers = numbers * num_copies
        self._degrees: dict[tuple[int, ...], int] = {}
        self._most_parts = 0
        self._lookup = Lookup()
        self._operator_rows, self._boxes, self._group_rows = Pool(np.int64), Pool(np.int64), Pool(np.int64)
        self._ends = edge_ends(problem.graph, self._index.edges[: len(self._index.edges) // num_copies])
        first_node = len(self._index.edges) + len(self._index.groups)
        self._next_node = np.array([first_node], np.int64)
        self.operators: list[OperatorPattern] = []
        rows = self._operator_rows, self._boxes, self._group_rows
        self._pools = (*rows, *self._operator_pools.pools, *self._sync_pools.pools)
        self._sizes = tuple(pool.size for pool in self._pools)
        self.found: Found = self._gathered(no_edges())

    def number(self, operator: int, degrees: tuple[int, ...]) -> int | None:
        """The number of the pattern of an operator with `degrees`; None if there is none yet."""
        return self._numbers[operator].get(degrees)

    def add_operator(self, o: int, degrees: tuple[int, ...]) -> int:
        """Computes the pattern of an operator with `degrees`, which are legal; returns its number."""
        self._drop_unfinished()
        pattern = self._operator_pools.add_operator(self._graph.operators[o], degrees)
        number = len(self.operators)
        self.operators.append(pattern)
        self._most_parts = max(self._most_parts, pattern.num_parts)
        same = self._degrees.setdefault(degrees, len(self._degrees))
        boxes = self._boxes.append(pattern.touched.ravel())
        bases = pattern.part_base, pattern.output_base, same, boxes
        self._operator_rows.append(np.array([pattern.num_parts, *bases, pattern.touched.shape[1]], np.int64))
        self._finish()
        self._numbers[o][degrees] = number
        return number

    def reserve_edge(self) -> None:
        """Makes room for the pattern of one more edge, which compiled code computes when it needs it."""
        assert self.found.next_node[0] < MOST_NUMBER, "no number is left"
        self._lookup.reserve(2)
        # Compiled code adds to what `found` has, and to nothing else: so all of it is replaced at once.
        self.found = self._gathered(with_room(self.found.pools.edges, self._most_parts))

    def need_group(self, number: int, readers: list[int]) -> None:
        """Computes the pattern of a group between the patterns of its readers, if it is not there."""
        number %= max(1, self._groups_per_copy)
        node = len(self._index.edges) + number
        for reader in readers[:-1]:
            node = self._step(node, reader)
        key = key_of(node, readers[-1])
        if self._is_known(key):
            return
        self._drop_unfinished()
        patterns = tuple(self.operators[reader] for reader in readers)
        pattern = self._sync_pools.add_group(self._index.groups[number], patterns)
        values = np.array([pattern.cell_begin, pattern.cell_end, pattern.num_covers], np.int64)
        row = self._group_rows.append(values)
        self._finish()
        self._lookup.add(key, row // 3)
        self._is_known(key)

    def _step(self, node: int, part: int) -> int:
        """The node after `node`, made if it is not there."""
        key = key_of(node, part)
        found = self._lookup.get(key)
        if found != MISSING:
            return found
        node = int(self._next_node[0])
        assert node < MOST_NUMBER, "numbers of patterns have 31 bits"
        self._next_node[0] = node + 1
        self._lookup.add(key, node)
        return node

    def _is_known(self, key: int) -> bool:
        """Whether there is a pattern of a key; then compiled code finds it, too."""
        if self.found.table is not self._lookup.table:
            self.found = self.found._replace(table=self._lookup.table)
        return self._lookup.get(key) != MISSING

    def _drop_unfinished(self) -> None:
        """Drops what is left of a pattern that was interrupted."""
        for pool, size in zip(self._pools, self._sizes, strict=True):
            pool.size = size
        del self.operators[self._operator_rows.size // _OPERATOR_COLUMNS :]

    def _finish(self) -> None:
        """Shows compiled code what was computed, which is kept from now on."""
        self.found = self._gathered(self.found.pools.edges)
        self._sizes = tuple(pool.size for pool in self._pools)

    def _gathered(self, edges: EdgePatterns) -> Found:
        operators, sync = self._operator_pools, self._sync_pools
        pools = PatternPools(
            num_types=self._num_types,
            forward_s=operators.forward_s.data,
            backward_s=operators.backward_s.data,
            kept_bytes=operators.kept_bytes.data,
            passing_bytes=operators.passing_bytes.data,
            output_bytes=operators.output_bytes.data,
            edges=edges,
            cell_bytes=sync.cell_bytes.data,
            cell_sent_bytes=sync.cell_sent_bytes.data,
            cell_codec_s=sync.cell_codec_s.data,
            cell_trainable=sync.cell_trainable.data,
            cell_update_s=sync.cell_update_s.data,
            cell_update_begin=sync.cell_update_begin.data,
            cover_begin=sync.cover_begin.data,
            cover_reader=sync.cover_reader.data,
            cover_part=sync.cover_part.data,
            cover_contributes=sync.cover_contributes.data,
        )
        return Found(
            pools=pools,
            operators=_table(self._operator_rows.data, _OPERATOR_COLUMNS),
            groups=_table(self._group_rows.data, 3),
            boxes=self._boxes.data,
            ends=self._ends,
            table=self._lookup.table,
            next_node=self._next_node,
        )


def _table(values: IntArray, num_columns: int) -> IntArray:
    """As many whole rows as there are."""
    return values[: len(values) // num_columns * num_columns].reshape(-1, num_columns)
