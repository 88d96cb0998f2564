"""What compiled code reads and writes: the strategy at hand, the plans of its collectives, the task graph.

The task graph consists of blocks, one for each operator and one for each synchronization group, so that a
change of one operator rewrites a few blocks and leaves the others where they are. A block has room beyond
what it holds; see `soaprl.simulator.rooms`.

Task ids. Ids are the sequence numbers that break ties, and a task's id is always larger than its
predecessors'. With M = 2H - 1:

    [0, H)        for each operator a block: its forward tasks by part, then the transfers of its outputs
    [H, 2H)       the mirror image: task u has the backward task (or gradient transfer) M - u
    2H            the barrier before synchronization, if it does not overlap the backward pass
    (2H, U)       synchronization: a block for each group, in it by cell and holder
    [U, U + D)    the optimizer's update of each device
    from U + D    what sharded parameters need; see `soaprl.simulator.gathers`

Not every id is a task; the order of two tasks depends only on their operators, phases and parts.

Resources. -1: none; d < D: device d; D + i * D + j: the route from device i to j; D + D * D + s: the links of
the collective that plan s describes.

Successors. Also in blocks: of forward tasks and transfers by operator (a gradient transfer has its one
successor there too), of backward tasks by operator, of synchronization by group, of the barrier. That a
backward task waits for its own forward task is only written down where no gradient flows to it: otherwise it
follows, as the tasks that the gradients come from have waited for it. Where passes are in an order, the last
successor of each forward and backward task is the next one on its device, after the last one the device's
update, or -1 if there is none.
"""

from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import FloatArray, IntArray
from soaprl.simulator.tables import GraphTables


