"""Assembles the synchronization of gradients and the optimizer's updates.

Each cell of parameters whose gradient several devices hold a summand of is one all-reduce over its holders,
once all tasks that contribute are done. Under the paper's assumptions it is transfers instead: every other
holder sends to the first task's device (the root), which, when it has all, sends the sum back to each; a
task without duration joins the summands. Each device that holds trainable parameters updates them all in one
task, as `optimizer.step()` does, as soon as their gradients are there.
"""

from soaprl.cluster.tables import ClusterTables
from soaprl.cost.kernels import inner_kernel
from soaprl.cost.ticks import in_ticks
from soaprl.simulator.collectives import holder_of
from soaprl.simulator.patterns import PatternPools
from soaprl.simulator.state import (
    HALF,
    NUM_CONTRIBUTIONS,
    NUM_EDGES,
    NUM_SYNC,
    NUM_TASKS,
    SYNC_BYTES,
    SYNC_ID,
    UPDATE_ID,
    Layout,
    Plans,
    Workspace,
)
from soaprl.simulator.tables import GraphTables


@inner_kernel
def link_synchronization(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    tables: ClusterTables,
    plans: Plans,
    work: Workspace,
    paper: bool,
    overlap: bool,
) -> None:
    """Enters all that comes after the backward pass."""
    totals, in_degree, out_degree, slot = work.totals, work.in_degree, work.out_degree, work.slot
    source, target, first_holder = work.contribution_source, work.contribution_target, plans.holder_begin
    cover_reader, cover_part, contributes = pools.cover_reader, pools.cover_part, pools.cover_contributes
    cover_begin, trainable, num_holders = pools.cover_begin, pools.cell_trainable, plans.num_holders
    devices, forward_id, readers = layout.devices, work.forward_id, graph.reader_operator
    cell_begin, cell_end, plan_begin = layout.cell_begin, layout.cell_end, layout.plan_begin
    reader_begin, holders, plan_task = graph.reader_begin, plans.holders, plans.task
    update_id, mirror = totals[UPDATE_ID], 2 * totals[HALF] - 1
    in_degree[update_id : update_id + tables.num_devices] = 0
    if not overlap:
        _enter_barrier(graph, layout, work)
    _hold_cells(pools, layout, tables, plans, work)
    if not paper:
        _enter_all_reduces(pools, layout, tables, plans, work, overlap)
    for g in range(len(cell_begin)):
        for cell in range(cell_begin[g], cell_end[g]):
            plan = plan_begin[g] + cell - cell_begin[g]
            if not trainable[cell]:
                continue
            count = num_holders[plan]
            if count == 1:
                slot[holders[first_holder[plan]]] = update_id + holders[first_holder[plan]]
            elif paper:
                _enter_exchange(graph, pools, layout, tables, plans, work, g, cell, plan, overlap)
            if not overlap and count > 1:
                continue
            i = totals[NUM_CONTRIBUTIONS]
            for c in range(cover_begin[cell], cover_begin[cell + 1]):
                if contributes[c]:
                    operator, part = readers[reader_begin[g] + cover_reader[c]], cover_part[c]
                    task, waiting = forward_id[operator] + part, plan_task[plan]
                    if count == 1 or paper:
                        waiting = slot[devices[operator, part]]
                    source[i], target[i] = mirror - task, waiting
                    out_degree[task] += 1
                    in_degree[waiting] += 1
                    i += 1
            totals[NUM_CONTRIBUTIONS] = i
    _enter_updates(tables, work)
    if not overlap:
        _link_barrier(work)


@inner_kernel
def _hold_cells(
    pools: PatternPools, layout: Layout, tables: ClusterTables, plans: Plans, work: Workspace
) -> None:
    """Adds the memory and update time of all cells to their holders."""
    held, update_s, device_type, num_types = (
        work.held_bytes,
        work.update_s,
        tables.device_type,
        pools.num_types,
    )
    sizes, trainable, cell_update_s = pools.cell_bytes, pools.cell_trainable, pools.cell_update_s
    cell_begin, cell_end, plan_begin = layout.cell_begin, layout.cell_end, layout.plan_begin
    holders, first, count = plans.holders, plans.holder_begin, plans.num_holders
    for g in range(len(cell_begin)):
        for cell in range(cell_begin[g], cell_end[g]):
            plan = plan_begin[g] + cell - cell_begin[g]
            size, trained = sizes[cell], sizes[cell] * trainable[cell]
            for i in range(first[plan], first[plan] + count[plan]):
                device = holders[i]
                held[0, device] += size
                held[1, device] += trained
                update_s[device] += cell_update_s[cell * num_types + device_type[device]]


