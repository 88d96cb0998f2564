"""All-gathers of sharded parameters; see `soaprl.strategy.strategy.Sharding`.

With sharding, what would be the all-reduce of a cell of parameters over its n holders is a reduce-scatter:
each holder gets the sum of its piece of the gradient (of ceil(bytes / n) bytes) and updates it. Then

- under ``zero1`` and ``zero2`` the cell is gathered once all its holders have updated (of the groups that
  micro-batches have for the same parameters, the first does);
- under ``zero3`` it is gathered before the forward pass and, unless it is kept, again before the backward
  pass (`soaprl.simulator.pacing`), and not after the update. Parameters that are not trained are gathered,
  too.

A reduce-scatter and an all-gather each take half the traffic of an all-reduce: ``zero1`` and ``zero2``
move as much as no sharding, ``zero3`` half as much again, less what is kept. With m micro-batches ``zero2``
reduces and scatters m times, and ``zero3`` does all of it m times.

Ids of gathers are the last ones: a block for each group, in it by cell, the forward ones first. They break
the rule that ids are larger than those of predecessors, for the forward and backward tasks that wait for
gathers. That only decides which of two tasks comes first that are ready at the same time. What paces gathers
is a task without duration for each operator and pass, between the updates and the gathers, so that who waits
for whom does not depend on configurations: gathers wait for it, and it for all tasks of the operator.
"""

from soaprl.cluster.tables import ClusterTables
from soaprl.cost.kernels import inner_kernel
from soaprl.simulator.pacing import (
    BACK_FIRST,
    BACK_LAST,
    BACK_PACE,
    FORWARD_FIRST,
    FORWARD_LAST,
    FORWARD_PACE,
    GRADIENT_FIRST,
)
from soaprl.simulator.patterns import PatternPools
from soaprl.simulator.state import (
    GATHER_ID,
    HALF,
    PACE_ID,
    SHARDING,
    UPDATE_ID,
    Blocks,
    Layout,
    Plans,
    Workspace,
)
from soaprl.simulator.tables import GraphTables

_BUFFERS = 1


@inner_kernel
def enter_gathers(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    tables: ClusterTables,
    plans: Plans,
    blocks: Blocks,
    work: Workspace,
    g: int,
) -> None:
    """Fills the group's block of gathers."""
    work.num_gathers[g] = 0
    edge = blocks.gather_out_begin[g]
    if work.totals[SHARDING] < 3:
        if graph.group_holds[g]:
            _enter_pass(graph, pools, layout, tables, plans, blocks, work, g, -1, edge)
        return
    edge = _enter_pass(graph, pools, layout, tables, plans, blocks, work, g, 0, edge)
    if graph.group_pace[g, BACK_PACE] >= 0:
        _enter_pass(graph, pools, layout, tables, plans, blocks, work, g, 1, edge)


@inner_kernel
def _enter_pass(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    tables: ClusterTables,
    plans: Plans,
    blocks: Blocks,
    work: Workspace,
    g: int,
    phase: int,
    edge: int,
) -> int:
    """Gathers after the update (`phase` -1), for the forward (0) or the backward pass (1).

    Returns the next free successor.
    """
    num_cells = layout.cell_end[g] - layout.cell_begin[g]
    for cell in range(layout.cell_begin[g], layout.cell_end[g]):
        plan = layout.plan_begin[g] + num_cells + cell - layout.cell_begin[g]
        count, size = plans.num_holders[plan], pools.cell_bytes[cell]
        if count < 2 or (phase < 0 and pools.cell_trainable[cell] == 0):
            continue
        task = work.totals[GATHER_ID] + blocks.gather_begin[g] + work.num_gathers[g]
        work.num_gathers[g] += 1
        work.resource[task] = tables.num_devices * (tables.num_devices + 1) + plan
        work.duration_s[task], work.num_bytes[task] = plans.time_s[plan], size
        work.origin[task], work.after_barrier[task] = plan, 0
        work.successor_begin[task] = edge
        if phase < 0:
            work.need[task] = count
        else:
            waits = graph.group_pace[g, FORWARD_PACE] >= 0 or phase == 1
            work.need[task] = 1 if waits else 0
            edge = _enter_readers(graph, pools, layout, blocks, work, g, cell, phase, edge)
        work.successor_end[task] = edge
        work.group_bytes[g] += (count - 1) * size
    return edge


@inner_kernel
def _enter_readers(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    blocks: Blocks,
    work: Workspace,
    g: int,
    cell: int,
    phase: int,
    edge: int,
) -> int:
    """The tasks of a pass that read a cell, as successors; returns the next free one."""
    mirror = 2 * work.totals[HALF] - 1
    for c in range(pools.cover_begin[cell], pools.cover_begin[cell + 1]):
        operator = graph.reader_operator[graph.reader_begin[g] + pools.cover_reader[c]]
        task = blocks.id_begin[operator] + pools.cover_part[c]
        if phase == 1 and graph.has_backward[operator] == 0:
            continue
        work.successors[edge] = task if phase == 0 else mirror - task
        edge += 1
    return edge


