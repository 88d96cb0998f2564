"""The one compiled function through which Python simulates.

Whatever is to be done stands on the same tree of kernels, and each entry into a tree is compiled with all of
it. So there is one entry, told what to do.
"""

import numpy as np

from soaprl.cost.kernels import filling_kernel
from soaprl.simulator.edges import Found
from soaprl.simulator.patch import Change, Graph, Setting, rebuild
from soaprl.simulator.queue import Queue
from soaprl.simulator.record import Record, record_schedule
from soaprl.simulator.state import NUM_TASKS
from soaprl.simulator.trial import (
    STATUS,
    Limits,
    Outcome,
    Rows,
    Scale,
    propose_change,
    scan_candidates,
    simulate_graph,
    take_change_back,
)

# What there is to do.
PROPOSE, SCAN, TAKE_BACK, SIMULATE, KEEP_SCHEDULE, REBUILD, REPLAN = 0, 1, 2, 3, 4, 5, 6

NO_SCALE = Scale(current_s=0.0, scale_s=0.0, best_s=0.0, current_bytes=-1.0, scale_bytes=0.0, best_bytes=0.0)


def no_rows() -> Rows:
    """No candidates, for what does not look at any."""
    none, nothing = np.zeros(0, np.int64), np.zeros(0, np.float64)
    return Rows(
        first=none,
        patterns=none,
        tie_begin=none,
        ties=none,
        operators=none,
        vectors=none,
        num_tasks=none,
        devices=np.zeros((0, 0), np.int64),
        exponentials=nothing,
        ratios=nothing,
        tied=none,
    )


@filling_kernel
def perform(
    action: int,
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
    horizon_s: float,
    limit_s: float,
    first: int,
    end: int,
) -> int:
    """Does what `action` says.

    - `PROPOSE`: applies `change` and simulates, at most to `limit_s`; returns the status.
    - `SCAN`: looks at the candidates from `first` to `end`; returns where it stopped. Its `change` is filled.
    - `TAKE_BACK`: takes `change` back; returns the status.
    - `SIMULATE`: schedules the task graph, at most to `limit_s`; returns 0.
    - `KEEP_SCHEDULE`: schedules the task graph and keeps the schedule in `record`; returns 0.
    - `REBUILD`, `REPLAN`: enters all blocks into an empty workspace, the latter after planning all groups;
      `change` lists all operators and groups. Returns the status.
    """
    if action == SCAN:
        return scan_candidates(
            setting, found, graph, change, record, queue, limits, outcome, rows, scale, first, end
        )
    if action == PROPOSE:
        propose_change(setting, found, graph, change, record, queue, limits, outcome, horizon_s, limit_s)
        return int(outcome.numbers[STATUS])
    if action == TAKE_BACK:
        return take_change_back(setting, found, graph, change, outcome)
    if action >= REBUILD:
        return rebuild(setting, found, graph, change, action == REPLAN)
    simulate_graph(setting, graph, queue, limits, outcome, horizon_s, limit_s)
    if action == KEEP_SCHEDULE:
        num_tasks, num_devices = graph.work.totals[NUM_TASKS], setting.tables.num_devices
        record_schedule(graph.work, queue.dispatched, num_tasks, num_devices, record)
    return 0
