"""Lower bounds on the time of every strategy that begins with given configurations.

List scheduling is not monotone: taking tasks out of a schedule can make it longer, so simulating a part of a
strategy bounds nothing. The bounds here hold for *any* order in which devices and links work, because they
use nothing but this: a task starts after its predecessors, a device runs one task at a time, a link is busy
for bytes / bandwidth with each transfer, and of two tasks the one that is ready whenever the other is goes
first.

*Heads*, the earliest start of each task (`soaprl.search.exhaustive.heads`), are at least

- the end of each predecessor, and a transfer (latency + bytes / bandwidth) later if that is elsewhere;
- for all predecessors on one device together: the end of the last of them when the device runs them in the
  order of their own earliest starts, which is the least possible end (one machine, release dates); likewise
  for all transfers over one route, and for all on its own device that it waits for, however indirectly, or
  that first-in-first-out order puts before it (`soaprl.search.exhaustive.turns`).

*Tails*, the least time from a task's end to that of the iteration (`soaprl.search.exhaustive.tails`), are
their mirror image. *Round trips* (`soaprl.search.exhaustive.trips`) stand for readers that are not chosen
yet; all operators that are not chosen have the least heads and tails that any of their tasks could have
(`soaprl.search.exhaustive.rest`).

No iteration ends before

- head, duration and tail of a chosen task;
- the synchronization of the groups of parameters whose readers are all chosen: all its transfers over one
  link, and the gradients before them (`soaprl.search.exhaustive.sending`), in the best order with
  interruptions, from when they can begin to the end of the updates that wait for them
  (`soaprl.search.exhaustive.synchronization`);
- the mean of all devices' updates: those of parameters that nobody has chosen to hold yet are spread evenly;
- all chosen tasks of a device and its update in the best order with interruptions, from their heads to the
  ends of their tails (one machine, Jackson's preemptive schedule, `preemptive_end`);
- for each tail: all work with this tail or a longer one, spread evenly over all devices, and the tail. The
  work of an operator not chosen yet is the least of its configurations (`_spread`).
"""

from soaprl.cluster.tables import FloatArray, IntArray
from soaprl.cost.kernels import filling_kernel, inner_kernel
from soaprl.search.exhaustive.heads import enter_backward, enter_forward
from soaprl.search.exhaustive.jobs import add_job, is_chosen, num_tasks, preemptive_end, task_times
from soaprl.search.exhaustive.rest import enter_rest_back_end, enter_rest_end
from soaprl.search.exhaustive.scratch import Scratch
from soaprl.search.exhaustive.synchronization import enter_slots, synchronization_bound
from soaprl.search.exhaustive.tables import BoundTables
from soaprl.search.exhaustive.tails import enter_tails
from soaprl.search.exhaustive.trips import Trips


@filling_kernel
def bounds_within(
    t: BoundTables,
    trips: Trips,
    s: Scratch,
    order: IntArray,
    prefix: IntArray,
    candidates: IntArray,
    limit_s: float,
    bounds: FloatArray,
) -> None:
    """Fills lower bounds for `prefix` followed by each of `candidates`.

    Args:
        t: The tables.
        trips: The round trips.
        s: Working memory.
        order: In which order operators are chosen.
        prefix: Configurations of the first operators in this order, as rows of all configurations.
        candidates: Configurations of the next operator.
        limit_s: Bounds at or above it are not made better.
        bounds: Shape [candidates]; filled.
    """
    s.rows[:] = -1
    for i, row in enumerate(prefix):
        s.rows[order[i]] = row
    chosen = order[len(prefix)]
    for o in range(chosen):
        _enter_head(t, s, o)
    for i, candidate in enumerate(candidates):
        s.rows[chosen] = candidate
        bounds[i] = _bound(t, trips, s, chosen, limit_s)


