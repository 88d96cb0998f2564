"""Plans and assembles the synchronization of gradients and the optimizer's updates.

Each cell of parameters whose gradient several devices hold a summand of is one all-reduce over its holders,
once all tasks that contribute are done. Under the paper's assumptions it is transfers instead: every other
holder sends to the first task's device (the root), which, when it has all, sends the sum back to each; a
task without duration joins the summands. Each device that holds trainable parameters updates them all in one
task, as `optimizer.step()` does, as soon as their gradients are there.
"""

from soaprl.cluster.tables import ClusterTables, IntArray
from soaprl.cost.kernels import kernel
from soaprl.cost.transfers import CollectiveScratch, all_reduce
from soaprl.simulator.assemble import _enter
from soaprl.simulator.patterns import PatternPools
from soaprl.simulator.state import (
    HALF,
    NUM_CONTRIBUTIONS,
    NUM_EDGES,
    NUM_SYNC,
    STAMP,
    SYNC_BYTES,
    SYNC_ID,
    UPDATE_ID,
    Layout,
    Plans,
    Workspace,
)
from soaprl.simulator.tables import GraphTables


@kernel
def plan_groups(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    tables: ClusterTables,
    scratch: CollectiveScratch,
    plans: Plans,
    work: Workspace,
    groups: IntArray,
    paper: bool,
) -> bool:
    """Plans the cells of `groups` behind the plans in use; false if there is not enough room."""
    for g in groups:
        num_cells = layout.cell_end[g] - layout.cell_begin[g]
        layout.plan_begin[g] = plans.cursor[0]
        if plans.cursor[0] + num_cells > len(plans.time_s):
            return False
        for cell in range(layout.cell_begin[g], layout.cell_end[g]):
            room = min(len(plans.holders) - plans.cursor[1], len(plans.links) - plans.cursor[2])
            if room < tables.num_devices + len(tables.link_latency_s):
                return False
            _plan_cell(graph, pools, layout, tables, scratch, plans, work, g, cell, paper=paper)
    return True


@kernel
def _plan_cell(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    tables: ClusterTables,
    scratch: CollectiveScratch,
    plans: Plans,
    work: Workspace,
    g: int,
    cell: int,
    paper: bool,
) -> None:
    plan, first, link = plans.cursor[0], plans.cursor[1], plans.cursor[2]
    covers = range(pools.cover_begin[cell], pools.cover_begin[cell + 1])
    count = 0
    work.totals[STAMP] += 1
    for c in covers:
        device = _holder(graph, pools, layout, g, c)
        if count == 0:
            plans.root[plan] = device
        if work.slot_stamp[device] != work.totals[STAMP]:
            work.slot_stamp[device] = work.totals[STAMP]
            _insert(plans.holders, first, first + count, device)
            count += 1
    plans.holder_begin[plan] = first
    plans.num_holders[plan] = count
    plans.link_begin[plan] = link
    plans.num_links[plan] = 0
    plans.time_s[plan] = 0.0
    if pools.cell_trainable[cell] and count > 1 and not paper:
        plans.time_s[plan], plans.num_links[plan], _ = all_reduce(
            tables,
            scratch,
            plans.holders[first : first + count],
            count,
            float(pools.cell_bytes[cell]),
            plans.links[link:],
            plans.busy_s[link:],
        )
    plans.cursor[0] += 1
    plans.cursor[1] += count
    plans.cursor[2] += plans.num_links[plan]


@kernel
def _insert(values: IntArray, begin: int, end: int, value: int) -> None:
    """Inserts `value` into the ascending ``values[begin:end]``."""
    at = end
    while at > begin and values[at - 1] > value:
        values[at] = values[at - 1]
        at -= 1
    values[at] = value


@kernel
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
    for device in range(tables.num_devices):
        work.in_degree[work.totals[UPDATE_ID] + device] = 0
    if not overlap:
        _enter_barrier(graph, layout, work)
    num_types = pools.num_types
    for g in range(len(layout.cell_begin)):
        for cell in range(layout.cell_begin[g], layout.cell_end[g]):
            plan = layout.plan_begin[g] + cell - layout.cell_begin[g]
            _hold_cell(pools, tables, plans, work, cell, plan, num_types)
            if not pools.cell_trainable[cell]:
                continue
            if plans.num_holders[plan] == 1:
                work.slot[plans.root[plan]] = work.totals[UPDATE_ID] + plans.root[plan]
            elif paper:
                _enter_exchange(pools, tables, layout, graph, plans, work, g, cell, plan, overlap=overlap)
            else:
                _enter_all_reduce(pools, tables, plans, work, cell, plan, overlap=overlap)
            if overlap or plans.num_holders[plan] == 1:
                _contribute(graph, pools, layout, work, g, cell)
    _enter_updates(tables, work)
    if not overlap:
        _link_barrier(work)


