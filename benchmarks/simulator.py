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
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np

from benchmarks.full_simulation import FullSimulator, timed_us
from soaprl.atomic import write_text_atomic
from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.capture import capture_model
from soaprl.graph.zoo import zoo_models
from soaprl.search import Budget, MetropolisSettings, Proposals, ProposalSettings, SearchTask, metropolis
from soaprl.simulator import DeltaSimulator, Problem, Simulator
from soaprl.simulator import engine as engine_module
from soaprl.simulator.entry import perform
from soaprl.simulator.state import NUM_TASKS
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.strategy import OpConfig, Strategy

MODELS = ("alexnet", "resnet-101", "inception-v3", "rnntc", "rnnlm", "nmt")
CLUSTERS = ("p100-1x4", "p100-2x4", "p100-4x4", "k80-8x4", "k80-16x4")
EVALUATIONS = 10_000
_PROPOSALS, _GROUP, _TURNS = 120, 20, 4

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

    return timed_us(propose)


def _within_us(simulator: DeltaSimulator, changes: dict[int, OpConfig], limit_s: float) -> tuple[float, bool]:
    """How long it took, and whether the limit was passed."""
    refused = False

    def propose() -> None:
        nonlocal refused
        refused = simulator.propose_within(changes, limit_s) is None
        if not refused:
            simulator.rollback()

    return timed_us(propose), refused


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
