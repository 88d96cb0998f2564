"""Ranks methods on models whose training state fills the memory of a GPU: GPT-2 XL and a 7B Llama.

    python -m benchmarks.large_models --seconds 100

writes ``benchmarks/large-models.md``. Arithmetic in bfloat16, tensors in float32, Adam. Searches have that
many seconds each, which is less than two minutes with their preparation, and seed 0; what they reach depends
on the machine. A method with a stage of ZeRO behind it runs under that sharding; ``fsdp`` and ``joint``
choose their own, and ``joint`` and ``pipeline`` the micro-batches.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from benchmarks.simulator import machine
from soaprl.atomic import write_text_atomic
from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.capture import capture_model
from soaprl.graph.zoo import zoo_models
from soaprl.report.units import format_bytes
from soaprl.search import Budget, SearchTask
from soaprl.search.registry import Skipped, attempt, find_method
from soaprl.search.task import SearchResult
from soaprl.simulator import Problem, Simulator
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.strategy import Sharding

MODELS = ("gpt2-xl", "llama-7b")
CLUSTERS = ("a100-1x8", "h100-4x8")
RUNS = (
    ("data-parallel", Sharding.NONE),
    ("megatron", Sharding.NONE),
    ("megatron", Sharding.ZERO1),
    ("fsdp", Sharding.NONE),
    ("pipeline", Sharding.NONE),
    ("mcmc", Sharding.NONE),
    ("mcmc", Sharding.ZERO3),
    ("joint", Sharding.NONE),
)
_COLUMNS = ("method", "ms", "samples/s", "peak memory", "traffic", "evaluations", "search s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one method found for one problem."""

    name: str
    result: SearchResult
    samples_per_s: float

    @property
    def rank(self) -> tuple[bool, float]:
        """What fits comes first, then what is faster."""
        evaluation = self.result.evaluation
        return not evaluation.feasible, evaluation.iteration_time_s

    def as_markdown(self) -> str:
        """The line of the table."""
        found = self.result.evaluation
        cells = (
            self.name,
            f"{1e3 * found.iteration_time_s:,.1f}",
            f"{self.samples_per_s:,.1f}",
            format_bytes(found.peak_memory_bytes) + ("" if found.feasible else " (does not fit)"),
            format_bytes(found.communication_bytes),
            f"{self.result.num_evaluations:,}",
            f"{self.result.search_time_s:,.0f}",
        )
        return f"| {' | '.join(cells)} |"


def problem_of(model: str, cluster_name: str) -> Problem:
    """The problem of training a model of the zoo with its usual batch."""
    cluster = cluster_from_name(cluster_name)
    batch_size = cluster.num_devices * zoo_models()[model].batch_per_device
    cost = RooflineCostModel(compute_dtype="bfloat16")
    return Problem(graph=capture_model(model, batch_size), cluster=cluster, cost=cost)


def rows_of(problem: Problem, seconds: float, console: Console) -> Iterator[Row | Skipped]:
    """What each method finds, or why it does not apply."""
    # Compiled before clocks run.
    Simulator(problem).evaluate(data_parallel(problem.graph, problem.cluster))
    for method, sharding in RUNS:
        simulator = Simulator(problem)
        limit = Budget(seconds=seconds) if find_method(method).iterative else Budget()
        task = SearchTask(problem=problem, evaluator=simulator, budget=limit, clock=time.perf_counter)
        found = attempt(method, replace(task, sharding=sharding))
        name = method if sharding is Sharding.NONE else f"{method}, {sharding}"
        if isinstance(found, Skipped):
            console.log(f"{problem.graph.name} {problem.cluster.name} {name}: {found.reason}")
            yield replace(found, method=name)
            continue
        chosen = [str(found.strategy.sharding)] if found.strategy.sharding is not sharding else []
        if not found.strategy.is_whole:
            chosen.append(f"{found.strategy.num_stages} stages, {found.strategy.micro_batches} micro-batches")
        name += f" ({', '.join(chosen)})" if chosen else ""
        time_s = found.evaluation.iteration_time_s
        console.log(f"{problem.graph.name} {problem.cluster.name} {name}: {1e3 * time_s:.1f} ms")
        yield Row(name=name, result=found, samples_per_s=problem.graph.batch_size / time_s)


def section(problem: Problem, seconds: float, console: Console) -> str:
    """The table of one problem: what fits, ranked; then what does not, and what did not apply."""
    found = list(rows_of(problem, seconds, console))
    rows = sorted((row for row in found if isinstance(row, Row)), key=lambda row: row.rank)
    skipped = [f"`{s.method}` does not apply: {s.reason}" for s in found if isinstance(s, Skipped)]
    title = f"## {problem.graph.name}, batch {problem.graph.batch_size}, on {problem.cluster.name}"
    header = f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|"
    return "\n".join([title, "", header, *(row.as_markdown() for row in rows), "", *skipped]).rstrip()


def main() -> None:
    """Writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("large-models.md"))
    parser.add_argument("--note", default="", help="What else is to be said of the measurement.")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    tables = [
        section(problem_of(model, cluster), arguments.seconds, console)
        for model in MODELS
        for cluster in CLUSTERS
    ]
    title = f"# Large models: simulated iterations of {arguments.seconds:g}-second searches"
    note = f" {arguments.note}" if arguments.note else ""
    text = f"{title}\n\nSearched on {machine()}. Made by `benchmarks/large_models.py`.{note}\n\n"
    write_text_atomic(arguments.out, text + "\n\n".join(tables) + "\n")


if __name__ == "__main__":
    main()
