"""Several local processes that talk over gloo, for the tests of the distributed executor."""

import multiprocessing
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def run_processes(function: Callable[..., None], num_ranks: int, *args: Any) -> None:
    """Calls ``function(rank, *args)`` in `num_ranks` processes that share a gloo process group.

    Raises:
        AssertionError: What one of them raised.
    """
    processes, errors = start_processes(function, num_ranks, *args)
    for process in processes:
        process.join()
    assert errors.empty(), errors.get()
    assert all(process.exitcode == 0 for process in processes), [p.exitcode for p in processes]


def start_processes(
    function: Callable[..., None], num_ranks: int, *args: Any
) -> tuple[list[multiprocessing.context.ForkServerProcess], Any]:
    """The processes, which have begun, and a queue of (rank, error) with what they raise."""
    # Processes are copies of a server that has imported PyTorch once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "soaprl.runtime", "tests.runtime.models"])
    port, errors = free_port(), context.SimpleQueue()
    processes = [
        context.Process(target=_begin, args=(function, rank, num_ranks, port, errors, args), daemon=True)
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    return processes, errors


def free_port() -> int:
    """A port that nothing listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def join(rank: int, num_ranks: int, port: int, *, timeout_s: float = 20.0) -> None:
    """Joins the process group of the test."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=timeout_s),
    )


def _begin(
    function: Callable[..., None], rank: int, num_ranks: int, port: int, errors: Any, args: tuple[Any, ...]
) -> None:
    try:
        join(rank, num_ranks, port)
        function(rank, *args)
        dist.barrier()
        dist.destroy_process_group()
    except Exception:
        errors.put((rank, traceback.format_exc()))
        raise SystemExit(1) from None
