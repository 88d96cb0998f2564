"""Measures training steps by a strategy against what people write by hand, side by side in one run.

Two gloo processes with one thread each: data parallelism against DistributedDataParallel, tensor-parallel
linear layers against DTensor's parallelize_module, and in one process a strategy for one device against plain
eager PyTorch. The contenders of a comparison take turns, several steps each, so that both see the same
machine; what counts is the median, over the turns, of the
ratio of throughputs.

    python benchmarks/runtime.py --output benchmarks/runtime.md
"""

import argparse
import multiprocessing
import os
import platform
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from soaprl.graph.factors import FactorKind
from soaprl.graph.operators import Operator, OperatorGraph
from soaprl.runtime.compile import compile_program
from soaprl.runtime.distributed import DistributedRuntime, Groups, initialize_distributed
from soaprl.runtime.training import graph_of_model, initialize
from soaprl.strategy.strategy import OpConfig, Strategy

NUM_RANKS, STEPS = 2, 10
Step: TypeAlias = Callable[[], object]


class Mlp(nn.Module):
    """Linear layers of one width, and a loss."""

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """The loss."""
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.square().mean()


class Pairs(nn.Module):
    """Pairs of linear layers as in a transformer: wide in between."""

    def __init__(self, width: int, num_pairs: int) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(num_pairs))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(num_pairs))

    def forward(self, x: Tensor) -> Tensor:
        """The loss."""
        for up, down in zip(self.up, self.down, strict=True):
            x = down(torch.relu(up(x)))
        return x.mean()


class Convolutions(nn.Module):
    """A small convolutional network with normalization."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
            for a, b in pairwise(widths)
        )
        self.out = nn.Linear(64 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The loss."""
        for layer in self.layers:
            x = layer(x)
        return self.out(x.flatten(1)).square().mean()


def models() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """Models by name, with the shape of one batch for two ranks."""
    return {
        "6 linear layers of 512, 512 rows": (lambda: Mlp(512, 6), (512, 512)),
        "24 linear layers of 128, 64 rows": (lambda: Mlp(128, 24), (64, 128)),
        "3 convolutions, 32 images of 32 x 32": (Convolutions, (32, 3, 32, 32)),
    }


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """What everybody trains with."""
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)


# Strategies.


def split(graph: OperatorGraph, factor_of: Callable[[Operator], str], num_ranks: int) -> Strategy:
    """One factor of each operator, by name, over all ranks."""
    configs = []
    for operator in graph.operators:
        degrees = [1] * len(operator.factors)
        degrees[operator.factor_index(factor_of(operator))] = num_ranks
        configs.append(OpConfig(tuple(degrees), tuple(range(num_ranks))))
    return Strategy(tuple(configs))


def samples(operator: Operator) -> str:
    """Data parallelism."""
    return next(f.name for f in operator.factors if f.kind is FactorKind.SAMPLE)


def columns_then_rows(operator: Operator) -> str:
    """Wide linear layers along their output, narrow ones along their input, the rest along samples."""
    if operator.name.startswith("up"):
        return "channel"
    return "in_channel" if operator.name.startswith("down") else samples(operator)


# Contenders.


