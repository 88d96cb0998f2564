"""Compiled code of `soaprl_envs`: moving times, and the features of candidates in company.

One file, because Numba keeps compiled code by file and does not notice changes of other files whose functions
were inlined.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from soaprl.cluster.tables import ClusterTables, FloatArray, IntArray
from soaprl.cost.kernels import filling_kernel, inlined_kernel, inner_kernel
from soaprl_envs.moving import LinkLoads, Moves
from soaprl_envs.tables import Alone, Near

# Columns of a row of `soaprl_envs.context.CONTEXT_COLUMNS`.
_MOVING_IN, _MOVING_OUT, _TOTAL, _RELATIVE, _LOAD_MAX, _LOAD_MEAN, _LOAD_AFTER = range(7)
_MEMORY_BEFORE, _MEMORY_AFTER, _ALIGNED_IN, _ALIGNED_OUT, _SAME_DEVICES = range(7, 12)
_TIED_AGREEMENT, _TIED_DECIDED, _NEIGHBOURS_DECIDED, _IS_CURRENT = range(12, 16)
_LARGEST = 5.0


class Company(NamedTuple):
    """The choices of B samples of a problem with N operators on D devices, and working memory.

    Attributes:
        chosen: Shape [B, N]; the candidate that each operator holds.
        decided: Shape [B, N].
        load_s: Shape [B, D]; compute seconds on each device.
        load_bytes: Shape [B, D]; what its tasks keep.
        others_s: Shape [D]; working memory: the loads without one operator.
        others_bytes: Shape [D]; likewise.
        own_s: Shape [D]; working memory: the load of one candidate; zero between calls.
        own_bytes: Shape [D]; likewise.
        total_s: Shape [K]; working memory.
    """

    chosen: IntArray
    decided: NDArray[np.bool_]
    load_s: FloatArray
    load_bytes: IntArray
    others_s: FloatArray
    others_bytes: IntArray
    own_s: FloatArray
    own_bytes: IntArray
    total_s: FloatArray


@inner_kernel
def moving_time(
    cluster: ClusterTables,
    moves: Moves,
    num_tasks: IntArray,
    devices: IntArray,
    loads: LinkLoads,
    kind: int,
    producer: int,
    consumer: int,
) -> float:
    """Seconds of moving along an edge of `kind`, there and back; kept in `Moves.time_s`.

    Args:
        cluster: The cluster.
        moves: The edges.
        num_tasks: Shape [families, K].
        devices: Shape [families, K, tasks].
        loads: Working memory.
        kind: The kind of edge.
        producer: The producer's candidate.
        consumer: The consumer's candidate.
    """
    known = moves.time_s[kind, producer, consumer]
    if known == known:  # a number
        return float(known)
    from_family, to_family = moves.producer[kind], moves.consumer[kind]
    dims = moves.dims[kind]
    first_written, first_read = moves.written_at[kind, producer], moves.read_at[kind, consumer]
    num_used, num_used_back = 0, 0
    latency_s, back_latency_s = 0.0, 0.0
    for w in range(num_tasks[from_family, producer]):
        source = devices[from_family, producer, w]
        for r in range(num_tasks[to_family, consumer]):
            target = devices[to_family, consumer, r]
            if source == target:
                continue
            elements = _common(moves.boxes, first_written + 2 * dims * w, first_read + 2 * dims * r, dims)
            if elements == 0:
                continue
            size = float(elements * moves.itemsize[kind])
            latency_s = max(latency_s, cluster.route_latency_s[source * cluster.num_devices + target])
            num_used = _send(cluster, loads, 0, num_used, source, target, size)
            if moves.gradient[kind]:
                back_latency_s = max(
                    back_latency_s, cluster.route_latency_s[target * cluster.num_devices + source]
                )
                num_used_back = _send(cluster, loads, 1, num_used_back, target, source, size)
    time_s = latency_s + _busiest(loads, 0, num_used) + back_latency_s + _busiest(loads, 1, num_used_back)
    moves.time_s[kind, producer, consumer] = time_s
    return float(moves.time_s[kind, producer, consumer])


@inlined_kernel
def _common(boxes: IntArray, written: int, read: int, dims: int) -> int:
    """Elements in both boxes."""
    elements = 1
    for d in range(dims):
        start = max(boxes[written + 2 * d], boxes[read + 2 * d])
        stop = min(boxes[written + 2 * d + 1], boxes[read + 2 * d + 1])
        if start >= stop:
            return 0
        elements *= stop - start
    return elements


@inlined_kernel
def _send(
    cluster: ClusterTables, loads: LinkLoads, way: int, num_used: int, source: int, target: int, size: float
) -> int:
    """Puts `size` bytes on a route; returns how many links have entries."""
    route = source * cluster.num_devices + target
    for position in range(cluster.route_offsets[route], cluster.route_offsets[route + 1]):
        link = cluster.route_links[position]
        if loads.load_s[way, link] == 0.0:
            loads.used[way, num_used] = link
            num_used += 1
        loads.load_s[way, link] += size / cluster.link_bandwidth_bytes_per_s[link]
    return num_used


@inlined_kernel
def _busiest(loads: LinkLoads, way: int, num_used: int) -> float:
    """The largest entry; all are zero again afterwards."""
    busiest = 0.0
    for k in range(num_used):
        link = loads.used[way, k]
        busiest = max(busiest, loads.load_s[way, link])
        loads.load_s[way, link] = 0.0
    return busiest


@filling_kernel
def fill_moving(
    cluster: ClusterTables,
    moves: Moves,
    num_tasks: IntArray,
    devices: IntArray,
    loads: LinkLoads,
    kinds: IntArray,
    producers: IntArray,
    consumers: IntArray,
    times_s: FloatArray,
) -> None:
    """`moving_time` for many edges, into `times_s` of shape [edges]."""
    for i in range(len(kinds)):
        times_s[i] = moving_time(
            cluster, moves, num_tasks, devices, loads, kinds[i], producers[i], consumers[i]
        )


@filling_kernel
def place_all(alone: Alone, company: Company) -> None:
    """Sums up the loads of all samples anew."""
    company.load_s[:] = 0.0
    company.load_bytes[:] = 0
    for b in range(company.chosen.shape[0]):
        for o in range(company.chosen.shape[1]):
            _add(alone, o, company.chosen[b, o], company.load_s[b], company.load_bytes[b], 1)


@filling_kernel
def choose_in_all(alone: Alone, company: Company, operators: IntArray, candidates: IntArray) -> None:
    """Decides one operator in each sample; both arrays have shape [B]."""
    for b in range(len(operators)):
        o, c = operators[b], candidates[b]
        if company.chosen[b, o] != c:
            _add(alone, o, company.chosen[b, o], company.load_s[b], company.load_bytes[b], -1)
            _add(alone, o, c, company.load_s[b], company.load_bytes[b], 1)
            company.chosen[b, o] = c
        company.decided[b, o] = True


@inlined_kernel
def _add(alone: Alone, o: int, c: int, load_s: FloatArray, load_bytes: IntArray, sign: int) -> None:
    """Adds `sign` times what a candidate puts on each device."""
    f = alone.family[o]
    v = alone.variant[f, c]
    for task in range(alone.num_tasks[f, c]):
        device = alone.devices[f, c, task]
        load_s[device] += sign * alone.task_s[v, task, alone.device_type[device]]
        load_bytes[device] += sign * alone.task_bytes[v, task]


@filling_kernel
def fill_rows(
    alone: Alone,
    near: Near,
    moves: Moves,
    cluster: ClusterTables,
    loads: LinkLoads,
    company: Company,
    operators: IntArray,
    current: bool,
    out: NDArray[np.float32],
) -> None:
    """The features of the candidates of one operator in each sample; see `soaprl_envs.context`.

    Args:
        alone: The candidates by themselves.
        near: Edges and ties.
        moves: Moving times; missing ones are filled in.
        cluster: The cluster.
        loads: Working memory.
        company: The choices.
        operators: Shape [B].
        current: Whether to say which candidate the operator holds.
        out: Shape [B, K, columns]; filled.
    """
    for b in range(len(operators)):
        o = operators[b]
        out[b] = 0.0
        for device in range(len(company.others_s)):
            company.others_s[device] = company.load_s[b, device]
            company.others_bytes[device] = company.load_bytes[b, device]
        _add(alone, o, company.chosen[b, o], company.others_s, company.others_bytes, -1)
        for c in range(alone.num_candidates[alone.family[o]]):
            _fill_loads(alone, company, o, c, out[b, c])
        _fill_moves(alone, near, moves, cluster, loads, company, b, o, out[b])
        _fill_company(alone, near, company, b, o, out[b])
        if current:
            out[b, company.chosen[b, o], _IS_CURRENT] = 1.0


@inlined_kernel
def _fill_loads(alone: Alone, company: Company, o: int, c: int, row: NDArray[np.float32]) -> None:
    """What the others put on a candidate's devices."""
    f, scale_s = alone.family[o], alone.scale_s[0]
    num_tasks, num_devices = alone.num_tasks[f, c], 0
    _add(alone, o, c, company.own_s, company.own_bytes, 1)
    largest_s, sum_s, share, share_after = 0.0, 0.0, 0.0, 0.0
    after_s = 0.0
    for task in range(num_tasks):
        device = alone.devices[f, c, task]
        if company.own_bytes[device] < 0:
            continue
        other_s, other_bytes = company.others_s[device], company.others_bytes[device]
        num_devices += 1
        largest_s, sum_s = max(largest_s, other_s), sum_s + other_s
        after_s = max(after_s, other_s + company.own_s[device])
        capacity = alone.capacity_bytes[device]
        share = max(share, other_bytes / capacity)
        share_after = max(share_after, (other_bytes + company.own_bytes[device]) / capacity)
        # Marks a device that was looked at.
        company.own_bytes[device] = -1
    for task in range(num_tasks):
        device = alone.devices[f, c, task]
        company.own_s[device], company.own_bytes[device] = 0.0, 0
    busiest_s = 0.0
    for device in range(len(company.others_s)):
        busiest_s = max(busiest_s, company.others_s[device])
    row[_LOAD_MAX] = _gauge(largest_s / scale_s)
    row[_LOAD_MEAN] = _gauge(sum_s / num_devices / scale_s)
    row[_LOAD_AFTER] = _clipped(np.log(max(after_s, busiest_s, 1e-12) / max(busiest_s, 1e-3 * scale_s)))
    row[_MEMORY_BEFORE] = _clipped(share)
    row[_MEMORY_AFTER] = _clipped(share_after)


