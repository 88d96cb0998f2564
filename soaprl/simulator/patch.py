"""Changes the configurations of some operators in the task graph, and nothing else in it.

A change of operators C touches, in this order (see `soaprl.simulator.assemble` for what depends on what):

- the blocks of C and of the producers of what they read;
- the number of predecessors of the forward tasks of C and of the readers of their outputs;
- the blocks of the synchronization groups of C;
- the successors of the backward tasks of C, of all readers of the blocks that changed, and of all readers of
  the groups that changed.

A `Change` is applied by exchanging what it holds with what is in the layout, so that applying it twice
changes nothing: that is how a proposal is taken back.
"""

from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import ClusterTables, IntArray
from soaprl.cost.kernels import inner_kernel
from soaprl.cost.transfers import CollectiveScratch
from soaprl.simulator.adjacency import Adjacency
from soaprl.simulator.assemble import (
    change_memory,
    count_needs,
    enter_back,
    enter_operator,
    leave_operator,
)
from soaprl.simulator.collectives import plan_groups
from soaprl.simulator.edges import Found, learn_edge
from soaprl.simulator.lookup import MISSING, find, step_key
from soaprl.simulator.rooms import Rooms, group_fits, need_of_group, need_of_operator, operator_fits
from soaprl.simulator.state import Blocks, Layout, Plans, Workspace
from soaprl.simulator.synchronize import enter_barrier, enter_group, enter_updates, leave_group
from soaprl.simulator.tables import GraphTables

# What `apply` answers.
DONE, UNKNOWN_PATTERN, NO_PLANS, NO_ROOM = 0, 1, 2, 3


class Setting(NamedTuple):
    """What does not depend on the strategy.

    Attributes:
        graph: The graph.
        near: Its lists.
        tables: The cluster.
        scratch: Working memory of collectives.
        paper: See `soaprl.simulator.problem.SimulationOptions`.
        overlap: Likewise.
        sharding: A level of `soaprl.strategy.strategy.Sharding`.
        num_copies: Of how many equal copies (micro-batches) the graph consists.
    """

    graph: GraphTables
    near: Adjacency
    tables: ClusterTables
    scratch: CollectiveScratch
    paper: bool
    overlap: bool
    sharding: int
    num_copies: int


class Graph(NamedTuple):
    """A strategy and its task graph.

    Attributes:
        layout: The strategy.
        plans: Its collectives.
        rooms: Sizes of blocks.
        needed: Working memory, of the same shapes.
        blocks: Where they are.
        work: What they hold.
    """

    layout: Layout
    plans: Plans
    rooms: Rooms
    needed: Rooms
    blocks: Blocks
    work: Workspace


class Change(NamedTuple):
    """Configurations for some operators, and what is needed to take them back.

    Attributes:
        sizes: Shape [3]: operators that change; groups that change; when `plan_begin` was right (see
            `Plans.cursor`).
        operators: The operators.
        patterns: The pattern of each.
        devices: Shape [operators, room]: the devices of each.
        old_parts: Shape [operators]; working memory.
        groups: The groups that change.
        plan_begin: The plan of the first cell of each of them.
        cursor: Shape [4]: of the plans.
    """

    sizes: IntArray
    operators: IntArray
    patterns: IntArray
    devices: IntArray
    old_parts: IntArray
    groups: IntArray
    plan_begin: IntArray
    cursor: IntArray


def empty_change(num_operators: int, num_groups: int, room: int) -> Change:
    """A change of nothing, with room for `room` tasks of each operator."""
    return Change(
        sizes=np.zeros(3, np.int64),
        operators=np.zeros(num_operators, np.int64),
        patterns=np.zeros(num_operators, np.int64),
        devices=np.zeros((num_operators, room), np.int64),
        old_parts=np.zeros(num_operators, np.int64),
        groups=np.zeros(num_groups, np.int64),
        plan_begin=np.zeros(num_groups, np.int64),
        cursor=np.zeros(4, np.int64),
    )


@inner_kernel
def add_load(setting: Setting, found: Found, graph: Graph, change: Change, sign: int) -> None:
    """Adds `sign` times what the tasks of the change's configurations take to the loads of their devices."""
    load_s, device_type = graph.work.load_s, setting.tables.device_type
    forward_s, backward_s, num_types = found.pools.forward_s, found.pools.backward_s, found.pools.num_types
    for i in range(change.sizes[0]):
        pattern = change.patterns[i]
        if pattern < 0:
            continue
        row = found.operators[pattern, 1]
        for part in range(found.operators[pattern, 0]):
            device = change.devices[i, part]
            timed = (row + part) * num_types + device_type[device]
            load_s[device] += sign * (forward_s[timed] + backward_s[timed])


