"""Tails: the least time from the end of each task to the end of the iteration.

The mirror image of heads: a task's successors on one device have to run there one after the other, best in
descending order of their own tails. Besides, everything that a task must precede of the synchronization has
to pass each link one after the other.
"""

import numpy as np

from soaprl.cost.kernels import inner_kernel
from soaprl.search.exhaustive.jobs import add_job, num_tasks, pairs_at, task_times, transfer_s
from soaprl.search.exhaustive.rest import enter_rest_forward_tail, enter_rest_tail
from soaprl.search.exhaustive.scratch import Scratch
from soaprl.search.exhaustive.tables import BoundTables
from soaprl.search.exhaustive.trips import Trips
from soaprl.search.exhaustive.turns import bit_of, enter_after_backward, enter_after_forward

# Slots are bits of an integer; what is beyond does not count, which leaves a bound a bound.
_MOST_BITS = 62


@inner_kernel
def enter_tails(t: BoundTables, trips: Trips, s: Scratch) -> None:
    """Fills the tails of all chosen operators; their slots are listed."""
    n = len(t.has_backward)
    for o in range(n):
        for p in range(num_tasks(t, s, o)):
            s.backward_tail_s[o, p], s.mask[o, p] = s.giver_tail_s[o, p], 0
            s.future[o, p] = bit_of(t, o, p)
    for slot in range(s.num_slots[0]):
        _enter_contributors(t, s, slot)
    for o in range(n):
        if s.rows[o] < 0:
            enter_rest_tail(t, s, o)
        elif t.has_backward[o]:
            _backward_tails(t, s, o)
    for o in range(n - 1, -1, -1):
        if s.rows[o] < 0:
            enter_rest_forward_tail(t, s, o)
        else:
            _forward_tails(t, trips, s, o)


@inner_kernel
def _enter_contributors(t: BoundTables, s: Scratch, slot: int) -> None:
    """Lets a slot's backward tasks precede it."""
    g, cell, root = s.slot_group[slot], s.slot_cell[slot], s.slot_root[slot]
    for i in range(t.cover_begin[cell], t.cover_begin[cell + 1]):
        if t.cover_contributes[i]:
            o, p = t.group_readers[t.group_begin[g] + t.cover_reader[i]], t.cover_part[i]
            tail = s.slot_tail_s[slot]
            if root >= 0:
                tail += transfer_s(t, t.config_devices[s.rows[o], p], root, t.cell_bytes[cell])
            s.backward_tail_s[o, p] = max(s.backward_tail_s[o, p], tail)
            if slot < _MOST_BITS:
                s.mask[o, p] |= 1 << slot


@inner_kernel
def _backward_tails(t: BoundTables, s: Scratch, o: int) -> None:
    """Tails of the backward tasks of operator o; its producers, which follow, have theirs."""
    row, room, n = s.rows[o], t.config_devices.shape[1], t.cluster.num_devices
    seen, seen_future, seen_tail = -1, -1, 0.0
    for p in range(t.config_tasks[row]):
        device, tail = t.config_devices[row, p], s.backward_tail_s[o, p]
        enter_after_backward(t, s, o, p)
        tail = max(tail, _delivered(s, 0))
        s.num_jobs[:n] = 0
        s.stamp[:o] = -1
        for i in range(t.in_begin[o], t.in_begin[o + 1]):
            edge = t.in_edges[i]
            if not t.edge_gradient[edge]:
                continue
            q = t.edge_producer[edge]
            if s.rows[q] < 0:
                if t.edge_everywhere[edge]:
                    tail = max(tail, t.least_backward_s[q] + s.rest_tail_s[q])
                continue
            pairs = pairs_at(t, edge, s.rows[q], row) + p
            for w in range(t.config_tasks[s.rows[q]]):
                size = t.pair_bytes[pairs + w * room]
                if size > 0:
                    target = t.config_devices[s.rows[q], w]
                    sent = transfer_s(t, device, target, size)
                    s.mask[o, p] |= s.mask[q, w]
                    s.future[o, p] |= s.future[q, w]
                    after = s.backward_tail_s[q, w]
                    _enter_successor(s, p, q, w, target, sent, task_times(t, s, q, w)[1], after)
        for target in range(n):
            if s.num_jobs[target] > 0:
                tail = max(tail, _delivered(s, target))
        if s.mask[o, p] != seen or s.future[o, p] != seen_future:
            seen, seen_future = s.mask[o, p], s.future[o, p]
            seen_tail = _machines_tail(t, s, seen, seen_future)
        s.backward_tail_s[o, p] = max(tail, seen_tail)


