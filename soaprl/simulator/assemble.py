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

from soaprl.cluster.tables import ClusterTables, IntArray
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
    mirror = 2 * work.totals[HALF] - 1
    num_types = pools.num_types
    last_step = 2 * graph.num_operators - 1
    for o in range(graph.num_operators):
        backward = graph.has_backward[o]
        for p in range(layout.num_parts[o]):
            task, device = work.forward_id[o] + p, layout.devices[o, p]
            row = layout.part_base[o] + p
            timed = row * num_types + tables.device_type[device]
            _enter(work, task, device, pools.forward_s[timed], 0)
            work.out_degree[task] = 0
            if backward:
                _enter(work, mirror - task, device, pools.backward_s[timed], 0)
            _hold(work.memory_bytes[0], device, o, last_step - o, pools.kept_bytes[row])
            _hold(work.memory_bytes[0], device, o, o, pools.passing_bytes[row])


@kernel
def _enter(work: Workspace, task: int, resource: int, duration_s: float, num_bytes: int) -> None:
    work.resource[task] = resource
    work.duration_s[task] = duration_s
    work.num_bytes[task] = num_bytes
    work.in_degree[task] = 0
    work.ready_s[task] = 0.0
    work.totals[NUM_TASKS] += 1


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
        for p in range(layout.num_parts[o]):
            _link_part(graph, pools, layout, tables, work, o, p)


@kernel
def _link_part(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    tables: ClusterTables,
    work: Workspace,
    o: int,
    p: int,
) -> None:
    task = work.forward_id[o] + p
    mirror = 2 * work.totals[HALF] - 1
    edge = work.totals[NUM_EDGES]
    work.successor_begin[task] = edge
    first_output, last_output = graph.output_begin[o], graph.output_begin[o + 1]
    num_deliveries, num_readings = 0, 0
    for output in range(first_output, last_output):
        before = num_deliveries
        size = pools.output_bytes[
            layout.output_base[o] + p * (last_output - first_output) + output - first_output
        ]
        edge, num_deliveries, num_readings = _link_output(
            graph, pools, layout, work, o, p, output, size, edge, num_deliveries, num_readings
        )
        for k in range(before, num_deliveries):
            _enter_delivery(tables, work, layout.devices[o, p], o, p, k)
            if work.deliveries[k, NUM_GRADIENTS] > 0:
                work.in_degree[mirror - task] += 1
            work.successors[edge] = work.delivery_id[o] + work.num_deliveries[o] + k
            work.mirrored[edge] = 1 if work.deliveries[k, NUM_GRADIENTS] > 0 else 0
            edge += 1
    if graph.has_backward[o]:
        work.in_degree[mirror - task] += 1
        work.successors[edge] = mirror - task
        work.mirrored[edge] = 0
        edge += 1
    work.successor_end[task] = edge
    work.totals[NUM_EDGES] = edge
    _link_deliveries(work, o, num_deliveries, num_readings)
    _hold_deliveries(graph, work, num_deliveries)
    work.num_deliveries[o] += num_deliveries


@kernel
def _link_output(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    work: Workspace,
    o: int,
    p: int,
    output: int,
    size: int,
    edge: int,
    num_deliveries: int,
    num_readings: int,
) -> tuple[int, int, int]:
    """Links one output of one part with its readers on the same device, and collects its deliveries."""
    task, device = work.forward_id[o] + p, layout.devices[o, p]
    mirror = 2 * work.totals[HALF] - 1
    last_step = 2 * graph.num_operators - 1
    last, last_gradient = o, -1
    keeper = o if graph.output_saved[output] else _NOBODY
    work.totals[STAMP] += 1
    for e in range(graph.edge_begin[output], graph.edge_begin[output + 1]):
        reader, gradient, saved = graph.edge_consumer[e], graph.edge_gradient[e], graph.edge_saved[e]
        row = layout.row_base[e] + p
        for pair in range(pools.rows[row], pools.rows[row + 1]):
            q = pools.pair_reader[pair]
            target, target_device = work.forward_id[reader] + q, layout.devices[reader, q]
            work.in_degree[target] += 1
            work.out_degree[target] += gradient
            last = reader
            if gradient:
                last_gradient = reader
            if target_device == device:
                work.successors[edge] = target
                work.mirrored[edge] = gradient
                edge += 1
                work.in_degree[mirror - task] += gradient
                if saved:
                    keeper = min(keeper, reader)
                continue
            k = _find_delivery(work, target_device, pools.pair_box[pair])
            if k < 0:
                k = num_deliveries
                num_deliveries += 1
                _begin_delivery(work, k, target_device, pools.pair_box[pair], pools.pair_bytes[pair], reader)
            _add_reader(work, k, reader, gradient, saved)
            work.reading_delivery[num_readings] = k
            work.reading_task[num_readings] = 2 * target + gradient
            num_readings += 1
    death = last if keeper == _NOBODY else last_step - keeper
    _hold(work.memory_bytes[0], device, o, death, size)
    if last_gradient >= 0:
        _hold(work.memory_bytes[0], device, last_step - last_gradient, last_step - o, size)
    return edge, num_deliveries, num_readings


@kernel
def _find_delivery(work: Workspace, device: int, box: int) -> int:
    """The delivery of `box` to `device` among those of the output at hand, or -1."""
    if work.slot_stamp[device] != work.totals[STAMP]:
        work.slot_stamp[device] = work.totals[STAMP]
        work.slot[device] = -1
    k = work.slot[device]
    while k >= 0 and work.deliveries[k, BOX] != box:
        k = work.deliveries[k, NEXT]
    return int(k)