def eager(model: nn.Module, batch: Tensor) -> Step:
    """Plain PyTorch; `model` may be wrapped."""
    optimizer = sgd(model.parameters())

    def step() -> object:
        optimizer.zero_grad()
        loss = model(batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


@dataclass(frozen=True)
class Measured:
    """Medians over the turns.

    Attributes:
        seconds: Of a step, by contender.
        ratio: Throughput of ours over that of theirs, of the two in the same turn; with its quartiles.
        cpu_ratio: The same of processor time instead of time.
    """

    seconds: dict[str, float]
    ratio: tuple[float, float, float]
    cpu_ratio: float


def measured(contenders: dict[str, Step], *, turns: int) -> Measured:
    """Steps of both contenders, who take turns."""
    for step in contenders.values():
        for _ in range(5):
            step()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(turns):
        # Each goes first as often as the other.
        for name in list(contenders)[:: 1 if turn % 2 else -1]:
            _barrier()
            start, start_cpu = time.perf_counter(), time.process_time()
            for _ in range(STEPS):
                contenders[name]()
            used = time.process_time() - start_cpu
            _barrier()
            times[name].append(((time.perf_counter() - start) / STEPS, used / STEPS))
    pairs = list(zip(times["theirs"], times["ours"], strict=True))
    ratios = [theirs[0] / ours[0] for theirs, ours in pairs]
    quartiles = statistics.quantiles(ratios, n=4)
    return Measured(
        seconds={name: statistics.median(wall for wall, _ in found) for name, found in times.items()},
        ratio=(quartiles[0], quartiles[1], quartiles[2]),
        cpu_ratio=statistics.median(theirs[1] / ours[1] for theirs, ours in pairs),
    )


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        model: What was trained.
        against: The other contender.
        found: What was measured.
    """

    model: str
    against: str
    found: Measured


def single(turns: int) -> list[Row]:
    """A strategy for one device against eager."""
    rows = []
    for name, (make, shape) in models().items():
        torch.manual_seed(0)
        model, batch = make(), torch.randn(shape[0] // 2, *shape[1:])
        graph = graph_of_model(model, (batch,))
        strategy = split(graph, samples, 1)
        runtime = initialize(model, strategy, (batch,), optimizer=sgd, graph=graph)
        contenders = {"theirs": eager(model, batch), "ours": lambda r=runtime, b=batch: r.step(b)}
        rows.append(Row(name, "plain eager, 1 process", measured(contenders, turns=turns)))
    return rows


def data_parallel(groups: Groups, turns: int) -> list[Row]:
    """A data-parallel strategy against DistributedDataParallel."""
    rows = []
    for name, (make, shape) in models().items():
        torch.manual_seed(0)
        model, batch = make(), torch.randn(shape)
        runtime = distributed(model, batch, samples, groups)
        mine = batch.chunk(groups.num_ranks)[groups.rank]
        theirs = eager(nn.parallel.DistributedDataParallel(model), mine)
        contenders = {"theirs": theirs, "ours": lambda r=runtime, b=batch: r.step(b)}
        rows.append(Row(name, "DistributedDataParallel, 2 processes", measured(contenders, turns=turns)))
    return rows


def tensor_parallel(groups: Groups, turns: int) -> list[Row]:
    """Column- and row-parallel linear layers against parallelize_module."""
    rows = []
    for width, num_pairs, num_rows in ((256, 3, 512), (128, 6, 64)):
        torch.manual_seed(0)
        model, batch = Pairs(width, num_pairs), torch.randn(num_rows, width)
        runtime = distributed(model, batch, columns_then_rows, groups)
        plan: dict[str, Any] = {f"up.{k}": ColwiseParallel() for k in range(num_pairs)}
        plan |= {f"down.{k}": RowwiseParallel() for k in range(num_pairs)}
        theirs = eager(parallelize_module(model, init_device_mesh("cpu", (groups.num_ranks,)), plan), batch)
        contenders = {"theirs": theirs, "ours": lambda r=runtime, b=batch: r.step(b)}
        name = f"{num_pairs} pairs of linear layers, {width} to {4 * width} and back, {num_rows} rows"
        rows.append(Row(name, "parallelize_module, 2 processes", measured(contenders, turns=turns)))
    return rows


def distributed(
    model: nn.Module, batch: Tensor, factor_of: Callable[[Operator], str], groups: Groups
) -> DistributedRuntime:
    """A strategy on all processes."""
    graph = graph_of_model(model, (batch,))
    strategy = split(graph, factor_of, groups.num_ranks)
    program = compile_program(graph, strategy, num_ranks=groups.num_ranks)
    return initialize_distributed(model, graph, program, optimizer=sgd, groups=groups)


# The run.


def rank_main(rank: int, port: int, turns: int, rows: Any) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=NUM_RANKS)
    groups = Groups()
    found = [*data_parallel(groups, turns), *tensor_parallel(groups, turns)]
    if rank == 0:
        rows.put(found)
    dist.barrier()
    groups.close()
    dist.destroy_process_group()


def processor() -> str:
    """The name of the processor."""
    information = Path("/proc/cpuinfo")
    names = (
        [x for x in information.read_text().splitlines() if "model name" in x] if information.exists() else []
    )
    return names[0].split(":")[1].strip() if names else platform.machine()


def load() -> str:
    """What else the machine was doing."""
    return f"load of other work about {os.getloadavg()[1]:.1f} (5 minutes), "


def report(rows: list[Row], turns: int) -> str:
    """The table, with how it came about."""
    lines = [
        "# A training step by a strategy, against what people write by hand",
        "",
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({processor()}), {load()}PyTorch"
        f" {torch.__version__}, gloo, one thread for each process. Contenders take turns, {STEPS} steps each,"
        f" {turns} times. Throughput is compared within a turn; the numbers are medians over the turns, with"
        " quartiles in brackets. Above 1, soaprl is faster. The last column compares the processor time of a"
        " rank instead, with which other work on the machine interferes less.",
        "",
        "| model | against | theirs, ms a step | soaprl, ms a step | throughput of soaprl / theirs | by"
        " processor time |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        theirs, ours = row.found.seconds["theirs"], row.found.seconds["ours"]
        low, middle, high = row.found.ratio
        lines.append(
            f"| {row.model} | {row.against} | {1e3 * theirs:.2f} | {1e3 * ours:.2f} | {middle:.2f}"
            f" ({low:.2f} to {high:.2f}) | {row.found.cpu_ratio:.2f} |"
        )
    lines += ["", "Written by `python benchmarks/runtime.py --output benchmarks/runtime.md`."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs everything and prints, or writes, the table."""
    parser = argparse.ArgumentParser(description="Measure training steps by a strategy.")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = single(arguments.turns)
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = context.SimpleQueue()
    ranks = [
        context.Process(target=rank_main, args=(rank, port, arguments.turns, found))
        for rank in range(NUM_RANKS)
    ]
    for process in ranks:
        process.start()
    rows += found.get()
    for process in ranks:
        process.join()
    text = report(rows, arguments.turns)
    if arguments.output:
        arguments.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
