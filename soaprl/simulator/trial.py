"""Tries changes of a strategy: applies them, simulates, and takes back what is not of interest."""

from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import FloatArray, IntArray
from soaprl.cost.kernels import inner_kernel
from soaprl.simulator.edges import Found
from soaprl.simulator.follow import GIVEN_UP_S, follow
from soaprl.simulator.memory import peak_memory
from soaprl.simulator.patch import DONE, UNKNOWN_PATTERN, Change, Graph, Setting, add_load, apply
from soaprl.simulator.queue import Queue
from soaprl.simulator.record import Record, begin_following, touch_change, worth_following
from soaprl.simulator.schedule import schedule
from soaprl.simulator.state import ACTIVATION_BYTES, GRADIENT_BYTES, SYNC_BYTES


class Limits(NamedTuple):
    """Of memory.

    Attributes:
        peaks: Shape [devices]; filled.
        live: Shape [devices]; working memory.
        capacity: Shape [devices]; bytes.
        state_per_byte: Bytes of optimizer state for each byte of a trainable parameter.
    """

    peaks: IntArray
    live: IntArray
    capacity: IntArray
    state_per_byte: int


# Entries of `Outcome.numbers`; what `STATUS` may say beyond the answers of `apply`.
STATUS, PEAK_BYTES, FITS, MOVED_BYTES, OPEN = 0, 1, 2, 3, 4
NUM_NUMBERS = 5
TOO_LONG, UNKNOWN_VECTOR = 4, 5


class Outcome(NamedTuple):
    """What came of a change.

    Attributes:
        time_s: Shape [1].
        numbers: Shape [5]; status, largest peak, whether all fits, bytes moved, and 1 while a change is
            applied that may still be taken back.
    """

    time_s: FloatArray
    numbers: IntArray


class Rows(NamedTuple):
    """Changes to try, one after the other; each row gives an operator, or a tied group, a configuration.

    Operators are those of one micro-batch; all copies of them change.

    Attributes:
        first: Shape [operators]; where the degree vectors of each operator begin in `patterns`.
        patterns: The pattern of each degree vector, or -1 while it is not known.
        tie_begin: Shape [operators + 1]; where the list of operators tied to each begins.
        ties: Those lists; each contains the operator itself.
        operators: Shape [rows].
        vectors: Shape [rows]; which of the operator's degree vectors.
        num_tasks: Shape [rows].
        devices: Shape [rows, most tasks].
        exponentials: Shape [rows]; what the time may get worse by, see `Scale`.
        ratios: Shape [rows]; what each further tied operator adds to that.
        tied: Shape [rows]; 1 where all operators tied to this one that are configured alike change with it.
    """

    first: IntArray
    patterns: IntArray
    tie_begin: IntArray
    ties: IntArray
    operators: IntArray
    vectors: IntArray
    num_tasks: IntArray
    devices: IntArray
    exponentials: FloatArray
    ratios: FloatArray
    tied: IntArray


class Scale(NamedTuple):
    """What the limit of a candidate depends on.

    It is the larger of

        current_s + (exponentials[row] + (tied operators - 1) * ratios[row]) * scale_s   and   best_s;

    best_s alone if an operator tied to the changed ones, but configured otherwise, is configured like them
    after the change. While the strategy at hand does not fit in memory, a candidate that fits has no limit,
    and of the others the peak memory has the limit that follows from the last three in the same way.

    Attributes:
        current_s: Time of the strategy at hand.
        scale_s: See above.
        best_s: Best time so far.
        current_bytes: Peak memory of the strategy at hand if it does not fit; -1 if it does.
        scale_bytes: Like `scale_s`.
        best_bytes: Least peak memory so far.
    """

    current_s: float
    scale_s: float
    best_s: float
    current_bytes: float
    scale_bytes: float
    best_bytes: float


@inner_kernel
def simulate_graph(
    setting: Setting,
    graph: Graph,
    queue: Queue,
    limits: Limits,
    outcome: Outcome,
    horizon_s: float,
    limit_s: float,
) -> None:
    """Schedules the task graph; an infinite time: certainly longer than `limit_s`."""
    outcome.time_s[0] = schedule(
        graph.layout, setting.tables, graph.plans, graph.blocks, graph.work, queue, horizon_s, limit_s
    )
    _judge(setting, graph, limits, outcome)


@inner_kernel
def _judge(setting: Setting, graph: Graph, limits: Limits, outcome: Outcome) -> None:
    """What there is to know beside the time, if it is finite."""
    if outcome.time_s[0] < np.inf:
        _judge_memory(setting, graph, limits, outcome)


