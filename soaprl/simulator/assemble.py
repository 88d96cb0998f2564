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
from soaprl.cost.kernels import filling_kernel, inner_kernel
from soaprl.cost.ticks import in_ticks
from soaprl.simulator.patterns import PatternPools
from soaprl.simulator.state import (
    ACTIVATION_BYTES,
    BOX,
    BYTES,
    FIRST,
    FIRST_GRADIENT,
    GRADIENT_BYTES,
    HALF,
    KEEPER,
    LAST,
    LAST_GRADIENT,
    NEXT,
    NUM_CONTRIBUTIONS,
    NUM_DELIVERIES,
    NUM_EDGES,
    NUM_GRADIENTS,
    NUM_IDS,
    NUM_READERS,
    NUM_READINGS,
    NUM_TASKS,
    PART,
    SOURCE,
    STAMP,
    SYNC_ID,
    TARGET,
    TASK,
    UPDATE_ID,
    Layout,
    Workspace,
)
from soaprl.simulator.tables import GraphTables

_NOBODY = np.iinfo(np.int64).max


@filling_kernel
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


@inner_kernel
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


@inner_kernel
def begin_tasks(
    graph: GraphTables, pools: PatternPools, layout: Layout, tables: ClusterTables, work: Workspace
) -> None:
    """Enters the forward and backward tasks, without successors."""
    # Arrays are taken out of the tuples once: in a loop, each access would count references.
    resource, duration_s, num_bytes = work.resource, work.duration_s, work.num_bytes
    in_degree, out_degree, ready_s = work.in_degree, work.out_degree, work.ready_s
    forward_s, backward_s, device_type = pools.forward_s, pools.backward_s, tables.device_type
    kept_bytes, passing_bytes, memory = pools.kept_bytes, pools.passing_bytes, work.memory_bytes[0]
    devices, forward_id, part_base = layout.devices, work.forward_id, layout.part_base
    has_backward, parts, num_types = graph.has_backward, layout.num_parts, pools.num_types
    mirror, last_step = 2 * work.totals[HALF] - 1, 2 * graph.num_operators - 1
    for o in range(graph.num_operators):
        backward, num_parts, row = has_backward[o], parts[o], part_base[o]
        for task in range(forward_id[o], forward_id[o] + num_parts):
            device = devices[o, task - forward_id[o]]
            timed = row * num_types + device_type[device]
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


@inner_kernel
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


@inner_kernel
def _hold(memory: IntArray, device: int, first: int, last: int, num_bytes: int) -> None:
    """Lets `num_bytes` live on a device from step `first` to step `last`."""
    memory[first, device] += num_bytes
    memory[last + 1, device] -= num_bytes


