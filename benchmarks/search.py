"""Compares data parallelism, model parallelism and MCMC on the paper's models and clusters.

    python -m benchmarks.search p100-4x4 --evaluations 100000
    python -m benchmarks.search k80-16x4 --evaluations 30000

writes ``benchmarks/search-p100-4x4.md`` and its like. Seed 0; results depend on nothing but the evaluations
that a search may use (it stops before that if half of a start's share brings no improvement). With our
assumptions and with the paper's (``--paper`` of the command line). *Computing* is the share of a
data-parallel iteration in which the busiest device computes: what is left is all that a strategy with the
same compute time could gain.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.simulator import MODELS, machine
from soaprl.atomic import write_text_atomic
from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.capture import capture_model
from soaprl.graph.zoo import zoo_models
from soaprl.search import Budget, SearchResult, SearchTask, search
from soaprl.simulator import Problem, SimulationOptions, Simulator, simulate

_COLUMNS = (
    "assumptions",
    "model",
    "data-parallel ms",
    "computing",
    "model-parallel",
    "MCMC",
    "evaluations",
    "accepted",
    "search s",
)
HEADER = f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One problem; speed-ups are over data parallelism."""

    paper: bool
    model: str
    data_parallel_s: float
    busy_share: float
    model_parallel_speedup: float
    mcmc_speedup: float
    num_evaluations: int
    num_accepted: int
    search_s: float

    def as_markdown(self) -> str:
        """The line of the table."""
        cells = (
            "paper" if self.paper else "ours",
            self.model,
            f"{1e3 * self.data_parallel_s:,.1f}",
            f"{self.busy_share:.1%}",
            f"{self.model_parallel_speedup:.2f}x",
            f"{self.mcmc_speedup:.3f}x",
            f"{self.num_evaluations:,}",
            f"{self.num_accepted:,}",
            f"{self.search_s:,.0f}",
        )
        return f"| {' | '.join(cells)} |"


def measure(problem: Problem, *, num_evaluations: int) -> Row:
    """Runs the three methods on a problem."""
    simulator = Simulator(problem)

    def run(method: str) -> tuple[SearchResult, float]:
        begun_s = time.perf_counter()
        task = SearchTask(
            problem=problem,
            evaluator=simulator,
            budget=Budget(evaluations=num_evaluations),
            clock=time.perf_counter,
        )
        result = search(method, task)
        return result, time.perf_counter() - begun_s

    (start, _), (stages, _), (found, search_s) = run("data-parallel"), run("model-parallel"), run("mcmc")
    detail = simulate(problem, start.strategy, simulator=simulator)
    data_parallel_s = start.evaluation.iteration_time_s
    return Row(
        paper=problem.options.paper,
        model=problem.graph.name,
        data_parallel_s=data_parallel_s,
        busy_share=float(detail.device_busy_s.max()) / data_parallel_s,
        model_parallel_speedup=data_parallel_s / stages.evaluation.iteration_time_s,
        mcmc_speedup=data_parallel_s / found.evaluation.iteration_time_s,
        num_evaluations=found.num_evaluations,
        num_accepted=found.num_accepted,
        search_s=search_s,
    )


def main() -> None:
    """Measures and writes the table, line by line."""
    parser = argparse.ArgumentParser(description="Compare searches.")
    parser.add_argument("cluster", help="preset name")
    parser.add_argument("--models", default=",".join(MODELS), help="zoo names, separated by commas")
    parser.add_argument("--evaluations", type=int, default=30_000, help="budget of each search")
    parser.add_argument("--out", type=Path, help="the table; default benchmarks/search-CLUSTER.md")
    arguments = parser.parse_args()
    cluster, console, lines = cluster_from_name(arguments.cluster), Console(), []
    out = arguments.out or Path(__file__).with_name(f"search-{cluster.name}.md")
    command = f"python -m benchmarks.search {cluster.name} --evaluations {arguments.evaluations}"
    if arguments.models != ",".join(MODELS):
        command += f" --models {arguments.models}"
    text = f"# Searches on {cluster.name}\n\n{machine()}. Seed 0. Written by `{command}`.\n\n"
    for model in arguments.models.split(","):
        graph = capture_model(model, zoo_models()[model].batch_per_device * cluster.num_devices)
        for paper in (False, True):
            problem = Problem(
                graph=graph,
                cluster=cluster,
                cost=RooflineCostModel(paper=paper),
                options=SimulationOptions(paper=paper),
            )
            lines.append(measure(problem, num_evaluations=arguments.evaluations))
            console.print(lines[-1].as_markdown(), highlight=False, soft_wrap=True)
            table = "\n".join(row.as_markdown() for row in sorted(lines, key=lambda row: row.paper))
            write_text_atomic(out, text + HEADER + table + "\n")


if __name__ == "__main__":
    main()
