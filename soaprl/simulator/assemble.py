"""Enters the blocks of operators into the task graph; see `soaprl.simulator.state` for ids and blocks.

Forward edges are found part by part: for each output of the part, the tasks that read some of it. A reader on
the same device waits for the part itself; readers on other devices wait for a *delivery*: one transfer for
each device and box, however many tasks read it there. The backward graph is the forward graph with its edges
turned round, where a gradient flows. `enter_operator` does the first for one operator, `enter_back` the
second for some, `soaprl.simulator.synchronize` what comes after. What depends on what:

- the block of an operator: on its own configuration and those of its readers;
- how many tasks its forward tasks wait for (`count_needs`): on its own and those of its producers;
- the successors of its backward tasks: on its own, on the ids of the transfers of its producers' outputs, and
  on the ids in its synchronization groups.

Memory is followed in program order, which is the order in which the runtime executes: steps 0 to n-1 are the
forward passes of the operators, steps n to 2n-1 their backward passes in reverse, unless the passes of
micro-batches are in another order (`soaprl.strategy.schedules`); among the operators of a micro-batch it is
the same. An item lives from one step to another, both included:

- an output part, on its device: from its forward to its last reader's forward; to the backward of the
  operator itself, or of the earliest operator that reads it on this device, if that saves it;
- a delivery, on the receiving device: from its first to its last reader's forward there, or to the backward
  of the earliest one that saves it;
- the gradient of an output part, on its device: from the backward of its last reader to its own backward;
- the gradient of a delivery, on the device it was delivered to: from the backward of the last reader there to
  the backward of the first;
- what a task keeps or reads besides (masks, graph inputs, buffers).
"""

import numpy as np

from soaprl.cluster.tables import ClusterTables, IntArray
from soaprl.cost.kernels import inner_kernel
from soaprl.cost.ticks import in_ticks
from soaprl.simulator.adjacency import Adjacency
from soaprl.simulator.gathers import enter_paces
from soaprl.simulator.patterns import PatternPools
from soaprl.simulator.state import (
    ACTIVATION_BYTES,
    BOX,
    BYTES,
    DEVICE,
    END_STEP,
    FIRST,
    FIRST_GRADIENT,
    FIRST_STEP,
    GRADIENT_BYTES,
    HALF,
    HELD_BYTES,
    KEEPER,
    KIND,
    LAST,
    LAST_GRADIENT,
    NEXT,
    NUM_BACKWARD,
    NUM_GRADIENTS,
    NUM_READERS,
    NUM_TASKS,
    PACE_ID,
    PART,
    SHARDING,
    SOURCE,
    STAMP,
    TARGET,
    Blocks,
    Layout,
    Workspace,
)
from soaprl.simulator.tables import GraphTables

_NOBODY = np.iinfo(np.int64).max
_ACTIVATIONS, _BUFFERS = 0, 1


@inner_kernel
def leave_operator(graph: GraphTables, layout: Layout, work: Workspace, o: int) -> None:
    """Takes away what the operator's block adds to memory and totals."""
    if work.entered[o] == 0:
        return
    work.entered[o] = 0
    _add_totals(graph, layout, work, o, -1)


@inner_kernel
def _add_totals(graph: GraphTables, layout: Layout, work: Workspace, o: int, sign: int) -> None:
    work.totals[NUM_TASKS] += sign * work.operator_totals[o, 0]
    work.totals[ACTIVATION_BYTES] += sign * work.operator_totals[o, 1]
    work.totals[GRADIENT_BYTES] += sign * work.operator_totals[o, 2]
    work.totals[NUM_BACKWARD] += sign * layout.num_parts[o] * graph.has_backward[o]


@inner_kernel
def change_memory(blocks: Blocks, work: Workspace, o: int, sign: int) -> None:
    """Adds (or takes away) what an operator's block lets live on devices."""
    memory, holds = work.memory_bytes, work.holds
    for row in range(blocks.hold_begin[o], blocks.hold_begin[o] + work.num_holds[o]):
        kind, device, size = holds[row, KIND], holds[row, DEVICE], sign * holds[row, HELD_BYTES]
        memory[kind, holds[row, FIRST_STEP], device] += size
        memory[kind, holds[row, END_STEP], device] -= size


