"""Measures what threads bring: batches of strategies, and several chains.

    python benchmarks/batch.py [--models nmt,alexnet] [--threads 2] [--out benchmarks/batch.md]

For each model and cluster a batch of *near* strategies (data parallelism with one random operator changed, as
a search proposes) and one of *random* ones. Columns, in microseconds a strategy: *locked* is what holds the
interpreter lock, staging the operators that differ from the strategy before and handing the simulator's
arrays to compiled code; *one thread* and *threads* are `BatchSimulator.evaluate`. *speed-up* compares these
two; *ceiling* is one thread's time over *locked*, the most that any number of threads could gain.

*machine* is the speed-up of the same number of threads in a compiled loop that shares nothing, measured in
turn with the others: it shows how many idle cores there were. The best time of several turns counts for each.

The second table: evaluations a second of ``mcmc`` with four chains, on one thread and on several.
"""

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
from numpy.typing import NDArray

from soaprl.atomic import write_text_atomic
from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.kernels import filling_kernel, kernel
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.capture import capture_model
from soaprl.graph.zoo import zoo_models
from soaprl.search.metropolis import MetropolisSettings, metropolis
from soaprl.search.proposals import Proposals, ProposalSettings
from soaprl.search.task import Budget, SearchTask
from soaprl.simulator.batch import BatchSimulator, available_cores
from soaprl.simulator.edges import Found
from soaprl.simulator.evaluator import Simulator
from soaprl.simulator.patch import Change, Graph, Setting
from soaprl.simulator.problem import Problem
from soaprl.simulator.queue import Queue
from soaprl.simulator.record import Record
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.strategy import Strategy

MODELS = ("alexnet", "nmt")
CLUSTERS = ("p100-4x4", "k80-16x4")
_TURNS = 12
_NEAR, _RANDOM = 100, 20
_CHAINS, _EVALUATIONS = 4, 1000
_LOOP = 5_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the first table; times in microseconds a strategy."""

    model: str
    cluster: str
    strategies: str
    locked_us: float
    one_us: float
    several_us: float
    machine: float

    def as_markdown(self) -> str:
        """The line."""
        speedup, ceiling = self.one_us / self.several_us, self.one_us / self.locked_us
        return (
            f"| {self.model} | {self.cluster} | {self.strategies} | {self.locked_us:,.0f}"
            f" | {self.one_us:,.0f} | {self.several_us:,.0f} | {speedup:.2f} | {ceiling:.1f}"
            f" | {self.machine:.2f} |"
        )


BATCH_COLUMNS = (
    "model",
    "cluster",
    "strategies",
    "locked us",
    "one thread us",
    "threads us",
    "speed-up",
    "ceiling",
    "machine",
)
CHAIN_COLUMNS = ("model", "cluster", "one thread /s", "threads /s", "speed-up", "machine")


def header(columns: Sequence[str]) -> str:
    """The head of a table."""
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"


@kernel
def spin(values: NDArray[np.float64], count: int) -> float:
    """Arithmetic that takes a while and touches one line of memory."""
    total = 0.0
    for i in range(count):
        values[i & 7] += 0.5 * i
        total += values[(3 * i) & 7]
    return total


@filling_kernel
def receive(
    setting: Setting, found: Found, graph: Graph, change: Change, record: Record, queue: Queue
) -> None:
    """Takes what an evaluation takes, and does nothing with it."""


def spin_apart(num_threads: int) -> None:
    """The loop once in each of `num_threads` threads."""
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(lambda _: spin(np.zeros(8), _LOOP), range(num_threads)))


def measure(problem: Problem, name: str, strategies: list[Strategy], num_threads: int) -> Row:
    """Times one batch."""
    one, several = BatchSimulator(problem, 1), BatchSimulator(problem, num_threads)
    # Twice, so that every simulator has seen the degrees of nearly every strategy.
    for batch in (one, several, several):
        batch.evaluate(strategies)

    engine = one.simulators[0].engine
    at_hand = strategies[-1].configs

    def locked() -> None:
        nonlocal at_hand
        for strategy in strategies:
            changed = [o for o, config in enumerate(strategy.configs) if config != at_hand[o]]
            engine.stage((o, strategy.configs[o]) for o in changed)
            receive(engine.setting, engine.found, engine.graph, engine.change, engine.record, engine.queue)
            at_hand = strategy.configs

    best = best_of(
        lambda: one.evaluate(strategies),
        lambda: several.evaluate(strategies),
        locked,
        lambda: [spin(np.zeros(8), _LOOP) for _ in range(num_threads)],
        lambda: spin_apart(num_threads),
    )
    scale = 1e6 / len(strategies)
    return Row(
        model=problem.graph.name,
        cluster=problem.cluster.name,
        strategies=name,
        locked_us=scale * best[2],
        one_us=scale * best[0],
        several_us=scale * best[1],
        machine=best[3] / best[4],
    )


def measure_chains(problem: Problem, num_threads: int) -> str:
    """The line of the second table."""

    def searching(threads: int) -> Callable[[], object]:
        simulators = [Simulator(problem) for _ in range(threads)]
        task = SearchTask(
            problem=problem,
            evaluator=simulators[0],
            budget=Budget(evaluations=_EVALUATIONS),
            clock=time.perf_counter,
        )
        settings = MetropolisSettings(num_chains=_CHAINS)
        return lambda: metropolis(task, settings, more_evaluators=simulators[1:])

    functions = searching(1), searching(num_threads)
    for function in functions:
        function()
    best = best_of(
        *functions,
        lambda: [spin(np.zeros(8), _LOOP) for _ in range(num_threads)],
        lambda: spin_apart(num_threads),
        turns=5,
    )
    one, several = _EVALUATIONS / best[0], _EVALUATIONS / best[1]
    return (
        f"| {problem.graph.name} | {problem.cluster.name} | {one:,.0f} | {several:,.0f}"
        f" | {several / one:.2f} | {best[2] / best[3]:.2f} |"
    )


def best_of(*functions: Callable[[], object], turns: int = _TURNS) -> list[float]:
    """The shortest seconds of each function, called in turn so that all meet the same machine."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(turns):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in times]


