"""Measures full and delta simulation of what a Metropolis search proposes.

    python benchmarks/simulator.py [--models nmt,alexnet] [--clusters k80-16x4] [--search-rates]

The proposals are those of ``mcmc``: operators, configurations and tied moves of the first rows of a block
that `Proposals` draws. They are changes of data parallelism, and of what ``mcmc`` finds from there in 10,000
evaluations. All were simulated once before: computing the patterns of new degrees is not part of any time.
Full and delta simulation take turns; the best time of each proposal over the turns counts.

*full* fills an empty workspace with all blocks of the proposed strategy, schedules it plainly and follows its
memory: one compiled call. It is given the times of all collectives, which `Engine` knows from before. *delta*
is `DeltaSimulator.propose_all` and `rollback`. Both must say the same. *within* is `propose_within`, with the
limit that a chain with ``beta_relative`` 5000 has at the strategy, and `rollback` if it was not passed.

*compiled* is what is left without Python: without looking up configurations, and without handing about a
hundred arrays to compiled code (once for full, twice for delta). That part is measured with kernels that take
the same arrays and do nothing.

*search /s* are the proposals of ``mcmc`` in its search time, all patterns known from an equal search before;
*around* is the share of that time that it spends outside compiled simulation.

*ns/task* is the plain schedule of a proposal in compiled code; *again* that of the unchanged strategy, over
and over, when the processor has learned to predict it.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np

from soaprl.atomic import write_text_atomic
from soaprl.cluster.presets import cluster_from_name
from soaprl.cluster.tables import FloatArray, IntArray
from soaprl.cost.kernels import filling_kernel
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.capture import capture_model
from soaprl.graph.zoo import zoo_models
from soaprl.search import Budget, MetropolisSettings, Proposals, ProposalSettings, SearchTask, metropolis
from soaprl.simulator import DeltaSimulator, Problem, Simulator
from soaprl.simulator import engine as engine_module
from soaprl.simulator.engine import Engine
from soaprl.simulator.entry import NO_SCALE, PROPOSE, TAKE_BACK, no_rows, perform
from soaprl.simulator.memory import peak_memory
from soaprl.simulator.patch import (
    DONE,
    Change,
    Found,
    Graph,
    Setting,
    apply,
    empty_change,
    rebuild,
)
from soaprl.simulator.queue import Queue
from soaprl.simulator.record import Record
from soaprl.simulator.schedule import schedule
from soaprl.simulator.state import ACTIVATION_BYTES, GRADIENT_BYTES, HALF, NUM_TASKS, SYNC_BYTES, UPDATE_ID
from soaprl.simulator.trial import Limits, Outcome, Rows, Scale
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.strategy import OpConfig, Strategy

MODELS = ("alexnet", "resnet-101", "inception-v3", "rnntc", "rnnlm", "nmt")
CLUSTERS = ("p100-1x4", "p100-2x4", "p100-4x4", "k80-8x4", "k80-16x4")
EVALUATIONS = 10_000
_PROPOSALS, _GROUP, _TURNS = 120, 20, 4
_SCHEDULES, _SCHEDULE_TURNS = 5, 15

# What the paper reports of its search: seconds with full and with delta simulation, by model and devices.
_PAPER_S: dict[str, dict[int, tuple[float, float]]] = {
    "alexnet": {4: (0.11, 0.04), 16: (1.4, 0.48), 64: (18, 4.9)},
    "resnet-101": {4: (1.4, 0.4), 16: (22, 7.3), 64: (515, 158)},
    "inception-v3": {4: (14, 4.1), 16: (388, 77), 64: (8817, 1278)},
    "rnntc": {4: (16, 7.5), 16: (404, 170), 64: (4404, 1489)},
    "rnnlm": {4: (21, 9.2), 16: (327, 121), 64: (3406, 969)},
    "nmt": {4: (40, 16), 16: (998, 328), 64: (8982, 2190)},
}
# Simulations a second of the authors' published C++ simulator; their NMT has 40 operators.
_AUTHORS_PER_S = {("inception-v3", 16): 690, ("inception-v3", 64): 158, ("nmt", 8): 3600, ("nmt", 64): 89}


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


class Move(NamedTuple):
    """What a chain proposes, and how much longer than now it may take, in units of 1 / beta."""

    changes: dict[int, OpConfig]
    energy: float


def moves(proposals: Proposals, strategy: Strategy, seed: int = 0) -> list[Move]:
    """The first proposals of a chain that stays at `strategy`; see `soaprl.search.chain`."""
    draws, found = proposals.block(seed, 0, 0), []
    for row in range(_PROPOSALS):
        operator, config, energy = draws.operators[row], draws.config(row), draws.exponentials[row]
        group, old = proposals.tied(operator), strategy.configs[operator]
        if not draws.tied[row] or len(group) == 1:
            found.append(Move({operator: config}, energy))
            continue
        moved = [member for member in group if strategy.configs[member] == old]
        if config != old and any(strategy.configs[member] == config for member in group):
            energy = -inf
        else:
            ratio = proposals.log_probability(operator, config) - proposals.log_probability(operator, old)
            energy += (len(moved) - 1) * ratio
        found.append(Move(dict.fromkeys(moved, config), energy))
    return found


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
        taken_us = _timed_us(lambda: simulate_fully(*self._full_arguments()))
        engine.take_back()
        return taken_us

    def call_us(self) -> float:
        """How long the part of a full simulation takes that is not compiled."""
        return _timed_us(lambda: receive_full(*self._full_arguments()))

    def task_us(self, changes: dict[int, OpConfig]) -> float:
        """How long the schedule of a task of the strategy with changes takes, the first time."""
        engine = self._changed(changes)
        arguments = engine.setting, engine.graph, engine.queue, self._horizon_s, 1
        taken_us = _timed_us(lambda: schedule_often(*arguments))
        taken_us -= _timed_us(lambda: receive_schedule(*arguments))
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

        return _timed_us(pretend)

    def task_again_us(self) -> float:
        """How long the schedule of a task of the strategy takes, scheduled over and over."""
        engine, best_s = self.engine, {1: inf, 1 + _SCHEDULES: inf}
        for _ in range(_SCHEDULE_TURNS):
            for times in best_s:
                arguments = engine.setting, engine.graph, engine.queue, self._horizon_s, times
                best_s[times] = min(best_s[times], _timed_us(partial(schedule_often, *arguments)))
        num_tasks = int(engine.graph.work.totals[NUM_TASKS])
        return (best_s[1 + _SCHEDULES] - best_s[1]) / _SCHEDULES / num_tasks


def _timed_us(function: Callable[[], object]) -> float:
    begun_s = time.perf_counter()
    function()
    return 1e6 * (time.perf_counter() - begun_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; times in microseconds, medians over the proposals where nothing else is said.

    Attributes:
        model: Zoo name.
        operators: Number of operators.
        devices: Number of devices.
        strategy: What the proposals are changes of.
        tasks: Its tasks.
        task_us: The plain schedule of a task of a proposal.
        task_again_us: The plain schedule of a task of the strategy, over and over.
        full_us: Full simulation of a proposal.
        delta_us: Delta simulation of a proposal.
        call_us: The part of `full_us` that is not compiled.
        outside_us: The part of `delta_us` that is not compiled.
        within_us: Delta simulation up to the limit.
        within_mean_us: Its mean.
        refused: Share of the proposals that passed the limit.
        walk: Of a search from the strategy; None if none was timed.
    """

    model: str
    operators: int
    devices: int
    strategy: str
    tasks: int
    task_us: float
    task_again_us: float
    full_us: float
    delta_us: float
    call_us: float
    outside_us: float
    within_us: float
    within_mean_us: float
    refused: float
    walk: "Walk | None"

    def as_markdown(self) -> str:
        """The line."""
        compiled_full, compiled_delta = self.full_us - self.call_us, self.delta_us - self.outside_us
        paper_s = _PAPER_S.get(self.model, {}).get(self.devices)
        cells = (
            self.model,
            f"{self.operators}",
            f"{self.devices}",
            self.strategy,
            f"{self.tasks:,}",
            f"{1e3 * self.task_us:.0f}",
            f"{1e3 * self.task_again_us:.0f}",
            f"{self.full_us:,.0f}",
            f"{self.delta_us:,.0f}",
            f"{self.full_us / self.delta_us:.1f}x",
            f"{compiled_full:,.0f}",
            f"{compiled_delta:,.0f}",
            f"{compiled_full / compiled_delta:.1f}x",
            f"{self.within_us:,.0f}",
            f"{self.within_mean_us:,.0f}",
            f"{self.refused:.0%}",
            f"{self.full_us / self.within_mean_us:.1f}x",
            "" if paper_s is None else f"{paper_s[0] / paper_s[1]:.1f}x",
            "" if self.walk is None else f"{self.walk.rate_per_s:,.0f}",
            "" if self.walk is None else f"{self.walk.around:.0%}",
        )
        return f"| {' | '.join(cells)} |"


