"""How long two processes wait when they exchange right after both have computed, over gloo.

    python benchmarks/gloo_threads.py

With gloo's threads as they come and with the policy that the runtime gives them
(`soaprl.runtime.distributed.scheduling`), for processes that the system puts where it likes and for processes
bound to a core each.
"""

import multiprocessing
import os
import socket
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist

from soaprl.runtime.distributed.scheduling import let_gloo_wait
from soaprl.runtime.measuring.processors import bind

NUM_RANKS, EXCHANGES, WARM_UP = 2, 300, 20
COMPUTE_S, NUM_FLOATS = 2.3e-3, 1024


def measure(rank: int, port: int, batch: bool, bound: bool, found: Any) -> None:
    """Puts the seconds that each exchange took, of one process, into the queue `found`."""
    torch.set_num_threads(1)
    if bound:
        bind(rank, NUM_RANKS)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=NUM_RANKS)
    if batch:
        let_gloo_wait()
    matrix = torch.randn(128, 128)
    sent, received = torch.zeros(NUM_FLOATS), torch.zeros(NUM_FLOATS)
    waits = []
    for _ in range(WARM_UP + EXCHANGES):
        end_s = time.perf_counter() + COMPUTE_S
        while time.perf_counter() < end_s:
            matrix @ matrix
        start_s = time.perf_counter()
        works = [dist.irecv(received, 1 - rank), dist.isend(sent, 1 - rank)]
        for work in works:
            assert work is not None, "this rank is in the group"
            work.wait()
        waits.append(time.perf_counter() - start_s)
    found.put(waits[WARM_UP:])
    dist.barrier()
    dist.destroy_process_group()


def mean_wait_s(*, batch: bool, bound: bool) -> float:
    """Mean over exchanges and processes."""
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        context.Process(target=measure, args=(rank, port, batch, bound, found)) for rank in range(NUM_RANKS)
    ]
    for process in processes:
        process.start()
    waits = [wait for _ in processes for wait in found.get()]
    for process in processes:
        process.join()
    return statistics.fmean(waits)


def main() -> None:
    """Prints a table."""
    print("| processes | as gloo comes | with the batch policy |\n| --- | --- | --- |")
    for label, bound in (("wherever the system puts them", False), ("bound to a core each", True)):
        times = [mean_wait_s(batch=batch, bound=bound) for batch in (False, True)]
        print(f"| {label} | {' | '.join(f'{wait * 1e3:.2f} ms' for wait in times)} |", flush=True)


if __name__ == "__main__":
    main()
