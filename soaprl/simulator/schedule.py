"""When each task of a task graph runs: first in, first out by ready time, on every device and link.

The task that becomes ready first is dispatched first (`soaprl.simulator.queue`).

- A compute task starts when it is ready and its device is free, and occupies it.
- A transfer starts when it is ready and all links of its route are free. Each link is busy for bytes over its
  own bandwidth; the transfer ends after the latency and bytes over the narrowest bandwidth.
- A collective starts when it is ready and all its links are free; each is busy for as long as its plan says.
- Where messages cost processor time (`soaprl.cluster.cluster.Overheads`), a transfer or collective that
  is ready takes it from the devices at its ends: what they do next starts so much later. A transfer starts
  when its sender has handed it over, one after the other, and ends when its receiver has taken it, so much
  after it has come: o + L + o in the LogP model. What bytes take of the devices while they are on their way
  delays what these do next, and not the message. Devices then do their tasks in the order of the program
  (`soaprl.simulator.order.runtime_order`), because a rank waits for what its next task needs.

A search that only asks whether an iteration takes longer than a limit need not see its end: when a device is
done with a task, it still has all its other tasks to do. If that alone passes the limit, the schedule stops.
"""

import numpy as np

from soaprl.cluster.tables import ClusterTables
from soaprl.cost.kernels import inlined_kernel, inner_kernel
from soaprl.cost.ticks import in_ticks
from soaprl.simulator.queue import Queue, begin_queue, enqueue, next_task
from soaprl.simulator.state import NUM_TASKS, SHARDING, Blocks, Layout, Plans, Workspace


@inner_kernel
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
    # Arrays are taken out of the tuples once: in a loop, each access would cost an indirection.
    successors, begins, ends = work.successors, work.successor_begin, work.successor_end
    waiting, ready_s, start_s, finish_s = work.waiting, work.ready_s, work.start_s, work.finish_s
    resource, duration_s, dispatched = work.resource, work.duration_s, queue.dispatched
    device_free_s, remaining_s, num_devices = queue.device_free_s, queue.remaining_s, tables.num_devices
    num_tasks, first_plan = work.totals[NUM_TASKS], num_devices * (num_devices + 1)
    per_byte_s = tables.message_s_per_byte + tables.carry_s_per_byte + tables.reduced_s_per_byte
    occupy = tables.message_s + per_byte_s > 0.0
    free_resources(tables, work, queue)
    begin_queue(layout, blocks, work, queue, num_tasks, horizon_s)
    makespan_s, done = 0.0, 0
    while True:
        task = next_task(work, queue)
        # Comparisons with 0, and unsigned indices, spare the compiler the case of negative ones.
        if task < 0:
            break
        dispatched[done] = task
        done += 1
        on, begun_s, taking_s = resource[task], ready_s[task], 0.0
        if on < 0:
            pass
        elif on < num_devices:
            begun_s = max(begun_s, device_free_s[on])
            device_free_s[on] = begun_s + duration_s[task]
            remaining_s[on] -= duration_s[task]
            if device_free_s[on] + remaining_s[on] > limit_s:
                return np.inf
        elif on < first_plan:
            if occupy:
                taking_s = in_ticks(tables.message_s + work.num_bytes[task] * tables.message_s_per_byte)
                carrying_s = in_ticks(work.num_bytes[task] * tables.carry_s_per_byte)
                begun_s = _hand_over(tables, queue, on - num_devices, ready_s[task], taking_s, carrying_s)
            begun_s = send(tables, plans, queue, on - num_devices, begun_s, work.num_bytes[task])
        else:
            begun_s = reduce(plans, queue, on - first_plan, begun_s)
            if occupy:
                _occupy_holders(
                    tables, plans, work, queue, on - first_plan, ready_s[task], work.num_bytes[task]
                )
        ended_s = begun_s + duration_s[task] + taking_s
        start_s[task], finish_s[task] = begun_s, ended_s
        makespan_s = max(makespan_s, ended_s)
        for e in range(np.uint64(begins[task]), np.uint64(ends[task])):
            successor = successors[e]
            if successor < 0:
                break
            ready_s[successor] = max(ready_s[successor], ended_s)
            waiting[successor] -= 1
            if waiting[successor] == 0:
                enqueue(queue, successor, ready_s[successor])
    assert done == num_tasks
    return makespan_s