_COLUMNS = (
    "model",
    "operators",
    "devices",
    "from",
    "tasks",
    "ns/task",
    "again",
    "full us",
    "delta us",
    "full / delta",
    "compiled full us",
    "compiled delta us",
    "compiled ratio",
    "within us",
    "within mean us",
    "refused",
    "full / within mean",
    "paper",
    "search /s",
    "around",
)


class Walk(NamedTuple):
    """How fast a search went.

    Attributes:
        rate_per_s: Proposals a second.
        around: Share of its time outside compiled simulation.
    """

    rate_per_s: float
    around: float


class PerformClock:
    """Inside, adds up the seconds of all calls of the simulator's compiled entry."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def __enter__(self) -> "PerformClock":
        engine_module.perform = self._timed
        return self

    def __exit__(self, *_: object) -> None:
        engine_module.perform = perform

    def _timed(self, *arguments: Any) -> int:
        begun_s = time.perf_counter()
        result = perform(*arguments)
        self.spent_s += time.perf_counter() - begun_s
        return result


def measure(problem: Problem, name: str, strategy: Strategy, start_s: float, walk: Walk | None) -> Row:
    """Times the proposals of a chain that stays at `strategy` and began with a time of `start_s`."""
    graph, num_devices = problem.graph, problem.cluster.num_devices
    delta, full = DeltaSimulator(problem, strategy), FullSimulator(problem, strategy)
    tasks, task_again_us = int(full.engine.graph.work.totals[NUM_TASKS]), full.task_again_us()
    scale_s = start_s / MetropolisSettings().beta_relative
    now_s = delta.evaluation.iteration_time_s if delta.evaluation.feasible else inf
    proposed = moves(Proposals(graph, num_devices, ProposalSettings()), strategy)
    check_equal(delta, full, proposed)
    times, refused = np.full((6, len(proposed)), inf), np.zeros(len(proposed))
    for _ in range(_TURNS):
        for first in range(0, len(proposed), _GROUP):
            rows = range(first, min(first + _GROUP, len(proposed)))
            for row in rows:
                times[0, row] = min(times[0, row], full.full_us(proposed[row].changes))
            for row in rows:
                times[1, row] = min(times[1, row], full.call_us())
            for row in rows:
                times[2, row] = min(times[2, row], full.task_us(proposed[row].changes))
            for row in rows:
                times[3, row] = min(times[3, row], _delta_us(delta, proposed[row].changes))
            for row in rows:
                limit_s = now_s + proposed[row].energy * scale_s
                taken_us, refused[row] = _within_us(delta, proposed[row].changes, limit_s)
                times[4, row] = min(times[4, row], taken_us)
            for row in rows:
                times[5, row] = min(times[5, row], full.outside_us(proposed[row].changes))
    full_us, call_us, task_us, delta_us, within_us, outside_us = np.median(times, axis=1).tolist()
    return Row(
        model=graph.name,
        operators=len(graph.operators),
        devices=num_devices,
        strategy=name,
        tasks=tasks,
        task_us=task_us,
        task_again_us=task_again_us,
        full_us=full_us,
        delta_us=delta_us,
        call_us=call_us,
        outside_us=outside_us,
        within_us=within_us,
        within_mean_us=float(times[4].mean()),
        refused=float(refused.mean()),
        walk=walk,
    )


def check_equal(delta: DeltaSimulator, full: FullSimulator, proposed: list[Move]) -> None:
    """Both simulators learn the patterns of all proposals, and must say the same about each."""
    for move in proposed:
        evaluation = delta.propose_all(move.changes)
        delta.rollback()
        full.learn(move.changes)
        full.full_us(move.changes)
        peak_bytes, too_full, moved_bytes = full.memory.numbers.tolist()
        assert full.memory.time_s[0] == evaluation.iteration_time_s, move
        assert (peak_bytes, moved_bytes) == (evaluation.peak_memory_bytes, evaluation.communication_bytes)
        assert (too_full == 0) == evaluation.feasible, move


def _delta_us(simulator: DeltaSimulator, changes: dict[int, OpConfig]) -> float:
    def propose() -> None:
        simulator.propose_all(changes)
        simulator.rollback()

    return _timed_us(propose)


def _within_us(simulator: DeltaSimulator, changes: dict[int, OpConfig], limit_s: float) -> tuple[float, bool]:
    """How long it took, and whether the limit was passed."""
    refused = False

    def propose() -> None:
        nonlocal refused
        refused = simulator.propose_within(changes, limit_s) is None
        if not refused:
            simulator.rollback()

    return _timed_us(propose), refused


def measure_problem(problem: Problem, *, search_rates: bool) -> list[Row]:
    """The lines of a model on a cluster: from data parallelism, and from what a search finds."""
    simulator = Simulator(problem)
    task = SearchTask(
        problem=problem,
        evaluator=simulator,
        budget=Budget(evaluations=EVALUATIONS),
        clock=time.perf_counter,
        seed=0,
    )
    settings = MetropolisSettings(num_random_starts=0, patience=1.0)
    found, walk = metropolis(task, settings), None
    if search_rates:
        # The same steps again: all patterns are known.
        with PerformClock() as clock:
            walked = metropolis(task, settings)
        walk = Walk(walked.num_evaluations / walked.search_time_s, 1.0 - clock.spent_s / walked.search_time_s)
    start = data_parallel(problem.graph, problem.cluster)
    start_s = found.initial_time_s
    return [
        measure(problem, "data-parallel", start, start_s, walk),
        measure(
            problem,
            f"mcmc, {start_s / found.evaluation.iteration_time_s:.2f}x",
            found.strategy,
            start_s,
            None,
        ),
    ]


def machine() -> str:
    """The processor and the versions that the numbers belong to."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if "model name" in line), model)
    versions = f"Python {platform.python_version()}, Numba {numba.__version__}, NumPy {np.__version__}"
    return f"{model}, one core; {versions}"