@inner_kernel
def _enter_all_reduces(
    pools: PatternPools, layout: Layout, tables: ClusterTables, plans: Plans, work: Workspace, overlap: bool
) -> None:
    """The collectives, and that updates wait for them."""
    totals, in_degree, out_degree, ready_s = work.totals, work.in_degree, work.out_degree, work.ready_s
    resource, duration_s, num_bytes, origin = work.resource, work.duration_s, work.num_bytes, work.origin
    begins, ends, successors = work.successor_begin, work.successor_end, work.successors
    sizes, trainable, time_s = pools.cell_bytes, pools.cell_trainable, plans.time_s
    cell_begin, cell_end, plan_begin = layout.cell_begin, layout.cell_end, layout.plan_begin
    holders, first, count, plan_task = plans.holders, plans.holder_begin, plans.num_holders, plans.task
    update_id, first_plan = totals[UPDATE_ID], tables.num_devices * (tables.num_devices + 1)
    task, edge = totals[SYNC_ID], totals[NUM_EDGES]
    for g in range(len(cell_begin)):
        for cell in range(cell_begin[g], cell_end[g]):
            plan = plan_begin[g] + cell - cell_begin[g]
            if not trainable[cell] or count[plan] == 1:
                continue
            resource[task], duration_s[task], num_bytes[task] = first_plan + plan, time_s[plan], sizes[cell]
            ready_s[task], origin[task], plan_task[plan] = 0.0, plan, task
            waits = 0 if overlap else 1
            in_degree[task], out_degree[task] = waits, waits
            begins[task] = edge
            for i in range(first[plan], first[plan] + count[plan]):
                successors[edge] = update_id + holders[i]
                in_degree[update_id + holders[i]] += 1
                edge += 1
            ends[task] = edge
            totals[SYNC_BYTES] += 2 * (count[plan] - 1) * sizes[cell]
            task += 1
    totals[NUM_SYNC] = task - totals[SYNC_ID]
    totals[NUM_TASKS] += totals[NUM_SYNC]
    totals[NUM_EDGES] = edge


@inner_kernel
def _next_sync(work: Workspace, plan: int, resource: int, duration_s: float, num_bytes: int) -> int:
    """Enters a synchronization task without successors, which waits for nothing yet."""
    task = int(work.totals[SYNC_ID] + work.totals[NUM_SYNC])
    work.totals[NUM_SYNC] += 1
    work.totals[NUM_TASKS] += 1
    work.resource[task] = resource
    work.duration_s[task] = duration_s
    work.num_bytes[task] = num_bytes
    work.ready_s[task] = 0.0
    work.in_degree[task] = 0
    work.out_degree[task] = 0
    work.origin[task] = plan
    work.successor_begin[task] = work.totals[NUM_EDGES]
    work.successor_end[task] = work.totals[NUM_EDGES]
    return task


