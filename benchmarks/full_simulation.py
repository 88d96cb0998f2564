"""Simulates strategies from scratch in one compiled call, and times it: what delta simulation is held to.

Kernels that take the same arrays and do nothing show how much of a time is handing them over.
"""

import time
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, NamedTuple

import numba
import numpy as np

from soaprl.cluster.tables import FloatArray, IntArray
from soaprl.cost.kernels import filling_kernel
from soaprl.simulator import Problem
from soaprl.simulator.edges import Found
from soaprl.simulator.engine import Engine
from soaprl.simulator.entry import NO_SCALE, PROPOSE, TAKE_BACK, no_rows
from soaprl.simulator.memory import peak_memory
from soaprl.simulator.patch import DONE, Change, Graph, Setting, apply, empty_change, rebuild
from soaprl.simulator.queue import Queue
from soaprl.simulator.record import Record
from soaprl.simulator.schedule import schedule
from soaprl.simulator.state import ACTIVATION_BYTES, GRADIENT_BYTES, HALF, NUM_TASKS, SYNC_BYTES, UPDATE_ID
from soaprl.simulator.trial import Limits, Outcome, Rows, Scale
from soaprl.strategy.strategy import OpConfig, Strategy

_SCHEDULES, _SCHEDULE_TURNS = 5, 15


def _uncached(function: Callable[..., Any]) -> Any:
    """`function` compiled as `filling_kernel` does, but anew in each run: it contains kernels that change."""
    options: dict[str, Any] = {"_nrt": False}
    return numba.njit(nogil=True, error_model="numpy", **options)(function)


class Memory(NamedTuple):
    """Working memory of the peak memory, and what came of a simulation.

    Attributes:
        peaks: Shape [devices].
        live: Shape [devices].
        capacity: Shape [devices]; bytes.
        numbers: Shape [3]; largest peak, devices on which it does not fit, bytes moved.
        time_s: Shape [1].
    """

    peaks: IntArray
    live: IntArray
    capacity: IntArray
    numbers: IntArray
    time_s: FloatArray


@_uncached
def simulate_fully(
    setting: Setting,
    found: Found,
    graph: Graph,
    everything: Change,
    queue: Queue,
    memory: Memory,
    state_per_byte: int,
    horizon_s: float,
) -> int:
    """Simulates the strategy in `graph` from an empty workspace; returns what `rebuild` does."""
    work, totals, numbers = graph.work, graph.work.totals, memory.numbers
    work.memory_bytes[:] = 0
    work.held_bytes[:] = 0
    work.update_s[:] = 0.0
    totals[NUM_TASKS:] = 0
    work.need[totals[UPDATE_ID] :] = 0
    work.need[2 * totals[HALF]] = 0
    status = rebuild(setting, found, graph, everything, False)
    memory.time_s[0] = schedule(
        graph.layout, setting.tables, graph.plans, graph.blocks, work, queue, horizon_s, np.inf
    )
    numbers[0] = peak_memory(work, memory.peaks, memory.live, state_per_byte)
    numbers[1] = 0
    for device in range(setting.tables.num_devices):
        numbers[1] += memory.peaks[device] > memory.capacity[device]
    numbers[2] = totals[ACTIVATION_BYTES] + totals[GRADIENT_BYTES] + totals[SYNC_BYTES]
    return status


@_uncached
def apply_change(setting: Setting, found: Found, graph: Graph, change: Change) -> int:
    """`apply`, which only compiled code can call."""
    return apply(setting, found, graph, change)


@_uncached
def schedule_often(setting: Setting, graph: Graph, queue: Queue, horizon_s: float, times: int) -> float:
    """Schedules the same task graph so many times; returns the last time of the last finish."""
    last_s = 0.0
    for _ in range(times):
        last_s = schedule(
            graph.layout, setting.tables, graph.plans, graph.blocks, graph.work, queue, horizon_s, np.inf
        )
    return last_s


@filling_kernel
def receive_full(
    setting: Setting,
    found: Found,
    graph: Graph,
    everything: Change,
    queue: Queue,
    memory: Memory,
    state_per_byte: int,
    horizon_s: float,
) -> None:
    """Takes what a full simulation takes, and does nothing."""


