"""Whose turn it is: what first-in-first-out order says of two tasks of one device in all that may be chosen.

A device runs its tasks in the order in which they become ready; of two that become ready at once the one with
the lower number goes first. Numbers follow operators and parts in the forward pass, and are reversed in the
backward pass. So if all that a task waits for is on its own device, no transfer comes between, and another
task of this device with a higher number waits for all of it too, directly or not, then the first goes before
the second.

In the backward pass a task also waits for its own forward task. That is done before any reader's forward
task, so before any gradient comes back; a task without readers, which gets none, is left out.

Tasks are bits of an integer. In models with too many tasks for that nothing is said about turns.
"""

from soaprl.cost.kernels import inner_kernel
from soaprl.search.exhaustive.jobs import add_job, last_end, num_tasks, pairs_at, task_times
from soaprl.search.exhaustive.scratch import Scratch
from soaprl.search.exhaustive.tables import BoundTables

_MOST_BITS = 62


@inner_kernel
def bit_of(t: BoundTables, o: int, p: int) -> int:
    """Task p of operator o as a set; empty if there are too many tasks for sets."""
    room = t.config_devices.shape[1]
    return 1 << (o * room + p) if len(t.has_backward) * room <= _MOST_BITS else 0


@inner_kernel
def enter_forward_turns(t: BoundTables, s: Scratch, o: int) -> None:
    """What the forward tasks of operator o wait for; its producers have theirs."""
    row, room = s.rows[o], t.config_devices.shape[1]
    for p in range(t.config_tasks[row]):
        needs, past, known = 0, 0, bit_of(t, o, p) != 0
        for i in range(t.in_begin[o], t.in_begin[o + 1]):
            edge = t.in_edges[i]
            q = t.edge_producer[edge]
            if s.rows[q] < 0:
                known = False
                if t.edge_joint[edge]:
                    past |= s.before_some[q]
                elif t.edge_everywhere[edge]:
                    past |= s.before_every[q]
                continue
            pairs = pairs_at(t, edge, s.rows[q], row) + p
            for w in range(t.config_tasks[s.rows[q]]):
                if t.pair_bytes[pairs + w * room] > 0:
                    needs |= bit_of(t, q, w)
                    past |= s.forward_past[q, w]
                    known = known and t.config_devices[s.rows[q], w] == t.config_devices[row, p]
        s.forward_needs[o, p] = needs if known else -1
        s.forward_past[o, p] = past | needs


@inner_kernel
def enter_backward_turns(t: BoundTables, s: Scratch, o: int) -> None:
    """What the backward tasks of operator o wait for; its readers have theirs."""
    row, room = s.rows[o], t.config_devices.shape[1]
    for p in range(t.config_tasks[row]):
        needs, past, known = 0, 0, bit_of(t, o, p) != 0
        whole = s.forward_past[o, p] | bit_of(t, o, p)
        for i in range(t.out_begin[o], t.out_begin[o + 1]):
            edge = t.out_edges[i]
            if not t.edge_gradient[edge]:
                continue
            c = t.edge_consumer[edge]
            if s.rows[c] < 0:
                known = False
                whole_of_every, whole_of_some, of_every, of_some = backward_of(t, s, c)
                if t.edge_joint[edge]:
                    past, whole = past | of_some, whole | whole_of_some
                elif t.edge_wanted[edge]:
                    past, whole = past | of_every, whole | whole_of_every
                continue
            pairs = pairs_at(t, edge, row, s.rows[c]) + p * room
            for r in range(t.config_tasks[s.rows[c]]):
                if t.pair_bytes[pairs + r] > 0:
                    needs |= bit_of(t, c, r)
                    past |= s.backward_past[c, r]
                    whole |= s.whole_past[c, r]
                    known = known and t.config_devices[s.rows[c], r] == t.config_devices[row, p]
        s.backward_needs[o, p] = needs if known and needs != 0 else -1
        s.backward_past[o, p], s.whole_past[o, p] = past | needs, whole


