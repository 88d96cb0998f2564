"""The schedule of a strategy that differs a little from one whose schedule was recorded.

The same schedule as `soaprl.simulator.schedule` makes, faster: where a device gets to a run (see
`soaprl.simulator.record`) in the situation that it was in before, the run is done at once. The situation is
the same if

- all tasks of the device before the run are done, and none after them;
- the tasks that only wait for the device are those that did so before (the *entries* of the run: of its tasks,
  those that wait for nothing in the run), in the same order;
- no new task of the change is expected soon;
- nothing else gets ready for the device before the last task of the run does. That is only known later: if
  something does, the attempt is given up, and the plain schedule must be made.

Then all that happens in the run happens as before, later or earlier by the same time. What is left to do is
to tell those outside that wait for its tasks.
"""

from soaprl.cluster.tables import ClusterTables
from soaprl.cost.kernels import filling_kernel, inner_kernel
from soaprl.simulator.record import DONE_AHEAD, NEW_WAITS, REPLACED, TOUCHED, Record
from soaprl.simulator.schedule import (
    Queue,
    earliest,
    insert,
    reduce,
    restart,
    scatter,
    send,
    sort_batch,
    take,
)
from soaprl.simulator.state import HALF, NUM_TASKS, Blocks, Layout, Plans, Workspace

# What `follow` answers instead of a time.
TOO_LATE_S, GIVEN_UP_S = float("inf"), -1.0

_SHORTEST_RUN = 3