@kernel
def _enter_barrier(graph: GraphTables, layout: Layout, work: Workspace) -> None:
    """A task without duration after all backward tasks."""
    barrier = work.totals[SYNC_ID] - 1
    if not graph.has_backward.any():
        return
    _enter(work, barrier, -1, 0.0, 0)
    for o in range(graph.num_operators):
        if graph.has_backward[o]:
            for task in range(work.forward_id[o], work.forward_id[o] + layout.num_parts[o]):
                _wait(work, task, barrier)


@kernel
def _wait(work: Workspace, forward_task: int, target: int) -> None:
    """Lets `target` wait for the mirror image of `forward_task`."""
    i = work.totals[NUM_CONTRIBUTIONS]
    work.contribution_source[i] = 2 * work.totals[HALF] - 1 - forward_task
    work.contribution_target[i] = target
    work.totals[NUM_CONTRIBUTIONS] = i + 1
    work.out_degree[forward_task] += 1
    work.in_degree[target] += 1


@kernel
def _hold_cell(
    pools: PatternPools,
    tables: ClusterTables,
    plans: Plans,
    work: Workspace,
    cell: int,
    plan: int,
    num_types: int,
) -> None:
    """Adds a cell's memory and update time to its holders."""
    first = plans.holder_begin[plan]
    for device in plans.holders[first : first + plans.num_holders[plan]]:
        work.held_bytes[0, device] += pools.cell_bytes[cell]
        if pools.cell_trainable[cell]:
            work.held_bytes[1, device] += pools.cell_bytes[cell]
            work.update_s[device] += pools.cell_update_s[cell * num_types + tables.device_type[device]]


@kernel
def _next_sync(work: Workspace, plan: int, resource: int, duration_s: float, num_bytes: int) -> int:
    """Enters a synchronization task without successors."""
    task = int(work.totals[SYNC_ID] + work.totals[NUM_SYNC])
    work.totals[NUM_SYNC] += 1
    _enter(work, task, resource, duration_s, num_bytes)
    work.origin[task] = plan
    work.out_degree[task] = 0
    work.successor_begin[task] = work.totals[NUM_EDGES]
    work.successor_end[task] = work.totals[NUM_EDGES]
    return task


@kernel
def _then(work: Workspace, task: int, successor: int) -> None:
    """Lets `successor` wait for `task`, which was the last one to get a successor."""
    work.successors[work.totals[NUM_EDGES]] = successor
    work.totals[NUM_EDGES] += 1
    work.successor_end[task] = work.totals[NUM_EDGES]
    work.in_degree[successor] += 1


@kernel
def _await_barrier(work: Workspace, task: int, overlap: bool) -> None:
    if not overlap:
        work.out_degree[task] = 1
        work.in_degree[task] += 1


@kernel
def _enter_all_reduce(
    pools: PatternPools,
    tables: ClusterTables,
    plans: Plans,
    work: Workspace,
    cell: int,
    plan: int,
    overlap: bool,
) -> None:
    num_devices, count = tables.num_devices, plans.num_holders[plan]
    resource = num_devices + num_devices * num_devices + plan
    num_bytes = pools.cell_bytes[cell]
    task = _next_sync(work, plan, resource, plans.time_s[plan], num_bytes)
    _await_barrier(work, task, overlap=overlap)
    work.totals[SYNC_BYTES] += 2 * (count - 1) * num_bytes
    first = plans.holder_begin[plan]
    for device in plans.holders[first : first + count]:
        work.slot[device] = task
        _then(work, task, work.totals[UPDATE_ID] + device)