@inner_kernel
def enter_operator(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    tables: ClusterTables,
    blocks: Blocks,
    work: Workspace,
    o: int,
) -> None:
    """Fills the block of an operator: its tasks, the transfers of its outputs, who waits for them."""
    work.num_holds[o] = 0
    _enter_tasks(graph, pools, layout, tables, blocks, work, o)
    edge = _link_tasks(graph, pools, layout, tables, blocks, work, o)
    _enter_deliveries(graph, layout, tables, blocks, work, o, edge)
    if work.totals[SHARDING] == 3:
        work.operator_totals[o, 0] += enter_paces(graph, layout, work, o)
    work.entered[o] = 1
    _add_totals(graph, layout, work, o, 1)


@inner_kernel
def _enter_tasks(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    tables: ClusterTables,
    blocks: Blocks,
    work: Workspace,
    o: int,
) -> None:
    """The forward and backward tasks, without edges."""
    resource, duration_s, num_bytes = work.resource, work.duration_s, work.num_bytes
    forward_s, backward_s, device_type = pools.forward_s, pools.backward_s, tables.device_type
    kept_bytes, passing_bytes, holds = pools.kept_bytes, pools.passing_bytes, work.holds
    devices, has_backward, num_types = layout.devices, graph.has_backward[o], pools.num_types
    mirror, forward, backward = 2 * work.totals[HALF] - 1, layout.forward_step[o], layout.backward_step[o]
    row, first, hold = layout.part_base[o], blocks.id_begin[o], blocks.hold_begin[o]
    for part in range(layout.num_parts[o]):
        device, task = devices[o, part], first + part
        timed = row * num_types + device_type[device]
        resource[task], duration_s[task], num_bytes[task] = device, forward_s[timed], 0
        if has_backward:
            back = mirror - task
            resource[back], duration_s[back], num_bytes[back] = device, backward_s[timed], 0
        hold = _hold(holds, hold, _ACTIVATIONS, device, forward, backward, kept_bytes[row])
        hold = _hold(holds, hold, _ACTIVATIONS, device, forward, forward, passing_bytes[row])
        row += 1
    work.num_holds[o] = hold - blocks.hold_begin[o]


@inner_kernel
def _hold(holds: IntArray, row: int, kind: int, device: int, first: int, last: int, num_bytes: int) -> int:
    """Lets `num_bytes` live on a device from step `first` to step `last`; returns the next free row."""
    if num_bytes == 0:
        return row
    holds[row, KIND], holds[row, DEVICE], holds[row, HELD_BYTES] = kind, device, num_bytes
    holds[row, FIRST_STEP], holds[row, END_STEP] = first, last + 1
    return row + 1


