"""What compiled code reads and writes: the strategy at hand, the plans of its collectives, the task graph.

Task ids. Ids are the sequence numbers that break ties, and a task's id is always larger than its
predecessors'. With M = 2H - 1:

    [0, H)        for each operator in order: its forward tasks by part, then the transfers of its outputs
    [H, 2H)       the mirror image: task u has the backward task (or gradient transfer) M - u
    2H            the barrier before synchronization, if it does not overlap the backward pass
    (2H, U)       synchronization: by group, cell and holder
    [U, U + D)    the optimizer's update of each device

Room is left for every transfer that the degrees could need, so not every id is a task; the order of two tasks
depends only on their operators, phases and parts.

Resources. -1: none; d < D: device d; D + i * D + j: the route from device i to j; D + D * D + s: the links of
the all-reduce that plan s describes.
"""

from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import FloatArray, IntArray
from soaprl.simulator.tables import GraphTables


class Layout(NamedTuple):
    """A strategy as offsets into the patterns; see `soaprl.simulator.patterns`.

    Attributes:
        num_parts: Shape [operators]; number of tasks.
        part_base: Shape [operators].
        output_base: Shape [operators].
        devices: Shape [operators, room]; the device of each task.
        row_base: Shape [edges].
        num_pairs: Shape [edges].
        cell_begin: Shape [groups].
        cell_end: Shape [groups].
        num_covers: Shape [groups].
        plan_begin: Shape [groups]; the plan of each group's first cell.
    """

    num_parts: IntArray
    part_base: IntArray
    output_base: IntArray
    devices: IntArray
    row_base: IntArray
    num_pairs: IntArray
    cell_begin: IntArray
    cell_end: IntArray
    num_covers: IntArray
    plan_begin: IntArray


class Plans(NamedTuple):
    """How the gradients of cells are summed: one plan for each cell of the strategy.

    Attributes:
        cursor: Shape [3]; plans, holders and links in use.
        time_s: Seconds of the collective.
        holder_begin: Where the plan's holders begin.
        num_holders: How many devices hold the cell.
        holders: The devices, ascending for each plan.
        root: The device of the first task that holds the cell.
        link_begin: Where the plan's links begin.
        num_links: How many links it uses.
        links: The links.
        busy_s: How long each of them is busy.
        task: Id of the all-reduce.
    """

    cursor: IntArray
    time_s: FloatArray
    holder_begin: IntArray
    num_holders: IntArray
    holders: IntArray
    root: IntArray
    link_begin: IntArray
    num_links: IntArray
    links: IntArray
    busy_s: FloatArray
    task: IntArray


class Workspace(NamedTuple):
    """The task graph, its schedule, and working memory. Arrays over ids are only valid where there is a task.

    Attributes:
        forward_id: Shape [operators]; id of the first forward task.
        delivery_id: Shape [operators]; id of the first transfer of an output.
        num_deliveries: Shape [operators].
        in_degree: By id: predecessors; counted down by the schedule.
        out_degree: By id, for forward tasks: successors of the mirror image.
        successor_begin: By id.
        successor_end: By id.
        resource: By id; see the module.
        num_bytes: By id: bytes transferred.
        origin: By id, for transfers of outputs: the part that sends. For synchronization: the plan.
        duration_s: By id.
        ready_s: By id.
        start_s: By id.
        finish_s: By id.
        successors: Successor ids.
        mirrored: For each successor of a forward task or transfer: 1 if a gradient flows back.
        deliveries: Working memory: a row for each transfer of an output; the columns are below.
        readings: Working memory: for each reading on another device the delivery, and twice the reading task,
            plus 1 if a gradient flows back.
        slot: Shape [devices]: working memory.
        slot_stamp: Shape [devices]: working memory.
        contribution_source: Working memory: backward tasks that synchronization waits for.
        contribution_target: Working memory: what waits.
        memory_bytes: Shape [2, steps + 1, devices]: change of live bytes at each step; activations, buffers.
        held_bytes: Shape [2, devices]; parameters, gradients.
        update_s: Shape [devices].
        totals: See the constants below.
    """

    forward_id: IntArray
    delivery_id: IntArray
    num_deliveries: IntArray
    in_degree: IntArray
    out_degree: IntArray
    successor_begin: IntArray
    successor_end: IntArray
    resource: IntArray
    num_bytes: IntArray
    origin: IntArray
    duration_s: FloatArray
    ready_s: FloatArray
    start_s: FloatArray
    finish_s: FloatArray
    successors: IntArray
    mirrored: IntArray
    deliveries: IntArray
    readings: IntArray
    slot: IntArray
    slot_stamp: IntArray
    contribution_source: IntArray
    contribution_target: IntArray
    memory_bytes: IntArray
    held_bytes: IntArray
    update_s: FloatArray
    totals: IntArray


