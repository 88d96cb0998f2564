"""When each task of a task graph runs: first in, first out by ready time, on every device and link.

The task that becomes ready first is dispatched first; among equal times the one with the smaller id.

- A compute task starts when it is ready and its device is free, and occupies it.
- A transfer starts when it is ready and all links of its route are free. Each link is busy for bytes over its
  own bandwidth; the transfer ends after the latency and bytes over the narrowest bandwidth.
- A collective starts when it is ready and all its links are free; each is busy for as long as its plan says.

No task is ready before a task that was dispatched earlier, so the queue only moves forward: ready tasks wait
in unsorted buckets of equal time, and only the bucket at hand (the *batch*) is kept sorted. This gives the
order of a heap at a fraction of its cost. The width of a bucket changes the speed, never the order.

A search that only asks whether an iteration takes longer than a limit need not see its end: when a device is
done with a task, it still has all its other tasks to do. If that alone passes the limit, the schedule stops.
"""

from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import ClusterTables, FloatArray, IntArray
from soaprl.cost.kernels import filling_kernel, inner_kernel
from soaprl.cost.ticks import in_ticks
from soaprl.simulator.state import (
    HALF,
    NUM_IDS,
    NUM_TASKS,
    SYNC_ID,
    UPDATE_ID,
    Blocks,
    Layout,
    Plans,
    Workspace,
)

_SHORT = 16


class Queue(NamedTuple):
    """Working memory of the schedule.

    Attributes:
        head: Shape [buckets]; a task of each bucket, or -1.
        link: By id: the next task of the same bucket, or -1.
        batch: Shape [2 * ids]; the bucket at hand, sorted.
        batch_ready_s: Ready times of `batch`.
        spare: Shape [ids].
        spare_ready_s: Shape [ids].
        device_free_s: Shape [devices].
        link_free_s: Shape [links].
        remaining_s: Shape [devices]; how long the tasks take that a device has not begun.
        dispatched: Shape [ids]; the tasks in the order in which they were dispatched.
    """

    head: IntArray
    link: IntArray
    batch: IntArray
    batch_ready_s: FloatArray
    spare: IntArray
    spare_ready_s: FloatArray
    device_free_s: FloatArray
    link_free_s: FloatArray
    remaining_s: FloatArray
    dispatched: IntArray


def empty_queue(num_ids: int, num_devices: int, num_links: int) -> Queue:
    """A queue for so many ids."""
    return Queue(
        head=np.zeros(num_ids, np.int64),
        link=np.zeros(num_ids, np.int64),
        batch=np.zeros(2 * num_ids, np.int64),
        batch_ready_s=np.zeros(2 * num_ids, np.float64),
        spare=np.zeros(num_ids, np.int64),
        spare_ready_s=np.zeros(num_ids, np.float64),
        device_free_s=np.zeros(num_devices, np.float64),
        link_free_s=np.zeros(num_links, np.float64),
        remaining_s=np.zeros(num_devices, np.float64),
        dispatched=np.zeros(num_ids, np.int64),
    )