@inner_kernel
def link_outputs(graph: GraphTables, pools: PatternPools, layout: Layout, work: Workspace) -> None:
    """Enters all successors of forward tasks, and lists the deliveries."""
    rows, pair_reader, pair_bytes, pair_box = pools.rows, pools.pair_reader, pools.pair_bytes, pools.pair_box
    output_begin, edge_begin, output_saved = graph.output_begin, graph.edge_begin, graph.output_saved
    consumers, gradients, saves = graph.edge_consumer, graph.edge_gradient, graph.edge_saved
    output_bytes, row_base, devices = pools.output_bytes, layout.row_base, layout.devices
    forward_id, delivery_id, in_degree, out_degree = (
        work.forward_id,
        work.delivery_id,
        work.in_degree,
        work.out_degree,
    )
    successors, mirrored, deliveries = work.successors, work.mirrored, work.deliveries
    begins, ends, slot, slot_stamp = work.successor_begin, work.successor_end, work.slot, work.slot_stamp
    readings, memory = work.readings, work.memory_bytes[0]
    last_step, mirror, stamp = 2 * graph.num_operators - 1, 2 * work.totals[HALF] - 1, work.totals[STAMP]
    edge, num_deliveries, num_readings = 0, 0, 0
    for o in range(graph.num_operators):
        size_at, backward, next_id = layout.output_base[o], graph.has_backward[o], delivery_id[o]
        for p in range(layout.num_parts[o]):
            task, device, before = forward_id[o] + p, devices[o, p], num_deliveries
            begins[task] = edge
            for output in range(output_begin[o], output_begin[o + 1]):
                stamp += 1
                last, last_gradient, keeper = o, -1, o if output_saved[output] else _NOBODY
                for e in range(edge_begin[output], edge_begin[output + 1]):
                    reader, gradient, saved, row = consumers[e], gradients[e], saves[e], row_base[e] + p
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
                        readings[num_readings, 0], readings[num_readings, 1] = k, 2 * target + gradient
                        num_readings += 1
                size = output_bytes[size_at]
                size_at += 1
                _hold(memory, device, o, last if keeper == _NOBODY else last_step - keeper, size)
                if last_gradient >= 0:
                    _hold(memory, device, last_step - last_gradient, last_step - o, size)
            for k in range(before, num_deliveries):
                deliveries[k, TASK], deliveries[k, SOURCE], deliveries[k, PART] = next_id, device, p
                flows = min(1, deliveries[k, NUM_GRADIENTS])
                successors[edge], mirrored[edge] = next_id, flows
                in_degree[mirror - task] += flows
                edge += 1
                next_id += 1
            if backward:
                successors[edge], mirrored[edge] = mirror - task, 0
                in_degree[mirror - task] += 1
                edge += 1
            ends[task] = edge
        work.num_deliveries[o] = next_id - delivery_id[o]
    work.totals[STAMP], work.totals[NUM_EDGES] = stamp, edge
    work.totals[NUM_DELIVERIES], work.totals[NUM_READINGS] = num_deliveries, num_readings


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
def enter_deliveries(graph: GraphTables, tables: ClusterTables, work: Workspace) -> None:
    """Enters the transfers of outputs and of their gradients, and the memory they take."""
    resource, duration_s, num_bytes = work.resource, work.duration_s, work.num_bytes
    in_degree, ready_s, origin = work.in_degree, work.ready_s, work.origin
    latency_s, bandwidth = tables.route_latency_s, tables.route_bandwidth_bytes_per_s
    successors, mirrored, deliveries = work.successors, work.mirrored, work.deliveries
    begins, ends, readings, memory = (
        work.successor_begin,
        work.successor_end,
        work.readings,
        work.memory_bytes,
    )
    num_devices, mirror, last_step = (
        tables.num_devices,
        2 * work.totals[HALF] - 1,
        2 * graph.num_operators - 1,
    )
    edge, num_back, moved, moved_back = work.totals[NUM_EDGES], 0, 0, 0
    for k in range(work.totals[NUM_DELIVERIES]):
        task, source, target = deliveries[k, TASK], deliveries[k, SOURCE], deliveries[k, TARGET]
        size, gradients, part = deliveries[k, BYTES], deliveries[k, NUM_GRADIENTS], deliveries[k, PART]
        route = source * num_devices + target
        time_s = in_ticks(latency_s[route] + size / bandwidth[route])
        _enter(resource, duration_s, num_bytes, in_degree, ready_s, task, num_devices + route, time_s, size)
        in_degree[task], origin[task] = 1, part
        moved += size
        if gradients > 0:
            route, back = target * num_devices + source, mirror - task
            time_s = in_ticks(latency_s[route] + size / bandwidth[route])
            _enter(
                resource, duration_s, num_bytes, in_degree, ready_s, back, num_devices + route, time_s, size
            )
            in_degree[back], origin[back] = gradients, part
            moved_back += size
            num_back += 1
        _hold_delivery(deliveries, memory, last_step, k)
        begins[task], ends[task] = edge, edge
        edge += deliveries[k, NUM_READERS]
    for i in range(work.totals[NUM_READINGS]):
        task, reading = deliveries[readings[i, 0], TASK], readings[i, 1]
        successors[ends[task]], mirrored[ends[task]] = reading >> 1, reading & 1
        ends[task] += 1
    work.totals[NUM_EDGES] = edge
    work.totals[NUM_TASKS] += work.totals[NUM_DELIVERIES] + num_back
    work.totals[ACTIVATION_BYTES] = moved
    work.totals[GRADIENT_BYTES] = moved_back


@inner_kernel
def _hold_delivery(deliveries: IntArray, memory: IntArray, last_step: int, k: int) -> None:
    """Lets a received piece, and its gradient, live on the device it was sent to."""
    target, size, keeper = deliveries[k, TARGET], deliveries[k, BYTES], deliveries[k, KEEPER]
    if keeper == _NOBODY:
        _hold(memory[1], target, deliveries[k, FIRST], deliveries[k, LAST], size)
    else:
        _hold(memory[0], target, deliveries[k, FIRST], last_step - keeper, size)
    if deliveries[k, NUM_GRADIENTS] > 0:
        born = last_step - deliveries[k, LAST_GRADIENT]
        _hold(memory[1], target, born, last_step - deliveries[k, FIRST_GRADIENT], size)


@inner_kernel
def link_backward(graph: GraphTables, layout: Layout, work: Workspace) -> None:
    """Enters the successors of backward tasks and gradient transfers: the forward edges turned round."""
    begins, ends, successors, mirrored = (
        work.successor_begin,
        work.successor_end,
        work.successors,
        work.mirrored,
    )
    out_degree, forward_id, first_delivery = work.out_degree, work.forward_id, work.delivery_id
    num_parts, num_deliveries = layout.num_parts, work.num_deliveries
    mirror = 2 * work.totals[HALF] - 1
    edge = work.totals[NUM_EDGES]
    for o in range(graph.num_operators):
        for task in range(forward_id[o], forward_id[o] + num_parts[o]):
            begins[mirror - task] = edge
            ends[mirror - task] = edge
            edge += out_degree[task]
    for o in range(graph.num_operators):
        first, end = first_delivery[o], first_delivery[o] + num_deliveries[o]
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