_INTRODUCTION = """\
The script explains the columns. Medians over {proposals} proposals of `mcmc`, changes of data parallelism
or of what it finds in {evaluations:,} evaluations (and how much faster that is). *within* stops at the
chain's threshold, which most proposals pass (*refused*), many of them at once: hence the mean. *paper* is the
ratio of the search times that the paper reports with full and with delta simulation, with its simulator.
"""

_AUTHORS = """
The authors' published C++ simulator has no delta simulation. Its simulations a second, and ours of proposals
from data parallelism, by the medians (*within*: by the mean) above. Its NMT has 40 operators.

"""


def report(rows: list[Row], command: str) -> str:
    """The document."""
    text = f"# Full and delta simulation\n\n{machine()}. Written by `{command}`.\n\n"
    text += _INTRODUCTION.format(proposals=_PROPOSALS, evaluations=EVALUATIONS)
    text += f"\n{header(_COLUMNS)}" + "".join(f"{row.as_markdown()}\n" for row in rows)
    compared = [(row, _AUTHORS_PER_S.get((row.model, row.devices))) for row in rows[::2]]
    lines = [_rates(row, per_s) for row, per_s in compared if per_s is not None]
    if lines:
        text += _AUTHORS + header(_RATE_COLUMNS) + "".join(f"{line}\n" for line in lines)
    return text


