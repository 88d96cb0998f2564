"""Synchronization in lower bounds: groups of parameters whose readers are all chosen.

Each trained cell of these groups is a *slot*. It has a job on every machine that it must use: a link of its
all-reduce, or under the paper's assumptions a route from the first holder to another.
"""

import numpy as np

from soaprl.cost.kernels import inner_kernel
from soaprl.search.exhaustive.jobs import (
    add_job,
    busy_s,
    is_chosen,
    last_end,
    members_of,
    pattern_of,
    transfer_s,
)
from soaprl.search.exhaustive.scratch import Scratch
from soaprl.search.exhaustive.tables import BoundTables


@inner_kernel
def enter_slots(t: BoundTables, s: Scratch) -> None:
    """Lists the slots, what each device updates, and the jobs of the slots."""
    s.update_s[:] = 0.0
    count = 0
    for g in range(len(t.group_begin) - 1):
        if not is_chosen(t, s, g):
            continue
        pattern = pattern_of(t, s, g)
        for cell in range(t.pattern_begin[pattern], t.pattern_begin[pattern + 1]):
            if t.cell_size[cell] < 0:
                continue
            members = members_of(t, s, g, cell)
            s.slot_group[count], s.slot_cell[count], s.slot_members[count] = g, cell, members
            count += 1
            for device in range(t.cluster.num_devices):
                if members >> device & 1:
                    s.update_s[device] += t.cell_update_s[cell, t.cluster.device_type[device]]
    s.num_slots[0] = count
    for slot in range(count):
        s.slot_busy_s[slot, :] = 0.0
        if t.paper and s.slot_members[slot] & (s.slot_members[slot] - 1):
            _enter_exchange(t, s, slot)
        else:
            _enter_reduction(t, s, slot)


@inner_kernel
def _enter_reduction(t: BoundTables, s: Scratch, slot: int) -> None:
    """An all-reduce and the updates of its members; only an update if there is one member."""
    size, members = t.cell_size[s.slot_cell[slot]], s.slot_members[slot]
    took = t.reduce_s[size, members] if members & (members - 1) else 0.0
    least, most = np.inf, 0.0
    for device in range(t.cluster.num_devices):
        if members >> device & 1:
            least, most = min(least, s.update_s[device]), max(most, s.update_s[device])
    s.slot_took_s[slot], s.slot_tail_s[slot], s.slot_root[slot] = took, took + most, -1
    if took > 0.0:
        for link in range(t.reduce_busy_s.shape[2]):
            busy = t.reduce_busy_s[size, members, link]
            s.slot_busy_s[slot, link], s.slot_after_s[slot, link] = busy, took - busy + least


@inner_kernel
def _enter_exchange(t: BoundTables, s: Scratch, slot: int) -> None:
    """Transfers from the first holder to all others, and the updates."""
    n, g, cell = t.cluster.num_devices, s.slot_group[slot], s.slot_cell[slot]
    first = t.cover_begin[cell]
    holder = t.group_readers[t.group_begin[g] + t.cover_reader[first]]
    root = t.config_devices[s.rows[holder], t.cover_part[first]]
    s.slot_took_s[slot], s.slot_tail_s[slot], s.slot_root[slot] = 0.0, s.update_s[root], root
    for device in range(n):
        if device != root and s.slot_members[slot] >> device & 1:
            back, route = transfer_s(t, root, device, t.cell_bytes[cell]), root * n + device
            s.slot_tail_s[slot] = max(s.slot_tail_s[slot], back + s.update_s[device])
            s.slot_busy_s[slot, route] = busy_s(t, root, device, t.cell_bytes[cell])
            s.slot_after_s[slot, route] = s.update_s[device]


@inner_kernel
def synchronization_bound(t: BoundTables, s: Scratch) -> float:
    """A bound from the heads of backward tasks, each machine's jobs one after the other.

    Fills `update_release_s`, the earliest start of each device's update.
    """
    num_machines = s.slot_busy_s.shape[1]
    s.update_release_s[:] = 0.0
    s.num_jobs[:] = 0
    s.after_s[:] = np.inf
    bound = 0.0
    for slot in range(s.num_slots[0]):
        joined = _joined(t, s, slot)
        for device in range(t.cluster.num_devices):
            if s.slot_members[slot] >> device & 1:
                took = s.slot_took_s[slot]
                if s.slot_root[slot] >= 0:
                    took = transfer_s(t, s.slot_root[slot], device, t.cell_bytes[s.slot_cell[slot]])
                s.update_release_s[device] = max(s.update_release_s[device], joined + took)
        for machine in range(num_machines):
            busy = s.slot_busy_s[slot, machine]
            if busy > 0.0:
                add_job(s, machine, joined, busy)
                s.after_s[machine] = min(s.after_s[machine], s.slot_after_s[slot, machine])
    for machine in range(num_machines):
        if s.num_jobs[machine] > 0:
            bound = max(bound, last_end(s, machine, s.release_s, s.duration_s) + s.after_s[machine])
    for device in range(t.cluster.num_devices):
        bound = max(bound, s.update_release_s[device] + s.update_s[device])
    return bound


@inner_kernel
def _joined(t: BoundTables, s: Scratch, slot: int) -> float:
    """When all summands of a slot can be there; at the first holder, if it is an exchange."""
    joined, g, cell, root = 0.0, s.slot_group[slot], s.slot_cell[slot], s.slot_root[slot]
    for i in range(t.cover_begin[cell], t.cover_begin[cell + 1]):
        if t.cover_contributes[i]:
            o, p = t.group_readers[t.group_begin[g] + t.cover_reader[i]], t.cover_part[i]
            end = s.backward_end_s[o, p]
            if root >= 0:
                end += transfer_s(t, t.config_devices[s.rows[o], p], root, t.cell_bytes[cell])
            joined = max(joined, end)
    return joined