@inner_kernel
def hold_gathered(
    graph: GraphTables, layout: Layout, pools: PatternPools, plans: Plans, work: Workspace, g: int, sign: int
) -> None:
    """Adds (or takes away) what whole cells and whole gradients take for a while."""
    pace, level = graph.group_pace, work.totals[SHARDING]
    for cell in range(layout.cell_begin[g], layout.cell_end[g]):
        plan = layout.plan_begin[g] + cell - layout.cell_begin[g]
        size, first, count = sign * pools.cell_bytes[cell], plans.holder_begin[plan], plans.num_holders[plan]
        if count < 2:
            continue
        for i in range(first, first + count):
            device = plans.holders[i]
            if level >= 3:
                _hold(work, device, pace[g, FORWARD_FIRST], pace[g, FORWARD_LAST], size)
            if level >= 3 and pace[g, BACK_PACE] >= 0:
                _hold(work, device, pace[g, BACK_FIRST], pace[g, BACK_LAST], size)
            if level >= 2 and pace[g, GRADIENT_FIRST] >= 0 and pools.cell_trainable[cell]:
                _hold(work, device, pace[g, GRADIENT_FIRST], pace[g, BACK_LAST], size)


@inner_kernel
def _hold(work: Workspace, device: int, first: int, last: int, size: int) -> None:
    work.memory_bytes[_BUFFERS, first, device] += size
    work.memory_bytes[_BUFFERS, last + 1, device] -= size


@inner_kernel
def enter_paces(graph: GraphTables, layout: Layout, work: Workspace, o: int) -> int:
    """Enters the tasks that pace gathers by an operator's tasks; returns how many they are."""
    num_paces = 0
    for phase in range(2):
        if graph.paces[phase, o]:
            task = work.totals[PACE_ID] + phase * graph.num_operators + o
            work.need[task] = layout.num_parts[o]
            work.resource[task], work.duration_s[task], work.num_bytes[task] = -1, 0.0, 0
            work.successor_begin[task], work.successor_end[task] = 0, 0
            num_paces += 1
    return num_paces


@inner_kernel
def link_gathers(
    graph: GraphTables, tables: ClusterTables, plans: Plans, blocks: Blocks, work: Workspace
) -> None:
    """Enters what updates, or the tasks that pace gathers, are waited for by."""
    begins, ends = work.successor_begin, work.successor_end
    if work.totals[SHARDING] < 3:
        first, count = work.totals[UPDATE_ID], tables.num_devices
    else:
        first, count = work.totals[PACE_ID], 2 * graph.num_operators
    for task in range(first, first + count):
        ends[task] = 0
    _visit_gathers(graph, plans, blocks, work, counting=True)
    edge = blocks.late_begin[0]
    for task in range(first, first + count):
        num_successors = ends[task]
        begins[task], ends[task] = edge, edge
        edge += num_successors
    _visit_gathers(graph, plans, blocks, work, counting=False)


@inner_kernel
def _visit_gathers(graph: GraphTables, plans: Plans, blocks: Blocks, work: Workspace, counting: bool) -> None:
    """Counts, or enters, the gathers that each update or pace is waited for by."""
    for g in range(len(work.num_gathers)):
        first = work.totals[GATHER_ID] + blocks.gather_begin[g]
        for task in range(first, first + work.num_gathers[g]):
            if work.totals[SHARDING] < 3:
                plan = work.origin[task]
                begin = plans.holder_begin[plan]
                for i in range(begin, begin + plans.num_holders[plan]):
                    _then(work, work.totals[UPDATE_ID] + plans.holders[i], task, counting)
            elif work.need[task] > 0:
                column = FORWARD_PACE if _is_forward(graph, blocks, work, g, task) else BACK_PACE
                _then(work, work.totals[PACE_ID] + graph.group_pace[g, column], task, counting)


@inner_kernel
def _is_forward(graph: GraphTables, blocks: Blocks, work: Workspace, g: int, task: int) -> bool:
    """Whether a gather is for the forward pass: all or the first half of its group's."""
    place = task - work.totals[GATHER_ID] - blocks.gather_begin[g]
    return bool(graph.group_pace[g, BACK_PACE] < 0 or 2 * place < work.num_gathers[g])


@inner_kernel
def _then(work: Workspace, task: int, successor: int, counting: bool) -> None:
    if not counting:
        work.successors[work.successor_end[task]] = successor
    work.successor_end[task] += 1