@inner_kernel
def free_resources(tables: ClusterTables, work: Workspace, queue: Queue) -> None:
    """Nothing has begun."""
    for device in range(tables.num_devices):
        queue.remaining_s[device] = work.load_s[device]
    queue.device_free_s[:], queue.handed_s[:] = 0.0, 0.0
    queue.link_free_s[:] = 0.0
    queue.last_plan[0] = -1


@inlined_kernel
def send(
    tables: ClusterTables, plans: Plans, queue: Queue, route: int, ready_s: float, num_bytes: int
) -> float:
    """Occupies the links of a route as soon as all are free; returns when that is."""
    settle(plans, queue)
    free_s, links, bandwidth = queue.link_free_s, tables.route_links, tables.link_bandwidth_bytes_per_s
    offsets, start_s = tables.route_offsets, ready_s
    begin, end = np.uint64(offsets[route]), np.uint64(offsets[route + 1])
    for k in range(begin, end):
        start_s = max(start_s, free_s[np.uint64(links[k])])
    for k in range(begin, end):
        link = np.uint64(links[k])
        free_s[link] = start_s + in_ticks(num_bytes / bandwidth[link])
    return start_s


@inlined_kernel
def reduce(plans: Plans, queue: Queue, plan: int, ready_s: float) -> float:
    """Occupies the links of a collective as soon as all are free; returns when that is.

    Collectives often follow one another on the same links. So the last one is kept apart: the next one waits
    for its busiest link, and only when a transfer or other links come in between are all links looked at.
    """
    last = queue.last_plan[0]
    if last >= 0 and plans.link_set[last] == plans.link_set[plan]:
        start_s = max(ready_s, queue.last_start_s[0] + plans.longest_busy_s[last])
    else:
        settle(plans, queue)
        start_s, begin = ready_s, plans.link_begin[plan]
        for k in range(begin, begin + plans.num_links[plan]):
            start_s = max(start_s, queue.link_free_s[plans.links[k]])
    queue.last_plan[0], queue.last_start_s[0] = plan, start_s
    return float(start_s)


@inlined_kernel
def settle(plans: Plans, queue: Queue) -> None:
    """Says of each link of the last collective until when it is busy."""
    last = queue.last_plan[0]
    if last < 0:
        return
    begin, start_s = plans.link_begin[last], queue.last_start_s[0]
    for k in range(begin, begin + plans.num_links[last]):
        queue.link_free_s[plans.links[k]] = start_s + plans.busy_s[k]
    queue.last_plan[0] = -1


@inner_kernel
def _hand_over(
    tables: ClusterTables, queue: Queue, route: int, ready_s: float, taking_s: float, carrying_s: float
) -> float:
    """Takes the processor time of a transfer from its two devices; returns when the sender has done it."""
    source, target = route // tables.num_devices, route % tables.num_devices
    for device in (source, target):
        queue.device_free_s[device] = max(queue.device_free_s[device], ready_s) + taking_s + carrying_s
    queue.handed_s[source] = max(queue.handed_s[source], ready_s) + taking_s
    return float(queue.handed_s[source])


@inner_kernel
def _occupy_holders(
    tables: ClusterTables,
    plans: Plans,
    work: Workspace,
    queue: Queue,
    plan: int,
    ready_s: float,
    num_bytes: int,
) -> None:
    """Takes the processor time of a collective from its devices: each sends and receives as in a ring."""
    first, count = plans.holder_begin[plan], plans.num_holders[plan]
    passes = 1 if work.totals[SHARDING] else 2
    moved = 2 * passes * (count - 1) * num_bytes / count
    taken_s = in_ticks(moved * (tables.message_s_per_byte + tables.reduced_s_per_byte))
    taken_s += in_ticks(moved * tables.carry_s_per_byte)
    for i in range(first, first + count):
        device = plans.holders[i]
        queue.device_free_s[device] = max(queue.device_free_s[device], ready_s) + taken_s
