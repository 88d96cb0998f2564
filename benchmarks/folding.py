"""Measures simulation by symmetry: GPT-2 XL on clusters of up to 8,192 H100.

    python benchmarks/folding.py [--clusters h100-8x8,h100-128x8,h100-1024x8] [--out benchmarks/folding.md]

Every row is measured in a process of its own, which gets the captured graph in a file and does not import
torch. *devices simulated* stand for all others. Seconds: *capture* of the graph; then, with the graph there,
to make the *cluster* and the *strategy*; the *first* evaluation by `evaluate_by_symmetry`, with compiled
kernels on disk, and the quickest of three more (*again*), each of which looks for replicas anew, folds and
simulates with nothing kept from before. *peak* is the largest resident memory of the process until then.

Where the cluster is small enough to be quick, every device is simulated as well: *whole* is the quickest of
three evaluations by new simulators, and *equal* says whether `simulate` and `simulate_folded` agree in every
bit: times, busy times of each device and link, bytes, and the memory of each device.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numba
import numpy as np

from soaprl.atomic import write_text_atomic
from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.capture import capture_model
from soaprl.graph.files import load_graph, save_graph
from soaprl.simulator import Evaluation, Problem, Simulator, simulate
from soaprl.simulator.folding import FoldedProblem, evaluate_by_symmetry, fold, simulate_folded
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.experts_megatron import megatron
from soaprl.strategy.strategy import Strategy

T = TypeVar("T")

CLUSTERS = ("h100-8x8", "h100-128x8", "h100-1024x8")
SAMPLES_PER_DEVICE = 2
TENSOR_DEGREES = (1, 8)
_WHOLE_UP_TO = 64
_AGAIN = 3
_MEMORY = (
    "parameters_bytes", "gradients_bytes", "optimizer_bytes", "activations_bytes", "communication_bytes"
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; times in seconds."""

    cluster: str
    num_devices: int
    tensor: int
    num_simulated: int
    capture_s: float
    cluster_s: float
    strategy_s: float
    first_s: float
    again_s: float
    peak_bytes: int
    iteration_time_s: float
    peak_device_bytes: int
    whole_s: float | None
    equal: bool | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all clusters and strategies, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clusters", default=",".join(CLUSTERS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.clusters.split(","):
            path = Path(folder) / f"{name}.json"
            begun = time.perf_counter()
            graph = capture_model("gpt2-xl", SAMPLES_PER_DEVICE * cluster_from_name(name).num_devices)
            capture_s = time.perf_counter() - begun
            save_graph(graph, path)
            for tensor in TENSOR_DEGREES:
                # A new interpreter has no memory of captures and other rows.
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    rows.append(pool.apply(measured, (name, str(path), tensor, capture_s)))
                print(rows[-1], file=sys.stderr)
    write_text_atomic(options.out, table(rows))


def measured(name: str, path: str, tensor: int, capture_s: float) -> Row:
    """The row of one cluster and strategy."""
    graph = load_graph(Path(path))
    cluster_s, cluster = timed(lambda: cluster_from_name(name))
    strategy_s, strategy = timed(
        lambda: (
            data_parallel(graph, cluster) if tensor == 1 else megatron(graph, cluster, tensor_degree=tensor)
        )
    )
    assert isinstance(strategy, Strategy), strategy
    problem = Problem(graph=graph, cluster=cluster, cost=RooflineCostModel(compute_dtype="bfloat16"))
    first_s, evaluation = timed(lambda: evaluate_by_symmetry(problem, strategy))
    again_s = min(timed(lambda: evaluate_by_symmetry(problem, strategy))[0] for _ in range(_AGAIN))
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    folded = fold(problem, strategy)
    assert isinstance(folded, FoldedProblem), folded
    small = cluster.num_devices <= _WHOLE_UP_TO
    return Row(
        cluster=name,
        num_devices=cluster.num_devices,
        tensor=tensor,
        num_simulated=folded.folded.cluster.num_devices,
        capture_s=capture_s,
        cluster_s=cluster_s,
        strategy_s=strategy_s,
        first_s=first_s,
        again_s=again_s,
        peak_bytes=peak_bytes,
        iteration_time_s=evaluation.iteration_time_s,
        peak_device_bytes=evaluation.peak_memory_bytes,
        whole_s=min(timed(lambda: Simulator(problem).evaluate(strategy))[0] for _ in range(3))
        if small
        else None,
        equal=agrees(folded, evaluation) if small else None,
    )


def agrees(folded: FoldedProblem, evaluation: Evaluation) -> bool:
    """Whether the simulation of every device says the same in every bit."""
    simulator = Simulator(folded.problem)
    few, all_devices = simulate_folded(folded), simulate(folded.problem, folded.strategy, simulator=simulator)
    numbers = ("iteration_time_s", "feasible", "activation_bytes", "gradient_bytes", "synchronization_bytes")
    arrays = ("device_busy_s", "link_busy_s", "link_bytes")
    return (
        simulator.evaluate(folded.strategy) == evaluation
        and all(getattr(few, key) == getattr(all_devices, key) for key in numbers)
        and all(np.array_equal(getattr(few, key), getattr(all_devices, key)) for key in arrays)
        and all(np.array_equal(getattr(few.memory, k), getattr(all_devices.memory, k)) for k in _MEMORY)
    )


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds that `work` takes, and what it gives."""
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def table(rows: Sequence[Row]) -> str:
    """The Markdown file."""
    head = (
        "cluster", "devices", "data x tensor", "devices simulated", "capture s", "cluster s", "strategy s",
        "first s", "again s", "peak MB", "iteration ms", "memory of a device GB", "whole s", "equal",
    )  # fmt: skip
    versions = f"Python {platform.python_version()}, Numba {numba.__version__}, NumPy {np.__version__}"
    lines = [
        "# Simulation by symmetry",
        "",
        f"GPT-2 XL, {SAMPLES_PER_DEVICE} samples a device, bfloat16. {processor()}, one core; {versions}."
        " Written by `python benchmarks/folding.py`.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def cells(row: Row) -> list[str]:
    """A line of the table."""
    return [
        row.cluster,
        f"{row.num_devices:,}",
        f"{row.num_devices // row.tensor:,} x {row.tensor}",
        str(row.num_simulated),
        *(f"{seconds:.2f}" for seconds in (row.capture_s, row.cluster_s, row.strategy_s)),
        *(f"{seconds:.3f}" for seconds in (row.first_s, row.again_s)),
        f"{row.peak_bytes / 1e6:.0f}",
        f"{row.iteration_time_s * 1e3:.3f}",
        f"{row.peak_device_bytes / 1e9:.2f}",
        "-" if row.whole_s is None else f"{row.whole_s:.3f}",
        "-" if row.equal is None else json.dumps(row.equal),
    ]


def processor() -> str:
    """The name of the processor where the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