def batches(problem: Problem) -> dict[str, list[Strategy]]:
    """Near and random strategies."""
    graph, cluster = problem.graph, problem.cluster
    drawn = Proposals(graph, cluster.num_devices, ProposalSettings())
    draws, base = drawn.block(0, 0, 0), data_parallel(graph, cluster)
    rng = np.random.default_rng(0)
    return {
        "near": [base.replaced(draws.operators[r], draws.config(r)) for r in range(_NEAR)],
        "random": [drawn.strategy(rng) for _ in range(_RANDOM)],
    }


def machine(num_threads: int) -> str:
    """The processor and the versions that the numbers belong to."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if "model name" in line), model)
    versions = f"Python {platform.python_version()}, Numba {numba.__version__}, NumPy {np.__version__}"
    return f"{model}, {num_threads} threads on {available_cores()} cores; {versions}"


def main() -> None:
    """Measures and writes the tables."""
    parser = argparse.ArgumentParser(description="Measure what threads bring.")
    parser.add_argument("--models", default=",".join(MODELS), help="zoo names, separated by commas")
    parser.add_argument("--threads", type=int, default=available_cores(), help="threads to compare with one")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_suffix(".md"), help="the table to write"
    )
    arguments = parser.parse_args()
    num_threads = arguments.threads
    lines, chains = [], []
    spin(np.zeros(8), 1)
    for model in arguments.models.split(","):
        for cluster_name in CLUSTERS:
            cluster = cluster_from_name(cluster_name)
            graph = capture_model(model, zoo_models()[model].batch_per_device * cluster.num_devices)
            problem = Problem(graph=graph, cluster=cluster, cost=RooflineCostModel())
            for name, strategies in batches(problem).items():
                lines.append(measure(problem, name, strategies, num_threads).as_markdown())
                print(lines[-1], flush=True)
            chains.append(measure_chains(problem, num_threads))
            print(chains[-1], flush=True)
    text = (
        f"# Threads\n\n{machine(num_threads)}. Written by `python benchmarks/batch.py`, where the columns are"
        " explained. Where the last column is near 1, other work took the cores, and speed-ups say nothing."
        f"\n\n{header(BATCH_COLUMNS)}"
    )
    text += "\n".join(lines) + f"\n\nFour chains:\n\n{header(CHAIN_COLUMNS)}" + "\n".join(chains) + "\n"
    write_text_atomic(arguments.out, text)


if __name__ == "__main__":
    main()
