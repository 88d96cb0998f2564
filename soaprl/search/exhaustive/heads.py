"""Heads: the earliest start of each task; see `soaprl.search.exhaustive.bounds`."""

import numpy as np

from soaprl.cost.kernels import inner_kernel
from soaprl.search.exhaustive.jobs import busy_s, last_end, pairs_at, task_times
from soaprl.search.exhaustive.scratch import Scratch
from soaprl.search.exhaustive.tables import BoundTables
from soaprl.search.exhaustive.trips import Trips
from soaprl.search.exhaustive.turns import (
    after_backward,
    after_forward,
    enter_backward_turns,
    enter_forward_turns,
)


@inner_kernel
def enter_forward(t: BoundTables, s: Scratch, o: int) -> None:
    """Heads and ends of the forward tasks of operator o; its producers have theirs."""
    row, n = s.rows[o], t.cluster.num_devices
    begin, end = t.in_begin[o], t.in_begin[o + 1]
    enter_forward_turns(t, s, o)
    for p in range(t.config_tasks[row]):
        device, head = t.config_devices[row, p], after_forward(t, s, o, p)
        s.num_jobs[:n] = 0
        s.stamp[:o] = -1
        i = begin
        while i < end:
            first = i
            i += 1
            while i < end and t.edge_tensor[t.in_edges[i]] == t.edge_tensor[t.in_edges[first]]:
                i += 1
            q = t.edge_producer[t.in_edges[first]]
            if s.rows[q] < 0:
                if t.edge_everywhere[t.in_edges[first]]:
                    head = max(head, s.rest_end_s[q])
                if t.edge_joint[t.in_edges[first]]:
                    head = max(head, s.rest_last_s[q])
                continue
            _add_writers(t, s, first, i, o, p)
        for source in range(n):
            if s.num_jobs[source] == 0:
                continue
            done = last_end(s, source, s.release_s, s.duration_s)
            if source != device:
                route = source * n + device
                least = np.inf
                for j in range(s.num_jobs[source]):
                    least = min(least, s.send_s[source, j])
                sent = last_end(s, source, s.end_s, s.send_s)
                done = t.cluster.route_latency_s[route] + max(done + least, sent)
            head = max(head, done)
        s.forward_head_s[o, p] = head
        s.forward_end_s[o, p] = head + task_times(t, s, o, p)[0]


@inner_kernel
def _add_writers(t: BoundTables, s: Scratch, first: int, last: int, o: int, p: int) -> None:
    """Lists what task p of operator o reads of one tensor, as jobs of the writers' devices."""
    room, device = t.config_devices.shape[1], t.config_devices[s.rows[o], p]
    q = t.edge_producer[t.in_edges[first]]
    row = s.rows[q]
    for w in range(t.config_tasks[row]):
        size = 0
        for i in range(first, last):
            edge = t.in_edges[i]
            size = max(size, t.pair_bytes[pairs_at(t, edge, row, s.rows[o]) + w * room + p])
        if size == 0:
            continue
        source = t.config_devices[row, w]
        if s.stamp[q, w] != p:
            j = s.num_jobs[source]
            s.stamp[q, w], s.job[q, w], s.num_jobs[source] = p, j, j + 1
            s.release_s[source, j] = s.forward_head_s[q, w]
            s.duration_s[source, j] = task_times(t, s, q, w)[0]
            s.end_s[source, j] = s.forward_end_s[q, w]
            s.send_s[source, j] = 0.0
        if source != device:
            s.send_s[source, s.job[q, w]] += busy_s(t, source, device, size)


@inner_kernel
def enter_backward(t: BoundTables, trips: Trips, s: Scratch, o: int) -> None:
    """Heads and ends of the backward tasks of operator o; its chosen readers have theirs."""
    row, n, room = s.rows[o], t.cluster.num_devices, t.config_devices.shape[1]
    enter_backward_turns(t, s, o)
    for p in range(t.config_tasks[row] - 1, -1, -1):
        device, head = t.config_devices[row, p], max(s.forward_end_s[o, p], after_backward(t, s, o, p))
        s.num_jobs[:n] = 0
        s.stamp[o + 1 :] = -1
        for i in range(t.out_begin[o], t.out_begin[o + 1]):
            edge = t.out_edges[i]
            if not t.edge_gradient[edge]:
                continue
            c = t.edge_consumer[edge]
            if s.rows[c] < 0:
                if t.edge_wanted[edge]:
                    head = max(head, s.rest_back_end_s[c])
                if t.edge_joint[edge]:
                    head = max(head, s.rest_back_last_s[c])
                trip = trips.time_s[trips.begin[edge] + (row - t.config_begin[o]) * room + p]
                head = max(head, s.forward_end_s[o, p] + trip)
                continue
            pairs = pairs_at(t, edge, row, s.rows[c]) + p * room
            for r in range(t.config_tasks[s.rows[c]]):
                size = t.pair_bytes[pairs + r]
                if size == 0:
                    continue
                source = t.config_devices[s.rows[c], r]
                sent = 0.0
                if source != device:
                    sent = busy_s(t, source, device, size)
                if s.stamp[c, r] != p:
                    j = s.num_jobs[source]
                    s.stamp[c, r], s.job[c, r], s.num_jobs[source] = p, j, j + 1
                    s.release_s[source, j] = s.backward_head_s[c, r]
                    s.duration_s[source, j] = task_times(t, s, c, r)[1]
                    s.end_s[source, j] = s.backward_end_s[c, r]
                    s.send_s[source, j] = sent
                else:
                    s.send_s[source, s.job[c, r]] = max(s.send_s[source, s.job[c, r]], sent)
        for source in range(n):
            if s.num_jobs[source] > 0:
                head = max(head, _returned(t, s, source, device))
        s.backward_head_s[o, p] = head
        s.backward_end_s[o, p] = head + task_times(t, s, o, p)[1]


@inner_kernel
def _returned(t: BoundTables, s: Scratch, source: int, device: int) -> float:
    """When all gradients of the listed readers on `source` can be on `device`."""
    done = last_end(s, source, s.release_s, s.duration_s)
    if source == device:
        return done
    least = np.inf
    for j in range(s.num_jobs[source]):
        least = min(least, s.send_s[source, j])
    done += least
    for j in range(s.num_jobs[source]):
        done = max(done, s.end_s[source, j] + s.send_s[source, j])
    return float(done + t.cluster.route_latency_s[source * t.cluster.num_devices + device])
