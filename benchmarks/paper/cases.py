"""What the paper's tables are about: models, clusters, assumptions, and how a method is run on them."""

import os
import platform
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numba
import numpy as np

from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.capture import capture_model
from soaprl.graph.operators import OperatorGraph
from soaprl.graph.zoo import zoo_models
from soaprl.search import Budget, SearchResult, SearchTask
from soaprl.search.registry import Skipped, attempt
from soaprl.simulator import Problem, SimulationOptions, Simulator

MODELS = ("alexnet", "inception-v3", "resnet-101", "rnntc", "rnnlm", "nmt")
# What people would write by hand, as in the paper's section 8.1.
EXPERTS = {
    "alexnet": "one-weird-trick",
    "inception-v3": "one-weird-trick",
    "resnet-101": "one-weird-trick",
    "rnntc": "gnmt-expert",
    "rnnlm": "gnmt-expert",
    "nmt": "gnmt-expert",
}
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A problem.

    Attributes:
        model: Zoo name, with the paper's batch for each device.
        cluster: Preset name.
        paper: Whether the paper's assumptions hold instead of ours.
    """

    model: str
    cluster: str
    paper: bool

    @property
    def assumptions(self) -> str:
        """A word for tables."""
        return "paper" if self.paper else "ours"

    def problem(self) -> Problem:
        """What a method gets."""
        cluster = cluster_from_name(self.cluster)
        return Problem(
            graph=_graph(self.model, zoo_models()[self.model].batch_per_device * cluster.num_devices),
            cluster=cluster,
            cost=RooflineCostModel(paper=self.paper),
            options=SimulationOptions(paper=self.paper),
        )


@cache
def _graph(model: str, batch_size: int) -> OperatorGraph:
    return capture_model(model, batch_size)


def run(problem: Problem, method: str, evaluations: int, seed: int = 0) -> SearchResult | None:
    """What a method finds; None if it refuses the problem, as where one device leaves nothing to choose."""
    task = SearchTask(
        problem=problem,
        evaluator=Simulator(problem),
        budget=Budget(evaluations=evaluations),
        clock=time.perf_counter,
        seed=seed,
    )
    found = attempt(method, task)
    return None if isinstance(found, Skipped) else found


def workers() -> ProcessPoolExecutor:
    """A process for each core: problems are independent of each other."""
    return ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"))


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown."""
    columns = tuple(columns)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def machine() -> str:
    """Where the times were taken."""
    python, cores = platform.python_version(), os.cpu_count()
    versions = f"Python {python}, Numba {numba.__version__}, NumPy {np.__version__}"
    return f"{platform.machine()}, {cores} cores shared with other work; {versions}"