@inner_kernel
def _link_tasks(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    tables: ClusterTables,
    blocks: Blocks,
    work: Workspace,
    o: int,
) -> int:
    """Enters the successors of forward tasks, and lists the deliveries; returns the next free successor."""
    edges = pools.edges
    rows, pair_reader, pair_bytes, pair_box = edges.rows, edges.pair_reader, edges.pair_bytes, edges.pair_box
    output_begin, edge_begin, output_saved = graph.output_begin, graph.edge_begin, graph.output_saved
    consumers, gradients, saves = graph.edge_consumer, graph.edge_gradient, graph.edge_saved
    row_base, devices, id_begin, via = layout.row_base, layout.devices, blocks.id_begin, work.via
    need, successors, deliveries, readings = work.need, work.successors, work.deliveries, work.readings
    begins, ends, slot, slot_stamp = work.successor_begin, work.successor_end, work.slot, work.slot_stamp
    holds, output_bytes, via_begin = work.holds, pools.output_bytes, blocks.via_begin
    mirror, stamp, ordered = 2 * work.totals[HALF] - 1, work.totals[STAMP], len(layout.turns) > 0
    forward_step, backward_step = layout.forward_step, layout.backward_step
    edge, num_deliveries, num_readings = blocks.forward_begin[o], 0, 0
    hold, size_at = blocks.hold_begin[o] + work.num_holds[o], layout.output_base[o]
    backward = graph.has_backward[o]
    delivery_id = id_begin[o] + layout.num_parts[o]
    pace = work.totals[PACE_ID] + o if work.totals[SHARDING] == 3 and graph.paces[0, o] else -1
    for p in range(layout.num_parts[o]):
        task, device, before, flows = id_begin[o] + p, devices[o, p], num_deliveries, 0
        begins[task] = edge
        for output in range(output_begin[o], output_begin[o + 1]):
            stamp += 1
            last, last_gradient, keeper = o, -1, o if output_saved[output] else _NOBODY
            for e in range(edge_begin[output], edge_begin[output + 1]):
                reader, gradient, saved, row = consumers[e], gradients[e], saves[e], row_base[e] + p
                via_at = via_begin[e] - rows[row_base[e]]
                if rows[row] < rows[row + 1]:
                    last, last_gradient = reader, reader if gradient else last_gradient
                for pair in range(rows[row], rows[row + 1]):
                    target = id_begin[reader] + pair_reader[pair]
                    target_device = devices[reader, pair_reader[pair]]
                    if target_device == device:
                        successors[edge] = target
                        edge += 1
                        flows += gradient
                        via[via_at + pair] = task
                        keeper = min(keeper, reader) if saved else keeper
                        continue
                    if slot_stamp[target_device] != stamp:
                        slot_stamp[target_device], slot[target_device] = stamp, -1
                    k = _delivery(deliveries, slot, num_deliveries, target_device, pair_box[pair])
                    if k == num_deliveries:
                        num_deliveries += 1
                        deliveries[k, BYTES], deliveries[k, FIRST] = pair_bytes[pair], reader
                        deliveries[k, SOURCE], deliveries[k, PART] = device, p
                    _add_reader(deliveries, k, reader, gradient, saved)
                    via[via_at + pair] = delivery_id + k
                    readings[num_readings, 0], readings[num_readings, 1] = k, target
                    num_readings += 1
            size = output_bytes[size_at]
            size_at += 1
            until = forward_step[last] if keeper == _NOBODY else backward_step[keeper]
            hold = _hold(holds, hold, _ACTIVATIONS, device, forward_step[o], until, size)
            if last_gradient >= 0:
                born = backward_step[last_gradient]
                hold = _hold(holds, hold, _ACTIVATIONS, device, born, backward_step[o], size)
        for k in range(before, num_deliveries):
            successors[edge] = delivery_id + k
            edge += 1
            flows += min(1, deliveries[k, NUM_GRADIENTS])
        if backward:
            need[mirror - task] = max(1, flows)
            if flows == 0:
                successors[edge] = mirror - task
                edge += 1
        if pace >= 0:
            successors[edge] = pace
            edge += 1
        if ordered:
            successors[edge] = -1
            edge += 1
        ends[task] = edge
    work.num_deliveries[o], work.num_holds[o] = num_deliveries, hold - blocks.hold_begin[o]
    work.totals[STAMP] = stamp
    return _link_deliveries(work, delivery_id, num_readings, edge, num_deliveries)


@inner_kernel
def _link_deliveries(
    work: Workspace, delivery_id: int, num_readings: int, edge: int, num_deliveries: int
) -> int:
    """Enters the successors of deliveries; returns the next free successor."""
    begins, ends, successors = work.successor_begin, work.successor_end, work.successors
    deliveries, readings = work.deliveries, work.readings
    for k in range(num_deliveries):
        begins[delivery_id + k], ends[delivery_id + k] = edge, edge
        edge += deliveries[k, NUM_READERS]
    for i in range(num_readings):
        task = delivery_id + readings[i, 0]
        successors[ends[task]] = readings[i, 1]
        ends[task] += 1
    return edge


@inner_kernel
def _delivery(deliveries: IntArray, slot: IntArray, count: int, device: int, box: int) -> int:
    """The delivery of `box` to `device` of the output at hand, or a new one with the number `count`."""
    k = slot[device]
    while k >= 0 and deliveries[k, BOX] != box:
        k = deliveries[k, NEXT]
    if k >= 0:
        return int(k)
    deliveries[count, BOX] = box
    deliveries[count, NEXT] = slot[device]
    deliveries[count, TARGET] = device
    deliveries[count, NUM_READERS] = 0
    deliveries[count, NUM_GRADIENTS] = 0
    deliveries[count, KEEPER] = _NOBODY
    slot[device] = count
    return count


@inner_kernel
def _add_reader(deliveries: IntArray, k: int, reader: int, gradient: int, saved: int) -> None:
    """Readers come in ascending order, so the first one seen is the first in the program."""
    deliveries[k, NUM_READERS] += 1
    deliveries[k, LAST] = reader
    if gradient:
        if deliveries[k, NUM_GRADIENTS] == 0:
            deliveries[k, FIRST_GRADIENT] = reader
        deliveries[k, NUM_GRADIENTS] += 1
        deliveries[k, LAST_GRADIENT] = reader
    if saved and deliveries[k, KEEPER] == _NOBODY:
        deliveries[k, KEEPER] = reader


