"""How much room the blocks of a strategy need, and where to put them."""

from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import IntArray
from soaprl.cost.kernels import filling_kernel, inner_kernel
from soaprl.simulator.adjacency import Adjacency
from soaprl.simulator.patterns import PatternPools
from soaprl.simulator.state import Blocks, Layout
from soaprl.simulator.tables import GraphTables

# Rows of `Rooms.operators` and `Rooms.groups`.
IDS, FORWARD, BACK, HOLDS, PAIRS = 0, 1, 2, 3, 4
_SYNC, _SYNC_OUT, _WAIT, _GATHER, _GATHER_OUT = 0, 1, 2, 3, 4


class Rooms(NamedTuple):
    """Sizes of blocks.

    Attributes:
        operators: Shape [5, operators]: ids, successors of forward tasks, successors of backward tasks, rows
            of what lives on devices, pairs of all outputs.
        edges: Shape [edges]: pairs.
        groups: Shape [5, groups]: ids, successors, covers, ids of gathers, their successors.
    """

    operators: IntArray
    edges: IntArray
    groups: IntArray


def empty_rooms(graph: GraphTables, num_groups: int) -> Rooms:
    """No room at all."""
    return Rooms(
        operators=np.zeros((5, graph.num_operators), np.int64),
        edges=np.zeros(len(graph.edge_consumer), np.int64),
        groups=np.zeros((5, num_groups), np.int64),
    )


@inner_kernel
def need_of_operator(graph: GraphTables, layout: Layout, needed: Rooms, o: int, sharding: int) -> None:
    """Fills what the block of an operator needs, but for its backward tasks."""
    num_parts, num_pairs = layout.num_parts[o], 0
    first, end = graph.output_begin[o], graph.output_begin[o + 1]
    for e in range(graph.edge_begin[first], graph.edge_begin[end]):
        needed.edges[e] = layout.num_pairs[e]
        num_pairs += layout.num_pairs[e]
    needed.operators[IDS, o] = num_parts + num_pairs
    own = (2 if sharding == 3 else 1) + (1 if len(layout.turns) > 0 else 0)
    needed.operators[FORWARD, o] = num_parts * own + 3 * num_pairs
    needed.operators[HOLDS, o] = 2 * num_parts * (1 + end - first) + 2 * num_pairs
    needed.operators[PAIRS, o] = num_pairs


@inner_kernel
def need_of_group(layout: Layout, needed: Rooms, g: int, paper: bool, sharding: int) -> None:
    """Fills what the block of a group needs."""
    num_cells, num_covers = layout.cell_end[g] - layout.cell_begin[g], layout.num_covers[g]
    needed.groups[_SYNC, g] = num_cells + (2 * num_covers if paper else 0)
    needed.groups[_SYNC_OUT, g] = num_cells + 3 * num_covers if paper else num_covers
    needed.groups[_WAIT, g] = num_covers
    passes = 2 if sharding == 3 else min(sharding, 1)
    needed.groups[_GATHER, g] = passes * num_cells
    needed.groups[_GATHER_OUT, g] = passes * num_covers if sharding == 3 else 0


@inner_kernel
def operator_fits(graph: GraphTables, needed: Rooms, rooms: Rooms, o: int) -> bool:
    """Whether the room of an operator's block suffices, but for its backward tasks."""
    fits = needed.operators[PAIRS, o] <= rooms.operators[PAIRS, o]
    fits = fits and needed.operators[IDS, o] <= rooms.operators[IDS, o]
    fits = fits and needed.operators[FORWARD, o] <= rooms.operators[FORWARD, o]
    fits = fits and needed.operators[HOLDS, o] <= rooms.operators[HOLDS, o]
    first, end = graph.output_begin[o], graph.output_begin[o + 1]
    for e in range(graph.edge_begin[first], graph.edge_begin[end]):
        fits = fits and needed.edges[e] <= rooms.edges[e]
    return bool(fits)