@inner_kernel
def _judge_memory(setting: Setting, graph: Graph, limits: Limits, outcome: Outcome) -> None:
    """What there is to know beside the time; needs no schedule."""
    work = graph.work
    outcome.numbers[PEAK_BYTES] = peak_memory(work, limits.peaks, limits.live, limits.state_per_byte)
    outcome.numbers[FITS] = 1
    for device in range(setting.tables.num_devices):
        if limits.peaks[device] > limits.capacity[device]:
            outcome.numbers[FITS] = 0
    totals = work.totals
    outcome.numbers[MOVED_BYTES] = totals[ACTIVATION_BYTES] + totals[GRADIENT_BYTES] + totals[SYNC_BYTES]


@inner_kernel
def propose_change(
    setting: Setting,
    found: Found,
    graph: Graph,
    change: Change,
    record: Record,
    queue: Queue,
    limits: Limits,
    outcome: Outcome,
    horizon_s: float,
    limit_s: float,
) -> None:
    """Applies the change and simulates; takes it back if that takes longer than `limit_s`."""
    if _begin_change(setting, found, graph, change, outcome, limit_s) == DONE:
        _finish_change(setting, found, graph, change, record, queue, limits, outcome, horizon_s, limit_s)


@inner_kernel
def _begin_change(
    setting: Setting, found: Found, graph: Graph, change: Change, outcome: Outcome, limit_s: float
) -> int:
    """Applies the change unless a device alone has more to compute than `limit_s`; returns the status."""
    add_load(setting, found, graph, change, 1)
    _add_load_at_hand(setting, found, graph, change, -1)
    longest_s = 0.0
    for device in range(setting.tables.num_devices):
        longest_s = max(longest_s, graph.work.load_s[device])
    status = TOO_LONG if longest_s > limit_s else apply(setting, found, graph, change)
    if status in (TOO_LONG, UNKNOWN_PATTERN):
        add_load(setting, found, graph, change, -1)
        _add_load_at_hand(setting, found, graph, change, 1)
    outcome.numbers[STATUS] = status
    outcome.numbers[OPEN] = 0 if status in (TOO_LONG, UNKNOWN_PATTERN) else 1
    return int(status)


@inner_kernel
def _finish_change(
    setting: Setting,
    found: Found,
    graph: Graph,
    change: Change,
    record: Record,
    queue: Queue,
    limits: Limits,
    outcome: Outcome,
    horizon_s: float,
    limit_s: float,
) -> None:
    """Simulates after a change, and takes it back if that takes longer than `limit_s`."""
    time_s = GIVEN_UP_S
    if record.size[0] > 0 and worth_following(record):
        _mark(setting, found, graph, change, record)
        time_s = follow(
            graph.layout,
            setting.tables,
            graph.plans,
            graph.blocks,
            graph.work,
            queue,
            record,
            horizon_s,
            limit_s,
        )
    outcome.time_s[0] = time_s
    if time_s == GIVEN_UP_S:
        simulate_graph(setting, graph, queue, limits, outcome, horizon_s, limit_s)
    else:
        _judge(setting, graph, limits, outcome)
    if outcome.time_s[0] == np.inf:
        _refuse(setting, found, graph, change, outcome)


@inner_kernel
def _mark(setting: Setting, found: Found, graph: Graph, change: Change, record: Record) -> None:
    """Marks in the record what the change, which was applied, touches."""
    begin_following(graph.work, record, setting.tables.num_devices)
    for i in range(change.sizes[0]):
        change.old_parts[i] = found.operators[change.patterns[i], 0]
    touch_change(
        setting.graph,
        setting.near,
        graph.layout,
        graph.blocks,
        graph.work,
        record,
        change.operators[: change.sizes[0]],
        change.old_parts,
        change.groups[: change.sizes[1]],
    )


@inner_kernel
def _add_load_at_hand(setting: Setting, found: Found, graph: Graph, change: Change, sign: int) -> None:
    """Adds `sign` times what the tasks of the operators to be changed take now."""
    load_s, layout, pools = graph.work.load_s, graph.layout, found.pools
    for i in range(change.sizes[0]):
        o = change.operators[i]
        for part in range(layout.num_parts[o]):
            device = layout.devices[o, part]
            timed = (layout.part_base[o] + part) * pools.num_types + setting.tables.device_type[device]
            load_s[device] += sign * (pools.forward_s[timed] + pools.backward_s[timed])


@inner_kernel
def take_change_back(setting: Setting, found: Found, graph: Graph, change: Change, outcome: Outcome) -> int:
    """Exchanges the change with the layout again; returns what `apply` does."""
    outcome.numbers[OPEN] = 0
    add_load(setting, found, graph, change, 1)
    _add_load_at_hand(setting, found, graph, change, -1)
    outcome.numbers[STATUS] = apply(setting, found, graph, change)
    return int(outcome.numbers[STATUS])