@inner_kernel
def apply(setting: Setting, found: Found, graph: Graph, change: Change) -> int:
    """Exchanges the change with the layout and brings the task graph up to date.

    Returns:
        `DONE`; `UNKNOWN_PATTERN`: nothing was changed, as the pattern of a group is not in `found`, or that
        of an edge has no room there; `NO_PLANS`, `NO_ROOM`: the layout has changed, but plans or blocks need
        more room: `rebuild` must follow.
    """
    near, layout, plans, work = setting.near, graph.layout, graph.plans, graph.work
    entering, num_entering = work.listed[0], 0
    _swap_patterns(layout, change)
    if not _learn(setting, found, layout, change):
        _swap_patterns(layout, change)
        return UNKNOWN_PATTERN
    for i in range(change.sizes[0]):
        o = change.operators[i]
        num_entering = _list(work.mark, entering, num_entering, o)
        for k in range(near.before_begin[o], near.before_begin[o + 1]):
            num_entering = _list(work.mark, entering, num_entering, near.before[k])
    change.sizes[1] = _list_groups(near, work, change.operators, change.sizes[0], change.groups)
    _unlist(work.mark, entering, num_entering)
    _unlist(work.group_mark, change.groups, change.sizes[1])
    for i in range(num_entering):
        if work.entered[entering[i]]:
            change_memory(graph.blocks, work, entering[i], -1)
            leave_operator(setting.graph, layout, work, entering[i])
    for i in range(change.sizes[1]):
        leave_group(
            setting.graph,
            found.pools,
            layout,
            setting.tables,
            plans,
            graph.blocks,
            work,
            change.groups[i],
        )
    _lay_out(setting, found, layout, change)
    if not _plan(setting, found, graph, change):
        return NO_PLANS
    if not _fits(setting, graph, entering, num_entering, change):
        return NO_ROOM
    return _enter(setting, found, graph, entering, num_entering, change)


@inner_kernel
def _list(mark: IntArray, listed: IntArray, count: int, number: int) -> int:
    """Appends `number` to a list if it is not marked; returns the length of the list."""
    if mark[number]:
        return count
    mark[number] = 1
    listed[count] = number
    return count + 1


@inner_kernel
def _unlist(mark: IntArray, listed: IntArray, count: int) -> None:
    for i in range(count):
        mark[listed[i]] = 0


@inner_kernel
def _list_groups(near: Adjacency, work: Workspace, operators: IntArray, count: int, groups: IntArray) -> int:
    """Lists and marks the groups of some operators; returns how many they are."""
    num_groups = 0
    for i in range(count):
        o = operators[i]
        for k in range(near.group_begin[o], near.group_begin[o + 1]):
            num_groups = _list(work.group_mark, groups, num_groups, near.groups[k])
    return num_groups


@inner_kernel
def _swap_patterns(layout: Layout, change: Change) -> None:
    for i in range(change.sizes[0]):
        o = change.operators[i]
        layout.pattern[o], change.patterns[i] = change.patterns[i], layout.pattern[o]


@inner_kernel
def edge_pattern(setting: Setting, found: Found, layout: Layout, e: int) -> int:
    """The pattern of an edge under the layout's patterns of operators, or `MISSING`."""
    producer, consumer = setting.near.edge_producer[e], setting.graph.edge_consumer[e]
    node = find(found.table, step_key(setting.near.edge_like[e], layout.pattern[producer]))
    return MISSING if node == MISSING else find(found.table, step_key(node, layout.pattern[consumer]))


@inner_kernel
def group_pattern(setting: Setting, found: Found, layout: Layout, g: int) -> int:
    """The pattern of a group under the layout's patterns of operators, or `MISSING`."""
    node = len(setting.graph.edge_consumer) + int(setting.near.group_like[g])
    for r in range(setting.graph.reader_begin[g], setting.graph.reader_begin[g + 1]):
        node = find(found.table, step_key(node, layout.pattern[setting.graph.reader_operator[r]]))
        if node == MISSING:
            return MISSING
    return node


