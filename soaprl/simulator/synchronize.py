"""Enters the blocks of synchronization groups and the optimizer's updates into the task graph.

Each cell of parameters whose gradient several devices hold a summand of is one all-reduce over its holders,
once all tasks that contribute are done. Under the paper's assumptions it is transfers instead: every other
holder sends to the first task's device (the root), which, when it has all, sends the sum back to each; a
task without duration joins the summands. Each device that holds trainable parameters updates them all in one
task, as `optimizer.step()` does, as soon as their gradients are there. What sharding makes of this says
`soaprl.simulator.gathers`.
"""

from soaprl.cluster.tables import ClusterTables
from soaprl.cost.kernels import inner_kernel
from soaprl.cost.ticks import in_ticks
from soaprl.simulator.collectives import holder_of
from soaprl.simulator.gathers import enter_gathers, hold_gathered, link_gathers
from soaprl.simulator.patterns import PatternPools
from soaprl.simulator.state import (
    HALF,
    NUM_BACKWARD,
    NUM_TASKS,
    NUM_UPDATES,
    SHARDING,
    SYNC_BYTES,
    SYNC_ID,
    UPDATE_ID,
    Blocks,
    Layout,
    Plans,
    Workspace,
)
from soaprl.simulator.tables import GraphTables


@inner_kernel
def leave_group(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    tables: ClusterTables,
    plans: Plans,
    blocks: Blocks,
    work: Workspace,
    g: int,
) -> None:
    """Takes away what a group's block adds to updates, memory and totals."""
    if work.group_entered[g] == 0:
        return
    work.group_entered[g] = 0
    if graph.group_holds[g]:
        _hold_cells(pools, layout, tables, plans, work, g, -1)
    _count_updates(pools, layout, blocks, work, g, -1)
    if work.totals[SHARDING]:
        hold_gathered(graph, layout, pools, plans, work, g, -1)
        work.totals[NUM_TASKS] -= work.num_gathers[g]
    work.totals[NUM_TASKS] -= work.num_sync[g]
    work.totals[SYNC_BYTES] -= work.group_bytes[g]


@inner_kernel
def enter_group(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    tables: ClusterTables,
    plans: Plans,
    blocks: Blocks,
    work: Workspace,
    g: int,
    paper: bool,
    overlap: bool,
) -> None:
    """Fills the block of a group, whose cells are planned."""
    work.num_sync[g], work.group_bytes[g] = 0, 0
    edge = blocks.sync_out_begin[g]
    first, begin = pools.cover_begin[layout.cell_begin[g]], blocks.wait_begin[g]
    for cell in range(layout.cell_begin[g], layout.cell_end[g]):
        plan = layout.plan_begin[g] + cell - layout.cell_begin[g]
        count = plans.num_holders[plan]
        if pools.cell_trainable[cell] == 0:
            for c in range(pools.cover_begin[cell], pools.cover_begin[cell + 1]):
                work.wait[begin + c - first] = -1
            continue
        waiting = -1
        if count == 1:
            waiting = work.totals[UPDATE_ID] + plans.holders[plans.holder_begin[plan]]
        elif paper:
            edge = _enter_exchange(graph, pools, layout, tables, plans, blocks, work, g, cell, edge, overlap)
        else:
            waiting = work.totals[SYNC_ID] + blocks.sync_begin[g] + work.num_sync[g]
            edge = _enter_all_reduce(pools, tables, plans, blocks, work, g, cell, plan, edge, overlap)
        for c in range(pools.cover_begin[cell], pools.cover_begin[cell + 1]):
            target = waiting if waiting >= 0 else work.slot[holder_of(graph, pools, layout, g, c)]
            if pools.cover_contributes[c] == 0 or (not overlap and count > 1):
                target = -1
            work.wait[begin + c - first] = target
            if target >= 0 and count > 1:
                work.need[target] += 1
    work.group_entered[g] = 1
    if graph.group_holds[g]:
        _hold_cells(pools, layout, tables, plans, work, g, 1)
    _count_updates(pools, layout, blocks, work, g, 1)
    if work.totals[SHARDING]:
        enter_gathers(graph, pools, layout, tables, plans, blocks, work, g)
        hold_gathered(graph, layout, pools, plans, work, g, 1)
        work.totals[NUM_TASKS] += work.num_gathers[g]
    work.totals[NUM_TASKS] += work.num_sync[g]
    work.totals[SYNC_BYTES] += work.group_bytes[g]