_RATE_COLUMNS = ("model", "devices", "authors' /s", "full /s", "delta /s", "within /s", "within / authors'")


def _rates(row: Row, authors_per_s: float) -> str:
    within_per_s = 1e6 / row.within_mean_us
    return (
        f"| {row.model} | {row.devices} | {authors_per_s:,} | {1e6 / row.full_us:,.0f}"
        f" | {1e6 / row.delta_us:,.0f} | {within_per_s:,.0f} | {within_per_s / authors_per_s:.0f}x |"
    )


def header(columns: Sequence[str]) -> str:
    """The head of a table."""
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"


def main() -> None:
    """Measures and writes the document, model by model."""
    parser = argparse.ArgumentParser(description="Measure full and delta simulation.")
    parser.add_argument("--models", default=",".join(MODELS), help="zoo names, separated by commas")
    parser.add_argument("--clusters", default=",".join(CLUSTERS), help="presets, separated by commas")
    parser.add_argument("--search-rates", action="store_true", help="time the search as a whole, too")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_suffix(".md"), help="the document to write"
    )
    arguments = parser.parse_args()
    command = " ".join(["python", "benchmarks/simulator.py", *sys.argv[1:]])
    rows: list[Row] = []
    print(header(_COLUMNS), end="")
    for model in arguments.models.split(","):
        for cluster_name in arguments.clusters.split(","):
            cluster = cluster_from_name(cluster_name)
            graph = capture_model(model, zoo_models()[model].batch_per_device * cluster.num_devices)
            problem = Problem(graph=graph, cluster=cluster, cost=RooflineCostModel())
            for row in measure_problem(problem, search_rates=arguments.search_rates):
                rows.append(row)
                print(row.as_markdown(), flush=True)
        write_text_atomic(arguments.out, report(rows, command))


if __name__ == "__main__":
    main()
