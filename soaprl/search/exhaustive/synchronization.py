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
    preemptive_end,
    transfer_s,
)
from soaprl.search.exhaustive.scratch import Scratch
from soaprl.search.exhaustive.sending import enter_sent, sent_before
from soaprl.search.exhaustive.tables import BoundTables
from soaprl.search.exhaustive.turns import bit_of


@inner_kernel
def enter_slots(t: BoundTables, s: Scratch) -> None:
    """Lists the slots, what each device updates, and the jobs of the slots."""
    s.update_s[:] = 0.0
    count, total = 0, 0.0
    for g in range(len(t.group_begin) - 1):
        if not is_chosen(t, s, g):
            total += t.least_update_s[g]
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
    for device in range(t.cluster.num_devices):
        total += s.update_s[device]
    s.num_slots[0], s.mean_update_s[0] = count, total / t.cluster.num_devices
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
    most = 0.0
    for device in range(t.cluster.num_devices):
        if members >> device & 1:
            most = max(most, s.update_s[device])
    if members == (1 << t.cluster.num_devices) - 1:
        # Nobody is updated before: whoever will hold what is not chosen yet, one is updated that long.
        most = max(most, s.mean_update_s[0])
    s.slot_took_s[slot], s.slot_tail_s[slot], s.slot_root[slot] = took, took + most, -1
    if took > 0.0:
        for link in range(t.reduce_busy_s.shape[2]):
            busy = t.reduce_busy_s[size, members, link]
            # No member is updated before the all-reduce ends, the one with the longest update neither.
            s.slot_busy_s[slot, link], s.slot_after_s[slot, link] = busy, took - busy + most


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
    """A bound from the heads of backward tasks, each machine's jobs in the best order with interruptions.

    Fills `update_release_s`, the earliest start of each device's update.
    """
    s.update_release_s[:] = 0.0
    s.num_jobs[:] = 0
    s.giver_tail_s[:] = 0.0
    enter_sent(t, s)
    for slot in range(s.num_slots[0]):
        _enter_jobs(t, s, slot)
    for j in range(s.num_sent[0]):
        if s.sent_tail_s[j] > 0.0:
            machine, room = s.sent_link[j], t.config_devices.shape[1]
            release = s.backward_end_s[s.sent_giver[j] // room, s.sent_giver[j] % room]
            s.end_s[machine, s.num_jobs[machine]] = s.sent_tail_s[j]
            add_job(s, machine, release, s.sent_busy_s[j])
    bound = 0.0
    for machine in range(s.slot_busy_s.shape[1]):
        if s.num_jobs[machine] > 0:
            _release_members(t, s, machine)
            bound = max(bound, preemptive_end(s, machine))
    return max(bound, _updated(t, s))


@inner_kernel
def _enter_jobs(t: BoundTables, s: Scratch, slot: int) -> None:
    """The jobs of a slot on all its machines, and what its end lets its holders begin."""
    joined = _joined(t, s, slot)
    if s.slot_root[slot] < 0:
        joined = max(joined, sent_before(t, s, slot))
    for device in range(t.cluster.num_devices):
        if s.slot_members[slot] >> device & 1:
            took = s.slot_took_s[slot]
            if s.slot_root[slot] >= 0:
                took = transfer_s(t, s.slot_root[slot], device, t.cell_bytes[s.slot_cell[slot]])
            s.update_release_s[device] = max(s.update_release_s[device], joined + took)
    for machine in range(s.slot_busy_s.shape[1]):
        busy = s.slot_busy_s[slot, machine]
        if busy > 0.0:
            s.end_s[machine, s.num_jobs[machine]] = s.slot_after_s[slot, machine]
            add_job(s, machine, joined, busy)


@inner_kernel
def _release_members(t: BoundTables, s: Scratch, machine: int) -> None:
    """Lets whoever holds all slots of a link wait for its last job, and for what follows that."""
    if t.paper:
        return
    members, after = -1, np.inf
    for slot in range(s.num_slots[0]):
        busy = s.slot_busy_s[slot, machine]
        if busy > 0.0:
            members &= s.slot_members[slot]
            after = min(after, s.slot_took_s[slot] - busy)
    if members == 0:
        return
    end = last_end(s, machine, s.release_s, s.duration_s) + after
    for device in range(t.cluster.num_devices):
        if members >> device & 1:
            s.update_release_s[device] = max(s.update_release_s[device], end)


@inner_kernel
def _updated(t: BoundTables, s: Scratch) -> float:
    """When each device is updated, and all of them also in what nobody has chosen to hold yet."""
    n = t.cluster.num_devices
    bound, total = 0.0, 0.0
    for g in range(len(t.group_begin) - 1):
        if not is_chosen(t, s, g):
            total += t.least_update_s[g]
    for device in range(n):
        end = max(s.update_release_s[device] + s.update_s[device], s.load_s[device])
        bound, total = max(bound, end), total + end
    return max(bound, total / n)


@inner_kernel
def _joined(t: BoundTables, s: Scratch, slot: int) -> float:
    """When all summands of a slot can be there; at the first holder, if it is an exchange."""
    joined, g, cell, root = 0.0, s.slot_group[slot], s.slot_cell[slot], s.slot_root[slot]
    s.slot_past[slot] = 0
    for i in range(t.cover_begin[cell], t.cover_begin[cell + 1]):
        if t.cover_contributes[i]:
            o, p = t.group_readers[t.group_begin[g] + t.cover_reader[i]], t.cover_part[i]
            end = s.backward_end_s[o, p]
            s.slot_past[slot] |= bit_of(t, o, p) | s.backward_past[o, p]
            if root >= 0:
                end += transfer_s(t, t.config_devices[s.rows[o], p], root, t.cell_bytes[cell])
            joined = max(joined, end)
    return joined