@inner_kernel
def _hold_cells(
    pools: PatternPools,
    layout: Layout,
    tables: ClusterTables,
    plans: Plans,
    work: Workspace,
    g: int,
    sign: int,
) -> None:
    """Adds (or takes away) the memory and update time of a group's cells on their holders."""
    held, update_s, device_type = work.held_bytes, work.update_s, tables.device_type
    level = work.totals[SHARDING]
    for cell in range(layout.cell_begin[g], layout.cell_end[g]):
        plan = layout.plan_begin[g] + cell - layout.cell_begin[g]
        first, count, size, row = (
            plans.holder_begin[plan],
            plans.num_holders[plan],
            pools.cell_bytes[cell],
            cell,
        )
        piece = size
        if level > 0:
            piece, row = -(-size // count), pools.cell_update_begin[cell] + count - 1
        trained = sign * pools.cell_trainable[cell]
        for i in range(first, first + count):
            device = plans.holders[i]
            held[0, device] += sign * (piece if level >= 3 else size)
            held[1, device] += trained * (piece if level >= 2 else size)
            held[2, device] += trained * piece
            update_s[device] += sign * pools.cell_update_s[row * pools.num_types + device_type[device]]


@inner_kernel
def _count_updates(
    pools: PatternPools, layout: Layout, blocks: Blocks, work: Workspace, g: int, sign: int
) -> None:
    """Adds (or takes away) what the updates wait for in a group."""
    need, update_id = work.need, work.totals[UPDATE_ID]
    first = work.totals[SYNC_ID] + blocks.sync_begin[g]
    for task in range(first, first + work.num_sync[g]):
        for edge in range(work.successor_begin[task], work.successor_end[task]):
            if work.successors[edge] >= update_id:
                need[work.successors[edge]] += sign
    num_covers = pools.cover_begin[layout.cell_end[g]] - pools.cover_begin[layout.cell_begin[g]]
    for i in range(blocks.wait_begin[g], blocks.wait_begin[g] + num_covers):
        if work.wait[i] >= update_id:
            need[work.wait[i]] += sign


@inner_kernel
def _next_sync(
    blocks: Blocks,
    work: Workspace,
    g: int,
    plan: int,
    resource: int,
    duration_s: float,
    num_bytes: int,
    edge: int,
) -> int:
    """Enters a synchronization task without successors, which waits for nothing yet."""
    task = int(work.totals[SYNC_ID] + blocks.sync_begin[g] + work.num_sync[g])
    work.num_sync[g] += 1
    work.resource[task] = resource
    work.duration_s[task] = duration_s
    work.num_bytes[task] = num_bytes
    work.need[task] = 0
    work.after_barrier[task] = 0
    work.origin[task] = plan
    work.successor_begin[task] = edge
    work.successor_end[task] = edge
    return task


@inner_kernel
def _then(work: Workspace, task: int, successor: int, edge: int) -> int:
    """Adds a successor to the task that got the last one; returns the next free place."""
    work.successors[edge] = successor
    work.successor_end[task] = edge + 1
    return edge + 1


@inner_kernel
def _wait_for_barrier(work: Workspace, task: int, overlap: bool) -> None:
    if not overlap:
        work.after_barrier[task] = 1
        work.need[task] += 1


@inner_kernel
def _enter_all_reduce(
    pools: PatternPools,
    tables: ClusterTables,
    plans: Plans,
    blocks: Blocks,
    work: Workspace,
    g: int,
    cell: int,
    plan: int,
    edge: int,
    overlap: bool,
) -> int:
    """The collective of a cell, and that updates wait for it; returns the next free successor."""
    size, count, update_id = pools.cell_sent_bytes[cell], plans.num_holders[plan], work.totals[UPDATE_ID]
    resource = tables.num_devices * (tables.num_devices + 1) + plan
    task = _next_sync(blocks, work, g, plan, resource, plans.time_s[plan], size, edge)
    _wait_for_barrier(work, task, overlap)
    for i in range(plans.holder_begin[plan], plans.holder_begin[plan] + count):
        edge = _then(work, task, update_id + plans.holders[i], edge)
    work.group_bytes[g] += (1 if work.totals[SHARDING] else 2) * (count - 1) * size
    return edge


@inner_kernel
def _enter_exchange(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    tables: ClusterTables,
    plans: Plans,
    blocks: Blocks,
    work: Workspace,
    g: int,
    cell: int,
    edge: int,
    overlap: bool,
) -> int:
    """Transfers to the root and back; returns the next free successor.

    `slot` of each contributing holder then names what waits for it. Ids: the transfers to the root by
    holder, the join, the transfers back by holder.
    """
    slot, update_id, size = work.slot, work.totals[UPDATE_ID], pools.cell_bytes[cell]
    plan = layout.plan_begin[g] + cell - layout.cell_begin[g]
    root, first, count = plans.root[plan], plans.holder_begin[plan], plans.num_holders[plan]
    for i in range(first, first + count):
        slot[plans.holders[i]] = 0
    for c in range(pools.cover_begin[cell], pools.cover_begin[cell + 1]):
        if pools.cover_contributes[c]:
            slot[holder_of(graph, pools, layout, g, c)] = 1
    slot[root] = 0
    num_senders = 0
    for i in range(first, first + count):
        num_senders += slot[plans.holders[i]]
    join = work.totals[SYNC_ID] + blocks.sync_begin[g] + work.num_sync[g] + num_senders
    for i in range(first, first + count):
        device = plans.holders[i]
        if slot[device] == 1:
            slot[device] = _enter_transfer(tables, blocks, work, g, plan, device, root, size, edge)
            edge = _then(work, slot[device], join, edge)
            _wait_for_barrier(work, slot[device], overlap)
    _next_sync(blocks, work, g, plan, -1, 0.0, 0, edge)
    work.need[join] = num_senders
    slot[root] = join
    _wait_for_barrier(work, join, overlap)
    edge = _then(work, join, update_id + root, edge)
    for k in range(1, count):
        edge = _then(work, join, join + k, edge)
    for i in range(first, first + count):
        device = plans.holders[i]
        if device != root:
            task = _enter_transfer(tables, blocks, work, g, plan, root, device, size, edge)
            work.need[task] = 1
            edge = _then(work, task, update_id + device, edge)
    return edge


@inner_kernel
def _enter_transfer(
    tables: ClusterTables,
    blocks: Blocks,
    work: Workspace,
    g: int,
    plan: int,
    source: int,
    target: int,
    num_bytes: int,
    edge: int,
) -> int:
    """Enters a transfer of synchronization."""
    route = source * tables.num_devices + target
    time_s = in_ticks(tables.route_latency_s[route] + num_bytes / tables.route_bandwidth_bytes_per_s[route])
    work.group_bytes[g] += num_bytes
    return _next_sync(blocks, work, g, plan, tables.num_devices + route, time_s, num_bytes, edge)


@inner_kernel
def enter_updates(
    graph: GraphTables, tables: ClusterTables, plans: Plans, blocks: Blocks, work: Workspace
) -> None:
    """Completes the updates that something precedes."""
    work.totals[NUM_TASKS] -= work.totals[NUM_UPDATES]
    work.totals[NUM_UPDATES] = 0
    for device in range(tables.num_devices):
        task = work.totals[UPDATE_ID] + device
        work.resource[task] = device
        work.duration_s[task] = work.update_s[device] + in_ticks(tables.iteration_s)
        work.num_bytes[task] = 0
        work.successor_begin[task] = 0
        work.successor_end[task] = 0
        if work.need[task] > 0:
            work.totals[NUM_UPDATES] += 1
    work.totals[NUM_TASKS] += work.totals[NUM_UPDATES]
    if work.totals[SHARDING]:
        link_gathers(graph, tables, plans, blocks, work)


@inner_kernel
def enter_barrier(blocks: Blocks, work: Workspace) -> None:
    """The task without duration between the last backward task and the first synchronization."""
    barrier, first, edge = 2 * work.totals[HALF], work.totals[SYNC_ID], blocks.barrier_begin[0]
    work.resource[barrier] = -1
    work.duration_s[barrier] = 0.0
    work.num_bytes[barrier] = 0
    if work.need[barrier] > 0:
        work.totals[NUM_TASKS] -= 1
    work.need[barrier] = work.totals[NUM_BACKWARD]
    if work.need[barrier] > 0:
        work.totals[NUM_TASKS] += 1
    work.successor_begin[barrier] = edge
    for g in range(len(work.num_sync)):
        begin = first + blocks.sync_begin[g]
        for task in range(begin, begin + work.num_sync[g]):
            if work.after_barrier[task]:
                work.successors[edge] = task
                edge += 1
    work.successor_end[barrier] = edge