@filling_kernel
def receive_all(
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
    """Takes what `soaprl.simulator.entry.perform` takes, and does nothing."""
    return action


@filling_kernel
def receive_schedule(setting: Setting, graph: Graph, queue: Queue, horizon_s: float, times: int) -> None:
    """Takes what a schedule takes, and does nothing."""


class FullSimulator:
    """Simulates changes of one strategy from scratch, and times it."""

    def __init__(self, problem: Problem, strategy: Strategy) -> None:
        self.engine = Engine(problem)
        n, num_groups = len(problem.graph.operators), len(self.engine.index.groups)
        self._everything = empty_change(n, num_groups, 1)
        self._everything.operators[:] = np.arange(n)
        self._everything.groups[:] = np.arange(num_groups)
        self._everything.sizes[:] = n, num_groups, 0
        devices, types = problem.cluster.devices, problem.cluster.device_types
        self.memory = Memory(
            peaks=np.zeros(len(devices), np.int64),
            live=np.zeros(len(devices), np.int64),
            capacity=np.array([types[device.type].memory_bytes for device in devices], np.int64),
            numbers=np.zeros(3, np.int64),
            time_s=np.zeros(1, np.float64),
        )
        self._state_per_byte = problem.options.state_per_parameter_byte
        self.engine.stage(enumerate(strategy.configs))
        evaluation = self.engine.propose()
        assert evaluation is not None
        self._horizon_s = evaluation.iteration_time_s

    def full_us(self, changes: dict[int, OpConfig]) -> float:
        """How long a full simulation of the strategy with changes takes."""
        engine = self._changed(changes)
        taken_us = timed_us(lambda: simulate_fully(*self._full_arguments()))
        engine.take_back()
        return taken_us

    def call_us(self) -> float:
        """How long the part of a full simulation takes that is not compiled."""
        return timed_us(lambda: receive_full(*self._full_arguments()))

    def task_us(self, changes: dict[int, OpConfig]) -> float:
        """How long the schedule of a task of the strategy with changes takes, the first time."""
        engine = self._changed(changes)
        arguments = engine.setting, engine.graph, engine.queue, self._horizon_s, 1
        taken_us = timed_us(lambda: schedule_often(*arguments))
        taken_us -= timed_us(lambda: receive_schedule(*arguments))
        num_tasks = int(engine.graph.work.totals[NUM_TASKS])
        # Loads are not up to date yet.
        simulate_fully(*self._full_arguments())
        engine.take_back()
        return taken_us / num_tasks

    def learn(self, changes: dict[int, OpConfig]) -> None:
        """Computes the patterns and makes the room that the strategy with changes needs."""
        self.engine.stage(changes.items())
        self.engine.propose()
        self.engine.take_back()

    def _changed(self, changes: dict[int, OpConfig]) -> Engine:
        """The engine with the strategy with changes, which is not scheduled: that would make it faster."""
        engine = self.engine
        engine.stage(changes.items())
        status = apply_change(engine.setting, engine.found, engine.graph, engine.change)
        assert status == DONE, "`learn` comes first"
        return engine

    def _full_arguments(self) -> tuple[Any, ...]:
        engine = self.engine
        graph = engine.setting, engine.found, engine.graph, self._everything, engine.queue
        return *graph, self.memory, self._state_per_byte, self._horizon_s

    def outside_us(self, changes: dict[int, OpConfig]) -> float:
        """How long the part of a proposal and its rollback takes that is not compiled."""
        engine, memory, horizon_s, rows = self.engine, self.memory, self._horizon_s, no_rows()
        limits = Limits(
            peaks=memory.peaks,
            live=memory.live,
            capacity=memory.capacity,
            state_per_byte=self._state_per_byte,
        )
        outcome = Outcome(time_s=memory.time_s, numbers=memory.numbers)

        def pretend() -> None:
            engine.stage(changes.items())
            for action in (PROPOSE, TAKE_BACK):
                setting, found, graph, change = engine.setting, engine.found, engine.graph, engine.change
                now = engine.record, engine.queue, limits, outcome, rows, NO_SCALE, horizon_s, inf, 0, 0
                receive_all(action, setting, found, graph, change, *now)

        return timed_us(pretend)

    def task_again_us(self) -> float:
        """How long the schedule of a task of the strategy takes, scheduled over and over."""
        engine, best_s = self.engine, {1: inf, 1 + _SCHEDULES: inf}
        for _ in range(_SCHEDULE_TURNS):
            for times in best_s:
                arguments = engine.setting, engine.graph, engine.queue, self._horizon_s, times
                best_s[times] = min(best_s[times], timed_us(partial(schedule_often, *arguments)))
        num_tasks = int(engine.graph.work.totals[NUM_TASKS])
        return (best_s[1 + _SCHEDULES] - best_s[1]) / _SCHEDULES / num_tasks


def timed_us(function: Callable[[], object]) -> float:
    """Microseconds that a call takes."""
    begun_s = time.perf_counter()
    function()
    return 1e6 * (time.perf_counter() - begun_s)