@inner_kernel
def _enter_deliveries(
    graph: GraphTables,
    layout: Layout,
    tables: ClusterTables,
    blocks: Blocks,
    work: Workspace,
    o: int,
    edge: int,
) -> None:
    """Enters the transfers of outputs and of their gradients, and the memory they take."""
    resource, duration_s, num_bytes = work.resource, work.duration_s, work.num_bytes
    need, origin, successors, deliveries = work.need, work.origin, work.successors, work.deliveries
    latency_s, bandwidth = tables.route_latency_s, tables.route_bandwidth_bytes_per_s
    begins, ends, num_devices = work.successor_begin, work.successor_end, tables.num_devices
    mirror = 2 * work.totals[HALF] - 1
    hold, moved, moved_back, num_back = blocks.hold_begin[o] + work.num_holds[o], 0, 0, 0
    for k in range(work.num_deliveries[o]):
        task = blocks.id_begin[o] + layout.num_parts[o] + k
        source, target, size = deliveries[k, SOURCE], deliveries[k, TARGET], deliveries[k, BYTES]
        gradients, part, back = deliveries[k, NUM_GRADIENTS], deliveries[k, PART], mirror - task
        route = source * num_devices + target
        resource[task], num_bytes[task], need[task], origin[task] = num_devices + route, size, 1, part
        duration_s[task] = in_ticks(latency_s[route] + size / bandwidth[route])
        moved += size
        need[back] = gradients
        if gradients > 0:
            route = target * num_devices + source
            resource[back], num_bytes[back], origin[back] = num_devices + route, size, part
            duration_s[back] = in_ticks(latency_s[route] + size / bandwidth[route])
            begins[back], ends[back] = edge, edge + 1
            successors[edge] = mirror - blocks.id_begin[o] - part
            edge += 1
            moved_back += size
            num_back += 1
        hold = _hold_delivery(layout, deliveries, work.holds, hold, k)
    work.num_holds[o] = hold - blocks.hold_begin[o]
    num_tasks = layout.num_parts[o] * (1 + graph.has_backward[o])
    work.operator_totals[o, 0] = num_tasks + work.num_deliveries[o] + num_back
    work.operator_totals[o, 1], work.operator_totals[o, 2] = moved, moved_back


@inner_kernel
def _hold_delivery(layout: Layout, deliveries: IntArray, holds: IntArray, row: int, k: int) -> int:
    """Lets a received piece, and its gradient, live on the device it was sent to."""
    target, size, keeper = deliveries[k, TARGET], deliveries[k, BYTES], deliveries[k, KEEPER]
    forward_step, backward_step = layout.forward_step, layout.backward_step
    born = forward_step[deliveries[k, FIRST]]
    if keeper == _NOBODY:
        row = _hold(holds, row, _BUFFERS, target, born, forward_step[deliveries[k, LAST]], size)
    else:
        row = _hold(holds, row, _ACTIVATIONS, target, born, backward_step[keeper], size)
    if deliveries[k, NUM_GRADIENTS] > 0:
        born, until = deliveries[k, LAST_GRADIENT], deliveries[k, FIRST_GRADIENT]
        row = _hold(holds, row, _BUFFERS, target, backward_step[born], backward_step[until], size)
    return row


@inner_kernel
def count_needs(
    graph: GraphTables,
    near: Adjacency,
    pools: PatternPools,
    layout: Layout,
    blocks: Blocks,
    work: Workspace,
    o: int,
) -> None:
    """Counts what the forward tasks of an operator wait for."""
    need, first, pair_reader = work.need, blocks.id_begin[o], pools.edges.pair_reader
    for task in range(first, first + layout.num_parts[o]):
        need[task] = 0
    for k in range(near.in_begin[o], near.in_begin[o + 1]):
        e = near.in_edges[k]
        begin = pools.edges.rows[layout.row_base[e]]
        for pair in range(begin, begin + layout.num_pairs[e]):
            need[first + pair_reader[pair]] += 1