@inner_kernel
def backward_of(t: BoundTables, s: Scratch, c: int) -> tuple[int, int, int, int]:
    """What comes before every and some backward task of c: forward tasks twice, then backward tasks.

    Among the last are its own tasks. Those of an operator that is not chosen are the bit of its first one.
    """
    if s.rows[c] < 0:
        return s.whole_every[c], s.whole_some[c], s.back_every[c], s.back_some[c] | bit_of(t, c, 0)
    whole_every, whole_some, every, some = -1, 0, -1, 0
    for r in range(t.config_tasks[s.rows[c]]):
        past = s.backward_past[c, r] | bit_of(t, c, r)
        whole_every, whole_some = whole_every & s.whole_past[c, r], whole_some | s.whole_past[c, r]
        every, some = every & past, some | past
    return whole_every, whole_some, every, some


@inner_kernel
def goes_first(needs: int, past: int) -> bool:
    """Whether a task that waits for `needs` alone goes before a later one with `past`."""
    return bool(needs >= 0 and needs & ~past == 0)


@inner_kernel
def after_forward(t: BoundTables, s: Scratch, o: int, p: int) -> float:
    """When all is done that task p of operator o has to wait for on its own device in the forward pass."""
    device, past = t.config_devices[s.rows[o], p], s.forward_past[o, p]
    s.num_jobs[0] = 0
    for b in range(o + 1):
        for r in range(num_tasks(t, s, b) if b < o else p):
            if t.config_devices[s.rows[b], r] != device:
                continue
            if bit_of(t, b, r) & past or goes_first(s.forward_needs[b, r], past):
                add_job(s, 0, s.forward_head_s[b, r], task_times(t, s, b, r)[0])
    return last_end(s, 0, s.release_s, s.duration_s)


@inner_kernel
def after_backward(t: BoundTables, s: Scratch, o: int, p: int) -> float:
    """When all is done that task p of operator o has to wait for on its own device in the backward pass."""
    device, past = t.config_devices[s.rows[o], p], s.backward_past[o, p]
    s.num_jobs[0] = 0
    for b in range(len(t.has_backward)):
        for r in range(num_tasks(t, s, b)):
            if t.config_devices[s.rows[b], r] != device:
                continue
            bit, (forward, backward) = bit_of(t, b, r), task_times(t, s, b, r)
            if bit & s.whole_past[o, p]:
                add_job(s, 0, s.forward_head_s[b, r], forward)
            later = b > o or (b == o and r > p)
            if later and t.has_backward[b] and (bit & past or goes_first(s.backward_needs[b, r], past)):
                add_job(s, 0, s.backward_head_s[b, r], backward)
    return last_end(s, 0, s.release_s, s.duration_s)


@inner_kernel
def enter_after_forward(t: BoundTables, s: Scratch, o: int, p: int) -> None:
    """Lists on machine 0 all that waits for forward task p of operator o on its own device."""
    device, bit, needs = t.config_devices[s.rows[o], p], bit_of(t, o, p), s.forward_needs[o, p]
    s.num_jobs[0] = 0
    for b in range(len(t.has_backward)):
        for r in range(num_tasks(t, s, b)):
            if t.config_devices[s.rows[b], r] != device:
                continue
            forward, backward = task_times(t, s, b, r)
            later, past = b > o or (b == o and r > p), s.forward_past[b, r]
            if later and (bit & past or goes_first(needs, past)):
                _enter_tail(s, s.forward_tail_s[b, r], forward)
            if t.has_backward[b] and bit & s.whole_past[b, r]:
                _enter_tail(s, s.backward_tail_s[b, r], backward)


@inner_kernel
def enter_after_backward(t: BoundTables, s: Scratch, o: int, p: int) -> None:
    """Lists on machine 0 all that waits for backward task p of operator o on its own device."""
    device, bit, needs = t.config_devices[s.rows[o], p], bit_of(t, o, p), s.backward_needs[o, p]
    s.num_jobs[0] = 0
    for b in range(o + 1):
        if not t.has_backward[b]:
            continue
        for r in range(num_tasks(t, s, b) if b < o else p):
            past = s.backward_past[b, r]
            if t.config_devices[s.rows[b], r] == device and (bit & past or goes_first(needs, past)):
                s.mask[o, p] |= s.mask[b, r]
                s.future[o, p] |= s.future[b, r]
                _enter_tail(s, s.backward_tail_s[b, r], task_times(t, s, b, r)[1])


@inner_kernel
def _enter_tail(s: Scratch, tail: float, duration: float) -> None:
    j = s.num_jobs[0]
    s.end_s[0, j], s.send_s[0, j] = tail, 0.0
    add_job(s, 0, 0.0, duration)
