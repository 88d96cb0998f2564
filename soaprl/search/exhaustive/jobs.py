"""Parts of the lower bounds: times of tasks and transfers, and jobs on one machine."""

import numpy as np

from soaprl.cluster.tables import FloatArray
from soaprl.cost.kernels import inner_kernel
from soaprl.cost.ticks import in_ticks
from soaprl.search.exhaustive.scratch import Scratch
from soaprl.search.exhaustive.tables import BoundTables


@inner_kernel
def pairs_at(t: BoundTables, edge: int, row: int, other: int) -> int:
    """Where the table of bytes begins that two configurations have in common over an edge."""
    c, room = t.edge_consumer[edge], t.config_devices.shape[1]
    across = t.degrees_begin[c + 1] - t.degrees_begin[c]
    table = t.config_degrees[row] * across + t.config_degrees[other]
    return int(t.edge_pairs[edge] + table * room * room)


@inner_kernel
def busy_s(t: BoundTables, source: int, target: int, num_bytes: int) -> float:
    """How long a transfer keeps the narrowest link of its route busy."""
    route = source * t.cluster.num_devices + target
    return float(in_ticks(num_bytes / t.cluster.route_bandwidth_bytes_per_s[route]))


@inner_kernel
def transfer_s(t: BoundTables, source: int, target: int, num_bytes: int) -> float:
    """Seconds of a transfer on an idle route; 0 from a device to itself."""
    if source == target:
        return 0.0
    route = source * t.cluster.num_devices + target
    return float(t.cluster.route_latency_s[route] + busy_s(t, source, target, num_bytes))


@inner_kernel
def task_times(t: BoundTables, s: Scratch, o: int, p: int) -> tuple[float, float]:
    """Forward and backward time of a task of a chosen operator."""
    row = s.rows[o]
    degrees = t.degrees_begin[o] + t.config_degrees[row]
    kind = t.cluster.device_type[t.config_devices[row, p]]
    return t.forward_s[degrees, p, kind], t.backward_s[degrees, p, kind]


@inner_kernel
def num_tasks(t: BoundTables, s: Scratch, o: int) -> int:
    """Number of tasks of an operator; 0 if it is not chosen."""
    return int(t.config_tasks[s.rows[o]]) if s.rows[o] >= 0 else 0


@inner_kernel
def is_chosen(t: BoundTables, s: Scratch, g: int) -> bool:
    """Whether all readers of a group are chosen."""
    least = 0
    for i in range(t.group_begin[g], t.group_begin[g + 1]):
        least = min(least, s.rows[t.group_readers[i]])
    return least == 0


@inner_kernel
def pattern_of(t: BoundTables, s: Scratch, g: int) -> int:
    """The pattern of a group under the chosen degrees of its readers."""
    number = 0
    for i in range(t.group_begin[g], t.group_begin[g + 1]):
        o = t.group_readers[i]
        number = number * (t.degrees_begin[o + 1] - t.degrees_begin[o]) + t.config_degrees[s.rows[o]]
    return int(t.group_patterns[g] + number)


@inner_kernel
def members_of(t: BoundTables, s: Scratch, g: int, cell: int) -> int:
    """The devices that hold a cell, as a bit set."""
    members = 0
    for i in range(t.cover_begin[cell], t.cover_begin[cell + 1]):
        o = t.group_readers[t.group_begin[g] + t.cover_reader[i]]
        members |= 1 << t.config_devices[s.rows[o], t.cover_part[i]]
    return members


@inner_kernel
def add_job(s: Scratch, machine: int, release: float, duration: float) -> None:
    """Adds a job to the list of a machine."""
    j = s.num_jobs[machine]
    s.release_s[machine, j], s.duration_s[machine, j] = release, duration
    s.num_jobs[machine] = j + 1


@inner_kernel
def last_end(s: Scratch, machine: int, release_s: FloatArray, duration_s: FloatArray) -> float:
    """Least end of all jobs of a machine: one after the other, in the order of their releases."""
    count, order = s.num_jobs[machine], s.order
    for j in range(count):
        at = j
        while at > 0 and release_s[machine, order[at - 1]] > release_s[machine, j]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = j
    end = 0.0
    for i in range(count):
        end = max(end, release_s[machine, order[i]]) + duration_s[machine, order[i]]
    return end


@inner_kernel
def preemptive_end(s: Scratch, machine: int) -> float:
    """Least time until all jobs of a machine and what follows each (`end_s`) are done, with interruptions.

    At any time the machine runs the job with the longest tail among those that are released (Jackson).
    """
    count, now, bound, left = s.num_jobs[machine], 0.0, 0.0, s.num_jobs[machine]
    for j in range(count):
        s.send_s[machine, j] = s.duration_s[machine, j]
    while left > 0:
        chosen, coming = -1, np.inf
        for j in range(count):
            if s.send_s[machine, j] < 0.0:
                continue
            if s.release_s[machine, j] > now:
                coming = min(coming, s.release_s[machine, j])
            elif chosen < 0 or s.end_s[machine, j] > s.end_s[machine, chosen]:
                chosen = j
        if chosen < 0:
            now = coming
        elif now + s.send_s[machine, chosen] <= coming:
            now += s.send_s[machine, chosen]
            s.send_s[machine, chosen] = -1.0
            bound = max(bound, now + s.end_s[machine, chosen])
            left -= 1
        else:
            s.send_s[machine, chosen] -= coming - now
            now = coming
    return bound
