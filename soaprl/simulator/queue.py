"""Which task is next: the one that became ready first; among equal times the one with the smaller id.

No task is ready before a task that was dispatched earlier, so the queue only moves forward: ready tasks wait
in unsorted buckets of equal time, and only the bucket at hand (the *batch*) is kept sorted. This gives the
order of a heap at a fraction of its cost. The width of a bucket changes the speed, never the order.

Indices are unsigned where it matters: negative ones count from the end, and to find out that there are none
takes as long as what is done with them.
"""

from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import FloatArray, IntArray
from soaprl.cost.kernels import inlined_kernel, inner_kernel
from soaprl.simulator.state import (
    GATHER_ID,
    HALF,
    NUM_IDS,
    SHARDING,
    SYNC_ID,
    UPDATE_ID,
    Blocks,
    Layout,
    Workspace,
)

_SHORT = 16
NOTHING = -1

# Entries of `Queue.cursor`.
_POSITION, _END, _BUCKET, _OVERFLOW, _NUM_BUCKETS = 0, 1, 2, 3, 4
# Entries of `Queue.scale`.
_ORIGIN_S, _PER_S = 0, 1


class Queue(NamedTuple):
    """Working memory of the schedule.

    Attributes:
        head: Shape [buckets]; a task of each bucket, or -1.
        link: By id: the next task of the same bucket, or -1.
        batch: Shape [2 * ids]; the bucket at hand, sorted.
        batch_ready_s: Ready times of `batch`.
        spare: Shape [ids].
        spare_ready_s: Shape [ids].
        cursor: Shape [5]; the next entry of `batch`, its end, the bucket at hand, a task beyond the last
            bucket or -1, and the number of buckets.
        scale: Shape [2]; the time at which the first bucket begins, and buckets per second.
        device_free_s: Shape [devices].
        handed_s: Shape [devices]; until when each hands messages over.
        link_free_s: Shape [links]; see `soaprl.simulator.schedule.settle`.
        last_plan: Shape [1]; a collective that is not in `link_free_s` yet, or -1.
        last_start_s: Shape [1]; when it started.
        remaining_s: Shape [devices]; how long the tasks take that a device has not begun.
        dispatched: Shape [ids]; the tasks in the order in which they were dispatched.
    """

    head: IntArray
    link: IntArray
    batch: IntArray
    batch_ready_s: FloatArray
    spare: IntArray
    spare_ready_s: FloatArray
    cursor: IntArray
    scale: FloatArray
    device_free_s: FloatArray
    handed_s: FloatArray
    link_free_s: FloatArray
    last_plan: IntArray
    last_start_s: FloatArray
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
        cursor=np.zeros(5, np.int64),
        scale=np.zeros(2, np.float64),
        device_free_s=np.zeros(num_devices, np.float64),
        handed_s=np.zeros(num_devices, np.float64),
        link_free_s=np.zeros(num_links, np.float64),
        last_plan=np.zeros(1, np.int64),
        last_start_s=np.zeros(1, np.float64),
        remaining_s=np.zeros(num_devices, np.float64),
        dispatched=np.zeros(num_ids, np.int64),
    )


@inner_kernel
def begin_queue(
    layout: Layout, blocks: Blocks, work: Workspace, queue: Queue, num_buckets: int, horizon_s: float
) -> None:
    """Makes all tasks wait for their predecessors; those without any are in the queue."""
    num_buckets = min(len(queue.head), num_buckets)
    queue.head[:num_buckets] = NOTHING
    queue.cursor[_POSITION], queue.cursor[_END] = len(queue.spare), _restart(layout, blocks, work, queue)
    queue.cursor[_BUCKET], queue.cursor[_OVERFLOW], queue.cursor[_NUM_BUCKETS] = 0, NOTHING, num_buckets
    queue.scale[_ORIGIN_S], queue.scale[_PER_S] = 0.0, num_buckets / horizon_s if horizon_s > 0.0 else 1.0


