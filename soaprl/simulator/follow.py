"""The schedule of a strategy that differs a little from one whose schedule was recorded.

The same schedule as `soaprl.simulator.schedule` makes, faster: where a device gets to a run (see
`soaprl.simulator.record`) in the situation that it was in before, the run is done at once. The situation is
the same if

- all tasks of the device before the run are done, and none after them;
- the tasks that only wait for the device are those that did so before (the *entries* of the run: of its
  tasks, those that wait for nothing in the run), in the same order;
- no new task of the change is expected soon;
- nothing else gets ready for the device before the last task of the run does. That is only known later: if
  something does, the attempt is given up, and the plain schedule must be made.

Then all that happens in the run happens as before, later or earlier by the same time. What is left to do is
to tell those outside that wait for its tasks.
"""

from soaprl.cluster.tables import ClusterTables
from soaprl.cost.kernels import inner_kernel
from soaprl.simulator.queue import Queue, begin_queue, enqueue, next_task
from soaprl.simulator.record import DONE_AHEAD, NEW_WAITS, REPLACED, TOUCHED, Record
from soaprl.simulator.schedule import free_resources, reduce, send
from soaprl.simulator.state import HALF, NUM_TASKS, Blocks, Layout, Plans, Workspace

# What `follow` answers instead of a time.
TOO_LATE_S, GIVEN_UP_S = float("inf"), -1.0

_SHORTEST_RUN, _FEWEST_BUCKETS = 3, 64


