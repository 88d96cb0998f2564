"""Operators that are not chosen yet: the least that any of their tasks can have as heads and tails.

Every task of a reader waits for some task of each operator that it reads, so for none earlier than the first;
and likewise for tails. What an operator reads of all sides has to wait for all of them: so the backward pass
of one branch waits for the forward pass of another.

Of each such operator is known which chosen tasks come before *every* task of it, and which before *some*: if
every task of a producer is read, each of them, and all before it, comes before some task of the reader. An
operator whose every task reads every task of its producer (`BoundTables.edge_joint`: the sum of all losses)
waits for all of that. So the loss is a barrier: each device does its whole forward pass before, and its
backward pass after, whatever is chosen between.
"""

import numpy as np

from soaprl.cost.kernels import inner_kernel
from soaprl.search.exhaustive.jobs import (
    add_job,
    num_tasks,
    pairs_at,
    preemptive_end,
    task_times,
    transfer_s,
)
from soaprl.search.exhaustive.scratch import Scratch
from soaprl.search.exhaustive.tables import BoundTables
from soaprl.search.exhaustive.turns import backward_of, bit_of


@inner_kernel
def enter_rest_end(t: BoundTables, s: Scratch, o: int) -> None:
    """Least ends of the first and the last forward task of operator o; its producers have theirs."""
    head, last, every, some = 0.0, 0.0, 0, 0
    for i in range(t.in_begin[o], t.in_begin[o + 1]):
        edge = t.in_edges[i]
        q = t.edge_producer[edge]
        before_every, before_some, first_end, last_end = _forward_of(t, s, q)
        if t.edge_joint[edge]:
            head, every = max(head, last_end), every | before_some
        elif t.edge_everywhere[edge]:
            head, every = max(head, first_end), every | before_every
        if t.edge_wanted[edge]:
            last, some = max(last, last_end), some | before_some
    if every != 0:
        head = max(head, _passed(t, s, o, every))
    s.before_every[o], s.before_some[o] = every, some | every
    s.rest_end_s[o] = head + t.least_forward_s[o]
    s.rest_last_s[o] = max(head, last) + t.least_forward_s[o]


@inner_kernel
def _forward_of(t: BoundTables, s: Scratch, q: int) -> tuple[int, int, float, float]:
    """What comes before every and some forward task of q, themselves included; least first and last end."""
    if s.rows[q] < 0:
        return s.before_every[q], s.before_some[q], s.rest_end_s[q], s.rest_last_s[q]
    every, some, first, last = -1, 0, np.inf, 0.0
    for w in range(t.config_tasks[s.rows[q]]):
        past = s.forward_past[q, w] | bit_of(t, q, w)
        every, some = every & past, some | past
        first, last = min(first, s.forward_end_s[q, w]), max(last, s.forward_end_s[q, w])
    return every, some, first, last


@inner_kernel
def _passed(t: BoundTables, s: Scratch, o: int, every: int) -> float:
    """When operator o can begin after these forward tasks, each device's one after the other.

    Between a task and operator o there are at least the forward tasks of who reads it, and so on.
    """
    s.lead_s[: o + 1] = 0.0
    s.num_jobs[: t.cluster.num_devices] = 0
    for b in range(o - 1, -1, -1):
        least = _forward_lead(t, s, o, b, -1, every)
        for w in range(num_tasks(t, s, b)):
            s.task_lead_s[b, w] = _forward_lead(t, s, o, b, w, every)
            if bit_of(t, b, w) & every:
                device = t.config_devices[s.rows[b], w]
                s.end_s[device, s.num_jobs[device]] = s.task_lead_s[b, w]
                add_job(s, device, s.forward_head_s[b, w], task_times(t, s, b, w)[0])
        s.lead_s[b] = least
    end = 0.0
    for device in range(t.cluster.num_devices):
        end = max(end, preemptive_end(s, device))
    return end


@inner_kernel
def _forward_lead(t: BoundTables, s: Scratch, o: int, b: int, w: int, every: int) -> float:
    """Least time between forward task w of operator b, or any for -1, and operator o, which waits for it."""
    lead, room = 0.0, t.config_devices.shape[1]
    for i in range(t.out_begin[b], t.out_begin[b + 1]):
        edge = t.out_edges[i]
        c = t.edge_consumer[edge]
        if s.rows[c] < 0 or w < 0:
            if t.edge_wanted[edge] and t.reaches[c, o]:
                lead = max(lead, t.least_forward_s[c] + s.lead_s[c])
            continue
        pairs = pairs_at(t, edge, s.rows[b], s.rows[c]) + w * room
        for r in range(t.config_tasks[s.rows[c]]):
            size = t.pair_bytes[pairs + r]
            if size > 0 and bit_of(t, c, r) & every:
                sent = transfer_s(t, t.config_devices[s.rows[b], w], t.config_devices[s.rows[c], r], size)
                lead = max(lead, sent + task_times(t, s, c, r)[0] + s.task_lead_s[c, r])
    return lead