@inlined_kernel
def next_task(work: Workspace, queue: Queue) -> int:
    """Takes the next task from the queue; `NOTHING` if it is empty."""
    cursor = queue.cursor
    while cursor[_POSITION] == cursor[_END]:
        if not _next_batch(work, queue):
            return NOTHING
    cursor[_POSITION] += 1
    return int(queue.batch[np.uint64(cursor[_POSITION] - 1)])


@inlined_kernel
def _next_batch(work: Workspace, queue: Queue) -> bool:
    """Fills the batch with the next bucket, or the buckets with what was beyond; false if nothing is left."""
    cursor, middle, num_buckets = queue.cursor, len(queue.spare), queue.cursor[_NUM_BUCKETS]
    bucket = cursor[_BUCKET] + 1
    while bucket < num_buckets and queue.head[bucket] < 0:
        bucket += 1
    cursor[_BUCKET], cursor[_END] = bucket, middle
    if bucket < num_buckets:
        first = _take(queue.batch, queue.link, queue.head[bucket], middle)
        cursor[_POSITION] = first
        _sort_batch(
            queue.batch, queue.batch_ready_s, work.ready_s, queue.spare, queue.spare_ready_s, first, middle
        )
        return True
    if cursor[_OVERFLOW] < 0:
        return False
    first = _take(queue.batch, queue.link, cursor[_OVERFLOW], middle)
    queue.scale[_ORIGIN_S] = _earliest(queue.batch, work.ready_s, first, middle)
    queue.scale[_PER_S] /= 4
    queue.head[:num_buckets] = NOTHING
    cursor[_OVERFLOW] = _scatter(
        queue.batch,
        work.ready_s,
        queue.head,
        queue.link,
        first,
        middle,
        queue.scale[_ORIGIN_S],
        queue.scale[_PER_S],
        num_buckets,
    )
    cursor[_POSITION], cursor[_BUCKET] = middle, -1
    return True


@inlined_kernel
def enqueue(queue: Queue, task: int, ready_s: float) -> None:
    """Puts a task into the queue that is ready no earlier than the last one taken."""
    cursor = queue.cursor
    place = (ready_s - queue.scale[_ORIGIN_S]) * queue.scale[_PER_S]
    if place >= cursor[_NUM_BUCKETS]:
        queue.link[task] = cursor[_OVERFLOW]
        cursor[_OVERFLOW] = task
        return
    bucket = int(place)
    if bucket > cursor[_BUCKET]:
        queue.link[task] = queue.head[np.uint64(bucket)]
        queue.head[np.uint64(bucket)] = task
        return
    _insert(queue.batch, queue.batch_ready_s, cursor[_POSITION], cursor[_END], task, ready_s)
    cursor[_END] += 1


@inner_kernel
def _restart(layout: Layout, blocks: Blocks, work: Workspace, queue: Queue) -> int:
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
    ordered, gathered = len(layout.turns) > 0, work.totals[SHARDING] == 3
    if ordered:
        _wait_for_turns(layout, blocks, work)
    if gathered:
        _wait_for_gathers(blocks, work)
    return _begin(layout, blocks, work, queue) if ordered or gathered else end


@inner_kernel
def _wait_for_turns(layout: Layout, blocks: Blocks, work: Workspace) -> None:
    """Makes each task wait for the one before it on its device, and updates for the last one."""
    mirror, n = 2 * work.totals[HALF] - 1, len(layout.num_parts)
    last, ends, successors = work.slot, work.successor_end, work.successors
    last[:] = NOTHING
    for turn in layout.turns:
        o = turn % n
        for part in range(layout.num_parts[o]):
            device, task = layout.devices[o, part], blocks.id_begin[o] + part
            if turn >= n:
                task = mirror - task
            successors[ends[task] - 1] = NOTHING
            if last[device] >= 0:
                successors[ends[last[device]] - 1] = task
                work.waiting[task] += 1
            last[device] = task
    for device in range(len(last)):
        update = work.totals[UPDATE_ID] + device
        if last[device] >= 0 and work.need[update] > 0:
            successors[ends[last[device]] - 1] = update
            work.waiting[update] += 1


