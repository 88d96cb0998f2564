"""Measures the simulator: tasks, and microseconds to assemble and to schedule the task graph.

    python benchmarks/simulator.py [--models nmt,alexnet] [--out benchmarks/simulator.md]

For each model and cluster a data-parallel and a random strategy. Columns: *assemble* and *schedule* are the
compiled steps alone (best of several runs), *evaluate* is `Simulator.evaluate` of a strategy in which one
random operator was changed (median over random proposals, degrees seen before), which is what a search pays
without delta simulation.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path

import numba
import numpy as np

from soaprl.atomic import write_text_atomic
from soaprl.cluster.cluster import Cluster
from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.capture import capture_model
from soaprl.graph.operators import OperatorGraph
from soaprl.graph.zoo import zoo_models
from soaprl.search.proposals import Proposals, ProposalSettings
from soaprl.simulator.evaluator import Simulator, assemble
from soaprl.simulator.problem import Problem
from soaprl.simulator.schedule import schedule
from soaprl.simulator.state import NUM_TASKS
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.strategy import Strategy

MODELS = ("alexnet", "inception-v3", "resnet-101", "rnntc", "rnnlm", "nmt")
CLUSTERS = ("p100-1x4", "p100-4x4", "k80-16x4")
_REPEATS = 15
_PROPOSALS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; times in microseconds."""

    model: str
    operators: int
    cluster: str
    strategy: str
    tasks: int
    assemble_us: float
    schedule_us: float
    evaluate_us: float

    def as_markdown(self) -> str:
        """The line."""
        per_task_ns = 1e3 * self.schedule_us / self.tasks
        return (
            f"| {self.model} | {self.operators} | {self.cluster} | {self.strategy} | {self.tasks:,}"
            f" | {self.assemble_us:,.0f} | {self.schedule_us:,.0f} | {per_task_ns:.1f}"
            f" | {self.assemble_us + self.schedule_us:,.0f} | {self.evaluate_us:,.0f} |"
        )


_COLUMNS = (
    "model",
    "operators",
    "cluster",
    "strategy",
    "tasks",
    "assemble us",
    "schedule us",
    "schedule ns/task",
    "both us",
    "evaluate us",
)
HEADER = f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|\n"


def measure(graph: OperatorGraph, cluster: Cluster, name: str, strategy: Strategy) -> Row:
    """Times one strategy."""
    simulator = Simulator(Problem(graph=graph, cluster=cluster, cost=RooflineCostModel()))
    guess_s = simulator.evaluate(strategy).iteration_time_s
    parts = (simulator.graph, simulator.pools, simulator.layout, simulator.tables)

    def build() -> None:
        assemble(*parts, simulator.plans, simulator.work, False, True)

    def run() -> None:
        work, queue = simulator.work, simulator.queue
        graph, layout, tables, plans = parts[0], parts[2], parts[3], simulator.plans
        schedule(graph, layout, tables, plans, work, queue, guess_s, simulator.load_s, inf)

    assembled, scheduled = [], []
    for _ in range(_REPEATS):
        assembled.append(_timed_us(build))
        scheduled.append(_timed_us(run))
    return Row(
        model=graph.name,
        operators=len(graph.operators),
        cluster=cluster.name,
        strategy=name,
        tasks=int(simulator.work.totals[NUM_TASKS]),
        assemble_us=min(assembled),
        schedule_us=min(scheduled),
        evaluate_us=_proposal_us(simulator, graph, strategy, cluster.num_devices),
    )


def _proposal_us(simulator: Simulator, graph: OperatorGraph, strategy: Strategy, num_devices: int) -> float:
    """Median time to evaluate a random change of one operator, the second time round."""
    draws = Proposals(graph, num_devices, ProposalSettings()).block(0, 0, 0)
    changes = [(draws.operators[r], draws.config(r)) for r in range(_PROPOSALS)]
    proposed = [strategy.replaced(o, c) for o, c in changes]
    for candidate in proposed:
        simulator.evaluate(candidate)
    simulator.evaluate(strategy)
    return statistics.median(_timed_us(partial(simulator.evaluate, candidate)) for candidate in proposed)


def _timed_us(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return 1e6 * (time.perf_counter() - start)


def machine() -> str:
    """The processor and the versions that the numbers belong to."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    versions = f"Python {platform.python_version()}, Numba {numba.__version__}, NumPy {np.__version__}"
    return f"{model}, one core; {versions}"


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description="Measure the simulator.")
    parser.add_argument("--models", default=",".join(MODELS), help="zoo names, separated by commas")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_suffix(".md"), help="the table to write"
    )
    arguments = parser.parse_args()
    lines = []
    print(HEADER, end="")
    for model in arguments.models.split(","):
        for cluster_name in CLUSTERS:
            cluster = cluster_from_name(cluster_name)
            batch_size = zoo_models()[model].batch_per_device * cluster.num_devices
            graph = capture_model(model, batch_size)
            drawn = Proposals(graph, cluster.num_devices, ProposalSettings())
            strategies = {
                "data-parallel": data_parallel(graph, cluster),
                "random": drawn.strategy(np.random.default_rng(0)),
            }
            for name, strategy in strategies.items():
                lines.append(measure(graph, cluster, name, strategy).as_markdown())
                print(lines[-1], flush=True)
    text = f"# Full simulation\n\n{machine()}. Written by `python benchmarks/simulator.py`.\n\n"
    write_text_atomic(arguments.out, text + HEADER + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