@kernel
def _enter_exchange(
    pools: PatternPools,
    tables: ClusterTables,
    layout: Layout,
    graph: GraphTables,
    plans: Plans,
    work: Workspace,
    g: int,
    cell: int,
    plan: int,
    overlap: bool,
) -> None:
    """Transfers to the root and back."""
    holders = plans.holders[plans.holder_begin[plan] : plans.holder_begin[plan] + plans.num_holders[plan]]
    root, num_bytes, update_id = plans.root[plan], pools.cell_bytes[cell], work.totals[UPDATE_ID]
    work.slot[holders] = -1
    for c in range(pools.cover_begin[cell], pools.cover_begin[cell + 1]):
        if pools.cover_contributes[c]:
            work.slot[_holder(graph, pools, layout, g, c)] = 0
    num_senders = 0
    for device in holders:
        num_senders += 1 if device != root and work.slot[device] == 0 else 0
    join = work.totals[SYNC_ID] + work.totals[NUM_SYNC] + num_senders
    work.in_degree[join] = 0
    for device in holders:
        if device != root and work.slot[device] == 0:
            task = _enter_transfer(tables, work, plan, device, root, num_bytes)
            _await_barrier(work, task, overlap=overlap)
            work.slot[device] = task
    for task in range(join - num_senders, join):
        work.successor_begin[task] = work.totals[NUM_EDGES]
        work.successors[work.totals[NUM_EDGES]] = join
        work.totals[NUM_EDGES] += 1
        work.successor_end[task] = work.totals[NUM_EDGES]
    _next_sync(work, plan, -1, 0.0, 0)
    work.in_degree[join] = num_senders
    _await_barrier(work, join, overlap=overlap)
    work.slot[root] = join
    _then(work, join, update_id + root)
    first_back = join + 1
    for k in range(len(holders) - 1):
        work.in_degree[first_back + k] = 0
        _then(work, join, first_back + k)
    for device in holders:
        if device != root:
            task = _enter_transfer(tables, work, plan, root, device, num_bytes)
            work.in_degree[task] = 1
            _then(work, task, update_id + device)


@kernel
def _enter_transfer(
    tables: ClusterTables, work: Workspace, plan: int, source: int, target: int, num_bytes: int
) -> int:
    route = source * tables.num_devices + target
    time_s = tables.route_latency_s[route] + num_bytes / tables.route_bandwidth_bytes_per_s[route]
    work.totals[SYNC_BYTES] += num_bytes
    return _next_sync(work, plan, tables.num_devices + route, time_s, num_bytes)


@kernel
def _holder(graph: GraphTables, pools: PatternPools, layout: Layout, g: int, cover: int) -> int:
    """The device of a task that holds a cell."""
    operator = graph.reader_operator[graph.reader_begin[g] + pools.cover_reader[cover]]
    return int(layout.devices[operator, pools.cover_part[cover]])


@kernel
def _contribute(
    graph: GraphTables, pools: PatternPools, layout: Layout, work: Workspace, g: int, cell: int
) -> None:
    """Lets what `slot` names on each holder wait for the backward tasks there."""
    for c in range(pools.cover_begin[cell], pools.cover_begin[cell + 1]):
        if pools.cover_contributes[c]:
            operator = graph.reader_operator[graph.reader_begin[g] + pools.cover_reader[c]]
            device = layout.devices[operator, pools.cover_part[c]]
            _wait(work, work.forward_id[operator] + pools.cover_part[c], work.slot[device])


@kernel
def _enter_updates(tables: ClusterTables, work: Workspace) -> None:
    for device in range(tables.num_devices):
        task = work.totals[UPDATE_ID] + device
        waits = work.in_degree[task]
        if waits > 0:
            _enter(work, task, device, work.update_s[device], 0)
            work.in_degree[task] = waits
            work.successor_begin[task] = 0
            work.successor_end[task] = 0


@kernel
def _link_barrier(work: Workspace) -> None:
    """Enters the successors of the barrier: the synchronization tasks that start a synchronization."""
    barrier = work.totals[SYNC_ID] - 1
    work.successor_begin[barrier] = work.totals[NUM_EDGES]
    for task in range(work.totals[SYNC_ID], work.totals[SYNC_ID] + work.totals[NUM_SYNC]):
        if work.out_degree[task] == 1:
            work.successors[work.totals[NUM_EDGES]] = task
            work.totals[NUM_EDGES] += 1
    work.successor_end[barrier] = work.totals[NUM_EDGES]