@inner_kernel
def group_fits(needed: Rooms, rooms: Rooms, g: int) -> bool:
    """Whether the room of a group's block suffices."""
    fits = needed.groups[_SYNC, g] <= rooms.groups[_SYNC, g]
    fits = fits and needed.groups[_SYNC_OUT, g] <= rooms.groups[_SYNC_OUT, g]
    fits = fits and needed.groups[_GATHER, g] <= rooms.groups[_GATHER, g]
    fits = fits and needed.groups[_GATHER_OUT, g] <= rooms.groups[_GATHER_OUT, g]
    return bool(fits and needed.groups[_WAIT, g] <= rooms.groups[_WAIT, g])


@filling_kernel
def need_of_all(
    graph: GraphTables,
    near: Adjacency,
    pools: PatternPools,
    layout: Layout,
    needed: Rooms,
    paper: bool,
    overlap: bool,
    sharding: int,
) -> None:
    """Fills what every block needs."""
    for o in range(graph.num_operators):
        need_of_operator(graph, layout, needed, o, sharding)
        waits = (0 if overlap else 1) + (1 if sharding == 3 else 0) + (1 if len(layout.turns) > 0 else 0)
        needed.operators[BACK, o] = waits * layout.num_parts[o]
        for k in range(near.in_begin[o], near.in_begin[o + 1]):
            needed.operators[BACK, o] += layout.num_pairs[near.in_edges[k]]
    for g in range(len(layout.cell_begin)):
        need_of_group(layout, needed, g, paper, sharding)
        for c in range(pools.cover_begin[layout.cell_begin[g]], pools.cover_begin[layout.cell_end[g]]):
            needed.operators[BACK, graph.reader_operator[graph.reader_begin[g] + pools.cover_reader[c]]] += 1


def enlarged(rooms: Rooms, needed: Rooms, num_devices: int) -> Rooms:
    """Rooms in which all that is needed fits, and no smaller than before.

    What has to grow grows to a power of two, so that a walk of small changes seldom outgrows it.
    """

    def grown(have: IntArray, need: IntArray) -> IntArray:
        wanted = np.maximum(need, 2 * num_devices)
        power = 2 ** np.ceil(np.log2(np.maximum(wanted, 1))).astype(np.int64)
        return np.where(need > have, power, have).astype(np.int64)

    return Rooms(
        operators=grown(rooms.operators, needed.operators),
        edges=grown(rooms.edges, needed.edges),
        groups=grown(rooms.groups, needed.groups),
    )


def placed(rooms: Rooms) -> Blocks:
    """Blocks of these sizes, one after the other."""

    def offsets(sizes: IntArray, first: int = 0) -> IntArray:
        return np.concatenate(([first], first + np.cumsum(sizes))).astype(np.int64)

    forward = offsets(rooms.operators[FORWARD])
    back = offsets(rooms.operators[BACK], int(forward[-1]))
    sync_out = offsets(rooms.groups[_SYNC_OUT], int(back[-1]))
    barrier = offsets(rooms.groups[_SYNC].sum(keepdims=True), int(sync_out[-1]))
    gather_out = offsets(rooms.groups[_GATHER_OUT], int(barrier[-1]))
    # An update is waited for by the gathers of what its device holds; a gather waits for one pace.
    sharded = np.where(rooms.groups[_GATHER] > 0, rooms.groups[[_GATHER, _WAIT]].sum(axis=0), 0)
    return Blocks(
        id_begin=offsets(rooms.operators[IDS]),
        forward_begin=forward,
        back_begin=back,
        hold_begin=offsets(rooms.operators[HOLDS]),
        via_begin=offsets(rooms.edges),
        sync_begin=offsets(rooms.groups[_SYNC]),
        sync_out_begin=sync_out,
        wait_begin=offsets(rooms.groups[_WAIT]),
        barrier_begin=barrier,
        gather_begin=offsets(rooms.groups[_GATHER]),
        gather_out_begin=gather_out,
        late_begin=offsets(sharded.sum(keepdims=True), int(gather_out[-1])),
    )
