"""Measures what collectives do for a training step: sums of partial results, and sharded state.

Gloo processes with one thread each. Tensor-parallel linear layers whose partial results are summed by an
all-reduce are compared with the same strategy whose partial results are exchanged; a data-parallel strategy
that shards its state with the one that does not. As in `runtime.py`, contenders take turns, and what counts
is the median ratio of throughputs within a turn.

    python benchmarks/runtime_collectives.py --output benchmarks/runtime-collectives.md
"""

import argparse
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from runtime import STEPS, Measured, Mlp, columns_then_rows, load, measured, processor, samples, split
from torch import Tensor, nn

from soaprl.runtime.compile import compile_program
from soaprl.runtime.distributed import DistributedRuntime, Groups, initialize_distributed
from soaprl.runtime.program import CompileOptions, SumPartials
from soaprl.runtime.training import graph_of_model
from soaprl.strategy.strategy import Sharding

NUM_RANKS, WIDTH, NUM_PAIRS, ROWS = (2, 3, 4), 256, 4, (64, 256, 512, 1024, 4096)
SHARDED_WIDTH, SHARDED_LAYERS, SHARDED_ROWS = 768, 6, 256
# Any partial results, and none.
ALWAYS, NEVER = 0, 2**62


class Square(nn.Module):
    """Pairs of linear layers, all of one width."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(NUM_PAIRS))
        self.down = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(NUM_PAIRS))

    def forward(self, x: Tensor) -> Tensor:
        """The loss."""
        for up, down in zip(self.up, self.down, strict=True):
            x = down(torch.relu(up(x)))
        return x.mean()


@dataclass(frozen=True)
class Row:
    """A line of a table: what it says first, and what was measured."""

    cells: tuple[str, ...]
    found: Measured


def adam(named: Any) -> torch.optim.Optimizer:
    """An optimizer with two tensors of state for each parameter."""
    return torch.optim.Adam(named, lr=1e-4)


def sums(groups: Groups, turns: int) -> list[Row]:
    """Partial results summed against partial results exchanged."""
    rows = []
    for num_rows in ROWS:
        torch.manual_seed(0)
        model, batch = Square(), torch.randn(num_rows, WIDTH)
        graph = graph_of_model(model, (batch,))
        strategy = split(graph, columns_then_rows, groups.num_ranks)
        contenders: dict[str, Callable[[], object]] = {}
        count = 0
        for name, size in (("theirs", NEVER), ("ours", ALWAYS)):
            options = CompileOptions(sum_bytes=size, sum_ranks=2)
            program = compile_program(graph, strategy, num_ranks=groups.num_ranks, options=options)
            count = sum(isinstance(step, SumPartials) for step in program.ranks[0].steps)
            runtime = initialize_distributed(model, graph, program, optimizer=adam, groups=groups)
            contenders[name] = lambda r=runtime, b=batch: r.step(b)
        cells = (str(groups.num_ranks), f"{4 * num_rows * WIDTH // 1024} KiB", str(count))
        rows.append(Row(cells, measured(contenders, turns=turns)))
    return rows


def sharded(groups: Groups, turns: int) -> list[Row]:
    """Data parallelism with sharded state against data parallelism without."""
    torch.manual_seed(0)
    model, batch = Mlp(SHARDED_WIDTH, SHARDED_LAYERS), torch.randn(SHARDED_ROWS, SHARDED_WIDTH)
    graph = graph_of_model(model, (batch,))
    strategy = split(graph, samples, groups.num_ranks)

    def made(sharding: Sharding) -> DistributedRuntime:
        program = compile_program(graph, replace(strategy, sharding=sharding), num_ranks=groups.num_ranks)
        return initialize_distributed(model, graph, program, optimizer=adam, groups=groups)

    rows = []
    for sharding in (Sharding.ZERO1, Sharding.ZERO2, Sharding.ZERO3):
        whole, parts = made(Sharding.NONE), made(sharding)
        contenders = {"theirs": lambda r=whole: r.step(batch), "ours": lambda r=parts: r.step(batch)}
        found = measured(contenders, turns=turns)
        state = f"{state_bytes(whole) / 2**20:.2f}", f"{state_bytes(parts) / 2**20:.2f}"
        rows.append(Row((str(groups.num_ranks), sharding.value, *state), found))
    return rows


def state_bytes(runtime: DistributedRuntime) -> int:
    """Bytes of this rank's parameters, gradients and optimizer state after a step, each storage once."""
    held = [*runtime.rank.state.parameters.values(), *runtime.rank.state.kept.values()]
    held += list(runtime.rank.state.updated.values())
    optimizer = runtime.optimizer.optimizer
    states = [] if optimizer is None else list(optimizer.state.values())
    tensors: Iterable[Tensor] = [
        *held,
        *(p.grad for p in held if p.grad is not None),
        *(t for state in states for t in state.values() if isinstance(t, Tensor)),
    ]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def rank_main(rank: int, num_ranks: int, port: int, turns: int, rows: Any) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=num_ranks)
    groups = Groups()
    found = (sums(groups, turns), sharded(groups, turns))
    if rank == 0:
        rows.put(found)
    dist.barrier()
    groups.close()
    dist.destroy_process_group()