@inner_kernel
def _bound(t: BoundTables, trips: Trips, s: Scratch, first: int, limit_s: float) -> float:
    """A lower bound for the chosen configurations; operators before `first` have their forward heads."""
    n = len(t.has_backward)
    enter_slots(t, s)
    bound = _volume(t, s)
    if bound >= limit_s:
        return bound
    for o in range(first, n):
        _enter_head(t, s, o)
    for o in range(n):
        for p in range(num_tasks(t, s, o)):
            bound = max(bound, s.forward_end_s[o, p])
    for o in range(n - 1, -1, -1):
        if s.rows[o] < 0:
            enter_rest_back_end(t, s, o)
            bound = max(bound, s.rest_back_end_s[o])
        elif t.has_backward[o]:
            enter_backward(t, trips, s, o)
            for p in range(num_tasks(t, s, o)):
                bound = max(bound, s.backward_end_s[o, p])
    if bound >= limit_s:
        return bound
    bound = max(bound, synchronization_bound(t, s))
    if bound >= limit_s:
        return bound
    enter_tails(t, trips, s)
    return max(bound, _devices(t, s), _spread(t, s))


@inner_kernel
def _enter_head(t: BoundTables, s: Scratch, o: int) -> None:
    if s.rows[o] < 0:
        enter_rest_end(t, s, o)
    else:
        enter_forward(t, s, o)


@inner_kernel
def _volume(t: BoundTables, s: Scratch) -> float:
    """All work spread over all devices, and the work of the busiest."""
    for device in range(t.cluster.num_devices):
        s.load_s[device] = s.update_s[device]
    total, busiest = 0.0, 0.0
    for o in range(len(t.has_backward)):
        if s.rows[o] < 0:
            total += t.least_work_s[o]
        for p in range(num_tasks(t, s, o)):
            forward, backward = task_times(t, s, o, p)
            s.load_s[t.config_devices[s.rows[o], p]] += forward + backward
    for g in range(len(t.group_begin) - 1):
        if not is_chosen(t, s, g):
            total += t.least_update_s[g]
    for device in range(t.cluster.num_devices):
        total += s.load_s[device]
        busiest = max(busiest, s.load_s[device])
    return max(busiest, total / t.cluster.num_devices)


@inner_kernel
def _devices(t: BoundTables, s: Scratch) -> float:
    """Each device's chosen tasks with their tails, and each device's tasks with its update."""
    n = t.cluster.num_devices
    s.num_jobs[:n] = 0
    for o in range(len(t.has_backward)):
        for p in range(num_tasks(t, s, o)):
            device = t.config_devices[s.rows[o], p]
            forward, backward = task_times(t, s, o, p)
            s.end_s[device, s.num_jobs[device]] = s.forward_tail_s[o, p]
            add_job(s, device, s.forward_head_s[o, p], forward)
            if t.has_backward[o]:
                s.end_s[device, s.num_jobs[device]] = s.backward_tail_s[o, p]
                add_job(s, device, s.backward_head_s[o, p], backward)
    bound = 0.0
    for device in range(n):
        s.end_s[device, s.num_jobs[device]] = 0.0
        add_job(s, device, s.update_release_s[device], s.update_s[device])
        bound = max(bound, preemptive_end(s, device))
    return bound


@inner_kernel
def _spread(t: BoundTables, s: Scratch) -> float:
    """The work before each tail, spread over all devices, and the tail."""
    s.num_jobs[0] = 0
    for o in range(len(t.has_backward)):
        if s.rows[o] < 0:
            s.end_s[0, s.num_jobs[0]] = s.rest_tail_s[o]
            add_job(s, 0, 0.0, t.least_work_s[o])
            continue
        for p in range(num_tasks(t, s, o)):
            forward, backward = task_times(t, s, o, p)
            s.end_s[0, s.num_jobs[0]] = s.forward_tail_s[o, p]
            add_job(s, 0, 0.0, forward)
            s.end_s[0, s.num_jobs[0]] = s.backward_tail_s[o, p]
            add_job(s, 0, 0.0, backward if t.has_backward[o] else 0.0)
    order = s.order
    for j in range(s.num_jobs[0]):
        at = j
        while at > 0 and s.end_s[0, order[at - 1]] < s.end_s[0, j]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = j
    bound, work = 0.0, 0.0
    for i in range(s.num_jobs[0]):
        work += s.duration_s[0, order[i]]
        bound = max(bound, work / t.cluster.num_devices + s.end_s[0, order[i]])
    return bound
