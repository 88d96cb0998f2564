"""What a schedule looked like: for each device the tasks it computed, in order, and when.

A schedule of a slightly different strategy repeats most of it, only later or earlier. A *run* is a stretch of
consecutive tasks of one device that wait for nothing but tasks of the same device, and that no transfer waits
for. When the device gets to the first of them in the same situation as before, the rest follows as before,
shifted: nothing in the run needs to be looked at but what leaves it. Times are whole ticks
(`soaprl.cost.ticks`), so shifting is exact.

`soaprl.simulator.schedule` follows runs; this module keeps what it needs for that. Positions number the
computing tasks of all devices, device by device, in the order of dispatch.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from soaprl.cluster.tables import FloatArray, IntArray
from soaprl.cost.kernels import inner_kernel
from soaprl.simulator.adjacency import Adjacency
from soaprl.simulator.state import HALF, UPDATE_ID, Blocks, Layout, Workspace
from soaprl.simulator.tables import GraphTables

ByteArray = NDArray[np.int8]

_ATTEMPTS, _WORTHWHILE_TENTHS = 16, 6

# Values of `Record.touched`: what waits for the task beyond the backward pass is new; its predecessors or
# successors are; it is another task. Runs may hold tasks of the first kind.
NEW_WAITS, TOUCHED, REPLACED = 1, 2, 3
# Values of `Record.ahead`.
DONE_AHEAD, HOLE = 1, 2


class Record(NamedTuple):
    """A schedule by position, and how far a schedule that follows it has come.

    Attributes:
        size: Shape [2]; number of positions, 0 without a record; 1 after something came in the middle of a
            run that was over already.
        gains: Shape [3]; how often the record was followed, how many tasks there were, how many were in runs.
        position: By id: the task's position, or -1.
        begin: Shape [devices + 1]; the first position of each device.
        task: By position: the id.
        device: By position.
        ready_s: By position.
        start_s: By position.
        finish_s: By position.
        done_s: By position, one entry more: how long all tasks before it take.
        last: By position: the last position that it waits for, or -1.
        reach: By position: the last position that waits for it, or -1.
        fixed: By position: 1 where the task waits for a transfer, or a transfer for it, and for updates.
        wait_begin: By position, one entry more: where what waits beyond the backward pass begins.
        wait_target: What waits: an id.
        wait_finish_s: When what it waits for finished.
        wait_at: The position of what it waits for.
        touched: By position: how the change at hand touches the task; see above.
        ahead: By position: 1 where the task is done before one at an earlier position, `HOLE` where there is
            no task any more.
        frontier: Shape [devices]; the first position that is not done.
        num_ahead: Shape [devices]; tasks that are done beyond it.
        pending: Shape [devices]; computing tasks that wait for nothing but the device.
        expected: Shape [2, devices]; new tasks that are not done, forward and backward.
        first_touched: Shape [2, devices]; the first position touched by the change, forward and backward.
        until_s: Shape [devices]; ready time of the last task of the device's last run.
        until_id: Shape [devices]; its id.
    """

    size: IntArray
    gains: IntArray
    position: IntArray
    begin: IntArray
    task: IntArray
    device: IntArray
    ready_s: FloatArray
    start_s: FloatArray
    finish_s: FloatArray
    done_s: FloatArray
    last: IntArray
    reach: IntArray
    fixed: ByteArray
    wait_begin: IntArray
    wait_target: IntArray
    wait_finish_s: FloatArray
    wait_at: IntArray
    touched: ByteArray
    ahead: ByteArray
    frontier: IntArray
    num_ahead: IntArray
    pending: IntArray
    expected: IntArray
    first_touched: IntArray
    until_s: FloatArray
    until_id: IntArray


def empty_record(num_ids: int, num_devices: int, num_waits: int) -> Record:
    """No record, with room for so many ids and successors of backward tasks."""
    return Record(
        size=np.zeros(2, np.int64),
        gains=np.zeros(3, np.int64),
        position=np.full(num_ids, -1, np.int64),
        begin=np.zeros(num_devices + 1, np.int64),
        task=np.zeros(num_ids, np.int64),
        device=np.zeros(num_ids, np.int64),
        ready_s=np.zeros(num_ids, np.float64),
        start_s=np.zeros(num_ids, np.float64),
        finish_s=np.zeros(num_ids, np.float64),
        done_s=np.zeros(num_ids + 1, np.float64),
        last=np.zeros(num_ids, np.int64),
        reach=np.zeros(num_ids, np.int64),
        fixed=np.zeros(num_ids, np.int8),
        wait_begin=np.zeros(num_ids + 1, np.int64),
        wait_target=np.zeros(num_waits, np.int64),
        wait_finish_s=np.zeros(num_waits, np.float64),
        wait_at=np.zeros(num_waits, np.int64),
        touched=np.zeros(num_ids, np.int8),
        ahead=np.zeros(num_ids, np.int8),
        frontier=np.zeros(num_devices, np.int64),
        num_ahead=np.zeros(num_devices, np.int64),
        pending=np.zeros(num_devices, np.int64),
        expected=np.zeros((2, num_devices), np.int64),
        first_touched=np.zeros((2, num_devices), np.int64),
        until_s=np.zeros(num_devices, np.float64),
        until_id=np.zeros(num_devices, np.int64),
    )


@inner_kernel
def record_schedule(
    work: Workspace, dispatched: IntArray, num_tasks: int, num_devices: int, record: Record
) -> None:
    """Keeps the schedule that was just made.

    Args:
        work: The task graph with its times.
        dispatched: The tasks in the order in which they were dispatched.
        num_tasks: How many they are.
        num_devices: Number of devices.
        record: Filled.
    """
    end = 2 * work.totals[HALF]
    record.gains[:] = 0
    record.position[:] = -1
    record.frontier[:] = 0
    for i in range(num_tasks):
        if 0 <= work.resource[dispatched[i]] < num_devices:
            record.frontier[work.resource[dispatched[i]]] += 1
    size = 0
    for device in range(num_devices):
        record.begin[device] = size
        size += record.frontier[device]
        record.frontier[device] = record.begin[device]
    record.begin[num_devices] = size
    record.size[0] = size
    for i in range(num_tasks):
        task = dispatched[i]
        if 0 <= work.resource[task] < num_devices:
            at = record.frontier[work.resource[task]]
            record.frontier[work.resource[task]] += 1
            record.position[task], record.task[at], record.fixed[at] = at, task, task >= end
            record.last[at], record.reach[at], record.device[at] = -1, -1, work.resource[task]
            record.ready_s[at], record.start_s[at] = work.ready_s[task], work.start_s[task]
            record.finish_s[at] = work.finish_s[task]
    _record_edges(work, dispatched, num_tasks, num_devices, end, record)
    _record_waits(work, size, end, record)


@inner_kernel
def _record_edges(
    work: Workspace, dispatched: IntArray, num_tasks: int, num_devices: int, end: int, record: Record
) -> None:
    """Who waits for whom on the same device, and which tasks have to do with transfers."""
    for i in range(num_tasks):
        task = dispatched[i]
        if task >= end:
            continue
        at = record.position[task]
        for edge in range(work.successor_begin[task], work.successor_end[task]):
            successor = work.successors[edge]
            if successor >= end:
                continue
            then = record.position[successor]
            if at < 0:
                record.fixed[then] = 1
            elif then < 0:
                record.fixed[at] = 1
            else:
                record.last[then] = max(record.last[then], at)
                record.reach[at] = max(record.reach[at], then)


@inner_kernel
def _record_waits(work: Workspace, size: int, end: int, record: Record) -> None:
    """What waits beyond the backward pass, by position, and how long everything takes."""
    count = 0
    record.done_s[0] = 0.0
    for at in range(size):
        task = record.task[at]
        record.done_s[at + 1] = record.done_s[at] + work.duration_s[task]
        record.wait_begin[at] = count
        for edge in range(work.successor_begin[task], work.successor_end[task]):
            if work.successors[edge] >= end:
                record.wait_target[count] = work.successors[edge]
                record.wait_finish_s[count] = record.finish_s[at]
                record.wait_at[count] = at
                count += 1
    record.wait_begin[size] = count


@inner_kernel
def _touch_operator(
    graph: GraphTables, blocks: Blocks, work: Workspace, record: Record, o: int, num_parts: int, how: int
) -> None:
    """Marks the tasks that an operator had in the record."""
    mirror = 2 * work.totals[HALF] - 1
    for task in range(blocks.id_begin[o], blocks.id_begin[o] + num_parts):
        _touch(work, record, task, how, 0)
        if graph.has_backward[o]:
            _touch(work, record, mirror - task, how, 1)


@inner_kernel
def _touch(work: Workspace, record: Record, task: int, how: int, phase: int) -> None:
    at = record.position[task]
    record.touched[at] = max(record.touched[at], how)
    if how == NEW_WAITS:
        return
    if how == REPLACED:
        record.ahead[at] = HOLE
    device = record.device[at]
    record.first_touched[phase, device] = min(record.first_touched[phase, device], at)


@inner_kernel
def worth_following(record: Record) -> bool:
    """Whether enough tasks were in runs so far: looking for runs costs more than they save where few are."""
    attempts, tasks, in_runs = record.gains[0], record.gains[1], record.gains[2]
    return bool(attempts < _ATTEMPTS or in_runs * 10 > tasks * _WORTHWHILE_TENTHS)


@inner_kernel
def begin_following(work: Workspace, record: Record, num_devices: int) -> None:
    """Goes back to the beginning of the record; nothing is touched."""
    record.size[1] = 0
    for at in range(record.size[0]):
        record.touched[at] = 0
        record.ahead[at] = 0
    for device in range(num_devices):
        record.frontier[device] = record.begin[device]
        record.num_ahead[device] = 0
        record.pending[device] = 0
        record.expected[0, device], record.expected[1, device] = 0, 0
        record.first_touched[0, device] = record.begin[device + 1]
        record.first_touched[1, device] = record.begin[device + 1]
        record.until_s[device] = -1.0
        record.until_id[device] = -1
        update = work.totals[UPDATE_ID] + device
        if record.position[update] >= 0 and work.need[update] == 0:
            record.ahead[record.position[update]] = HOLE


@inner_kernel
def touch_change(
    graph: GraphTables,
    near: Adjacency,
    layout: Layout,
    blocks: Blocks,
    work: Workspace,
    record: Record,
    operators: IntArray,
    old_parts: IntArray,
    groups: IntArray,
) -> None:
    """Marks what a change touches: its operators are replaced, and all who deal with them behave differently.

    Args:
        graph: The graph.
        near: Its lists.
        layout: The strategy after the change.
        blocks: Where the blocks are.
        work: The task graph.
        record: Of the strategy before the change.
        operators: The operators that changed.
        old_parts: How many tasks each had.
        groups: The groups that changed.
    """
    for i in range(len(operators)):
        o = operators[i]
        _touch_operator(graph, blocks, work, record, o, old_parts[i], REPLACED)
        for part in range(layout.num_parts[o]):
            record.expected[0, layout.devices[o, part]] += 1
            record.expected[1, layout.devices[o, part]] += graph.has_backward[o]
        work.mark[o] = 1
    for i in range(len(operators)):
        o = operators[i]
        for k in range(near.before_begin[o], near.before_begin[o + 1]):
            _touch_unmarked(graph, layout, blocks, work, record, near.before[k], TOUCHED)
        for k in range(near.after_begin[o], near.after_begin[o + 1]):
            _touch_unmarked(graph, layout, blocks, work, record, near.after[k], TOUCHED)
    for i in range(len(groups)):
        for r in range(graph.reader_begin[groups[i]], graph.reader_begin[groups[i] + 1]):
            _touch_unmarked(graph, layout, blocks, work, record, graph.reader_operator[r], NEW_WAITS)
    for i in range(len(operators)):
        work.mark[operators[i]] = 0


@inner_kernel
def _touch_unmarked(
    graph: GraphTables, layout: Layout, blocks: Blocks, work: Workspace, record: Record, o: int, how: int
) -> None:
    if work.mark[o] == 0:
        _touch_operator(graph, blocks, work, record, o, layout.num_parts[o], how)