@inner_kernel
def _learn(setting: Setting, found: Found, layout: Layout, change: Change) -> bool:
    """Computes the patterns of edges that the change needs; whether all that it needs are there then."""
    near = setting.near
    for i in range(change.sizes[0]):
        o = change.operators[i]
        for k in range(near.edge_of_begin[o], near.edge_of_begin[o + 1]):
            e = near.edges_of[k]
            if edge_pattern(setting, found, layout, e) != MISSING:
                continue
            writer, reader = near.edge_producer[e], setting.graph.edge_consumer[e]
            patterns = layout.pattern[writer], layout.pattern[reader]
            if learn_edge(found, near.edge_like[e], patterns[0], patterns[1]) == MISSING:
                return False
        for k in range(near.group_begin[o], near.group_begin[o + 1]):
            if group_pattern(setting, found, layout, near.groups[k]) == MISSING:
                return False
    return True


@inner_kernel
def _lay_out(setting: Setting, found: Found, layout: Layout, change: Change) -> None:
    """Brings all of the layout up to date with its patterns, and exchanges devices."""
    near, edges = setting.near, found.pools.edges.patterns
    for i in range(change.sizes[0]):
        o = change.operators[i]
        pattern, old_parts = layout.pattern[o], layout.num_parts[o]
        layout.num_parts[o] = found.operators[pattern, 0]
        layout.part_base[o] = found.operators[pattern, 1]
        layout.output_base[o] = found.operators[pattern, 2]
        for part in range(max(old_parts, layout.num_parts[o])):
            device = layout.devices[o, part]
            layout.devices[o, part] = change.devices[i, part]
            change.devices[i, part] = device
        for k in range(near.edge_of_begin[o], near.edge_of_begin[o + 1]):
            e = near.edges_of[k]
            pattern = edge_pattern(setting, found, layout, e)
            layout.row_base[e], layout.num_pairs[e] = edges[pattern, 0], edges[pattern, 1]
    for i in range(change.sizes[1]):
        g = change.groups[i]
        pattern = group_pattern(setting, found, layout, g)
        layout.cell_begin[g], layout.cell_end[g] = found.groups[pattern, 0], found.groups[pattern, 1]
        layout.num_covers[g] = found.groups[pattern, 2]


@inner_kernel
def _plan(setting: Setting, found: Found, graph: Graph, change: Change) -> bool:
    """Plans the groups of the change; plans that it took back are used again."""
    layout, plans, groups = graph.layout, graph.plans, change.groups[: change.sizes[1]]
    kept = change.sizes[2] == 1 and change.cursor[3] == plans.cursor[3]
    for i in range(len(groups)):
        g = groups[i]
        layout.plan_begin[g], change.plan_begin[i] = change.plan_begin[i], layout.plan_begin[g]
    if kept:
        for k in range(3):
            plans.cursor[k] = change.cursor[k]
        change.sizes[2] = 0
        return True
    for k in range(4):
        change.cursor[k] = plans.cursor[k]
    change.sizes[2] = 1
    return _plan_anew(setting, found, graph, groups)


@inner_kernel
def _plan_anew(setting: Setting, found: Found, graph: Graph, groups: IntArray) -> bool:
    """Plans groups behind the plans in use; false if there is not enough room."""
    plans = graph.plans
    first = plans.cursor[0]
    planned = plan_groups(
        setting.graph,
        found.pools,
        graph.layout,
        setting.tables,
        setting.scratch,
        plans,
        graph.work,
        groups,
        setting.paper,
    )
    for plan in range(first, plans.cursor[0]):
        begin, count = plans.link_begin[plan], plans.num_links[plan]
        same = plan > 0 and plans.num_links[plan - 1] == count
        plans.longest_busy_s[plan] = 0.0
        for k in range(begin, begin + count):
            same = same and plans.links[k] == plans.links[plans.link_begin[plan - 1] + k - begin]
            plans.longest_busy_s[plan] = max(plans.longest_busy_s[plan], plans.busy_s[k])
        plans.link_set[plan] = plans.link_set[plan - 1] if same else plan
    return planned


@inner_kernel
def _fits(setting: Setting, graph: Graph, entering: IntArray, count: int, change: Change) -> bool:
    """Whether what the change needs fits into the blocks."""
    fits = True
    for i in range(count):
        need_of_operator(setting.graph, graph.layout, graph.needed, entering[i], setting.sharding)
        fits = fits and operator_fits(setting.graph, graph.needed, graph.rooms, entering[i])
    for i in range(change.sizes[1]):
        need_of_group(graph.layout, graph.needed, change.groups[i], setting.paper, setting.sharding)
        fits = fits and group_fits(graph.needed, graph.rooms, change.groups[i])
    return fits