@inner_kernel
def _fill_moves(
    alone: Alone,
    near: Near,
    moves: Moves,
    cluster: ClusterTables,
    loads: LinkLoads,
    company: Company,
    b: int,
    o: int,
    rows: NDArray[np.float32],
) -> None:
    """What moves to and from a candidate."""
    f, scale_s, least_s = alone.family[o], alone.scale_s[0], np.inf
    in_begin, in_end = near.in_begin[o], near.in_begin[o + 1]
    out_begin, out_end = near.out_begin[o], near.out_begin[o + 1]
    for c in range(alone.num_candidates[f]):
        in_s, out_s, still_in, still_out, same = 0.0, 0.0, 0, 0, 0
        for position in range(in_begin, in_end):
            e = near.in_edges[position]
            p = near.producer[e]
            kind, theirs = moves.kind[e], company.chosen[b, p]
            time_s = float(moves.time_s[kind, theirs, c])
            if time_s != time_s:  # not a number
                time_s = moving_time(cluster, moves, alone.num_tasks, alone.devices, loads, kind, theirs, c)
            in_s += time_s
            still_in += time_s == 0.0
            same += alone.placement[alone.family[p], theirs] == alone.placement[f, c]
        for position in range(out_begin, out_end):
            e = near.out_edges[position]
            kind, theirs = moves.kind[e], company.chosen[b, near.consumer[e]]
            time_s = float(moves.time_s[kind, c, theirs])
            if time_s != time_s:
                time_s = moving_time(cluster, moves, alone.num_tasks, alone.devices, loads, kind, c, theirs)
            out_s += time_s
            still_out += time_s == 0.0
        company.total_s[c] = alone.own_s[f, c] + alone.sync_s[f, c] + in_s + out_s
        least_s = min(least_s, company.total_s[c])
        rows[c, _MOVING_IN], rows[c, _MOVING_OUT] = _gauge(in_s / scale_s), _gauge(out_s / scale_s)
        rows[c, _ALIGNED_IN] = still_in / max(1, in_end - in_begin)
        rows[c, _ALIGNED_OUT] = still_out / max(1, out_end - out_begin)
        rows[c, _SAME_DEVICES] = same / max(1, in_end - in_begin)
    for c in range(alone.num_candidates[f]):
        rows[c, _TOTAL] = _gauge(company.total_s[c] / scale_s)
        rows[c, _RELATIVE] = _clipped(
            np.log((company.total_s[c] + 1e-9 * scale_s) / (least_s + 1e-9 * scale_s))
        )