@inner_kernel
def _forward_tails(t: BoundTables, trips: Trips, s: Scratch, o: int) -> None:
    """Tails of the forward tasks of operator o; its backward tasks and its readers have theirs."""
    row, room, n = s.rows[o], t.config_devices.shape[1], t.cluster.num_devices
    for p in range(t.config_tasks[row] - 1, -1, -1):
        device = t.config_devices[row, p]
        backward = s.backward_tail_s[o, p] + task_times(t, s, o, p)[1] if t.has_backward[o] else 0.0
        enter_after_forward(t, s, o, p)
        tail = max(backward, _delivered(s, 0))
        s.num_jobs[:n] = 0
        s.stamp[o + 1 :] = -1
        for i in range(t.out_begin[o], t.out_begin[o + 1]):
            edge = t.out_edges[i]
            c = t.edge_consumer[edge]
            if s.rows[c] < 0:
                if t.edge_wanted[edge]:
                    tail = max(tail, t.least_forward_s[c] + s.rest_forward_tail_s[c])
                if t.edge_gradient[edge]:
                    trip = trips.time_s[trips.begin[edge] + (row - t.config_begin[o]) * room + p]
                    tail = max(tail, trip + backward)
                continue
            pairs = pairs_at(t, edge, row, s.rows[c]) + p * room
            for r in range(t.config_tasks[s.rows[c]]):
                size = t.pair_bytes[pairs + r]
                if size > 0:
                    target = t.config_devices[s.rows[c], r]
                    sent = transfer_s(t, device, target, size)
                    after = s.forward_tail_s[c, r]
                    _enter_successor(s, p, c, r, target, sent, task_times(t, s, c, r)[0], after)
        for target in range(n):
            if s.num_jobs[target] > 0:
                tail = max(tail, _delivered(s, target))
        s.forward_tail_s[o, p] = tail


@inner_kernel
def _enter_successor(
    s: Scratch, p: int, o: int, task: int, device: int, sent: float, duration: float, after: float
) -> None:
    """Lists a task of operator o that follows task p, once, with the longest of its transfers."""
    if s.stamp[o, task] == p:
        j = s.job[o, task]
        s.send_s[device, j] = max(s.send_s[device, j], sent)
        return
    s.stamp[o, task], s.job[o, task] = p, s.num_jobs[device]
    s.end_s[device, s.num_jobs[device]] = after
    s.send_s[device, s.num_jobs[device]] = sent
    add_job(s, device, 0.0, duration)


@inner_kernel
def _delivered(s: Scratch, machine: int) -> float:
    """Least time until all that follows the listed tasks is done, which run one after the other."""
    count, order, tail, least = s.num_jobs[machine], s.order, 0.0, np.inf
    for j in range(count):
        at = j
        while at > 0 and s.end_s[machine, order[at - 1]] < s.end_s[machine, j]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = j
        least = min(least, s.send_s[machine, j])
        tail = max(tail, s.send_s[machine, j] + s.duration_s[machine, j] + s.end_s[machine, j])
    work = least if count > 0 else 0.0
    for i in range(count):
        work += s.duration_s[machine, order[i]]
        tail = max(tail, work + s.end_s[machine, order[i]])
    return tail


@inner_kernel
def _machines_tail(t: BoundTables, s: Scratch, mask: int, future: int) -> float:
    """Least time that the slots of a bit set take on the busiest of their machines.

    Gradients that tasks of the bit set `future` send go over the same links before some of these slots.
    """
    tail, room = 0.0, t.config_devices.shape[1]
    s.work_s[:] = 0.0
    for j in range(s.num_sent[0]):
        if s.sent_tail_s[j] > 0.0 and bit_of(t, s.sent_giver[j] // room, s.sent_giver[j] % room) & future:
            s.work_s[s.sent_link[j]] += s.sent_busy_s[j]
    for machine in range(s.slot_busy_s.shape[1]):
        work, after = s.work_s[machine], np.inf
        for slot in range(min(s.num_slots[0], _MOST_BITS)):
            if mask >> slot & 1 and s.slot_busy_s[slot, machine] > 0.0:
                work += s.slot_busy_s[slot, machine]
                after = min(after, s.slot_after_s[slot, machine])
        if after < np.inf:
            tail = max(tail, work + after)
    return tail