@inner_kernel
def enter_rest_back_end(t: BoundTables, s: Scratch, o: int) -> None:
    """Least ends of the first and the last backward task of operator o; its readers have theirs."""
    head, last, whole, whole_some = s.rest_end_s[o], s.rest_last_s[o], s.before_every[o], s.before_some[o]
    every, some = 0, 0
    for i in range(t.out_begin[o], t.out_begin[o + 1]):
        edge = t.out_edges[i]
        if not t.edge_gradient[edge]:
            continue
        c = t.edge_consumer[edge]
        first_end, last_end = _backward_ends(t, s, c)
        whole_of_every, whole_of_some, of_every, of_some = backward_of(t, s, c)
        if t.edge_joint[edge]:
            head, whole, every = max(head, last_end), whole | whole_of_some, every | of_some
        elif t.edge_wanted[edge]:
            head, whole, every = max(head, first_end), whole | whole_of_every, every | of_every
        if t.edge_everywhere[edge]:
            last, whole_some, some = max(last, last_end), whole_some | whole_of_some, some | of_some
    s.whole_every[o], s.whole_some[o] = whole, whole_some | whole
    s.back_every[o], s.back_some[o] = every, some | every
    s.rest_back_end_s[o] = head + t.least_backward_s[o]
    s.rest_back_last_s[o] = max(head, last) + t.least_backward_s[o]


@inner_kernel
def _backward_ends(t: BoundTables, s: Scratch, c: int) -> tuple[float, float]:
    """Least end of the first and of the last backward task of operator c."""
    if s.rows[c] < 0:
        return s.rest_back_end_s[c], s.rest_back_last_s[c]
    first, last = np.inf, 0.0
    for r in range(t.config_tasks[s.rows[c]]):
        first, last = min(first, s.backward_end_s[c, r]), max(last, s.backward_end_s[c, r])
    return first, last


@inner_kernel
def enter_rest_tail(t: BoundTables, s: Scratch, o: int) -> None:
    """Least tail of a backward task of operator o; its producers have theirs."""
    tail = _following(t, s, o)
    for i in range(t.in_begin[o], t.in_begin[o + 1]):
        edge = t.in_edges[i]
        if t.edge_gradient[edge] and t.edge_everywhere[edge]:
            q = t.edge_producer[edge]
            least, most = t.least_backward_s[q] + s.rest_tail_s[q], 0.0
            if s.rows[q] >= 0:
                least = np.inf
            for w in range(num_tasks(t, s, q)):
                after = task_times(t, s, q, w)[1] + s.backward_tail_s[q, w]
                least, most = min(least, after), max(most, after)
            tail = max(tail, max(least, most) if t.edge_joint[edge] else least)
    s.rest_tail_s[o] = tail


@inner_kernel
def _following(t: BoundTables, s: Scratch, o: int) -> float:
    """Least time from the end of a backward task of operator o until all is done that waits for all of them.

    Between it and a task that waits there are at least the backward tasks of who reads that, and so on.
    """
    bit, n = bit_of(t, o, 0), t.cluster.num_devices
    s.lead_s[: o + 1] = 0.0
    s.num_jobs[:n] = 0
    found = False
    for b in range(o - 1, -1, -1):
        least = _backward_lead(t, s, o, b, -1)
        for w in range(num_tasks(t, s, b) if t.has_backward[b] else 0):
            s.task_lead_s[b, w] = _backward_lead(t, s, o, b, w)
            if s.backward_past[b, w] & bit:
                device = t.config_devices[s.rows[b], w]
                s.end_s[device, s.num_jobs[device]] = s.backward_tail_s[b, w]
                add_job(s, device, s.task_lead_s[b, w], task_times(t, s, b, w)[1])
                found = True
        s.lead_s[b] = least
    tail = 0.0
    for device in range(n if found else 0):
        tail = max(tail, preemptive_end(s, device))
    return tail


@inner_kernel
def _backward_lead(t: BoundTables, s: Scratch, o: int, b: int, w: int) -> float:
    """Least time between operator o and backward task w of operator b, or any for -1, that waits for it."""
    lead, room, bit = 0.0, t.config_devices.shape[1], bit_of(t, o, 0)
    for i in range(t.out_begin[b], t.out_begin[b + 1]):
        edge = t.out_edges[i]
        c = t.edge_consumer[edge]
        if not t.edge_gradient[edge]:
            continue
        if s.rows[c] < 0 or w < 0:
            if t.edge_wanted[edge] and t.reaches_back[c, o]:
                lead = max(lead, t.least_backward_s[c] + s.lead_s[c])
            continue
        pairs = pairs_at(t, edge, s.rows[b], s.rows[c]) + w * room
        for r in range(t.config_tasks[s.rows[c]]):
            size = t.pair_bytes[pairs + r]
            if size > 0 and s.backward_past[c, r] & bit:
                sent = transfer_s(t, t.config_devices[s.rows[c], r], t.config_devices[s.rows[b], w], size)
                lead = max(lead, sent + task_times(t, s, c, r)[1] + s.task_lead_s[c, r])
    return lead


@inner_kernel
def enter_rest_forward_tail(t: BoundTables, s: Scratch, o: int) -> None:
    """Least tail of a forward task of operator o; its backward tasks and its readers have theirs."""
    tail = t.least_backward_s[o] + s.rest_tail_s[o] if t.has_backward[o] else 0.0
    for i in range(t.out_begin[o], t.out_begin[o + 1]):
        edge = t.out_edges[i]
        if t.edge_wanted[edge]:
            c = t.edge_consumer[edge]
            least = t.least_forward_s[c] + s.rest_forward_tail_s[c] if s.rows[c] < 0 else np.inf
            for r in range(num_tasks(t, s, c)):
                least = min(least, task_times(t, s, c, r)[0] + s.forward_tail_s[c, r])
            tail = max(tail, least)
    s.rest_forward_tail_s[o] = tail
