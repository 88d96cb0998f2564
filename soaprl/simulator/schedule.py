"""When each task of a task graph runs: first in, first out by ready time, on every device and link.

The task that becomes ready first is dispatched first; among equal times the one with the smaller id.

- A compute task starts when it is ready and its device is free, and occupies it.
- A transfer starts when it is ready and all links of its route are free. Each link is busy for bytes over its
  own bandwidth; the transfer ends after the latency and bytes over the narrowest bandwidth.
- A collective starts when it is ready and all its links are free; each is busy for as long as its plan says.

No task is ready before a task that was dispatched earlier, so the queue only moves forward: ready tasks wait
in unsorted buckets of equal time, and only the bucket at hand (the *batch*) is kept sorted. This gives the
order of a heap at a fraction of its cost. The width of a bucket changes the speed, never the order.
"""

from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import ClusterTables, FloatArray, IntArray
from soaprl.cost.kernels import kernel
from soaprl.simulator.state import NUM_TASKS, Layout, Plans, Workspace
from soaprl.simulator.tables import GraphTables

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
    """

    head: IntArray
    link: IntArray
    batch: IntArray
    batch_ready_s: FloatArray
    spare: IntArray
    spare_ready_s: FloatArray
    device_free_s: FloatArray
    link_free_s: FloatArray


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
    )


@kernel
def schedule(
    graph: GraphTables,
    layout: Layout,
    tables: ClusterTables,
    plans: Plans,
    work: Workspace,
    queue: Queue,
    horizon_s: float,
) -> float:
    """Fills ready, start and finish times; returns the time of the last finish.

    Args:
        graph: The graph.
        layout: The strategy.
        tables: The cluster.
        plans: The collectives.
        work: The task graph.
        queue: Working memory.
        horizon_s: A guess of the result, for speed.
    """
    queue.device_free_s[:] = 0.0
    queue.link_free_s[:] = 0.0
    num_tasks = work.totals[NUM_TASKS]
    num_buckets = min(len(queue.head), num_tasks)
    queue.head[:num_buckets] = -1
    origin_s, scale = 0.0, num_buckets / horizon_s if horizon_s > 0.0 else 1.0
    middle = len(queue.spare)
    position, end, bucket, overflow = middle, _roots(graph, layout, work, queue, middle), 0, -1
    makespan_s, done = 0.0, 0
    while True:
        if position == end:
            bucket += 1
            while bucket < num_buckets and queue.head[bucket] < 0:
                bucket += 1
            if bucket < num_buckets:
                position, end = _take(queue, queue.head[bucket], middle), middle
                queue.head[bucket] = -1
                _fetch_ready(work, queue, position, end)
            elif overflow >= 0:
                position, end = _take(queue, overflow, middle), middle
                _fetch_ready(work, queue, position, end)
                origin_s, scale, bucket = queue.batch_ready_s[position], scale / 4, -1
                overflow = _scatter(queue, position, end, origin_s, scale, num_buckets)
                position = end
            else:
                break
            continue
        task = queue.batch[position]
        position += 1
        done += 1
        finish_s = _dispatch(tables, plans, work, queue, task)
        makespan_s = max(makespan_s, finish_s)
        for e in range(work.successor_begin[task], work.successor_end[task]):
            successor = work.successors[e]
            work.ready_s[successor] = max(work.ready_s[successor], finish_s)
            work.in_degree[successor] -= 1
            if work.in_degree[successor] > 0:
                continue
            ready_s = work.ready_s[successor]
            place = (ready_s - origin_s) * scale
            if place >= num_buckets:
                queue.link[successor] = overflow
                overflow = successor
            elif int(place) > bucket:
                queue.link[successor] = queue.head[int(place)]
                queue.head[int(place)] = successor
            else:
                end = _insert_ready(queue, position, end, successor, ready_s)
    assert done == num_tasks
    return makespan_s


@kernel
def _roots(graph: GraphTables, layout: Layout, work: Workspace, queue: Queue, position: int) -> int:
    """Puts the tasks that wait for nothing into the batch; returns its end."""
    end = position
    for o in range(graph.num_operators):
        for task in range(work.forward_id[o], work.forward_id[o] + layout.num_parts[o]):
            if work.in_degree[task] == 0:
                queue.batch[end] = task
                queue.batch_ready_s[end] = 0.0
                end += 1
    return end


@kernel
def _dispatch(tables: ClusterTables, plans: Plans, work: Workspace, queue: Queue, task: int) -> float:
    """Runs a task as soon as its resources are free; returns when it ends."""
    num_devices = tables.num_devices
    resource, start_s = work.resource[task], work.ready_s[task]
    finish_s = start_s
    if 0 <= resource < num_devices:
        start_s = max(start_s, queue.device_free_s[resource])
        finish_s = start_s + work.duration_s[task]
        queue.device_free_s[resource] = finish_s
    elif resource >= num_devices + num_devices * num_devices:
        plan = resource - num_devices - num_devices * num_devices
        links = range(plans.link_begin[plan], plans.link_begin[plan] + plans.num_links[plan])
        for k in links:
            start_s = max(start_s, queue.link_free_s[plans.links[k]])
        for k in links:
            queue.link_free_s[plans.links[k]] = start_s + plans.busy_s[k]
        finish_s = start_s + work.duration_s[task]
    elif resource >= 0:
        begin = tables.route_offsets[resource - num_devices]
        stop = tables.route_offsets[resource - num_devices + 1]
        for k in range(begin, stop):
            start_s = max(start_s, queue.link_free_s[tables.route_links[k]])
        for k in range(begin, stop):
            link = tables.route_links[k]
            busy_s = work.num_bytes[task] / tables.link_bandwidth_bytes_per_s[link]
            queue.link_free_s[link] = start_s + busy_s
        finish_s = start_s + work.duration_s[task]
    work.start_s[task] = start_s
    work.finish_s[task] = finish_s
    return float(finish_s)


@kernel
def _take(queue: Queue, task: int, end: int) -> int:
    """Writes a bucket's tasks before `end`, first pushed first; returns where they begin."""
    begin = end
    while task >= 0:
        begin -= 1
        queue.batch[begin] = task
        task = queue.link[task]
    return begin