@inner_kernel
def scan_candidates(
    setting: Setting,
    found: Found,
    graph: Graph,
    change: Change,
    record: Record,
    queue: Queue,
    limits: Limits,
    outcome: Outcome,
    rows: Rows,
    scale: Scale,
    first: int,
    end: int,
) -> int:
    """The first row from `first` to `end` that is within its limit, or `end`.

    The status says what became of the last row looked at; `DONE`: its change is applied.
    """
    outcome.numbers[STATUS] = TOO_LONG
    for row in range(first, end):
        energy = _stage(setting.num_copies, found, graph, change, rows, row)
        if energy == np.inf:
            outcome.numbers[STATUS] = UNKNOWN_VECTOR
            return row
        fits_now = scale.current_bytes < 0
        limit_s = _limit(energy, scale.current_s, scale.scale_s, scale.best_s) if fits_now else np.inf
        status = _begin_change(setting, found, graph, change, outcome, limit_s)
        if status not in (DONE, TOO_LONG):
            return row
        if status == DONE and not fits_now:
            limit_bytes = _limit(energy, scale.current_bytes, scale.scale_bytes, scale.best_bytes)
            _judge_memory(setting, graph, limits, outcome)
            if outcome.numbers[FITS] == 0 and outcome.numbers[PEAK_BYTES] > limit_bytes:
                _refuse(setting, found, graph, change, outcome)
                status = TOO_LONG
        if status == TOO_LONG:
            continue
        _finish_change(
            setting, found, graph, change, record, queue, limits, outcome, scale.current_s, limit_s
        )
        if outcome.numbers[STATUS] == TOO_LONG:
            continue
        if fits_now and (outcome.time_s[0] > limit_s or outcome.numbers[FITS] == 0):
            _refuse(setting, found, graph, change, outcome)
            continue
        return row
    return end


@inner_kernel
def _refuse(setting: Setting, found: Found, graph: Graph, change: Change, outcome: Outcome) -> None:
    """Takes a change back that is beyond its limit."""
    status = take_change_back(setting, found, graph, change, outcome)
    assert status == DONE
    outcome.numbers[STATUS] = TOO_LONG


@inner_kernel
def _limit(energy: float, current: float, scale: float, best: float) -> float:
    """See `Scale`."""
    return best if energy == -np.inf else float(max(current + energy * scale, best))


@inner_kernel
def _stage(num_copies: int, found: Found, graph: Graph, change: Change, rows: Rows, row: int) -> float:
    """Makes a row the change at hand, for all copies of its operators, which are configured alike.

    Returns:
        How much worse it may be, in the units of `Scale`; minus infinity if only a best one is of interest;
        infinity if a pattern is not known.
    """
    operator, vector = rows.operators[row], rows.vectors[row]
    first, end = rows.tie_begin[operator], rows.tie_begin[operator + 1]
    change.sizes[0], change.sizes[2] = 0, 0
    if not rows.tied[row] or end - first == 1:
        if rows.patterns[rows.first[operator] + vector] < 0:
            return np.inf
        _stage_operator(num_copies, change, rows, row, operator)
        return float(rows.exponentials[row])
    conflict = False
    same_as_now = _is_configured(found, graph, rows, row, operator)
    for k in range(first, end):
        member = rows.ties[k]
        if rows.patterns[rows.first[member] + vector] < 0:
            return np.inf
        if _alike(found, graph, operator, member):
            _stage_operator(num_copies, change, rows, row, member)
        elif _is_configured(found, graph, rows, row, member):
            conflict = True
    if conflict and not same_as_now:
        return -np.inf
    return float(rows.exponentials[row] + (change.sizes[0] // num_copies - 1) * rows.ratios[row])


@inner_kernel
def _stage_operator(num_copies: int, change: Change, rows: Rows, row: int, operator: int) -> None:
    for copy in range(num_copies):
        at = change.sizes[0]
        change.operators[at] = copy * len(rows.first) + operator
        change.patterns[at] = rows.patterns[rows.first[operator] + rows.vectors[row]]
        for part in range(rows.num_tasks[row]):
            change.devices[at, part] = rows.devices[row, part]
        change.sizes[0] = at + 1


@inner_kernel
def _alike(found: Found, graph: Graph, one: int, other: int) -> bool:
    """Whether two operators have the same configuration."""
    layout = graph.layout
    if found.operators[layout.pattern[one], 3] != found.operators[layout.pattern[other], 3]:
        return False
    for part in range(layout.num_parts[one]):
        if layout.devices[one, part] != layout.devices[other, part]:
            return False
    return True


@inner_kernel
def _is_configured(found: Found, graph: Graph, rows: Rows, row: int, operator: int) -> bool:
    """Whether an operator has the configuration of a row already."""
    layout = graph.layout
    if layout.pattern[operator] != rows.patterns[rows.first[operator] + rows.vectors[row]]:
        return False
    for part in range(layout.num_parts[operator]):
        if layout.devices[operator, part] != rows.devices[row, part]:
            return False
    return True
