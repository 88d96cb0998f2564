"""A rank that dies, hangs or runs out of memory: the others end, and their error names it."""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.calls import Kernel, LocalCall, Results
from soaprl.runtime.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from soaprl.runtime.compile import compile_program
from soaprl.runtime.distributed import DistributedRank, Groups
from soaprl.runtime.local import kernels
from soaprl.runtime.model_state import input_tensors, module_tensors
from soaprl.runtime.program import CompileOptions
from soaprl.runtime.stores import blocks_of
from soaprl.runtime.training import graph_of_model, initialize
from tests.runtime.processes import run_processes, start_processes
from tests.runtime.test_training import data_parallel, model_parallel

NUM_RANKS, VICTIM, TIMEOUT_S = 3, 1, 3.0
LIMIT_S = 30.0


class Stack(nn.Module):
    """Six linear layers; one that fails is told from the others by its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for k, layer in enumerate(self.layers):
            x = layer(x)
            x = torch.sinh(x) if k in (2, 3) else torch.cos(x)
        return x.square().mean()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def exhaust_memory() -> None:
    raise MemoryError("expected 8 TiB")


def failing(fail: Callable[[], None], when: str, last: int, failed: Path) -> dict[str, Kernel]:
    """Kernels of which sinh fails, in its call number `last`, forward or backward, and leaves a file."""
    count = 0

    def on_gradient(gradient: Tensor) -> None:
        failed.touch()
        fail()

    def sinh(call: LocalCall) -> Results:
        nonlocal count
        count += 1
        found = call.tensor()
        if count == last and when == "forward":
            failed.touch()
            fail()
        if count == last and when == "backward":
            found.register_hook(on_gradient)
        return found

    return {**kernels(), "aten.sinh": sinh}


def train(
    rank: int, strategy_of: Callable[[OperatorGraph, int], Any], fail: Any, when: str, failed: Path
) -> None:
    torch.manual_seed(0)
    model, batch = Stack(), torch.randn(6, 6)
    graph = graph_of_model(model, (batch,))
    options = CompileOptions(bucket_bytes=1)
    program = compile_program(graph, strategy_of(graph, NUM_RANKS), num_ranks=NUM_RANKS, options=options)
    per_iteration = sum(
        step.kind == "forward" and "sinh" in str(graph.operators[step.operator])
        for step in program.ranks[VICTIM].steps
    )
    assert per_iteration, "the rank that is to fail has no sinh"
    table = failing(fail, when, 2 * per_iteration, failed) if rank == VICTIM else kernels()
    executor = DistributedRank(
        graph,
        program,
        blocks_of(graph, module_tensors(graph, model)),
        groups=Groups(timeout_s=TIMEOUT_S),
        table=table,
        timeout_s=TIMEOUT_S,
    )
    for seed in range(4):
        executor.iterate(blocks_of(graph, input_tensors(graph, [batch])), seed=seed)


def errors_of_others(processes: list[Any], errors: Any, failed: Path) -> dict[int, str]:
    """What each rank but the one that fails raised, all within a bounded time once there is the file."""
    while not failed.exists() and processes[VICTIM].is_alive():
        time.sleep(0.05)
    found = {}
    others = [rank for rank in range(NUM_RANKS) if rank != VICTIM]
    for rank in others:
        processes[rank].join(LIMIT_S)
        assert processes[rank].exitcode == 1, f"rank {rank}: {processes[rank].exitcode}"
    processes[VICTIM].kill()
    while not errors.empty():
        rank, text = errors.get()
        found[rank] = text.strip().splitlines()[-1]
    assert set(others) <= found.keys()
    return found


def errors_after(strategy_of: Any, fail: Any, when: str) -> dict[int, str]:
    """What each rank but the one that fails raised."""
    with tempfile.TemporaryDirectory() as folder:
        failed = Path(folder) / "failed"
        processes, errors = start_processes(train, NUM_RANKS, strategy_of, fail, when, failed)
        return errors_of_others(processes, errors, failed)


@pytest.mark.parametrize(
    ("strategy_of", "when", "where"),
    [
        (model_parallel, "forward", "exchange after operator"),
        (model_parallel, "backward", "exchange after operator"),
        (data_parallel, "backward", "sum of the gradients of"),
    ],
    ids=["forward", "backward", "reduction"],
)
def test_others_end_and_name_a_rank_that_was_killed(strategy_of: Any, when: str, where: str) -> None:
    found = errors_after(strategy_of, die, when)
    assert len(found) == NUM_RANKS - 1
    for error in found.values():
        assert f"rank {VICTIM} did not answer in step" in error, error
        # A rank that needs nothing more of the victim may be one iteration ahead when it notices.
        assert "of iteration 1" in error or "of iteration 2" in error, error
        assert where in error, error
    assert len(set(found.values())) == 1, "all name the same failure"


def test_others_end_and_name_a_rank_that_hangs() -> None:
    for error in errors_after(data_parallel, hang, "forward").values():
        assert f"rank {VICTIM} did not answer in step" in error, error
        assert f"rank {VICTIM} was last seen" in error, error


def test_others_end_and_name_a_rank_that_runs_out_of_memory() -> None:
    found = errors_after(data_parallel, exhaust_memory, "forward")
    assert len(found) == NUM_RANKS
    for error in found.values():
        assert f"rank {VICTIM} ran out of memory in iteration 1, forward pass of operator" in error, error
        assert "expected 8 TiB" in error, error


def save_and_die(rank: int, folder: Path) -> None:
    torch.manual_seed(0)
    model, batch = Stack(), torch.randn(6, 6)
    graph = graph_of_model(model, (batch,))
    runtime = initialize(
        model,
        model_parallel(graph, NUM_RANKS),
        (batch,),
        optimizer=lambda named: torch.optim.SGD(named, lr=0.1, momentum=0.9),
        graph=graph,
        executor="distributed",
        timeout_s=TIMEOUT_S,
    )
    losses = [runtime.step(batch).item() for _ in range(2)]
    save_checkpoint(runtime, folder)
    losses += [runtime.step(batch).item() for _ in range(2)]
    if rank == 0:
        (folder / "losses").write_text(json.dumps(losses))
    if rank == VICTIM:
        # What it asks for when it writes what it owns.
        runtime.rank.state.parameter = lambda block: ((folder / "failed").touch(), die())
    save_checkpoint(runtime, folder)


def go_on(rank: int, folder: Path) -> None:
    torch.manual_seed(1)
    model, batch = Stack(), torch.randn(6, 6)
    torch.manual_seed(0)
    _, batch = Stack(), torch.randn(6, 6)
    graph = graph_of_model(model, (batch,))
    runtime = initialize(
        model,
        model_parallel(graph, NUM_RANKS),
        (batch,),
        optimizer=lambda named: torch.optim.SGD(named, lr=0.1, momentum=0.9),
        graph=graph,
        executor="distributed",
    )
    found = latest_checkpoint(folder)
    assert found is not None
    assert load_checkpoint(runtime, found).num_iterations == 2, "that of the failure is not whole"
    assert [runtime.step(batch).item() for _ in range(2)] == json.loads((folder / "losses").read_text())[2:]


def test_a_rank_killed_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path: Path) -> None:
    processes, errors = start_processes(save_and_die, NUM_RANKS, tmp_path)
    found = errors_of_others(processes, errors, tmp_path / "failed")
    assert set(found) == {rank for rank in range(NUM_RANKS) if rank != VICTIM}
    for error in found.values():
        assert "ExecutionError" in error, error
        assert f"rank {VICTIM} did not answer in the writing of a checkpoint" in error, error
    run_processes(go_on, NUM_RANKS, tmp_path)
