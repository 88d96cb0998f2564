"""Working memory of the lower bounds."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from soaprl.cluster.tables import FloatArray, IntArray
from soaprl.search.exhaustive.tables import BoundTables

Shape: TypeAlias = int | tuple[int, ...]


class Scratch(NamedTuple):
    """Working memory: heads and ends of tasks by operator and task, and lists of jobs by machine.

    Attributes:
        rows: The chosen configurations.
        forward_head_s: Shape [operators, T].
        forward_end_s: Likewise.
        backward_head_s: Likewise.
        backward_end_s: Likewise.
        stamp: Shape [operators, T]; which task asked for a predecessor last.
        job: Shape [operators, T]; the predecessor's place in the list of its device.
        num_jobs: Shape [machines]; jobs in each list.
        release_s: Shape [machines, jobs].
        duration_s: Likewise.
        end_s: Likewise.
        send_s: Likewise.
        order: Shape [jobs].
        load_s: Shape [devices].
        update_s: Shape [devices].
        update_release_s: Shape [devices].
        mean_update_s: Shape [1]; mean of all devices' updates, with the least of what is not chosen.
        forward_tail_s: Shape [operators, T].
        backward_tail_s: Likewise.
        forward_needs: Shape [operators, T]; what a forward task waits for, as a bit set of tasks, or -1 (see
            `soaprl.search.exhaustive.turns`).
        forward_past: Likewise, all forward tasks before it.
        backward_needs: Likewise, of backward tasks.
        backward_past: Likewise.
        whole_past: Likewise, the forward tasks before a backward task.
        num_sent: Shape [1]; gradients that are sent (see `soaprl.search.exhaustive.sending`).
        sent_link: By gradient: a link that it passes.
        sent_giver: By gradient: operator * T + task that it comes from.
        sent_after: By gradient: all backward tasks that it may wait for, as a bit set.
        sent_busy_s: By gradient: how long it keeps the link busy.
        sent_tail_s: By gradient: least time from then to the end of the iteration; 0 if it precedes no slot.
        giver_tail_s: Shape [operators, T]; least time from a backward task, through a gradient and the slots
            that it precedes, to the end of the iteration.
        future: Shape [operators, T]; the backward tasks that follow a backward task, as a bit set.
        work_s: Shape [machines].
        mask: Shape [operators, T]; the slots that a backward task precedes, as a bit set.
        rest_end_s: Shape [operators]; least end of a forward task of an operator that is not chosen.
        rest_last_s: Likewise, of the last of its forward tasks.
        rest_back_end_s: Shape [operators]; least end of a backward task of an operator that is not chosen.
        rest_back_last_s: Likewise, of the last one.
        before_every: Shape [operators]; the forward tasks before every forward task of an operator that is
            not chosen, as a bit set (see `soaprl.search.exhaustive.rest`).
        before_some: Likewise, before at least one.
        whole_every: Likewise, before every backward task.
        whole_some: Likewise, before at least one.
        back_every: Likewise, the backward tasks before every backward task.
        back_some: Likewise, before at least one.
        lead_s: Shape [operators]; least time between any task and a later or earlier operator.
        task_lead_s: Shape [operators, T]; likewise for one task.
        rest_tail_s: Shape [operators]; least tail of its backward tasks.
        rest_forward_tail_s: Likewise, of its forward tasks.
        num_slots: Shape [1].
        slot_group: By slot (see `soaprl.search.exhaustive.synchronization`): its group.
        slot_cell: By slot: its cell.
        slot_members: By slot: the devices that hold it, as a bit set.
        slot_root: By slot: the first holder, or -1 if it is no exchange.
        slot_took_s: By slot: the time of its all-reduce.
        slot_tail_s: By slot: least time from its last summand to the end of the iteration.
        slot_busy_s: Shape [slots, machines]; how long each machine is busy.
        slot_after_s: Shape [slots, machines]; least time after that.
        slot_past: By slot: all backward tasks that it waits for, directly or not, as a bit set.
    """

    rows: IntArray
    forward_head_s: FloatArray
    forward_end_s: FloatArray
    backward_head_s: FloatArray
    backward_end_s: FloatArray
    stamp: IntArray
    job: IntArray
    num_jobs: IntArray
    release_s: FloatArray
    duration_s: FloatArray
    end_s: FloatArray
    send_s: FloatArray
    order: IntArray
    load_s: FloatArray
    update_s: FloatArray
    update_release_s: FloatArray
    mean_update_s: FloatArray
    forward_tail_s: FloatArray
    backward_tail_s: FloatArray
    forward_needs: IntArray
    forward_past: IntArray
    backward_needs: IntArray
    backward_past: IntArray
    whole_past: IntArray
    num_sent: IntArray
    sent_link: IntArray
    sent_giver: IntArray
    sent_after: IntArray
    sent_busy_s: FloatArray
    sent_tail_s: FloatArray
    giver_tail_s: FloatArray
    future: IntArray
    work_s: FloatArray
    mask: IntArray
    rest_end_s: FloatArray
    rest_last_s: FloatArray
    rest_back_end_s: FloatArray
    rest_back_last_s: FloatArray
    before_every: IntArray
    before_some: IntArray
    whole_every: IntArray
    whole_some: IntArray
    back_every: IntArray
    back_some: IntArray
    lead_s: FloatArray
    task_lead_s: FloatArray
    rest_tail_s: FloatArray
    rest_forward_tail_s: FloatArray
    num_slots: IntArray
    slot_group: IntArray
    slot_cell: IntArray
    slot_members: IntArray
    slot_root: IntArray
    slot_took_s: FloatArray
    slot_tail_s: FloatArray
    slot_busy_s: FloatArray
    slot_after_s: FloatArray
    slot_past: IntArray


def make_scratch(tables: BoundTables) -> Scratch:
    """Working memory for the bounds of `tables`."""
    n, room = len(tables.has_backward), tables.config_devices.shape[1]
    devices, slots = tables.cluster.num_devices, _most_cells(tables) + 1
    machines = max(devices * devices, len(tables.cluster.link_latency_s))
    longest = int(np.diff(tables.cluster.route_offsets).max(initial=0))
    sent = len(tables.edge_producer) * room * devices * longest
    jobs = (machines, max(2 * n * room + 1, slots + sent))
    tasks = (n, room)
    named: list[tuple[Shape, str]] = [
        (n, "rows rest_end_s rest_last_s rest_back_end_s rest_back_last_s rest_tail_s rest_forward_tail_s"),
        (n, "before_every before_some whole_every whole_some back_every back_some lead_s"),
        (tasks, "forward_head_s forward_end_s backward_head_s backward_end_s forward_tail_s backward_tail_s"),
        (tasks, "forward_needs forward_past backward_needs backward_past whole_past future"),
        (tasks, "stamp job mask giver_tail_s task_lead_s"),
        (machines, "num_jobs work_s"),
        (jobs, "release_s duration_s end_s send_s"),
        (jobs[1], "order"),
        (devices, "load_s update_s update_release_s"),
        (1, "mean_update_s num_sent num_slots"),
        (sent, "sent_link sent_giver sent_after sent_busy_s sent_tail_s"),
        (slots, "slot_group slot_cell slot_members slot_root slot_past slot_took_s slot_tail_s"),
        ((slots, machines), "slot_busy_s slot_after_s"),
    ]
    return Scratch(**{name: _zeros(name, shape) for shape, names in named for name in names.split()})


def _zeros(name: str, shape: Shape) -> Any:
    """An array of numbers, or, if its name says so, of seconds."""
    return np.zeros(shape, np.float64 if name.endswith("_s") else np.int64)


def _most_cells(tables: BoundTables) -> int:
    """Most cells that a strategy can have."""
    total = 0
    for begin, end in zip(tables.group_patterns[:-1], tables.group_patterns[1:], strict=True):
        total += int(np.diff(tables.pattern_begin[begin : end + 1]).max(initial=0))
    return total
