"""All patterns of a problem that were computed so far, by number.

A pattern is rows of many pools, which belong together by where they are, and then a key by which they are
found. So the key comes last, and what an interrupt leaves without one is dropped before the next.
"""

import numpy as np

from soaprl.simulator.cells import SyncPools
from soaprl.simulator.lookup import MISSING, Lookup, key_of
from soaprl.simulator.patch import Found
from soaprl.simulator.patterns import OperatorPattern, OperatorPools, PatternPools
from soaprl.simulator.pools import Pool
from soaprl.simulator.problem import Problem
from soaprl.simulator.tables import graph_index
from soaprl.strategy.strategy import Sharding

_MOST_NUMBER = 2**31


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
        found: All patterns as compiled code sees them; replaced when there are more.
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
        self._edges_per_copy = len(self._index.edges) // num_copies
        per_copy = len(problem.graph.operators) // num_copies
        numbers: list[dict[tuple[int, ...], int]] = [{} for _ in range(per_copy)]
        self._numbers = numbers * num_copies
        self._degrees: dict[tuple[int, ...], int] = {}
        self._lookup = Lookup()
        self._rows = Pool(np.int64), Pool(np.int64), Pool(np.int64)
        self._next_node = len(self._index.edges) + len(self._index.groups)
        self.operators: list[OperatorPattern] = []
        self._pools = (*self._rows, *self._operator_pools.pools, *self._sync_pools.pools)
        self._sizes = tuple(pool.size for pool in self._pools)
        self.found: Found = self._gathered()

    def number(self, operator: int, degrees: tuple[int, ...]) -> int | None:
        """The number of the pattern of an operator with `degrees`; None if there is none yet."""
        return self._numbers[operator].get(degrees)

    def add_operator(self, o: int, degrees: tuple[int, ...]) -> int:
        """Computes the pattern of an operator with `degrees`, which are legal; returns its number."""
        self._drop_unfinished()
        pattern = self._operator_pools.add_operator(self._graph.operators[o], degrees)
        number = len(self.operators)
        self.operators.append(pattern)
        same = self._degrees.setdefault(degrees, len(self._degrees))
        values = [pattern.num_parts, pattern.part_base, pattern.output_base, same]
        self._rows[0].append(np.array(values, np.int64))
        self._finish()
        self._numbers[o][degrees] = number
        return number

    def need_edge(self, number: int, producer: int, consumer: int) -> None:
        """Computes the pattern of an edge between two patterns of operators, if it is not there."""
        number %= self._edges_per_copy
        node = self._step(number, producer)
        key = key_of(node, consumer)
        if self._is_known(key):
            return
        self._drop_unfinished()
        edge = self._index.edges[number]
        operator = self._graph.operators[edge.producer]
        output = len(operator.inputs) + len(operator.parameters) + edge.output
        written = self.operators[producer].regions(output)
        read = self.operators[consumer].regions(edge.position)
        pattern = self._operator_pools.add_edge(written, read, operator.outputs[edge.output].tensor)
        row = self._rows[1].append(np.array([pattern.row_base, pattern.num_pairs], np.int64))
        self._finish()
        self._lookup.add(key, row // 2)
        self._is_known(key)

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
        row = self._rows[2].append(values)
        self._finish()
        self._lookup.add(key, row // 3)
        self._is_known(key)

    def _step(self, node: int, part: int) -> int:
        """The node after `node`, made if it is not there."""
        key = key_of(node, part)
        found = self._lookup.get(key)
        if found != MISSING:
            return found
        assert self._next_node < _MOST_NUMBER, "numbers of patterns have 31 bits"
        self._next_node += 1
        self._lookup.add(key, self._next_node - 1)
        return self._next_node - 1

    def _is_known(self, key: int) -> bool:
        """Whether there is a pattern of a key; then compiled code finds it, too."""
        if self.found.table is not self._lookup.table:
            self.found = self.found._replace(table=self._lookup.table)
        return self._lookup.get(key) != MISSING

    def _drop_unfinished(self) -> None:
        """Drops what is left of a pattern that was interrupted."""
        for pool, size in zip(self._pools, self._sizes, strict=True):
            pool.size = size
        del self.operators[self._rows[0].size // 4 :]

    def _finish(self) -> None:
        """Shows compiled code what was computed, which is kept from now on."""
        self.found = self._gathered()
        self._sizes = tuple(pool.size for pool in self._pools)

    def _gathered(self) -> Found:
        operators, sync = self._operator_pools, self._sync_pools
        pools = PatternPools(
            num_types=self._num_types,
            forward_s=operators.forward_s.data,
            backward_s=operators.backward_s.data,
            kept_bytes=operators.kept_bytes.data,
            passing_bytes=operators.passing_bytes.data,
            output_bytes=operators.output_bytes.data,
            rows=operators.rows.data,
            pair_reader=operators.pair_reader.data,
            pair_bytes=operators.pair_bytes.data,
            pair_box=operators.pair_box.data,
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
        rows = [pool.data for pool in self._rows]
        return Found(
            pools=pools,
            operators=rows[0][: len(rows[0]) // 4 * 4].reshape(-1, 4),
            edges=rows[1].reshape(-1, 2),
            groups=rows[2][: len(rows[2]) // 3 * 3].reshape(-1, 3),
            table=self._lookup.table,
        )