@kernel
def _fetch_ready(work: Workspace, queue: Queue, begin: int, end: int) -> None:
    """Looks up the ready times of a batch and sorts it."""
    for i in range(begin, end):
        queue.batch_ready_s[i] = work.ready_s[queue.batch[i]]
    for first in range(begin, end, _SHORT):
        last = min(first + _SHORT, end)
        for i in range(first + 1, last):
            _insert_ready(queue, first, i, queue.batch[i], queue.batch_ready_s[i])
    width = _SHORT
    while width < end - begin:
        for first in range(begin, end - width, 2 * width):
            _merge(queue, first, first + width, min(first + 2 * width, end))
        width *= 2


@kernel
def _insert_ready(queue: Queue, begin: int, end: int, task: int, ready_s: float) -> int:
    """Inserts a task into the sorted ``batch[begin:end]``; returns the new end."""
    at = end
    while at > begin and (
        queue.batch_ready_s[at - 1] > ready_s
        or (queue.batch_ready_s[at - 1] == ready_s and queue.batch[at - 1] > task)
    ):
        queue.batch[at] = queue.batch[at - 1]
        queue.batch_ready_s[at] = queue.batch_ready_s[at - 1]
        at -= 1
    queue.batch[at] = task
    queue.batch_ready_s[at] = ready_s
    return end + 1


@kernel
def _merge(queue: Queue, begin: int, middle: int, end: int) -> None:
    """Merges two sorted neighbours."""
    last, first = middle - 1, middle
    if queue.batch_ready_s[last] < queue.batch_ready_s[first] or (
        queue.batch_ready_s[last] == queue.batch_ready_s[first] and queue.batch[last] < queue.batch[first]
    ):
        return
    size = middle - begin
    queue.spare[:size] = queue.batch[begin:middle]
    queue.spare_ready_s[:size] = queue.batch_ready_s[begin:middle]
    left, right, at = 0, middle, begin
    while left < size:
        if right < end and (
            queue.batch_ready_s[right] < queue.spare_ready_s[left]
            or (
                queue.batch_ready_s[right] == queue.spare_ready_s[left]
                and queue.batch[right] < queue.spare[left]
            )
        ):
            queue.batch[at], queue.batch_ready_s[at] = queue.batch[right], queue.batch_ready_s[right]
            right += 1
        else:
            queue.batch[at], queue.batch_ready_s[at] = queue.spare[left], queue.spare_ready_s[left]
            left += 1
        at += 1


@kernel
def _scatter(queue: Queue, begin: int, end: int, origin_s: float, scale: float, num_buckets: int) -> int:
    """Puts a batch into buckets from a new origin on; returns the list of those beyond the last bucket."""
    overflow = -1
    for i in range(begin, end):
        task = queue.batch[i]
        place = (queue.batch_ready_s[i] - origin_s) * scale
        if place >= num_buckets:
            queue.link[task] = overflow
            overflow = task
        else:
            queue.link[task] = queue.head[int(place)]
            queue.head[int(place)] = task
    return overflow