@filling_kernel
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
    for device in range(tables.num_devices):
        queue.remaining_s[device] = work.load_s[device]
        record.pending[device] = 0
        _move_frontier(record, device, record.begin[device])
    queue.device_free_s[:] = 0.0
    queue.link_free_s[:] = 0.0
    num_tasks = work.totals[NUM_TASKS]
    num_buckets = min(len(queue.head), 64 + num_tasks // 4)
    queue.head[:num_buckets] = -1
    head, link, batch, batch_ready_s = queue.head, queue.link, queue.batch, queue.batch_ready_s
    successors, begins, ends = work.successors, work.successor_begin, work.successor_end
    waiting, ready_s, resource, duration_s = work.waiting, work.ready_s, work.resource, work.duration_s
    device_free_s, link_free_s, remaining_s = queue.device_free_s, queue.link_free_s, queue.remaining_s
    offsets, links, bandwidth = tables.route_offsets, tables.route_links, tables.link_bandwidth_bytes_per_s
    num_devices, first_plan = tables.num_devices, tables.num_devices * (tables.num_devices + 1)
    last_id, middle, pending = 2 * work.totals[HALF], len(queue.spare), record.pending
    position, end = middle, restart(layout, blocks, work, queue)
    for i in range(position, end):
        pending[resource[batch[i]]] += 1
    record.stat[:] = 0
    origin_s, scale = 0.0, num_buckets / horizon_s if horizon_s > 0.0 else 1.0
    bucket, overflow, makespan_s, done = 0, -1, 0.0, 0
    while True:
        if position == end:
            bucket += 1
            while bucket < num_buckets and head[bucket] < 0:
                bucket += 1
            if bucket < num_buckets:
                position, end = take(batch, link, head[bucket], middle), middle
                sort_batch(batch, batch_ready_s, ready_s, queue.spare, queue.spare_ready_s, position, end)
            elif overflow >= 0:
                position, end = take(batch, link, overflow, middle), middle
                origin_s, scale, bucket = earliest(batch, ready_s, position, end), scale / 4, -1
                head[:num_buckets] = -1
                overflow = scatter(batch, ready_s, head, link, position, end, origin_s, scale, num_buckets)
                position = end
            else:
                break
            continue
        task = batch[position]
        position += 1
        record.stat[2] += 1
        on, begun_s = resource[task], ready_s[task]
        if on < 0:
            pass
        elif on < num_devices:
            at = record.position[task] if task < last_id else -1
            if at >= 0 and record.touched[at] == REPLACED:
                at = -1
            if 0 <= at < record.frontier[on]:
                continue
            begun_s = max(begun_s, device_free_s[on])
            run_end = _run(work, record, on, at, begun_s)
            if run_end > 0:
                record.stat[0] += 1
                record.stat[1] += run_end - at
                later_s = begun_s - record.start_s[at]
                done += run_end - at
                device_free_s[on] = record.finish_s[run_end - 1] + later_s
                remaining_s[on] -= record.done_s[run_end] - record.done_s[at]
                if device_free_s[on] + remaining_s[on] > limit_s:
                    return TOO_LATE_S
                makespan_s = max(makespan_s, device_free_s[on])
                for i in range(record.wait_begin[at], record.wait_begin[run_end]):
                    if record.touched[record.wait_at[i]] == NEW_WAITS:
                        continue
                    successor = record.wait_target[i]
                    then_s = max(ready_s[successor], record.wait_finish_s[i] + later_s)
                    ready_s[successor] = then_s
                    waiting[successor] -= 1
                    if waiting[successor] == 0:
                        end, overflow = _push(
                            queue,
                            record,
                            resource[successor],
                            position,
                            end,
                            overflow,
                            bucket,
                            (then_s - origin_s) * scale,
                            num_buckets,
                            successor,
                            then_s,
                            num_devices,
                        )
                for k in range(at, run_end):
                    anew = record.touched[k] == NEW_WAITS
                    if record.reach[k] < run_end and not anew:
                        continue
                    ended_s = record.finish_s[k] + later_s
                    for e in range(begins[record.task[k]], ends[record.task[k]]):
                        successor = successors[e]
                        if successor >= last_id:
                            if not anew:
                                continue
                        elif record.position[successor] < run_end:
                            continue
                        then_s = max(ready_s[successor], ended_s)
                        ready_s[successor] = then_s
                        waiting[successor] -= 1
                        if waiting[successor] == 0:
                            end, overflow = _push(
                                queue,
                                record,
                                resource[successor],
                                position,
                                end,
                                overflow,
                                bucket,
                                (then_s - origin_s) * scale,
                                num_buckets,
                                successor,
                                then_s,
                                num_devices,
                            )
                if record.size[1]:
                    return GIVEN_UP_S
                continue
            pending[on] -= 1
            device_free_s[on] = begun_s + duration_s[task]
            remaining_s[on] -= duration_s[task]
            if device_free_s[on] + remaining_s[on] > limit_s:
                return TOO_LATE_S
            if at >= 0:
                _advance(record, on, at)
            elif task < last_id:
                record.expected[1 if task >= last_id // 2 else 0, on] -= 1
        elif on < first_plan:
            route = on - num_devices
            begun_s = send(
                links,
                bandwidth,
                link_free_s,
                offsets[route],
                offsets[route + 1],
                begun_s,
                work.num_bytes[task],
            )
        else:
            plan = on - first_plan
            begun_s = reduce(
                plans.links, plans.busy_s, link_free_s, plans.link_begin[plan], plans.num_links[plan], begun_s
            )
        done += 1
        ended_s = begun_s + duration_s[task]
        makespan_s = max(makespan_s, ended_s)
        for e in range(begins[task], ends[task]):
            successor = successors[e]
            then_s = max(ready_s[successor], ended_s)
            ready_s[successor] = then_s
            waiting[successor] -= 1
            if waiting[successor] == 0:
                end, overflow = _push(
                    queue,
                    record,
                    resource[successor],
                    position,
                    end,
                    overflow,
                    bucket,
                    (then_s - origin_s) * scale,
                    num_buckets,
                    successor,
                    then_s,
                    num_devices,
                )
        if record.size[1]:
            return GIVEN_UP_S
    assert done == num_tasks
    return makespan_s


@inner_kernel
def _push(
    queue: Queue,
    record: Record,
    on: int,
    position: int,
    end: int,
    overflow: int,
    bucket: int,
    place: float,
    num_buckets: int,
    task: int,
    ready_s: float,
    num_devices: int,
) -> tuple[int, int]:
    """Puts a task into the queue; returns the end of the batch and the list beyond the last bucket."""
    if 0 <= on < num_devices:
        record.pending[on] += 1
        until_s = record.until_s[on]
        if ready_s < until_s or (ready_s == until_s and task < record.until_id[on]):
            record.size[1] = 1
    if place >= num_buckets:
        queue.link[task] = overflow
        return end, task
    if int(place) > bucket:
        queue.link[task] = queue.head[int(place)]
        queue.head[int(place)] = task
        return end, overflow
    insert(queue.batch, queue.batch_ready_s, position, end, task, ready_s)
    return end + 1, overflow


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
    record.until_s[device] = record.ready_s[end - 1] + (begun_s - start_s)
    record.until_id[device] = record.task[end - 1]
    _move_frontier(record, device, end)
    return end