@inner_kernel
def follow(
    layout: Layout,
    tables: ClusterTables,
    plans: Plans,
    blocks: Blocks,
    work: Workspace,
    queue: Queue,
    record: Record,
    horizon_s: float,
    limit_s: float,
) -> float:
    """The time of the last finish; see `soaprl.simulator.schedule.schedule`. Fills in no times of tasks.

    Args:
        layout: The strategy.
        tables: The cluster.
        plans: The collectives.
        blocks: Where the task graph's blocks are.
        work: The task graph.
        queue: Working memory.
        record: At its beginning, with what differs marked.
        horizon_s: A guess of the result, for speed.
        limit_s: Limit of interest; infinite for none.

    Returns:
        `TOO_LATE_S` if the time is certain to pass `limit_s`; `GIVEN_UP_S` if it remains unknown.
    """
    device_free_s, remaining_s, num_devices = queue.device_free_s, queue.remaining_s, tables.num_devices
    ready_s, resource, duration_s, num_tasks = (
        work.ready_s,
        work.resource,
        work.duration_s,
        work.totals[NUM_TASKS],
    )
    last_id, first_plan = 2 * work.totals[HALF], num_devices * (num_devices + 1)
    free_resources(tables, work, queue)
    begin_queue(layout, blocks, work, queue, _FEWEST_BUCKETS + num_tasks // 4, horizon_s)
    _begin_record(layout, blocks, work, record, num_devices)
    makespan_s, done, in_runs = 0.0, 0, 0
    while record.size[1] == 0:
        task = next_task(work, queue)
        if task < 0:
            break
        on, begun_s = resource[task], ready_s[task]
        if on < 0:
            pass
        elif on < num_devices:
            at = record.position[task]
            if at >= 0 and record.touched[at] == REPLACED:
                at = -1
            if 0 <= at < record.frontier[on]:
                continue
            begun_s = max(begun_s, device_free_s[on])
            end = _run(work, record, on, at, begun_s)
            if end > 0:
                device_free_s[on] = record.finish_s[end - 1] + (begun_s - record.start_s[at])
                remaining_s[on] -= record.done_s[end] - record.done_s[at]
                done, in_runs = done + end - at, in_runs + end - at
                _tell_outside(
                    work, queue, record, num_devices, at, end, begun_s - record.start_s[at], last_id
                )
            else:
                device_free_s[on] = begun_s + duration_s[task]
                remaining_s[on] -= duration_s[task]
                done += 1
                _note_done(record, on, at, task, last_id)
                _tell_all(work, queue, record, num_devices, task, device_free_s[on])
            makespan_s = max(makespan_s, device_free_s[on])
            if device_free_s[on] + remaining_s[on] > limit_s:
                _note_gain(record, done, in_runs)
                return TOO_LATE_S
            continue
        elif on < first_plan:
            begun_s = send(tables, plans, queue, on - num_devices, begun_s, work.num_bytes[task])
        else:
            begun_s = reduce(plans, queue, on - first_plan, begun_s)
        done += 1
        makespan_s = max(makespan_s, begun_s + duration_s[task])
        _tell_all(work, queue, record, num_devices, task, begun_s + duration_s[task])
    if record.size[1]:
        _note_gain(record, num_tasks, 0)
        return GIVEN_UP_S
    assert done == num_tasks
    _note_gain(record, num_tasks, in_runs)
    return makespan_s


@inner_kernel
def _begin_record(layout: Layout, blocks: Blocks, work: Workspace, record: Record, num_devices: int) -> None:
    """Counts the tasks that wait for nothing, and goes over those at the beginning that are gone."""
    for device in range(num_devices):
        record.pending[device] = 0
        _move_frontier(record, device, record.begin[device])
    for o in range(len(layout.num_parts)):
        for task in range(blocks.id_begin[o], blocks.id_begin[o] + layout.num_parts[o]):
            if work.need[task] == 0:
                record.pending[work.resource[task]] += 1


@inner_kernel
def _note_gain(record: Record, num_tasks: int, in_runs: int) -> None:
    """Counts how many of so many tasks were in runs."""
    record.gains[0] += 1
    record.gains[1] += num_tasks
    record.gains[2] += in_runs


@inner_kernel
def _tell_outside(
    work: Workspace,
    queue: Queue,
    record: Record,
    num_devices: int,
    at: int,
    end: int,
    later_s: float,
    last_id: int,
) -> None:
    """Tells all who wait for a task of the run from `at` to `end`, but those in it, that it is done."""
    for i in range(record.wait_begin[at], record.wait_begin[end]):
        if record.touched[record.wait_at[i]] != NEW_WAITS:
            _tell(work, queue, record, num_devices, record.wait_target[i], record.wait_finish_s[i] + later_s)
    for k in range(at, end):
        anew = record.touched[k] == NEW_WAITS
        if record.reach[k] < end and not anew:
            continue
        task = record.task[k]
        for e in range(work.successor_begin[task], work.successor_end[task]):
            successor = work.successors[e]
            outside = anew if successor >= last_id else record.position[successor] >= end
            if outside:
                _tell(work, queue, record, num_devices, successor, record.finish_s[k] + later_s)


@inner_kernel
def _tell_all(
    work: Workspace, queue: Queue, record: Record, num_devices: int, task: int, ended_s: float
) -> None:
    """Tells all who wait for a task that it is done."""
    successors = work.successors
    for e in range(work.successor_begin[task], work.successor_end[task]):
        _tell(work, queue, record, num_devices, successors[e], ended_s)


@inner_kernel
def _tell(work: Workspace, queue: Queue, record: Record, num_devices: int, task: int, ended_s: float) -> None:
    """Tells a task that one it waits for is done; notes if it then comes in the middle of a run."""
    if task < 0:
        return
    ready_s = max(work.ready_s[task], ended_s)
    work.ready_s[task] = ready_s
    work.waiting[task] -= 1
    if work.waiting[task] > 0:
        return
    on = work.resource[task]
    if 0 <= on < num_devices:
        record.pending[on] += 1
        until_s = record.until_s[on]
        if ready_s < until_s or (ready_s == until_s and task < record.until_id[on]):
            record.size[1] = 1
    enqueue(queue, task, ready_s)


@inner_kernel
def _note_done(record: Record, device: int, at: int, task: int, last_id: int) -> None:
    """Notes that a single task is done."""
    record.pending[device] -= 1
    if at >= 0:
        _advance(record, device, at)
    elif task < last_id:
        record.expected[1 if task >= last_id // 2 else 0, device] -= 1


@inner_kernel
def _advance(record: Record, device: int, at: int) -> None:
    """Notes that the task at a position is done."""
    if at > record.frontier[device]:
        record.ahead[at] = DONE_AHEAD
        record.num_ahead[device] += 1
        return
    _move_frontier(record, device, at + 1)


@inner_kernel
def _move_frontier(record: Record, device: int, at: int) -> None:
    """Moves the frontier to `at`, and on over what is done or gone."""
    end = record.begin[device + 1]
    while at < end and record.ahead[at]:
        if record.ahead[at] == DONE_AHEAD:
            record.num_ahead[device] -= 1
        at += 1
    record.frontier[device] = at


@inner_kernel
def _run(work: Workspace, record: Record, device: int, at: int, begun_s: float) -> int:
    """The end of the run that begins at a position, which then is done; 0 if there is no run to follow."""
    if at < 0 or at != record.frontier[device] or record.num_ahead[device] > 0:
        return 0
    for phase in range(2):
        if record.expected[phase, device] > 0 and at >= record.first_touched[phase, device]:
            return 0
    start_s, end, device_end = record.start_s[at], at, record.begin[device + 1]
    while end < device_end and record.fixed[end] == 0 and record.touched[end] < TOUCHED:
        end += 1
    if end - at < _SHORTEST_RUN or record.finish_s[at] == start_s:
        return 0
    entries, before_s, before = 0, -1.0, -1
    k = at
    while k < end and record.ready_s[k] <= start_s:
        if record.last[k] < at:
            task = record.task[k]
            now_s = work.ready_s[task]
            if work.waiting[task] > 0 or now_s > begun_s:
                return 0
            if now_s < before_s or (now_s == before_s and task < before):
                return 0
            before_s, before = now_s, task
            entries += 1
        k += 1
    if entries != record.pending[device]:
        return 0
    record.pending[device] = 0
    # Entries are ready when they are; the others when those before them are done.
    shifted_s = record.ready_s[end - 1] + (begun_s - start_s)
    record.until_s[device] = before_s if record.last[end - 1] < at else shifted_s
    record.until_id[device] = record.task[end - 1]
    _move_frontier(record, device, end)
    return end