@kernel
def _begin_delivery(work: Workspace, k: int, device: int, box: int, num_bytes: int, reader: int) -> None:
    row = work.deliveries[k]
    row[BOX] = box
    row[NEXT] = work.slot[device]
    row[NUM_READERS] = 0
    row[NUM_GRADIENTS] = 0
    row[FIRST] = reader
    row[KEEPER] = _NOBODY
    row[FIRST_GRADIENT] = -1
    row[BYTES] = num_bytes
    row[TARGET] = device
    work.slot[device] = k


@kernel
def _add_reader(work: Workspace, k: int, reader: int, gradient: int, saved: int) -> None:
    """Readers come in ascending order, so the first one seen is the first in the program."""
    row = work.deliveries[k]
    row[NUM_READERS] += 1
    row[LAST] = reader
    if gradient:
        row[NUM_GRADIENTS] += 1
        row[LAST_GRADIENT] = reader
        if row[FIRST_GRADIENT] < 0:
            row[FIRST_GRADIENT] = reader
    if saved and row[KEEPER] == _NOBODY:
        row[KEEPER] = reader


@kernel
def _enter_delivery(tables: ClusterTables, work: Workspace, device: int, o: int, p: int, k: int) -> None:
    """Enters the transfer of a delivery and of its gradient."""
    num_devices = tables.num_devices
    row = work.deliveries[k]
    task = work.delivery_id[o] + work.num_deliveries[o] + k
    route = device * num_devices + row[TARGET]
    time_s = tables.route_latency_s[route] + row[BYTES] / tables.route_bandwidth_bytes_per_s[route]
    _enter(work, task, num_devices + route, time_s, row[BYTES])
    work.in_degree[task] = 1
    work.origin[task] = p
    work.totals[ACTIVATION_BYTES] += row[BYTES]
    if row[NUM_GRADIENTS] > 0:
        back = 2 * work.totals[HALF] - 1 - task
        route = row[TARGET] * num_devices + device
        time_s = tables.route_latency_s[route] + row[BYTES] / tables.route_bandwidth_bytes_per_s[route]
        _enter(work, back, num_devices + route, time_s, row[BYTES])
        work.in_degree[back] = row[NUM_GRADIENTS]
        work.origin[back] = p
        work.totals[GRADIENT_BYTES] += row[BYTES]


@kernel
def _link_deliveries(work: Workspace, o: int, num_deliveries: int, num_readings: int) -> None:
    """Enters the successors of the transfers of one part: the tasks that wait for them."""
    first = work.delivery_id[o] + work.num_deliveries[o]
    edge = work.totals[NUM_EDGES]
    for k in range(num_deliveries):
        work.successor_begin[first + k] = edge
        work.deliveries[k, CURSOR] = edge
        edge += work.deliveries[k, NUM_READERS]
        work.successor_end[first + k] = edge
    for i in range(num_readings):
        k = work.reading_delivery[i]
        at = work.deliveries[k, CURSOR]
        work.deliveries[k, CURSOR] += 1
        work.successors[at] = work.reading_task[i] >> 1
        work.mirrored[at] = work.reading_task[i] & 1
    work.totals[NUM_EDGES] = edge


@kernel
def _hold_deliveries(graph: GraphTables, work: Workspace, num_deliveries: int) -> None:
    last_step = 2 * graph.num_operators - 1
    for k in range(num_deliveries):
        row = work.deliveries[k]
        kept = row[KEEPER] != _NOBODY
        death = last_step - row[KEEPER] if kept else row[LAST]
        _hold(work.memory_bytes[0 if kept else 1], row[TARGET], row[FIRST], death, row[BYTES])
        if row[NUM_GRADIENTS] > 0:
            born = last_step - row[LAST_GRADIENT]
            _hold(work.memory_bytes[1], row[TARGET], born, last_step - row[FIRST_GRADIENT], row[BYTES])


@kernel
def link_backward(graph: GraphTables, layout: Layout, work: Workspace) -> None:
    """Enters the successors of backward tasks and gradient transfers: the forward edges turned round."""
    mirror = 2 * work.totals[HALF] - 1
    edge = work.totals[NUM_EDGES]
    for o in range(graph.num_operators):
        for task in range(work.forward_id[o], work.forward_id[o] + layout.num_parts[o]):
            work.successor_begin[mirror - task] = edge
            work.successor_end[mirror - task] = edge
            edge += work.out_degree[task]
    for o in range(graph.num_operators):
        delivery_id = work.delivery_id[o]
        for task in range(work.forward_id[o], delivery_id + work.num_deliveries[o]):
            for e in range(work.successor_begin[task], work.successor_end[task]):
                if not work.mirrored[e]:
                    continue
                back = mirror - work.successors[e]
                if task < delivery_id and work.successors[e] < delivery_id + work.num_deliveries[o]:
                    work.successor_begin[back] = edge
                    work.successor_end[back] = edge
                    edge += 1
                work.successors[work.successor_end[back]] = mirror - task
                work.successor_end[back] += 1
    for i in range(work.totals[NUM_CONTRIBUTIONS]):
        source = work.contribution_source[i]
        work.successors[work.successor_end[source]] = work.contribution_target[i]
        work.successor_end[source] += 1
    work.totals[NUM_EDGES] = edge