@filling_kernel
def schedule(
    layout: Layout,
    tables: ClusterTables,
    plans: Plans,
    blocks: Blocks,
    work: Workspace,
    queue: Queue,
    horizon_s: float,
    limit_s: float,
) -> float:
    """Fills ready, start and finish times; returns the time of the last finish.

    If that is certain to pass `limit_s`, it may stop and return infinity, with times filled in part.

    Args:
        layout: The strategy.
        tables: The cluster.
        plans: The collectives.
        blocks: Where the task graph's blocks are.
        work: The task graph.
        queue: Working memory.
        horizon_s: A guess of the result, for speed.
        limit_s: Limit of interest; infinite for none.
    """
    for device in range(tables.num_devices):
        queue.remaining_s[device] = work.load_s[device]
    queue.device_free_s[:] = 0.0
    queue.link_free_s[:] = 0.0
    num_tasks = work.totals[NUM_TASKS]
    num_buckets = min(len(queue.head), num_tasks)
    queue.head[:num_buckets] = -1
    # Arrays are taken out of the tuples once: in a loop, each access would count references.
    head, link, batch, batch_ready_s = queue.head, queue.link, queue.batch, queue.batch_ready_s
    successors, begins, ends = work.successors, work.successor_begin, work.successor_end
    waiting, ready_s, start_s, finish_s = work.waiting, work.ready_s, work.start_s, work.finish_s
    resource, duration_s, num_bytes = work.resource, work.duration_s, work.num_bytes
    device_free_s, link_free_s, remaining_s = queue.device_free_s, queue.link_free_s, queue.remaining_s
    offsets, links, bandwidth = tables.route_offsets, tables.route_links, tables.link_bandwidth_bytes_per_s
    num_devices, first_plan = tables.num_devices, tables.num_devices * (tables.num_devices + 1)
    dispatched, middle = queue.dispatched, len(queue.spare)
    position, end = middle, restart(layout, blocks, work, queue)
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
        if task < 0:
            break
        dispatched[done] = task
        done += 1
        on, begun_s = resource[task], ready_s[task]
        if on < 0:
            pass
        elif on < num_devices:
            begun_s = max(begun_s, device_free_s[on])
            device_free_s[on] = begun_s + duration_s[task]
            remaining_s[on] -= duration_s[task]
            if device_free_s[on] + remaining_s[on] > limit_s:
                return np.inf
        elif on < first_plan:
            route = on - num_devices
            begun_s = send(
                links, bandwidth, link_free_s, offsets[route], offsets[route + 1], begun_s, num_bytes[task]
            )
        else:
            plan = on - first_plan
            begun_s = reduce(
                plans.links, plans.busy_s, link_free_s, plans.link_begin[plan], plans.num_links[plan], begun_s
            )
        ended_s = begun_s + duration_s[task]
        start_s[task], finish_s[task] = begun_s, ended_s
        makespan_s = max(makespan_s, ended_s)
        first = begins[task]
        if first < 0:
            break
        for e in range(first, ends[task]):
            successor = successors[e]
            if successor < 0:
                break
            then_s = max(ready_s[successor], ended_s)
            ready_s[successor] = then_s
            waiting[successor] -= 1
            if waiting[successor] > 0:
                continue
            place = (then_s - origin_s) * scale
            if place >= num_buckets:
                link[successor] = overflow
                overflow = successor
                continue
            into = int(place)
            if into > bucket and into >= 0:
                link[successor] = head[into]
                head[into] = successor
            else:
                insert(batch, batch_ready_s, position, end, successor, then_s)
                end += 1
    assert done == num_tasks
    return makespan_s


@inner_kernel
def restart(layout: Layout, blocks: Blocks, work: Workspace, queue: Queue) -> int:
    """Makes all tasks wait, and puts those that wait for nothing into the batch; returns its end."""
    end, mirror = len(queue.spare), 2 * work.totals[HALF] - 1
    need, waiting, ready_s = work.need, work.waiting, work.ready_s
    for o in range(len(work.entered)):
        first = blocks.id_begin[o]
        last_part = first + layout.num_parts[o]
        last = last_part + work.num_deliveries[o]
        for task in range(first, last_part):
            if need[task] == 0:
                queue.batch[end] = task
                queue.batch_ready_s[end] = 0.0
                end += 1
        _wait(need, waiting, ready_s, first, last)
        _wait(need, waiting, ready_s, mirror - last + 1, mirror - first + 1)
    _wait(need, waiting, ready_s, 2 * work.totals[HALF], work.totals[SYNC_ID])
    for g in range(len(work.num_sync)):
        first = work.totals[SYNC_ID] + blocks.sync_begin[g]
        _wait(need, waiting, ready_s, first, first + work.num_sync[g])
    _wait(need, waiting, ready_s, work.totals[UPDATE_ID], work.totals[NUM_IDS])
    return end


@inner_kernel
def _wait(need: IntArray, waiting: IntArray, ready_s: FloatArray, first: int, end: int) -> None:
    """Sets the tasks from `first` to `end` to waiting for all their predecessors."""
    for task in range(first, end):
        waiting[task] = need[task]
        ready_s[task] = 0.0


@inner_kernel
def send(
    links: IntArray,
    bandwidth: FloatArray,
    free_s: FloatArray,
    begin: int,
    end: int,
    ready_s: float,
    num_bytes: int,
) -> float:
    """Occupies the links of a route as soon as all are free; returns when that is."""
    start_s = ready_s
    for k in range(begin, end):
        start_s = max(start_s, free_s[links[k]])
    for k in range(begin, end):
        free_s[links[k]] = start_s + in_ticks(num_bytes / bandwidth[links[k]])
    return start_s