class Layout(NamedTuple):
    """A strategy as offsets into the patterns; see `soaprl.simulator.patterns`.

    Attributes:
        forward_step: Shape [operators]; when each operator's forward pass comes in the program.
        backward_step: Shape [operators]; when its backward pass does.
        turns: All passes in the order of the program: operator o for its forward pass, n + o for its backward
            pass. Every device does its tasks in this order. Empty: as they become ready.
        pattern: Shape [operators]; number of the operator's pattern, -1 before the first strategy.
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

    forward_step: IntArray
    backward_step: IntArray
    turns: IntArray
    pattern: IntArray
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

    With sharding, behind those of a group's cells one for each that gathers the cell, with the same holders.

    Attributes:
        cursor: Shape [4]; plans, holders and links in use; how often all plans were made anew.
        time_s: Seconds of the collective.
        holder_begin: Where the plan's holders begin.
        num_holders: How many devices hold the cell.
        holders: The devices, ascending for each plan.
        root: The device of the first task that holds the cell.
        link_begin: Where the plan's links begin.
        num_links: How many links it uses.
        links: The links.
        busy_s: How long each of them is busy.
        link_set: Plans with the same number here use the same links.
        longest_busy_s: How long the busiest of them is busy.
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
    link_set: IntArray
    longest_busy_s: FloatArray


class Blocks(NamedTuple):
    """Where the blocks are. Of n operators, E edges and G groups; each has one entry more, the end.

    Attributes:
        id_begin: Shape [n + 1]; forward ids of each operator.
        forward_begin: Shape [n + 1]; successors of its forward tasks and of transfers of its outputs.
        back_begin: Shape [n + 1]; successors of its backward tasks.
        hold_begin: Shape [n + 1]; rows of `Workspace.holds`.
        via_begin: Shape [E + 1]; entries of `Workspace.via`.
        sync_begin: Shape [G + 1]; ids of each group, counted from the first of synchronization.
        sync_out_begin: Shape [G + 1]; successors of its tasks.
        wait_begin: Shape [G + 1]; entries of `Workspace.wait`.
        barrier_begin: Shape [2]; successors of the barrier.
        gather_begin: Shape [G + 1]; ids of each group's gathers, counted from the first gather.
        gather_out_begin: Shape [G + 1]; successors of its gathers.
        late_begin: Shape [2]; successors of updates and of what paces gathers.
    """

    id_begin: IntArray
    forward_begin: IntArray
    back_begin: IntArray
    hold_begin: IntArray
    via_begin: IntArray
    sync_begin: IntArray
    sync_out_begin: IntArray
    wait_begin: IntArray
    barrier_begin: IntArray
    gather_begin: IntArray
    gather_out_begin: IntArray
    late_begin: IntArray


class Workspace(NamedTuple):
    """The task graph, its schedule, and working memory. Arrays over ids are only valid where there is a task.

    Attributes:
        entered: Shape [operators]; 1 where the operator's block is filled.
        group_entered: Shape [groups]; 1 where the group's block is filled.
        num_deliveries: Shape [operators]; transfers of its outputs.
        num_holds: Shape [operators]; rows of `holds`.
        num_sync: Shape [groups]; tasks.
        num_gathers: Shape [groups]; gathers.
        operator_totals: Shape [operators, 3]; tasks, bytes of outputs sent, bytes of their gradients sent.
        group_bytes: Shape [groups]; bytes sent.
        need: By id: predecessors. 0 for a gradient transfer that is none.
        successor_begin: By id.
        successor_end: By id.
        resource: By id; see the module.
        num_bytes: By id: bytes transferred.
        origin: By id, for transfers of outputs: the part that sends. For synchronization: the plan.
        after_barrier: By id, for synchronization: 1 where it waits for the barrier.
        duration_s: By id.
        waiting: By id: predecessors that are not done; working memory of the schedule.
        ready_s: By id.
        start_s: By id.
        finish_s: By id.
        successors: Successor ids.
        via: For each pair of an edge, what its reader waits for: the writing task or a transfer.
        wait: For each (cell, holding task) pair of a group, what waits for the holder's backward task, or -1.
        holds: What lives on a device: kind (0 activations, 1 buffers), device, first step, step after the
            last, bytes.
        deliveries: Working memory: a row for each transfer of an output; the columns are below.
        readings: Working memory: for each reading on another device the delivery, and the reading task.
        slot: Shape [devices]: working memory.
        slot_stamp: Shape [devices]: working memory.
        mark: Shape [operators]; working memory.
        group_mark: Shape [groups]; working memory.
        listed: Shape [3, operators]; working memory.
        listed_groups: Shape [groups]; working memory.
        memory_bytes: Shape [2, steps + 1, devices]: change of live bytes at each step; activations, buffers.
        held_bytes: Shape [3, devices]; parameters, gradients, trained parameters whose optimizer state is
            kept.
        update_s: Shape [devices].
        load_s: Shape [devices]; how long its forward and backward tasks take.
        totals: See the constants below.
    """

    entered: IntArray
    group_entered: IntArray
    num_deliveries: IntArray
    num_holds: IntArray
    num_sync: IntArray
    num_gathers: IntArray
    operator_totals: IntArray
    group_bytes: IntArray
    need: IntArray
    successor_begin: IntArray
    successor_end: IntArray
    resource: IntArray
    num_bytes: IntArray
    origin: IntArray
    after_barrier: IntArray
    duration_s: FloatArray
    waiting: IntArray
    ready_s: FloatArray
    start_s: FloatArray
    finish_s: FloatArray
    successors: IntArray
    via: IntArray
    wait: IntArray
    holds: IntArray
    deliveries: IntArray
    readings: IntArray
    slot: IntArray
    slot_stamp: IntArray
    mark: IntArray
    group_mark: IntArray
    listed: IntArray
    listed_groups: IntArray
    memory_bytes: IntArray
    held_bytes: IntArray
    update_s: FloatArray
    load_s: FloatArray
    totals: IntArray


# Entries of `Workspace.totals`.
HALF, SYNC_ID, UPDATE_ID, NUM_IDS, STAMP = 0, 1, 2, 3, 4
NUM_TASKS, ACTIVATION_BYTES, GRADIENT_BYTES, SYNC_BYTES, NUM_BACKWARD, NUM_UPDATES = 5, 6, 7, 8, 9, 10
PACE_ID, GATHER_ID, SHARDING = 11, 12, 13
NUM_TOTALS = 14

# Columns of `Workspace.deliveries`.
BOX, NEXT, NUM_READERS, NUM_GRADIENTS = 0, 1, 2, 3
FIRST, LAST, KEEPER, FIRST_GRADIENT, LAST_GRADIENT = 4, 5, 6, 7, 8
BYTES, SOURCE, TARGET, PART = 9, 10, 11, 12
NUM_COLUMNS = 13

# Columns of `Workspace.holds`.
KIND, DEVICE, FIRST_STEP, END_STEP, HELD_BYTES = 0, 1, 2, 3, 4
NUM_HOLD_COLUMNS = 5


def empty_layout(graph: GraphTables, num_groups: int, room: int, num_turns: int = 0) -> Layout:
    """A layout that no strategy is in yet, with room for `room` tasks of each operator.

    Passes are in the order of the operators; `num_turns` is the length of `Layout.turns`.
    """
    n, e = graph.num_operators, len(graph.edge_consumer)
    return Layout(
        forward_step=np.arange(n, dtype=np.int64),
        backward_step=np.arange(2 * n - 1, n - 1, -1, dtype=np.int64),
        turns=np.zeros(num_turns, np.int64),
        pattern=np.full(n, -1, np.int64),
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
        cursor=np.zeros(4, np.int64),
        time_s=np.zeros(room, np.float64),
        holder_begin=integers[0],
        num_holders=integers[1],
        holders=integers[2],
        root=integers[3],
        link_begin=integers[4],
        num_links=integers[5],
        links=integers[6],
        busy_s=np.zeros(room, np.float64),
        link_set=integers[7],
        longest_busy_s=np.zeros(room, np.float64),
    )


def empty_workspace(
    graph: GraphTables, blocks: Blocks, num_devices: int, most_pairs: int, sharding: int
) -> Workspace:
    """A workspace for `blocks`.

    Args:
        graph: The graph.
        blocks: Where the blocks are.
        num_devices: Number of devices.
        most_pairs: Largest number of pairs that the edges of one operator's outputs may have.
        sharding: A level of `soaprl.strategy.strategy.Sharding`.
    """
    n, num_groups = graph.num_operators, len(blocks.sync_begin) - 1
    half = int(blocks.id_begin[-1])
    update_id = 2 * half + 1 + int(blocks.sync_begin[-1])
    pace_id = update_id + num_devices
    gather_id = pace_id + (2 * n if sharding == 3 else 0)
    num_ids = gather_id + int(blocks.gather_begin[-1])
    rows = [np.zeros(num_ids, np.int64) for _ in range(6)]
    times = [np.zeros(num_ids, np.float64) for _ in range(2)]
    totals = np.zeros(NUM_TOTALS, np.int64)
    totals[HALF], totals[SYNC_ID], totals[UPDATE_ID], totals[NUM_IDS] = half, 2 * half + 1, update_id, num_ids
    totals[PACE_ID], totals[GATHER_ID], totals[SHARDING] = pace_id, gather_id, sharding
    return Workspace(
        entered=np.zeros(n, np.int64),
        group_entered=np.zeros(num_groups, np.int64),
        num_deliveries=np.zeros(n, np.int64),
        num_holds=np.zeros(n, np.int64),
        num_sync=np.zeros(num_groups, np.int64),
        num_gathers=np.zeros(num_groups, np.int64),
        operator_totals=np.zeros((n, 3), np.int64),
        group_bytes=np.zeros(num_groups, np.int64),
        need=rows[0],
        successor_begin=rows[1],
        successor_end=rows[2],
        resource=rows[3],
        num_bytes=rows[4],
        origin=np.zeros(num_ids, np.int64),
        after_barrier=np.zeros(num_ids, np.int64),
        waiting=rows[5],
        duration_s=times[0],
        ready_s=times[1],
        start_s=np.zeros(num_ids, np.float64),
        finish_s=np.zeros(num_ids, np.float64),
        successors=np.zeros(int(blocks.late_begin[-1]), np.int64),
        via=np.zeros(int(blocks.via_begin[-1]), np.int64),
        wait=np.zeros(int(blocks.wait_begin[-1]), np.int64),
        holds=np.zeros((int(blocks.hold_begin[-1]), NUM_HOLD_COLUMNS), np.int64),
        deliveries=np.zeros((most_pairs, NUM_COLUMNS), np.int64),
        readings=np.zeros((most_pairs, 2), np.int64),
        slot=np.zeros(num_devices, np.int64),
        slot_stamp=np.zeros(num_devices, np.int64),
        mark=np.zeros(n, np.int64),
        group_mark=np.zeros(num_groups, np.int64),
        listed=np.zeros((3, n), np.int64),
        listed_groups=np.zeros(num_groups, np.int64),
        memory_bytes=np.zeros((2, 2 * n + 1, num_devices), np.int64),
        held_bytes=np.zeros((3, num_devices), np.int64),
        update_s=np.zeros(num_devices, np.float64),
        load_s=np.zeros(num_devices, np.float64),
        totals=totals,
    )


def _cache_lines(num_rows: int) -> IntArray:
    """Rows of eight numbers, each in a cache line of its own."""
    room = np.zeros(8 * num_rows + 8, np.int64)
    first = -(room.ctypes.data // 8) % 8
    return room[first : first + 8 * num_rows].reshape(num_rows, 8)
