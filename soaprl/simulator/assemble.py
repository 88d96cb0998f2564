"""Assembles the task graph of a strategy from patterns; see `soaprl.simulator.state` for ids and resources.

Forward edges are found part by part: for each output of the part, the tasks that read some of it. A reader on
the same device waits for the part itself; readers on other devices wait for a *delivery*: one transfer for
each device and box, however many tasks read it there. The backward graph is the forward graph with its edges
turned round, where a gradient flows. `link_outputs` does the first, `link_backward` the second,
`soaprl.simulator.synchronize` what comes after.

Memory is followed in program order, which is the order in which the runtime executes: steps 0 to n-1 are the
forward passes of the operators, steps n to 2n-1 their backward passes in reverse. An item lives from one step
to another, both included (C is an operator, its backward step is 2n-1-C):

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

from soaprl.cluster.tables import ClusterTables, FloatArray, IntArray
from soaprl.cost.kernels import kernel
from soaprl.simulator.patterns import PatternPools
from soaprl.simulator.state import (
    ACTIVATION_BYTES,
    BOX,
    BYTES,
    CURSOR,
    FIRST,
    FIRST_GRADIENT,
    GRADIENT_BYTES,
    HALF,
    KEEPER,
    LAST,
    LAST_GRADIENT,
    NEXT,
    NUM_CONTRIBUTIONS,
    NUM_EDGES,
    NUM_GRADIENTS,
    NUM_IDS,
    NUM_READERS,
    NUM_TASKS,
    STAMP,
    SYNC_ID,
    TARGET,
    UPDATE_ID,
    Layout,
    Workspace,
)
from soaprl.simulator.tables import GraphTables

_NOBODY = np.iinfo(np.int64).max


@kernel
def measure(graph: GraphTables, layout: Layout, num_devices: int, paper: bool) -> tuple[int, int]:
    """Room that a strategy needs: ids, and edges."""
    num_parts, num_pairs, num_cells, num_covers = 0, 0, 0, 0
    for o in range(graph.num_operators):
        num_parts += layout.num_parts[o]
    for e in range(len(graph.edge_consumer)):
        num_pairs += layout.num_pairs[e]
    for g in range(len(layout.cell_begin)):
        num_cells += layout.cell_end[g] - layout.cell_begin[g]
        num_covers += layout.num_covers[g]
    num_sync = num_cells + (2 * num_covers if paper else 0)
    num_edges = 4 * num_pairs + 4 * num_parts + 4 * num_covers + 2 * num_sync
    return 2 * (num_parts + num_pairs) + 1 + num_sync + num_devices, num_edges


@kernel
def begin(graph: GraphTables, layout: Layout, work: Workspace, num_devices: int, paper: bool) -> None:
    """Numbers the tasks and clears what is counted."""
    stamp = work.totals[STAMP]
    work.totals[:] = 0
    work.totals[STAMP] = stamp
    next_id = 0
    for o in range(graph.num_operators):
        work.forward_id[o] = next_id
        next_id += layout.num_parts[o]
        work.delivery_id[o] = next_id
        work.num_deliveries[o] = 0
        for e in range(graph.edge_begin[graph.output_begin[o]], graph.edge_begin[graph.output_begin[o + 1]]):
            next_id += layout.num_pairs[e]
    num_ids, _ = measure(graph, layout, num_devices, paper=paper)
    work.totals[HALF] = next_id
    work.totals[SYNC_ID] = 2 * next_id + 1
    work.totals[UPDATE_ID] = num_ids - num_devices
    work.totals[NUM_IDS] = num_ids
    work.memory_bytes[:] = 0
    work.held_bytes[:] = 0
    work.update_s[:] = 0.0


@kernel
def begin_tasks(
    graph: GraphTables, pools: PatternPools, layout: Layout, tables: ClusterTables, work: Workspace
) -> None:
    """Enters the forward and backward tasks, without successors."""
    # Arrays are taken out of the tuples once: in a loop, each access would count references.
    resource, duration_s, num_bytes = work.resource, work.duration_s, work.num_bytes
    in_degree, out_degree, ready_s = work.in_degree, work.out_degree, work.ready_s
    forward_s, backward_s, device_type = pools.forward_s, pools.backward_s, tables.device_type
    kept_bytes, passing_bytes, memory = pools.kept_bytes, pools.passing_bytes, work.memory_bytes[0]
    devices, forward_id = layout.devices, work.forward_id
    mirror, last_step = 2 * work.totals[HALF] - 1, 2 * graph.num_operators - 1
    for o in range(graph.num_operators):
        backward = graph.has_backward[o]
        num_parts, row = layout.num_parts[o], layout.part_base[o]
        for task in range(forward_id[o], forward_id[o] + num_parts):
            device = devices[o, task - forward_id[o]]
            timed = row * pools.num_types + device_type[device]
            _enter(resource, duration_s, num_bytes, in_degree, ready_s, task, device, forward_s[timed], 0)
            out_degree[task] = 0
            if backward:
                back = mirror - task
                _enter(
                    resource, duration_s, num_bytes, in_degree, ready_s, back, device, backward_s[timed], 0
                )
            _hold(memory, device, o, last_step - o, kept_bytes[row])
            _hold(memory, device, o, o, passing_bytes[row])
            row += 1
        work.totals[NUM_TASKS] += num_parts * (2 if backward else 1)


@kernel
def _enter(
    resource: IntArray,
    duration_s: FloatArray,
    num_bytes: IntArray,
    in_degree: IntArray,
    ready_s: FloatArray,
    task: int,
    on: int,
    takes_s: float,
    moves_bytes: int,
) -> None:
    """Enters one task that waits for nothing yet."""
    resource[task] = on
    duration_s[task] = takes_s
    num_bytes[task] = moves_bytes
    in_degree[task] = 0
    ready_s[task] = 0.0


@kernel
def _hold(memory: IntArray, device: int, first: int, last: int, num_bytes: int) -> None:
    """Lets `num_bytes` live on a device from step `first` to step `last`."""
    memory[first, device] += num_bytes
    memory[last + 1, device] -= num_bytes


@kernel
def link_outputs(
    graph: GraphTables, pools: PatternPools, layout: Layout, tables: ClusterTables, work: Workspace
) -> None:
    """Enters the transfers, and all successors of forward tasks and of transfers of outputs."""
    for o in range(graph.num_operators):
        _link_operator(graph, pools, layout, tables, work, o)


@kernel
def _link_operator(
    graph: GraphTables, pools: PatternPools, layout: Layout, tables: ClusterTables, work: Workspace, o: int
) -> None:
    """Links the parts of one operator with their readers, and enters their transfers."""
    rows, pair_reader, pair_bytes, pair_box = pools.rows, pools.pair_reader, pools.pair_bytes, pools.pair_box
    edge_begin, devices, forward_id = graph.edge_begin, layout.devices, work.forward_id
    in_degree, out_degree, successors, mirrored = (
        work.in_degree,
        work.out_degree,
        work.successors,
        work.mirrored,
    )
    deliveries, slot, slot_stamp = work.deliveries, work.slot, work.slot_stamp
    reading_delivery, reading_task, memory = work.reading_delivery, work.reading_task, work.memory_bytes[0]
    first_output, last_output = graph.output_begin[o], graph.output_begin[o + 1]
    last_step, mirror = 2 * graph.num_operators - 1, 2 * work.totals[HALF] - 1
    size_at, backward = layout.output_base[o], graph.has_backward[o]
    stamp = work.totals[STAMP]
    for p in range(layout.num_parts[o]):
        task, device = forward_id[o] + p, devices[o, p]
        edge, num_deliveries, num_readings = work.totals[NUM_EDGES], 0, 0
        work.successor_begin[task] = edge
        for output in range(first_output, last_output):
            stamp += 1
            last, last_gradient, keeper = o, -1, o if graph.output_saved[output] else _NOBODY
            for e in range(edge_begin[output], edge_begin[output + 1]):
                reader, row = graph.edge_consumer[e], layout.row_base[e] + p
                gradient, saved = graph.edge_gradient[e], graph.edge_saved[e]
                if rows[row] < rows[row + 1]:
                    last, last_gradient = reader, reader if gradient else last_gradient
                for pair in range(rows[row], rows[row + 1]):
                    target = forward_id[reader] + pair_reader[pair]
                    target_device = devices[reader, pair_reader[pair]]
                    in_degree[target] += 1
                    out_degree[target] += gradient
                    if target_device == device:
                        successors[edge], mirrored[edge] = target, gradient
                        edge += 1
                        in_degree[mirror - task] += gradient
                        keeper = min(keeper, reader) if saved else keeper
                        continue
                    if slot_stamp[target_device] != stamp:
                        slot_stamp[target_device], slot[target_device] = stamp, -1
                    k = _delivery(deliveries, slot, num_deliveries, target_device, pair_box[pair])
                    if k == num_deliveries:
                        num_deliveries += 1
                        deliveries[k, BYTES], deliveries[k, FIRST] = pair_bytes[pair], reader
                    _add_reader(deliveries, k, reader, gradient, saved)
                    reading_delivery[num_readings] = k
                    reading_task[num_readings] = 2 * target + gradient
                    num_readings += 1
            size = pools.output_bytes[size_at]
            size_at += 1
            _hold(memory, device, o, last if keeper == _NOBODY else last_step - keeper, size)
            if last_gradient >= 0:
                _hold(memory, device, last_step - last_gradient, last_step - o, size)
        if backward:
            successors[edge], mirrored[edge] = mirror - task, 0
            edge += 1
            in_degree[mirror - task] += 1
        work.successor_end[task] = edge
        work.totals[NUM_EDGES] = edge
        if num_deliveries > 0:
            _enter_deliveries(graph, tables, work, o, p, device, num_deliveries, num_readings)
    work.totals[STAMP] = stamp


@kernel
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


@kernel
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


@kernel
def _enter_deliveries(
    graph: GraphTables,
    tables: ClusterTables,
    work: Workspace,
    o: int,
    p: int,
    device: int,
    num_deliveries: int,
    num_readings: int,
) -> None:
    """Enters the transfers of one part's outputs, and of their gradients, with their successors.

    The part's own successors are the last ones entered, and go on with the transfers.
    """
    resource, duration_s, num_bytes = work.resource, work.duration_s, work.num_bytes
    in_degree, ready_s, origin = work.in_degree, work.ready_s, work.origin
    latency_s, bandwidth = tables.route_latency_s, tables.route_bandwidth_bytes_per_s
    successors, mirrored, deliveries = work.successors, work.mirrored, work.deliveries
    begins, ends = work.successor_begin, work.successor_end
    num_devices, mirror, part = tables.num_devices, 2 * work.totals[HALF] - 1, work.forward_id[o] + p
    task = work.delivery_id[o] + work.num_deliveries[o]
    edge = work.totals[NUM_EDGES] + num_deliveries
    num_back, moved, moved_back = 0, 0, 0
    for k in range(num_deliveries):
        target, size, gradients = deliveries[k, TARGET], deliveries[k, BYTES], deliveries[k, NUM_GRADIENTS]
        route = device * num_devices + target
        time_s = latency_s[route] + size / bandwidth[route]
        _enter(resource, duration_s, num_bytes, in_degree, ready_s, task, num_devices + route, time_s, size)
        in_degree[task], origin[task] = 1, p
        moved += size
        if gradients > 0:
            route, back = target * num_devices + device, mirror - task
            time_s = latency_s[route] + size / bandwidth[route]
            _enter(
                resource, duration_s, num_bytes, in_degree, ready_s, back, num_devices + route, time_s, size
            )
            in_degree[back], origin[back] = gradients, p
            moved_back += size
            num_back += 1
        at = work.totals[NUM_EDGES] + k
        successors[at], mirrored[at] = task, 1 if gradients > 0 else 0
        deliveries[k, CURSOR], begins[task] = edge, edge
        edge += deliveries[k, NUM_READERS]
        ends[task] = edge
        task += 1
    ends[part] = work.totals[NUM_EDGES] + num_deliveries
    in_degree[mirror - part] += num_back
    work.totals[NUM_EDGES] = edge
    work.totals[NUM_TASKS] += num_deliveries + num_back
    work.totals[ACTIVATION_BYTES] += moved
    work.totals[GRADIENT_BYTES] += moved_back
    work.num_deliveries[o] += num_deliveries
    _link_deliveries(deliveries, work.reading_delivery, work.reading_task, successors, mirrored, num_readings)
    _hold_deliveries(deliveries, work.memory_bytes, 2 * graph.num_operators - 1, num_deliveries)


@kernel
def _link_deliveries(
    deliveries: IntArray,
    reading_delivery: IntArray,
    reading_task: IntArray,
    successors: IntArray,
    mirrored: IntArray,
    num_readings: int,
) -> None:
    """Enters the successors of the transfers of one part: the tasks that wait for them."""
    for i in range(num_readings):
        k = reading_delivery[i]
        at = deliveries[k, CURSOR]
        deliveries[k, CURSOR] += 1
        successors[at] = reading_task[i] >> 1
        mirrored[at] = reading_task[i] & 1


@kernel
def _hold_deliveries(deliveries: IntArray, memory: IntArray, last_step: int, num_deliveries: int) -> None:
    """Lets the received pieces, and their gradients, live on the device they were sent to."""
    for k in range(num_deliveries):
        target, size, keeper = deliveries[k, TARGET], deliveries[k, BYTES], deliveries[k, KEEPER]
        if keeper == _NOBODY:
            _hold(memory[1], target, deliveries[k, FIRST], deliveries[k, LAST], size)
        else:
            _hold(memory[0], target, deliveries[k, FIRST], last_step - keeper, size)
        if deliveries[k, NUM_GRADIENTS] > 0:
            born = last_step - deliveries[k, LAST_GRADIENT]
            _hold(memory[1], target, born, last_step - deliveries[k, FIRST_GRADIENT], size)


@kernel
def link_backward(graph: GraphTables, layout: Layout, work: Workspace) -> None:
    """Enters the successors of backward tasks and gradient transfers: the forward edges turned round."""
    begins, ends, successors, mirrored = (
        work.successor_begin,
        work.successor_end,
        work.successors,
        work.mirrored,
    )
    out_degree, forward_id, first_delivery = work.out_degree, work.forward_id, work.delivery_id
    mirror = 2 * work.totals[HALF] - 1
    edge = work.totals[NUM_EDGES]
    for o in range(graph.num_operators):
        for task in range(forward_id[o], forward_id[o] + layout.num_parts[o]):
            begins[mirror - task] = edge
            ends[mirror - task] = edge
            edge += out_degree[task]
    for o in range(graph.num_operators):
        first, end = first_delivery[o], first_delivery[o] + work.num_deliveries[o]
        for task in range(forward_id[o], end):
            for e in range(begins[task], ends[task]):
                if not mirrored[e]:
                    continue
                back = mirror - successors[e]
                if task < first and successors[e] < end:
                    begins[back] = edge
                    ends[back] = edge
                    edge += 1
                successors[ends[back]] = mirror - task
                ends[back] += 1
    source, target = work.contribution_source, work.contribution_target
    for i in range(work.totals[NUM_CONTRIBUTIONS]):
        successors[ends[source[i]]] = target[i]
        ends[source[i]] += 1
    work.totals[NUM_EDGES] = edge