# Entries of `Workspace.totals`.
NUM_TASKS, HALF, SYNC_ID, UPDATE_ID, NUM_IDS, NUM_EDGES = 0, 1, 2, 3, 4, 5
ACTIVATION_BYTES, GRADIENT_BYTES, SYNC_BYTES, NUM_CONTRIBUTIONS, STAMP, NUM_SYNC = 6, 7, 8, 9, 10, 11
NUM_DELIVERIES, NUM_READINGS = 12, 13
NUM_TOTALS = 14

# Columns of `Workspace.deliveries`.
BOX, NEXT, NUM_READERS, NUM_GRADIENTS = 0, 1, 2, 3
FIRST, LAST, KEEPER, FIRST_GRADIENT, LAST_GRADIENT = 4, 5, 6, 7, 8
BYTES, SOURCE, TARGET, PART, TASK = 9, 10, 11, 12, 13
NUM_COLUMNS = 14


def empty_layout(graph: GraphTables, num_groups: int, room: int) -> Layout:
    """A layout that no strategy is in yet, with room for `room` tasks of each operator."""
    n, e = graph.num_operators, len(graph.edge_consumer)
    return Layout(
        num_parts=np.zeros(n, np.int64),
        part_base=np.zeros(n, np.int64),
        output_base=np.zeros(n, np.int64),
        devices=np.zeros((n, room), np.int64),
        row_base=np.zeros(e, np.int64),
        num_pairs=np.zeros(e, np.int64),
        cell_begin=np.zeros(num_groups, np.int64),
        cell_end=np.zeros(num_groups, np.int64),
        num_covers=np.zeros(num_groups, np.int64),
        plan_begin=np.zeros(num_groups, np.int64),
    )


def empty_plans(room: int) -> Plans:
    """Plans with room for `room` plans, holders and links."""
    integers = [np.zeros(room, np.int64) for _ in range(8)]
    return Plans(
        cursor=np.zeros(3, np.int64),
        time_s=np.zeros(room, np.float64),
        holder_begin=integers[0],
        num_holders=integers[1],
        holders=integers[2],
        root=integers[3],
        link_begin=integers[4],
        num_links=integers[5],
        links=integers[6],
        busy_s=np.zeros(room, np.float64),
        task=integers[7],
    )


def empty_workspace(graph: GraphTables, num_devices: int, num_ids: int, num_edges: int) -> Workspace:
    """A workspace with room for so many ids and edges."""
    n = graph.num_operators
    return Workspace(
        forward_id=np.zeros(n, np.int64),
        delivery_id=np.zeros(n, np.int64),
        num_deliveries=np.zeros(n, np.int64),
        in_degree=np.zeros(num_ids, np.int64),
        out_degree=np.zeros(num_ids, np.int64),
        successor_begin=np.zeros(num_ids, np.int64),
        successor_end=np.zeros(num_ids, np.int64),
        resource=np.zeros(num_ids, np.int64),
        num_bytes=np.zeros(num_ids, np.int64),
        origin=np.zeros(num_ids, np.int64),
        duration_s=np.zeros(num_ids, np.float64),
        ready_s=np.zeros(num_ids, np.float64),
        start_s=np.zeros(num_ids, np.float64),
        finish_s=np.zeros(num_ids, np.float64),
        successors=np.zeros(num_edges, np.int64),
        mirrored=np.zeros(num_edges, np.int64),
        deliveries=np.zeros((num_edges, NUM_COLUMNS), np.int64),
        readings=np.zeros((num_edges, 2), np.int64),
        slot=np.zeros(num_devices, np.int64),
        slot_stamp=np.zeros(num_devices, np.int64),
        contribution_source=np.zeros(num_edges, np.int64),
        contribution_target=np.zeros(num_edges, np.int64),
        memory_bytes=np.zeros((2, 2 * n + 1, num_devices), np.int64),
        held_bytes=np.zeros((2, num_devices), np.int64),
        update_s=np.zeros(num_devices, np.float64),
        totals=np.zeros(NUM_TOTALS, np.int64),
    )