@inner_kernel
def _fill_company(
    alone: Alone, near: Near, company: Company, b: int, o: int, rows: NDArray[np.float32]
) -> None:
    """What is decided around an operator, and what the operators tied to it are."""
    f = alone.family[o]
    num_near, num_decided = 0, 0
    for position in range(near.in_begin[o], near.in_begin[o + 1]):
        num_near += 1
        num_decided += company.decided[b, near.producer[near.in_edges[position]]]
    for position in range(near.out_begin[o], near.out_begin[o + 1]):
        num_near += 1
        num_decided += company.decided[b, near.consumer[near.out_edges[position]]]
    num_ties, num_tied = near.tie_begin[o + 1] - near.tie_begin[o], 0
    for position in range(near.tie_begin[o], near.tie_begin[o + 1]):
        num_tied += company.decided[b, near.ties[position]]
    for c in range(alone.num_candidates[f]):
        alike = 0
        for position in range(near.tie_begin[o], near.tie_begin[o + 1]):
            m = near.ties[position]
            if company.decided[b, m]:
                alike += alone.config[alone.family[m], company.chosen[b, m]] == alone.config[f, c]
        rows[c, _TIED_AGREEMENT] = alike / max(1, num_tied)
        rows[c, _TIED_DECIDED] = num_tied / max(1, num_ties)
        rows[c, _NEIGHBOURS_DECIDED] = num_decided / max(1, num_near)


@inlined_kernel
def _gauge(share: float) -> float:
    """How long something takes relative to the iteration, from 0 to 5."""
    return float(min(_LARGEST, 0.5 * np.log1p(1000.0 * share)))


@inlined_kernel
def _clipped(value: float) -> float:
    return max(-_LARGEST, min(_LARGEST, value))