@inner_kernel
def enter_back(
    graph: GraphTables,
    near: Adjacency,
    pools: PatternPools,
    layout: Layout,
    blocks: Blocks,
    work: Workspace,
    operators: IntArray,
    groups: IntArray,
    overlap: bool,
) -> int:
    """Enters the successors of the backward tasks of `operators`.

    Args:
        graph: The graph.
        near: The graph's lists.
        pools: The patterns.
        layout: The strategy.
        blocks: Where the blocks are.
        work: The task graph; `mark` is 1 for `operators`.
        operators: Some operators.
        groups: All groups that they read.
        overlap: Whether synchronization overlaps the backward pass.

    Returns:
        -1, or an operator whose block has not enough room.
    """
    begins, ends = work.successor_begin, work.successor_end
    mirror, barrier = 2 * work.totals[HALF] - 1, 2 * work.totals[HALF]
    paced, ordered = work.totals[SHARDING] == 3, len(layout.turns) > 0
    for o in operators:
        num_waits = (0 if overlap else 1) + (graph.paces[1, o] if paced else 0) + (1 if ordered else 0)
        for part in range(layout.num_parts[o] * graph.has_backward[o]):
            ends[mirror - blocks.id_begin[o] - part] = num_waits
        _visit_gradients(graph, near, pools, layout, blocks, work, o, counting=True)
    for g in groups:
        _visit_waits(graph, pools, layout, blocks, work, g, counting=True)
    for o in operators:
        edge = blocks.back_begin[o]
        for part in range(layout.num_parts[o] * graph.has_backward[o]):
            task = mirror - blocks.id_begin[o] - part
            count = ends[task]
            begins[task], ends[task] = edge, edge
            edge += count
        if edge > blocks.back_begin[o + 1]:
            return int(o)
    for o in operators:
        _visit_gradients(graph, near, pools, layout, blocks, work, o, counting=False)
    for g in groups:
        _visit_waits(graph, pools, layout, blocks, work, g, counting=False)
    for o in operators:
        if not overlap:
            _then_all(graph, layout, blocks, work, o, barrier)
        if paced and graph.paces[1, o]:
            _then_all(graph, layout, blocks, work, o, work.totals[PACE_ID] + graph.num_operators + o)
        if ordered:
            _then_all(graph, layout, blocks, work, o, -1)
    return -1


@inner_kernel
def _then_all(
    graph: GraphTables, layout: Layout, blocks: Blocks, work: Workspace, o: int, successor: int
) -> None:
    """Adds a successor to all backward tasks of an operator."""
    first = 2 * work.totals[HALF] - 1 - blocks.id_begin[o]
    for part in range(layout.num_parts[o] * graph.has_backward[o]):
        work.successors[work.successor_end[first - part]] = successor
        work.successor_end[first - part] += 1


@inner_kernel
def _visit_gradients(
    graph: GraphTables,
    near: Adjacency,
    pools: PatternPools,
    layout: Layout,
    blocks: Blocks,
    work: Workspace,
    o: int,
    counting: bool,
) -> None:
    """Counts, or enters, what gradients of an operator's backward tasks flow to."""
    ends, successors, via = work.successor_end, work.successors, work.via
    pair_reader = pools.edges.pair_reader
    mirror = 2 * work.totals[HALF] - 1
    first = mirror - blocks.id_begin[o]
    for k in range(near.in_begin[o], near.in_begin[o + 1]):
        e = near.in_edges[k]
        if graph.edge_gradient[e] == 0:
            continue
        begin, via_at = pools.edges.rows[layout.row_base[e]], blocks.via_begin[e]
        for i in range(layout.num_pairs[e]):
            task = first - pair_reader[begin + i]
            if not counting:
                successors[ends[task]] = mirror - via[via_at + i]
            ends[task] += 1


@inner_kernel
def _visit_waits(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    blocks: Blocks,
    work: Workspace,
    g: int,
    counting: bool,
) -> None:
    """Counts, or enters, what in a group waits for the backward tasks of marked operators."""
    ends, successors, wait, mark = work.successor_end, work.successors, work.wait, work.mark
    cover_reader, cover_part, readers = pools.cover_reader, pools.cover_part, graph.reader_operator
    first_reader, mirror = graph.reader_begin[g], 2 * work.totals[HALF] - 1
    first, end = pools.cover_begin[layout.cell_begin[g]], pools.cover_begin[layout.cell_end[g]]
    wait_at = blocks.wait_begin[g] - first
    for c in range(first, end):
        operator = readers[first_reader + cover_reader[c]]
        if wait[wait_at + c] < 0 or mark[operator] == 0:
            continue
        task = mirror - blocks.id_begin[operator] - cover_part[c]
        if not counting:
            successors[ends[task]] = wait[wait_at + c]
        ends[task] += 1
