"""The tasks of a simulated iteration as arrays, their names, and who kept whom waiting."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from soaprl.cluster.tables import ClusterTables, FloatArray, IntArray
from soaprl.cost.kernels import filling_kernel
from soaprl.cost.ticks import all_in_ticks
from soaprl.graph.operators import OperatorGraph
from soaprl.simulator.engine import Engine
from soaprl.simulator.state import GATHER_ID, HALF, PACE_ID, SHARDING, SYNC_ID, UPDATE_ID
from soaprl.strategy.strategy import Sharding


class TaskKind(IntEnum):
    """What a task does."""

    FORWARD = 0
    TRANSFER = 1
    BACKWARD = 2
    GRADIENT = 3
    SYNCHRONIZATION = 4
    UPDATE = 5
    JOIN = 6
    GATHER = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """All tasks, ordered by their sequence numbers. Every array has an entry for each task.

    Attributes:
        kind: A `TaskKind`.
        operator: The operator; for transfers the one whose output or gradient moves, for synchronization and
            gathers the first that reads the parameters; -1 for updates and joins.
        part: The task of the operator; for transfers of outputs the one that sends, for transfers of
            gradients the one that receives; -1 for the rest.
        source: The device that computes or sends; -1 for collectives and joins.
        target: The device that computes or receives; -1 for collectives and joins.
        num_bytes: Bytes sent; for collectives those that are summed or gathered.
        resource: See `soaprl.simulator.state`; all-reduces are numbered in their order here.
        ready_s: When the last predecessor ended.
        start_s: When the task started.
        finish_s: When it ended.
    """

    kind: IntArray
    operator: IntArray
    part: IntArray
    source: IntArray
    target: IntArray
    num_bytes: IntArray
    resource: IntArray
    ready_s: FloatArray
    start_s: FloatArray
    finish_s: FloatArray

    @property
    def num_tasks(self) -> int:
        """Number of tasks."""
        return len(self.kind)

    def name(self, task: int, graph: OperatorGraph) -> str:
        """What the task does, for people: ``fc1[2] d0->d1``."""
        kind, part = TaskKind(self.kind[task]), int(self.part[task])
        if kind is TaskKind.UPDATE:
            return f"update d{self.source[task]}"
        if kind is TaskKind.JOIN:
            return "join"
        prefix = {
            TaskKind.BACKWARD: "backward ",
            TaskKind.GRADIENT: "gradient ",
            TaskKind.SYNCHRONIZATION: "synchronize ",
            TaskKind.GATHER: "gather ",
        }.get(kind, "")
        text = prefix + graph.operators[int(self.operator[task])].name + (f"[{part}]" if part >= 0 else "")
        moves = self.source[task] != self.target[task]
        return text + (f" d{self.source[task]}->d{self.target[task]}" if moves else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupations:
    """Which task keeps which link busy from when for how long; one entry for each pair."""

    task: IntArray
    link: IntArray
    start_s: FloatArray
    busy_s: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageWork:
    """What transfers and collectives take of the processors of devices.

    Attributes:
        begin: Shape [tasks + 1]; where the entries of each task begin.
        device: From which device.
        time_s: How long.
    """

    begin: IntArray
    device: IntArray
    time_s: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies:
    """The edges of the task graph, as indices into a `Timeline`."""

    before: IntArray
    after: IntArray


def task_ids(engine: Engine) -> IntArray:
    """Ids of the tasks of the strategy at hand, ascending."""
    graph, tables = engine.graph, engine.setting.graph
    work, layout, blocks = graph.work, graph.layout, graph.blocks
    half, first_sync = int(work.totals[HALF]), int(work.totals[SYNC_ID])
    parts = _ranges(blocks.id_begin[:-1], layout.num_parts)
    deliveries = _ranges(blocks.id_begin[:-1] + layout.num_parts, work.num_deliveries)
    back = 2 * half - 1 - _ranges(blocks.id_begin[:-1], layout.num_parts * tables.has_backward)
    gradients = 2 * half - 1 - deliveries
    sync = _ranges(first_sync + blocks.sync_begin[:-1], work.num_sync)
    updates = np.arange(work.totals[UPDATE_ID], work.totals[PACE_ID], dtype=np.int64)
    paces = work.totals[PACE_ID] + np.flatnonzero(tables.paces.ravel())
    gathers = _ranges(int(work.totals[GATHER_ID]) + blocks.gather_begin[:-1], work.num_gathers)
    barrier = np.array([2 * half], np.int64)
    rest = [
        gradients[work.need[gradients] > 0],
        updates[work.need[updates] > 0],
        barrier[work.need[barrier] > 0],
        paces if work.totals[SHARDING] == 3 else paces[:0],
        gathers,
    ]
    return np.sort(np.concatenate([parts, deliveries, back, sync, *rest]))


def timeline(engine: Engine, ids: IntArray) -> Timeline:
    """The tasks with `ids`."""
    work, blocks, num_devices = engine.graph.work, engine.graph.blocks, engine.tables.num_devices
    half = int(work.totals[HALF])
    mirrored = np.where(ids < half, ids, 2 * half - 1 - ids)
    operator = np.searchsorted(blocks.id_begin[:-1], mirrored, side="right") - 1
    place = mirrored - blocks.id_begin[operator]
    transfer = place >= engine.graph.layout.num_parts[operator]
    part = np.where(transfer, work.origin[ids], place)
    kind = np.where(transfer, TaskKind.TRANSFER, TaskKind.FORWARD)
    kind = np.where(ids >= half, kind + 2, kind).astype(np.int64)
    resource = work.resource[ids]
    sync, gather = ids >= 2 * half, ids >= work.totals[GATHER_ID]
    kind[sync] = np.where(resource[sync] < 0, TaskKind.JOIN, TaskKind.SYNCHRONIZATION)
    kind[(ids >= work.totals[UPDATE_ID]) & (ids < work.totals[PACE_ID])] = TaskKind.UPDATE
    kind[gather] = TaskKind.GATHER
    operator[sync], part[sync] = -1, -1
    synchronizes = (kind == TaskKind.SYNCHRONIZATION) | gather
    operator[synchronizes] = _first_readers(engine)[work.origin[ids[synchronizes]]]
    route, last_route = resource - num_devices, num_devices * (num_devices + 1) - 1
    on_route = (route >= 0) & (route < num_devices * num_devices)
    on_device = (resource >= 0) & (resource < num_devices)
    return Timeline(
        kind=kind,
        operator=operator,
        part=part,
        source=np.where(on_device, resource, np.where(on_route, route // num_devices, -1)),
        target=np.where(on_device, resource, np.where(on_route, route % num_devices, -1)),
        num_bytes=work.num_bytes[ids],
        resource=np.where(resource > last_route, last_route + np.cumsum(resource > last_route), resource),
        ready_s=work.ready_s[ids],
        start_s=work.start_s[ids],
        finish_s=work.finish_s[ids],
    )


def dependencies(engine: Engine, ids: IntArray) -> Dependencies:
    """The edges between the tasks with `ids`."""
    work = engine.graph.work
    counts = work.successor_end[ids] - work.successor_begin[ids]
    before = np.repeat(np.arange(len(ids), dtype=np.int64), counts)
    after = work.successors[_ranges(work.successor_begin[ids], counts)]
    # The last task of a device has no next one.
    before, after = before[after >= 0], after[after >= 0]
    return Dependencies(before=before, after=np.searchsorted(ids, after))


def occupations(engine: Engine, ids: IntArray, tasks: Timeline) -> Occupations:
    """How the tasks with `ids` occupy links."""
    tables, plans = engine.tables, engine.graph.plans
    num_devices = tables.num_devices
    route = tasks.resource - num_devices
    transfers = np.flatnonzero((route >= 0) & (route < num_devices * num_devices))
    route = route[transfers]
    counts = tables.route_offsets[route + 1] - tables.route_offsets[route]
    moved = np.repeat(transfers, counts)
    links = tables.route_links[_ranges(tables.route_offsets[route], counts)]
    sums = np.flatnonzero(tasks.resource >= num_devices + num_devices * num_devices)
    plan = engine.graph.work.resource[ids[sums]] - num_devices - num_devices * num_devices
    used = _ranges(plans.link_begin[plan], plans.num_links[plan])
    task = np.concatenate([moved, np.repeat(sums, plans.num_links[plan])])
    return Occupations(
        task=task,
        link=np.concatenate([links, plans.links[used]]),
        start_s=tasks.start_s[task],
        busy_s=np.concatenate(
            [
                all_in_ticks(tasks.num_bytes[moved] / tables.link_bandwidth_bytes_per_s[links]),
                plans.busy_s[used],
            ]
        ),
    )


def message_work(engine: Engine, ids: IntArray, tasks: Timeline) -> MessageWork:
    """The processor time that the tasks with `ids` take from the devices at their ends."""
    tables, plans, work = engine.tables, engine.graph.plans, engine.graph.work
    num_devices, count = tables.num_devices, np.zeros(tasks.num_tasks, np.int64)
    route = tasks.resource - num_devices
    occupies = engine.problem.overheads.occupy
    sends = np.flatnonzero(occupies & (route >= 0) & (route < num_devices**2))
    sums = np.flatnonzero(occupies & (route >= num_devices**2))
    plan = work.resource[ids[sums]] - num_devices - num_devices**2
    holders = plans.num_holders[plan]
    count[sends], count[sums] = 2, holders
    moved = tasks.num_bytes.astype(np.float64)
    moved[sums] *= 2 * (1 if work.totals[SHARDING] else 2) * (holders - 1) / np.maximum(holders, 1)
    ends = np.stack([tasks.source, tasks.target], axis=1)[sends].ravel()
    device = np.concatenate([ends, plans.holders[_ranges(plans.holder_begin[plan], holders)]])
    task = np.concatenate([np.repeat(sends, 2), np.repeat(sums, holders)])
    order = np.argsort(task, kind="stable")
    taken_s = all_in_ticks(tables.message_s + moved * tables.message_s_per_byte)
    reduced_s_per_byte = tables.message_s_per_byte + tables.reduced_s_per_byte
    taken_s[sums] = all_in_ticks(moved[sums] * reduced_s_per_byte)
    taken_s += all_in_ticks(moved * tables.carry_s_per_byte)
    return MessageWork(
        begin=np.concatenate([np.zeros(1, np.int64), np.cumsum(count)]),
        device=device[order],
        time_s=taken_s[task[order]],
    )


def critical_path(
    tasks: Timeline, edges: Dependencies, used: Occupations, taken: MessageWork, tables: ClusterTables
) -> IntArray:
    """A chain of tasks that explains the iteration time, first to last.

    Each task starts when the one before it ends (a predecessor) or frees a resource both need. A device is
    needed by the messages that take time of it.
    """
    cause = np.full(tasks.num_tasks, -1, np.int64)
    last = tasks.finish_s[edges.before] == tasks.ready_s[edges.after]
    # Backwards, so that of several predecessors that end at once the first in sequence stays.
    cause[edges.after[last][::-1]] = edges.before[last][::-1]
    by_task = np.argsort(used.task, kind="stable")
    begin = np.searchsorted(used.task[by_task], np.arange(tasks.num_tasks + 1))
    computes = (tasks.resource >= 0) & (tasks.resource < tables.num_devices)
    # Dispatch order: by ready time; tasks are in order of sequence, so a stable sort breaks ties.
    order = np.argsort(tasks.ready_s, kind="stable")
    _blame_resources(
        order,
        tasks.ready_s,
        tasks.start_s,
        tasks.finish_s,
        np.where(computes, tasks.resource, -1),
        begin,
        used.link[by_task],
        used.busy_s[by_task],
        taken.begin,
        taken.device,
        taken.time_s,
        np.zeros(tables.num_devices, np.int64),
        np.zeros(tables.num_devices, np.float64),
        np.zeros(len(tables.link_latency_s), np.int64),
        np.zeros(len(tables.link_latency_s), np.float64),
        cause,
    )
    path = [int(np.argmax(tasks.finish_s))]
    while cause[path[-1]] >= 0:
        path.append(int(cause[path[-1]]))
    return np.array(path[::-1], np.int64)


@filling_kernel
def _blame_resources(
    order: IntArray,
    ready_s: FloatArray,
    start_s: FloatArray,
    finish_s: FloatArray,
    device: IntArray,
    begin: IntArray,
    links: IntArray,
    busy_s: FloatArray,
    taken_begin: IntArray,
    taken_device: IntArray,
    taken_s: FloatArray,
    device_user: IntArray,
    device_free_s: FloatArray,
    link_user: IntArray,
    link_free_s: FloatArray,
    cause: IntArray,
) -> None:
    """Sets the cause of each task that found a resource busy: who had it until the task started.

    A message that waits for a link longer than it takes of a device has what made it ready blamed for that.
    """
    for task in order:
        waited, before = start_s[task] > ready_s[task], cause[task]
        if device[task] >= 0:
            if waited:
                cause[task] = device_user[device[task]]
            device_user[device[task]], device_free_s[device[task]] = task, finish_s[task]
        for k in range(begin[task], begin[task + 1]):
            link = links[k]
            if waited and link_free_s[link] == start_s[task]:
                cause[task] = link_user[link]
            link_free_s[link] = start_s[task] + busy_s[k]
            link_user[link] = task
        for k in range(taken_begin[task], taken_begin[task + 1]):
            other = taken_device[k]
            if device_free_s[other] <= ready_s[task]:
                late = before >= 0 and start_s[task] > ready_s[task] + taken_s[k]
                device_user[other], device_free_s[other] = before if late else task, ready_s[task]
            device_free_s[other] += taken_s[k]


def _first_readers(engine: Engine) -> IntArray:
    """The first reading operator by plan."""
    layout = engine.graph.layout
    readers = np.zeros(len(engine.graph.plans.time_s), np.int64)
    for number, group in enumerate(engine.index.groups):
        first, num_cells = layout.plan_begin[number], layout.cell_end[number] - layout.cell_begin[number]
        num_plans = num_cells * (1 if engine.sharding is Sharding.NONE else 2)
        readers[first : first + num_plans] = group.readers[0]
    return readers


def _ranges(begin: IntArray, counts: IntArray) -> IntArray:
    """The indices ``begin[i], ..., begin[i] + counts[i] - 1`` for every i, one after the other."""
    ends = np.cumsum(counts, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) - np.repeat(ends - counts - begin, counts)
