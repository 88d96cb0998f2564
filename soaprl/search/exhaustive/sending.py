"""Gradients that are sent before an all-reduce may start on the same link.

Links, too, pass what is ready first, and of two that are ready at once the one with the lower number; all
transfers have lower numbers than any all-reduce. So a gradient that waits for nothing but backward tasks that
an all-reduce waits for too goes first wherever both use a link. This is why the all-reduce of a layer begins
later if the layer's gradients go to other devices.
"""

import numpy as np

from soaprl.cost.kernels import inner_kernel
from soaprl.cost.ticks import in_ticks
from soaprl.search.exhaustive.jobs import num_tasks, pairs_at
from soaprl.search.exhaustive.scratch import Scratch
from soaprl.search.exhaustive.tables import BoundTables
from soaprl.search.exhaustive.turns import bit_of


@inner_kernel
def enter_sent(t: BoundTables, s: Scratch) -> None:
    """Lists the gradients that are sent to chosen operators whose readers are all chosen."""
    s.num_sent[0] = 0
    if t.paper:
        return
    for q in range(len(t.has_backward)):
        if s.rows[q] < 0 or bit_of(t, q, 0) == 0:
            continue
        for i in range(t.out_begin[q], t.out_begin[q + 1]):
            if _is_known(t, s, q, i):
                for w in range(num_tasks(t, s, q)):
                    for device in range(t.cluster.num_devices):
                        if device != t.config_devices[s.rows[q], w]:
                            _enter_gradient(t, s, q, i, w, device)


@inner_kernel
def _is_known(t: BoundTables, s: Scratch, q: int, first: int) -> bool:
    """Whether an edge is the first of its tensor, and all that give gradients of the tensor are chosen."""
    tensor, known = t.edge_tensor[t.out_edges[first]], False
    for i in range(t.out_begin[q], t.out_begin[q + 1]):
        edge = t.out_edges[i]
        if t.edge_tensor[edge] != tensor:
            continue
        if i < first or (t.edge_gradient[edge] and s.rows[t.edge_consumer[edge]] < 0):
            return False
        known = known or t.edge_gradient[edge] != 0
    return known


@inner_kernel
def _enter_gradient(t: BoundTables, s: Scratch, q: int, first: int, w: int, device: int) -> None:
    """Lists the largest gradient of a tensor that tasks of a device send to task w of operator q.

    Equal boxes are one transfer, which waits for all who give to it; so it waits at most for all of them, and
    at least for the one that reads the most.
    """
    room, row = t.config_devices.shape[1], s.rows[q]
    size, giver, after = 0, 0, 0
    for i in range(first, t.out_begin[q + 1]):
        edge = t.out_edges[i]
        if t.edge_tensor[edge] != t.edge_tensor[t.out_edges[first]] or not t.edge_gradient[edge]:
            continue
        c = t.edge_consumer[edge]
        pairs = pairs_at(t, edge, row, s.rows[c]) + w * room
        for r in range(num_tasks(t, s, c)):
            if t.config_devices[s.rows[c], r] == device and t.pair_bytes[pairs + r] > 0:
                after |= bit_of(t, c, r)
                if t.pair_bytes[pairs + r] > size:
                    size, giver = t.pair_bytes[pairs + r], c * room + r
    if size == 0:
        return
    route = device * t.cluster.num_devices + t.config_devices[row, w]
    for i in range(t.cluster.route_offsets[route], t.cluster.route_offsets[route + 1]):
        j, link = s.num_sent[0], t.cluster.route_links[i]
        s.sent_link[j], s.sent_giver[j], s.sent_after[j] = link, giver, after
        s.sent_busy_s[j] = in_ticks(size / t.cluster.link_bandwidth_bytes_per_s[link])
        s.sent_tail_s[j] = 0.0
        s.num_sent[0] = j + 1


@inner_kernel
def sent_before(t: BoundTables, s: Scratch, slot: int) -> float:
    """When all gradients are sent that go before the all-reduce of a slot; notes that they do."""
    room, past, done = t.config_devices.shape[1], s.slot_past[slot], 0.0
    for link in range(t.reduce_busy_s.shape[2]):
        if s.slot_busy_s[slot, link] == 0.0:
            continue
        first, work = np.inf, 0.0
        for j in range(s.num_sent[0]):
            if s.sent_link[j] == link and s.sent_after[j] & ~past == 0:
                o, p = s.sent_giver[j] // room, s.sent_giver[j] % room
                release, busy = s.backward_end_s[o, p], s.sent_busy_s[j]
                first, work = min(first, release), work + busy
                done = max(done, release + busy)
                s.sent_tail_s[j] = max(s.sent_tail_s[j], s.slot_tail_s[slot])
                s.giver_tail_s[o, p] = max(s.giver_tail_s[o, p], busy + s.slot_tail_s[slot])
        if work > 0.0:
            done = max(done, first + work)
    return done