@inner_kernel
def _enter(
    setting: Setting, found: Found, graph: Graph, entering: IntArray, num_entering: int, change: Change
) -> int:
    """Enters the blocks of `entering` and of the groups of the change, and who waits for them."""
    near, layout, blocks, work, pools = setting.near, graph.layout, graph.blocks, graph.work, found.pools
    for i in range(num_entering):
        enter_operator(setting.graph, pools, layout, setting.tables, blocks, work, entering[i])
        change_memory(blocks, work, entering[i], 1)
    counting, num_counting = work.listed[1], 0
    for i in range(change.sizes[0]):
        o = change.operators[i]
        num_counting = _list(work.mark, counting, num_counting, o)
        for k in range(near.after_begin[o], near.after_begin[o + 1]):
            num_counting = _list(work.mark, counting, num_counting, near.after[k])
    _unlist(work.mark, counting, num_counting)
    for i in range(num_counting):
        count_needs(setting.graph, near, pools, layout, blocks, work, counting[i])
    for i in range(change.sizes[1]):
        enter_group(
            setting.graph,
            pools,
            layout,
            setting.tables,
            graph.plans,
            blocks,
            work,
            change.groups[i],
            setting.paper,
            setting.overlap,
        )
    short = _enter_back(setting, found, graph, entering, num_entering, change)
    enter_updates(setting.graph, setting.tables, graph.plans, blocks, work)
    if not setting.overlap:
        enter_barrier(blocks, work)
    return DONE if short < 0 else NO_ROOM


@inner_kernel
def _enter_back(
    setting: Setting, found: Found, graph: Graph, entering: IntArray, num_entering: int, change: Change
) -> int:
    """Enters the successors of backward tasks; returns -1 or an operator without enough room."""
    near, work = setting.near, graph.work
    backing, num_backing = work.listed[2], 0
    for i in range(change.sizes[0]):
        num_backing = _list(work.mark, backing, num_backing, change.operators[i])
    for i in range(num_entering):
        o = entering[i]
        for k in range(near.after_begin[o], near.after_begin[o + 1]):
            num_backing = _list(work.mark, backing, num_backing, near.after[k])
    for i in range(change.sizes[1]):
        g = change.groups[i]
        for r in range(setting.graph.reader_begin[g], setting.graph.reader_begin[g + 1]):
            num_backing = _list(work.mark, backing, num_backing, setting.graph.reader_operator[r])
    num_groups = _list_groups(near, work, backing, num_backing, work.listed_groups)
    short = enter_back(
        setting.graph,
        near,
        found.pools,
        graph.layout,
        graph.blocks,
        work,
        backing[:num_backing],
        work.listed_groups[:num_groups],
        setting.overlap,
    )
    _unlist(work.mark, backing, num_backing)
    _unlist(work.group_mark, work.listed_groups, num_groups)
    if short >= 0:
        graph.needed.operators[2, short] = graph.rooms.operators[2, short] + 1
    return short


@inner_kernel
def rebuild(setting: Setting, found: Found, graph: Graph, everything: Change, replan: bool) -> int:
    """Enters all blocks into an empty workspace.

    Args:
        setting: What does not depend on the strategy.
        found: The patterns.
        graph: With a layout that is up to date, and an empty workspace.
        everything: Lists all operators and groups; nothing is exchanged.
        replan: Whether to plan all groups.

    Returns:
        `DONE`, `NO_PLANS` or `NO_ROOM`.
    """
    if replan and not _plan_anew(setting, found, graph, everything.groups):
        return NO_PLANS
    _sum_load(setting, found, graph)
    return _enter(setting, found, graph, everything.operators, setting.graph.num_operators, everything)


@inner_kernel
def _sum_load(setting: Setting, found: Found, graph: Graph) -> None:
    """How long the tasks of each device take."""
    load_s, layout, pools = graph.work.load_s, graph.layout, found.pools
    for device in range(setting.tables.num_devices):
        load_s[device] = 0.0
    for o in range(setting.graph.num_operators):
        for part in range(layout.num_parts[o]):
            device = layout.devices[o, part]
            timed = (layout.part_base[o] + part) * pools.num_types + setting.tables.device_type[device]
            load_s[device] += pools.forward_s[timed] + pools.backward_s[timed]