@inner_kernel
def _enter_exchange(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    tables: ClusterTables,
    plans: Plans,
    work: Workspace,
    g: int,
    cell: int,
    plan: int,
    overlap: bool,
) -> None:
    """Transfers to the root and back; `slot` of each contributing holder names what waits for it.

    Ids: the transfers to the root by holder, the join, the transfers back by holder.
    """
    totals, slot, in_degree = work.totals, work.slot, work.in_degree
    holders = plans.holders[plans.holder_begin[plan] : plans.holder_begin[plan] + plans.num_holders[plan]]
    root, size = plans.root[plan], pools.cell_bytes[cell]
    for device in holders:
        slot[device] = 0
    for c in range(pools.cover_begin[cell], pools.cover_begin[cell + 1]):
        if pools.cover_contributes[c]:
            slot[holder_of(graph, pools, layout, g, c)] = 1
    slot[root] = 0
    num_senders = 0
    for device in holders:
        num_senders += slot[device]
    join = totals[SYNC_ID] + totals[NUM_SYNC] + num_senders
    for device in holders:
        if slot[device] == 1:
            slot[device] = _enter_transfer(tables, work, plan, device, root, size)
            _then(work, slot[device], join)
            if not overlap:
                work.out_degree[slot[device]], in_degree[slot[device]] = 1, 1
    _next_sync(work, plan, -1, 0.0, 0)
    in_degree[join] = num_senders
    slot[root] = join
    if not overlap:
        work.out_degree[join] = 1
        in_degree[join] += 1
    _then(work, join, totals[UPDATE_ID] + root)
    in_degree[totals[UPDATE_ID] + root] += 1
    for k in range(1, len(holders)):
        _then(work, join, join + k)
    for device in holders:
        if device != root:
            task = _enter_transfer(tables, work, plan, root, device, size)
            in_degree[task] = 1
            _then(work, task, totals[UPDATE_ID] + device)
            in_degree[totals[UPDATE_ID] + device] += 1


@inner_kernel
def _then(work: Workspace, task: int, successor: int) -> None:
    """Adds a successor to the task that got the last one."""
    edge = work.totals[NUM_EDGES]
    work.successors[edge] = successor
    work.totals[NUM_EDGES] = edge + 1
    work.successor_end[task] = edge + 1


@inner_kernel
def _enter_transfer(
    tables: ClusterTables, work: Workspace, plan: int, source: int, target: int, num_bytes: int
) -> int:
    """Enters a transfer of synchronization."""
    route = source * tables.num_devices + target
    time_s = in_ticks(tables.route_latency_s[route] + num_bytes / tables.route_bandwidth_bytes_per_s[route])
    work.totals[SYNC_BYTES] += num_bytes
    return _next_sync(work, plan, tables.num_devices + route, time_s, num_bytes)


@inner_kernel
def _enter_updates(tables: ClusterTables, work: Workspace) -> None:
    """Completes the updates that something was found to precede."""
    for device in range(tables.num_devices):
        task = work.totals[UPDATE_ID] + device
        if work.in_degree[task] > 0:
            work.resource[task] = device
            work.duration_s[task] = work.update_s[device]
            work.num_bytes[task] = 0
            work.ready_s[task] = 0.0
            work.successor_begin[task] = 0
            work.successor_end[task] = 0
            work.totals[NUM_TASKS] += 1


@inner_kernel
def _enter_barrier(graph: GraphTables, layout: Layout, work: Workspace) -> None:
    """A task without duration after all backward tasks."""
    if not graph.has_backward.any():
        return
    barrier, mirror = work.totals[SYNC_ID] - 1, 2 * work.totals[HALF] - 1
    source, target, out_degree = work.contribution_source, work.contribution_target, work.out_degree
    work.resource[barrier] = -1
    work.duration_s[barrier] = 0.0
    work.num_bytes[barrier] = 0
    work.ready_s[barrier] = 0.0
    i = 0
    for o in range(graph.num_operators):
        if graph.has_backward[o]:
            for task in range(work.forward_id[o], work.forward_id[o] + layout.num_parts[o]):
                source[i], target[i] = mirror - task, barrier
                out_degree[task] += 1
                i += 1
    work.in_degree[barrier] = i
    work.totals[NUM_CONTRIBUTIONS] = i
    work.totals[NUM_TASKS] += 1


@inner_kernel
def _link_barrier(work: Workspace) -> None:
    """Enters the successors of the barrier: the tasks that start a synchronization."""
    barrier, first = work.totals[SYNC_ID] - 1, work.totals[SYNC_ID]
    edge = work.totals[NUM_EDGES]
    work.successor_begin[barrier] = edge
    for task in range(first, first + work.totals[NUM_SYNC]):
        if work.out_degree[task] == 1:
            work.successors[edge] = task
            edge += 1
    work.successor_end[barrier] = edge
    work.totals[NUM_EDGES] = edge
