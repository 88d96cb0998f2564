"""Plans the collectives that sum gradients and gather parameters: which devices, how long, which links."""

from soaprl.cluster.tables import ClusterTables, FloatArray, IntArray
from soaprl.cost.kernels import inner_kernel
from soaprl.cost.ticks import in_ticks
from soaprl.cost.transfers import CollectiveScratch, all_gather, all_reduce, given_all_reduce
from soaprl.simulator.patterns import PatternPools
from soaprl.simulator.state import SHARDING, STAMP, Layout, Plans, Workspace
from soaprl.simulator.tables import GraphTables


@inner_kernel
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
        num_cells, sharding = layout.cell_end[g] - layout.cell_begin[g], work.totals[SHARDING]
        layout.plan_begin[g] = plans.cursor[0]
        if plans.cursor[0] + (2 if sharding else 1) * num_cells > len(plans.time_s):
            return False
        for cell in range(layout.cell_begin[g], layout.cell_end[g]):
            room = min(len(plans.holders) - plans.cursor[1], len(plans.links) - plans.cursor[2])
            if room < tables.num_devices + len(tables.link_latency_s):
                return False
            _plan_cell(graph, pools, layout, tables, scratch, plans, work, g, cell, paper=paper)
        if sharding == 0:
            continue
        for cell in range(layout.cell_begin[g], layout.cell_end[g]):
            if len(plans.links) - plans.cursor[2] < len(tables.link_latency_s):
                return False
            _plan_gather(pools, tables, scratch, plans, cell, plans.cursor[0] - num_cells)
    return True


@inner_kernel
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
        device = holder_of(graph, pools, layout, g, c)
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
        holders, links, busy_s = plans.holders[first : first + count], plans.links[link:], plans.busy_s[link:]
        size = pools.cell_sent_bytes[cell]
        if tables.given[0] > 0:
            plans.time_s[plan], plans.num_links[plan] = given_all_reduce(tables, holders, size, links, busy_s)
        elif work.totals[SHARDING]:
            plans.time_s[plan], plans.num_links[plan] = _half(tables, scratch, holders, size, links, busy_s)
        else:
            plans.time_s[plan], plans.num_links[plan], _ = all_reduce(
                tables, scratch, holders, count, float(size), links, busy_s
            )
        if size != pools.cell_bytes[cell]:
            plans.time_s[plan] += _slowest_codec(pools, tables, holders, cell)
    _finish_plan(plans)
    plans.cursor[1] += count


@inner_kernel
def _half(
    tables: ClusterTables,
    scratch: CollectiveScratch,
    holders: IntArray,
    size: int,
    links: IntArray,
    busy_s: FloatArray,
) -> tuple[float, int]:
    """Seconds and number of links of a reduce-scatter or all-gather."""
    time_s, num_links, _ = all_gather(tables, scratch, holders, len(holders), float(size), links, busy_s)
    return time_s, num_links


@inner_kernel
def _slowest_codec(pools: PatternPools, tables: ClusterTables, holders: IntArray, cell: int) -> float:
    """How long the slowest holder encodes and decodes the gradient of a cell."""
    slowest_s = 0.0
    for device in holders:
        slowest_s = max(slowest_s, pools.cell_codec_s[cell * pools.num_types + tables.device_type[device]])
    return slowest_s


@inner_kernel
def _finish_plan(plans: Plans) -> None:
    """Rounds the times of the plan at the cursor, and moves the cursor behind it and its links."""
    plan, link = plans.cursor[0], plans.cursor[2]
    plans.time_s[plan] = in_ticks(plans.time_s[plan])
    for k in range(link, link + plans.num_links[plan]):
        plans.busy_s[k] = in_ticks(plans.busy_s[k])
    plans.cursor[0] += 1
    plans.cursor[2] += plans.num_links[plan]


@inner_kernel
def _plan_gather(
    pools: PatternPools,
    tables: ClusterTables,
    scratch: CollectiveScratch,
    plans: Plans,
    cell: int,
    summing: int,
) -> None:
    """Plans how a cell is gathered by the holders of plan `summing`."""
    plan, link = plans.cursor[0], plans.cursor[2]
    first, count = plans.holder_begin[summing], plans.num_holders[summing]
    plans.holder_begin[plan], plans.num_holders[plan], plans.root[plan] = first, count, plans.root[summing]
    plans.link_begin[plan], plans.num_links[plan], plans.time_s[plan] = link, 0, 0.0
    if count > 1:
        plans.time_s[plan], plans.num_links[plan] = _half(
            tables,
            scratch,
            plans.holders[first : first + count],
            pools.cell_bytes[cell],
            plans.links[link:],
            plans.busy_s[link:],
        )
    _finish_plan(plans)


@inner_kernel
def _insert(values: IntArray, begin: int, end: int, value: int) -> None:
    """Inserts `value` into the ascending ``values[begin:end]``."""
    at = end
    while at > begin and values[at - 1] > value:
        values[at] = values[at - 1]
        at -= 1
    values[at] = value


@inner_kernel
def holder_of(graph: GraphTables, pools: PatternPools, layout: Layout, g: int, cover: int) -> int:
    """The device of a task that holds a cell."""
    operator = graph.reader_operator[graph.reader_begin[g] + pools.cover_reader[cover]]
    return int(layout.devices[operator, pools.cover_part[cover]])
