"""Patterns of edges, which compiled code computes when a change needs them."""

import random

import numpy as np
import pytest

from soaprl.simulator import Patterns, Simulator
from soaprl.simulator.edges import no_edges, with_room
from soaprl.simulator.lookup import MISSING, Lookup, key_of
from soaprl.simulator.tables import graph_index
from tests.simulator.random_problems import random_problem, random_strategy


@pytest.mark.parametrize("seed", range(4))
def test_pairs_of_an_edge_are_the_tasks_whose_boxes_overlap(seed: int) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng, num_operators=8)
    patterns, index = Patterns(problem), graph_index(problem.graph)
    simulator = Simulator(problem, patterns=patterns)
    for _ in range(20):
        simulator.evaluate(random_strategy(rng, problem.graph, problem.cluster.num_devices))
        engine, edges = simulator.engine, patterns.found.pools.edges
        for e, edge in enumerate(index.edges):
            operator = problem.graph.operators[edge.producer]
            tensor = problem.graph.tensors[operator.outputs[edge.output].tensor]
            output = len(operator.inputs) + len(operator.parameters) + edge.output
            written = engine.operator_pattern(edge.producer).regions(output)
            read = engine.operator_pattern(edge.consumer).regions(edge.position)
            expected = [
                (w, r, common * tensor.itemsize)
                for w in range(len(written))
                for r in range(len(read))
                if (common := elements_in_both(written[w], read[r])) > 0
            ]
            row, num_pairs = engine.graph.layout.row_base[e], engine.graph.layout.num_pairs[e]
            rows = edges.rows[row : row + len(written) + 1]
            found = [
                (w, int(edges.pair_reader[pair]), int(edges.pair_bytes[pair]))
                for w in range(len(written))
                for pair in range(rows[w], rows[w + 1])
            ]
            assert found == expected
            assert num_pairs == len(expected)


def elements_in_both(one: np.ndarray, other: np.ndarray) -> int:
    starts, stops = np.maximum(one[:, 0], other[:, 0]), np.minimum(one[:, 1], other[:, 1])
    return int(np.prod(np.maximum(stops - starts, 0)))


def test_room_is_made_without_losing_what_is_there() -> None:
    edges = no_edges()
    edges.sizes[:] = 64, 1000, 1020
    edges.pair_reader[:1020] = np.arange(1020)
    larger = with_room(edges, most_parts=8)
    assert len(larger.patterns) > 64
    assert len(larger.rows) == 1024, "1,000 rows and 9 more have room"
    for pairs in (larger.pair_reader, larger.pair_bytes, larger.pair_box):
        assert len(pairs) >= 1020 + 8 * 8
    assert np.array_equal(larger.pair_reader[:1020], np.arange(1020))
    assert larger.sizes.tolist() == [64, 1000, 1020]


def test_a_table_that_grows_keeps_its_keys() -> None:
    lookup = Lookup()
    for number in range(3000):
        lookup.add(key_of(number, 7), number)
    assert all(lookup.get(key_of(number, 7)) == number for number in range(3000))
    assert lookup.get(key_of(3000, 7)) == MISSING
    assert int(lookup.table.used[0]) == 3000
    assert len(lookup.table.keys) == 8192, "the least power of two that stays at most half full"