@inner_kernel
def _wait_for_gathers(blocks: Blocks, work: Workspace) -> None:
    """Makes tasks wait for the gathers of what they read, too."""
    for g in range(len(work.num_gathers)):
        first = work.totals[GATHER_ID] + blocks.gather_begin[g]
        for task in range(first, first + work.num_gathers[g]):
            for edge in range(work.successor_begin[task], work.successor_end[task]):
                work.waiting[work.successors[edge]] += 1


@inner_kernel
def _begin(layout: Layout, blocks: Blocks, work: Workspace, queue: Queue) -> int:
    """Puts the forward tasks and gathers that wait for nothing into the batch; returns its end."""
    end = len(queue.spare)
    for o in range(len(work.entered)):
        for task in range(blocks.id_begin[o], blocks.id_begin[o] + layout.num_parts[o]):
            end = _begin_with(work, queue, task, end)
    if work.totals[SHARDING] < 3:
        return end
    for g in range(len(work.num_gathers)):
        first = work.totals[GATHER_ID] + blocks.gather_begin[g]
        for task in range(first, first + work.num_gathers[g]):
            end = _begin_with(work, queue, task, end)
    return end


@inner_kernel
def _begin_with(work: Workspace, queue: Queue, task: int, end: int) -> int:
    """Puts a task into the batch if it waits for nothing; returns the batch's end."""
    if work.waiting[task] > 0:
        return end
    queue.batch[end], queue.batch_ready_s[end] = task, 0.0
    return end + 1


@inlined_kernel
def _wait(need: IntArray, waiting: IntArray, ready_s: FloatArray, first: int, end: int) -> None:
    """Sets the tasks from `first` to `end` to waiting for all their predecessors."""
    for task in range(np.uint64(first), np.uint64(end)):
        waiting[task] = need[task]
        ready_s[task] = 0.0


@inlined_kernel
def _take(batch: IntArray, link: IntArray, task: int, end: int) -> int:
    """Writes the tasks of a list before `end`, first pushed first; returns where they begin."""
    begin = end
    while task >= 0:
        begin -= 1
        batch[np.uint64(begin)] = task
        task = link[task]
    return begin


@inlined_kernel
def _sort_batch(
    batch: IntArray,
    batch_ready_s: FloatArray,
    ready_s: FloatArray,
    spare: IntArray,
    spare_ready_s: FloatArray,
    begin: int,
    end: int,
) -> None:
    """Sorts ``batch[begin:end]`` by ready time, then id: short runs by insertion, then merges."""
    for first in range(begin, end, _SHORT):
        for i in range(first, min(first + _SHORT, end)):
            task = batch[np.uint64(i)]
            _insert(batch, batch_ready_s, first, i, task, ready_s[np.uint64(task)])
    width = _SHORT
    while width < end - begin:
        for first in range(begin, end - width, 2 * width):
            last = min(first + 2 * width, end)
            _merge(batch, batch_ready_s, spare, spare_ready_s, first, first + width, last)
        width *= 2


@inlined_kernel
def _insert(
    batch: IntArray, batch_ready_s: FloatArray, begin: int, end: int, task: int, ready_s: float
) -> None:
    """Inserts a task into the sorted ``batch[begin:end]``."""
    at = end
    while at > begin:
        before, place = np.uint64(at - 1), np.uint64(at)
        if batch_ready_s[before] < ready_s or (batch_ready_s[before] == ready_s and batch[before] < task):
            break
        batch[place], batch_ready_s[place] = batch[before], batch_ready_s[before]
        at -= 1
    batch[np.uint64(at)], batch_ready_s[np.uint64(at)] = task, ready_s


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
def _earliest(batch: IntArray, ready_s: FloatArray, begin: int, end: int) -> float:
    """The smallest ready time in ``batch[begin:end]``."""
    earliest_s = ready_s[batch[begin]]
    for i in range(begin + 1, end):
        earliest_s = min(earliest_s, ready_s[batch[i]])
    return float(earliest_s)


@inner_kernel
def _scatter(
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
