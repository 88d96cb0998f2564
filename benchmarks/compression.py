"""What precision and gradient compression do to the best strategy that a search finds.

    python -m benchmarks.compression --evaluations 6000

writes ``benchmarks/compression.md``: data parallelism and the best of MCMC (seed 0) with gradients sent in
several formats, for every arithmetic that the GPU has. *Synchronized* is what devices send each other to sum
gradients, and what it is in data parallelism; *moved* is what they send of activations and their gradients.
"""

import argparse
import time
from pathlib import Path

from rich.console import Console

from benchmarks.simulator import machine
from soaprl.atomic import write_text_atomic
from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.capture import capture_model
from soaprl.report.units import format_bytes
from soaprl.search import Budget, SearchTask, search
from soaprl.simulator import Problem, SimulationOptions, SimulationResult, Simulator, simulate

# Model, batch, cluster, arithmetic: small batches, whose gradients weigh more than their activations.
CASES = (
    ("alexnet", 128, "p100-4x4", ("float32",)),
    ("alexnet", 256, "a100-2x8", ("float32", "tf32", "bfloat16")),
)
# Of the formats with equally many bits, one.
COMPRESSIONS = ("none", "fp16", "int8", "ternary")
_COLUMNS = ("precision", "compression", "data-parallel ms", "MCMC ms", "speed-up", "synchronized", "moved")


def best_of(problem: Problem, num_evaluations: int) -> tuple[SimulationResult, SimulationResult]:
    """Data parallelism and what MCMC finds, in full."""
    simulator = Simulator(problem)

    def run(method: str) -> SimulationResult:
        task = SearchTask(
            problem=problem,
            evaluator=simulator,
            budget=Budget(evaluations=num_evaluations),
            clock=time.perf_counter,
        )
        return simulate(problem, search(method, task).strategy, simulator=simulator)

    return run("data-parallel"), run("mcmc")


def row(problem: Problem, num_evaluations: int, dtype: str) -> str:
    """The line of the table for one problem."""
    plain, best = best_of(problem, num_evaluations)
    cells = (
        dtype,
        problem.options.gradient_compression,
        f"{1e3 * plain.iteration_time_s:.2f}",
        f"{1e3 * best.iteration_time_s:.2f}",
        f"{plain.iteration_time_s / best.iteration_time_s:.2f}x",
        f"{format_bytes(best.synchronization_bytes)} of {format_bytes(plain.synchronization_bytes)}",
        format_bytes(best.activation_bytes + best.gradient_bytes),
    )
    return f"| {' | '.join(cells)} |"


def section(model: str, batch_size: int, cluster_name: str, dtypes: tuple[str, ...], evaluations: int) -> str:
    """The table of one model on one cluster."""
    graph, cluster = capture_model(model, batch_size), cluster_from_name(cluster_name)
    rows = [
        row(
            Problem(
                graph=graph,
                cluster=cluster,
                cost=RooflineCostModel(compute_dtype=dtype),
                options=SimulationOptions(gradient_compression=name),
            ),
            evaluations,
            dtype,
        )
        for dtype in dtypes
        for name in COMPRESSIONS
    ]
    header = f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|"
    return "\n".join([f"## {model}, batch {batch_size}, on {cluster_name}", "", header, *rows])


_NOTE = """\
What a search of few evaluations finds, not optima. Cases with small batches on slow links, where gradients
are not hidden behind the backward pass: with the usual batch (AlexNet, 4,096 on `p100-4x4`) or a larger model
(GPT-2, 16 on `a100-2x8`) compression changed nothing of note.
"""


def main() -> None:
    """Writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=6000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("compression.md"))
    arguments = parser.parse_args()
    console = Console(stderr=True)
    tables = []
    for model, batch_size, cluster, dtypes in CASES:
        console.log(f"{model} on {cluster}")
        tables.append(section(model, batch_size, cluster, dtypes, arguments.evaluations))
    title = f"# Precision and compression: the best of {arguments.evaluations:,} evaluations"
    made = f"Simulated on {machine()}. Made by `python -m benchmarks.compression`."
    text = f"{title}\n\n{made} {_NOTE}\n"
    write_text_atomic(arguments.out, text + "\n\n".join(tables) + "\n")


if __name__ == "__main__":
    main()