@inner_kernel
def reduce(
    links: IntArray, busy_s: FloatArray, free_s: FloatArray, begin: int, count: int, ready_s: float
) -> float:
    """Occupies the links of a collective as soon as all are free; returns when that is."""
    start_s = ready_s
    for k in range(begin, begin + count):
        start_s = max(start_s, free_s[links[k]])
    for k in range(begin, begin + count):
        free_s[links[k]] = start_s + busy_s[k]
    return start_s


@inner_kernel
def take(batch: IntArray, link: IntArray, task: int, end: int) -> int:
    """Writes the tasks of a list before `end`, first pushed first; returns where they begin."""
    begin = end
    while task >= 0:
        begin -= 1
        batch[begin] = task
        task = link[task]
    return begin


@inner_kernel
def sort_batch(
    batch: IntArray,
    batch_ready_s: FloatArray,
    ready_s: FloatArray,
    spare: IntArray,
    spare_ready_s: FloatArray,
    begin: int,
    end: int,
) -> None:
    """Sorts ``batch[begin:end]`` by ready time, then id: short runs by insertion, then merges."""
    for i in range(begin, end):
        batch_ready_s[i] = ready_s[batch[i]]
    for first in range(begin, end, _SHORT):
        for i in range(first + 1, min(first + _SHORT, end)):
            insert(batch, batch_ready_s, first, i, batch[i], batch_ready_s[i])
    width = _SHORT
    while width < end - begin:
        for first in range(begin, end - width, 2 * width):
            last = min(first + 2 * width, end)
            _merge(batch, batch_ready_s, spare, spare_ready_s, first, first + width, last)
        width *= 2


@inner_kernel
def insert(
    batch: IntArray, batch_ready_s: FloatArray, begin: int, end: int, task: int, ready_s: float
) -> None:
    """Inserts a task into the sorted ``batch[begin:end]``."""
    at = end
    while at > begin and (
        batch_ready_s[at - 1] > ready_s or (batch_ready_s[at - 1] == ready_s and batch[at - 1] > task)
    ):
        batch[at] = batch[at - 1]
        batch_ready_s[at] = batch_ready_s[at - 1]
        at -= 1
    batch[at] = task
    batch_ready_s[at] = ready_s


@inner_kernel
def _merge(
    batch: IntArray,
    batch_ready_s: FloatArray,
    spare: IntArray,
    spare_ready_s: FloatArray,
    begin: int,
    middle: int,
    end: int,
) -> None:
    """Merges two sorted neighbours."""
    if batch_ready_s[middle - 1] < batch_ready_s[middle] or (
        batch_ready_s[middle - 1] == batch_ready_s[middle] and batch[middle - 1] < batch[middle]
    ):
        return
    size = middle - begin
    for i in range(size):
        spare[i], spare_ready_s[i] = batch[begin + i], batch_ready_s[begin + i]
    left, right, at = 0, middle, begin
    while left < size:
        if right < end and (
            batch_ready_s[right] < spare_ready_s[left]
            or (batch_ready_s[right] == spare_ready_s[left] and batch[right] < spare[left])
        ):
            batch[at], batch_ready_s[at] = batch[right], batch_ready_s[right]
            right += 1
        else:
            batch[at], batch_ready_s[at] = spare[left], spare_ready_s[left]
            left += 1
        at += 1


@inner_kernel
def earliest(batch: IntArray, ready_s: FloatArray, begin: int, end: int) -> float:
    """The smallest ready time in ``batch[begin:end]``."""
    earliest_s = ready_s[batch[begin]]
    for i in range(begin + 1, end):
        earliest_s = min(earliest_s, ready_s[batch[i]])
    return float(earliest_s)


@inner_kernel
def scatter(
    batch: IntArray,
    ready_s: FloatArray,
    head: IntArray,
    link: IntArray,
    begin: int,
    end: int,
    origin_s: float,
    scale: float,
    num_buckets: int,
) -> int:
    """Puts tasks into buckets from a new origin on; returns the list of those beyond the last bucket."""
    overflow = -1
    for i in range(begin, end):
        task = batch[i]
        place = (ready_s[task] - origin_s) * scale
        if place >= num_buckets:
            link[task] = overflow
            overflow = task
        else:
            link[task] = head[int(place)]
            head[int(place)] = task
    return overflow