def table(title: str, heads: tuple[str, ...], rows: list[Row]) -> list[str]:
    """Lines of a table whose last column is the ratio."""
    lines = [f"## {title}", "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        low, middle, high = row.found.ratio
        times = [f"{1e3 * row.found.seconds[name]:.2f}" for name in ("theirs", "ours")]
        cells = [*row.cells, *times, f"{middle:.2f} ({low:.2f} to {high:.2f})"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def report(summed: list[Row], shards: list[Row], turns: int) -> str:
    """Both tables, with how they came about."""
    lines = [
        "# What collectives do for a training step",
        "",
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({processor()}), {load()}PyTorch"
        f" {torch.__version__}, gloo, one thread for each process. Contenders take turns, {STEPS} steps each,"
        f" {turns} times; medians over the turns, with quartiles in brackets.",
        "",
        *table(
            f"Partial results of {NUM_PAIRS} tensor-parallel pairs of linear layers of {WIDTH}",
            ("processes", "one sum", "sums a step", "exchanged, ms", "all-reduced, ms", "speed-up"),
            summed,
        ),
        *table(
            f"Data parallelism with Adam, {SHARDED_LAYERS} linear layers of {SHARDED_WIDTH},"
            f" {SHARDED_ROWS} rows",
            (
                "processes",
                "sharding",
                "MiB of rank 0, whole",
                "MiB of rank 0, sharded",
                "whole, ms",
                "sharded, ms",
                "speed",
            ),
            shards,
        ),
        "MiB count parameters, gradients and optimizer state after a step.",
        "",
        "Written by `python benchmarks/runtime_collectives.py --output benchmarks/runtime-collectives.md`.",
    ]
    return "\n".join(lines) + "\n"


def run(num_ranks: int, turns: int) -> tuple[list[Row], list[Row]]:
    """Both tables' lines for a number of processes."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = context.SimpleQueue()
    ranks = [
        context.Process(target=rank_main, args=(rank, num_ranks, port, turns, found))
        for rank in range(num_ranks)
    ]
    for process in ranks:
        process.start()
    rows: tuple[list[Row], list[Row]] = found.get()
    for process in ranks:
        process.join()
    return rows


def main() -> None:
    """Runs everything and prints, or writes, the tables."""
    parser = argparse.ArgumentParser(description="Measure what collectives do for a training step.")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = [run(num_ranks, arguments.turns) for num_ranks in NUM_RANKS]
    text = report([row for s, _ in found for row in s], [row for _, s in found for row in s], arguments.turns)
    if arguments.output:
        arguments.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
