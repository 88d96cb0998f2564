"""What gloo's threads cost: exchanges after computing, and messages whose sender computes on.

    python benchmarks/gloo_threads.py

With gloo's threads as they come, with the policy that the runtime gives them, and served between pieces of
computing, too, as the runtime does between tasks (`soaprl.runtime.distributed.scheduling`). *Exchange*: two
processes compute and exchange 4 KB, mean of what they wait, where the system puts them and bound to a core
each. *Message*: one of them sends and computes on, the other one waits, both bound to a core; median and 90th
percentile from sending to the end of waiting, for a few sizes.
"""

import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from soaprl.runtime.distributed.scheduling import let_gloo_wait, serve_gloo
from soaprl.runtime.measuring.processors import bind

NUM_RANKS, EXCHANGES, WARM_UP = 2, 300, 20
COMPUTE_S, AFTER_S, NUM_BYTES = 2.3e-3, 8e-3, 4096
SIZES = (2**10, 2**16, 2**20)
MODES = ("as gloo comes", "with the batch policy", "and served")


def measure(rank: int, port: int, mode: str, size: int | None, bound: bool, found: Any) -> None:
    """Puts what this process saw into the queue `found`: of exchanges, or of messages of this size."""
    torch.set_num_threads(1)
    if bound:
        bind(rank, NUM_RANKS)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=NUM_RANKS)
    if mode != MODES[0]:
        let_gloo_wait()
    matrix = torch.randn(256, 256)

    def compute(for_s: float) -> None:
        end_s = time.perf_counter() + for_s
        while time.perf_counter() < end_s:
            matrix @ matrix
            if mode == MODES[2]:
                serve_gloo()

    turn = exchange if size is None else message
    seen = [turn(rank, size or NUM_BYTES, compute) for _ in range(WARM_UP + EXCHANGES)]
    found.put((rank, seen[WARM_UP:]))
    dist.barrier()
    dist.destroy_process_group()


def exchange(rank: int, size: int, compute: Callable[[float], None]) -> float:
    """Seconds of an exchange after computing."""
    sent, received = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    compute(COMPUTE_S)
    start_s = time.perf_counter()
    works = [dist.irecv(received, 1 - rank), dist.isend(sent, 1 - rank)]
    for work in works:
        assert work is not None, "this rank is in the group"
        work.wait()
    return time.perf_counter() - start_s


def message(rank: int, size: int, compute: Callable[[float], None]) -> float:
    """When rank 0 sends a message, or rank 1, which waits, has it."""
    content = torch.zeros(size, dtype=torch.uint8)
    dist.all_reduce(torch.zeros(1))
    work = dist.irecv(content, 0) if rank == 1 else None
    compute(COMPUTE_S)
    sent_s = time.perf_counter()
    if rank == 0:
        work = dist.isend(content, 1)
        compute(AFTER_S)
    assert work is not None, "this rank is in the group"
    work.wait()
    return sent_s if rank == 0 else max(sent_s, time.perf_counter())


def measured(mode: str, *, size: int | None = None, bound: bool = True) -> list[list[float]]:
    """What each process saw."""
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        context.Process(target=measure, args=(rank, port, mode, size, bound, found))
        for rank in range(NUM_RANKS)
    ]
    for process in processes:
        process.start()
    seen = dict(found.get() for _ in processes)
    for process in processes:
        process.join()
    return [seen[rank] for rank in range(NUM_RANKS)]


def main() -> None:
    """Prints a table."""
    print(f"| | {' | '.join(MODES)} |\n| --- |{' --- |' * len(MODES)}")
    for label, bound in (("wherever the system puts them", False), ("bound to a core each", True)):
        cells = []
        for mode in MODES:
            waits = [wait for seen in measured(mode, bound=bound) for wait in seen]
            cells.append(f"{statistics.fmean(waits) * 1e3:.2f} ms")
        print(f"| exchange, {label} | {' | '.join(cells)} |", flush=True)
    for size in SIZES:
        cells = []
        for mode in MODES:
            sent, came = measured(mode, size=size)
            took = sorted(b - a for a, b in zip(sent, came, strict=True))
            median, late = statistics.median(took), took[len(took) * 9 // 10]
            cells.append(f"{median * 1e3:.2f}, {late * 1e3:.2f} ms")
        print(f"| message of {size // 1024} KB | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
