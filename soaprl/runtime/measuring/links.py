"""Links between the processes of a job: timed with the calls of the runtime, fitted to the link model.

Between each pair of ranks messages go back and forth; half of a round trip is a transfer. With s bytes the
link model says t = latency + s / bandwidth, and the fit is the line with the least squared relative error
over all sizes (`fit_line`): small messages decide the latency, large ones the bandwidth.

Of the repeats of a size the lower quartile counts: what else the machines do only ever takes time away.

All ranks also sum buffers of the same sizes. What the collective model makes of the fitted links is set
beside those times, so that its error is known.
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor

from soaprl.runtime.distributed.groups import join_process_group

# From messages that only cost latency to those that only cost bandwidth.
SIZES = tuple(2**k for k in range(10, 25, 2))
_WARM_UP = 2
_FEWEST_BYTES_PER_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A fitted link.

    Attributes:
        latency_s: Time of an empty message; not below 0.
        bandwidth_bytes_per_s: Bytes per second beyond that.
        error: Median relative error of the fit over the sizes.
    """

    latency_s: float
    bandwidth_bytes_per_s: float
    error: float

    def time_s(self, num_bytes: int) -> float:
        """Seconds of a transfer."""
        return self.latency_s + num_bytes / self.bandwidth_bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLinks:
    """What was measured in a job.

    Attributes:
        backend: ``gloo`` or ``nccl``.
        hosts: The host of each rank.
        sizes: Bytes of the messages, ascending.
        transfers_s: For each pair of ranks, lower first, the time of a transfer of each size.
        all_reduces_s: The time of a sum over all ranks of each size.
    """

    backend: str
    hosts: tuple[str, ...]
    sizes: tuple[int, ...]
    transfers_s: dict[tuple[int, int], tuple[float, ...]]
    all_reduces_s: tuple[float, ...]

    @property
    def lines(self) -> dict[tuple[int, int], Line]:
        """The fitted link of each pair."""
        return {pair: fit_line(self.sizes, times) for pair, times in self.transfers_s.items()}


def fit_line(sizes: Sequence[int], times_s: Sequence[float]) -> Line:
    """The latency L and bandwidth B with the least sum of ((L + s / B - t) / t)^2; see `Line`.

    With x = 1 / t, y = s / t the normal equations of x L + y / B = 1 are solved; a negative solution is
    replaced by the best one on the border, where that quantity is 0.
    """
    x = [1 / t for t in times_s]
    y = [s / t for s, t in zip(sizes, times_s, strict=True)]
    xx, yy = sum(a * a for a in x), sum(b * b for b in y)
    xy = sum(a * b for a, b in zip(x, y, strict=True))
    determinant = xx * yy - xy * xy
    latency = (sum(x) * yy - sum(y) * xy) / determinant if determinant > 0 else -1.0
    slope = (sum(y) * xx - sum(x) * xy) / determinant if determinant > 0 else sum(y) / yy
    if latency < 0:
        latency, slope = 0.0, sum(y) / yy
    elif slope <= 0:
        latency, slope = sum(x) / xx, 0.0
    bandwidth = 1 / slope if slope > 0 else max(sizes) / min(times_s)
    errors = [abs(latency + s * slope - t) / t for s, t in zip(sizes, times_s, strict=True)]
    return Line(
        latency_s=latency,
        bandwidth_bytes_per_s=max(bandwidth, _FEWEST_BYTES_PER_S),
        error=median(errors),
    )


def measure_links(
    host: str,
    device: torch.device,
    *,
    sizes: Sequence[int] = SIZES,
    repeats: int = 40,
    listen: Callable[[int, int], None] = lambda done, total: None,
) -> MeasuredLinks:
    """Measures all pairs and the sum over all; every rank of the job calls it, and gets all of it.

    Args:
        host: Names this rank's machine.
        device: Where this rank's tensors are.
        sizes: Bytes of the messages.
        repeats: How often each is sent.
        listen: Called with the number of measurements done, and of all.
    """
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    hosts: list[str] = [""] * num_ranks
    dist.all_gather_object(hosts, host)
    pairs = list(combinations(range(num_ranks), 2))
    total, transfers = (len(pairs) + 1) * len(sizes), {}
    for number, pair in enumerate(pairs):
        times = []
        for count, size in enumerate(sizes):
            dist.barrier()
            own = _round_trip(rank, pair, size, device, repeats) / 2 if rank in pair else 0.0
            times.append(_of_rank(own, pair[0], device))
            listen(number * len(sizes) + count + 1, total)
        transfers[pair] = tuple(times)
    sums = []
    for count, size in enumerate(sizes):
        dist.barrier()
        sums.append(_of_rank(_sum(size, device, repeats), 0, device))
        listen(len(pairs) * len(sizes) + count + 1, total)
    return MeasuredLinks(
        backend=str(dist.get_backend()),
        hosts=tuple(hosts),
        sizes=tuple(sizes),
        transfers_s=transfers,
        all_reduces_s=tuple(sums),
    )


def measure_job(
    device: str | None, shown: Callable[[int], AbstractContextManager[Callable[[int, int], None]]]
) -> tuple[int, MeasuredLinks]:
    """Joins the job that `torchrun` started, measures its links, and leaves it; this rank, and the links.

    Args:
        device: ``cuda`` for a GPU each, else tensors are in the CPU's memory.
        shown: Given the rank, shows progress; see `measure_links`.

    Raises:
        ExecutionError: The environment describes no job.
    """
    at = torch.device("cpu")
    if device == "cuda":
        at = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(at)
    torch.set_num_threads(1)
    join_process_group((at,))
    try:
        rank = dist.get_rank()
        with shown(rank) as listen:
            return rank, measure_links(socket.gethostname(), at, listen=listen)
    finally:
        dist.destroy_process_group()


def _of_rank(value: float, source: int, device: torch.device) -> float:
    """What one rank measured, for all."""
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(shared, source)
    return float(shared.item())


def _round_trip(rank: int, pair: tuple[int, int], size: int, device: torch.device, repeats: int) -> float:
    """Seconds of a message to the other rank of the pair and back."""
    first, second = pair
    there = torch.zeros(size, dtype=torch.uint8, device=device)
    back = torch.zeros(size, dtype=torch.uint8, device=device)

    def turn() -> None:
        if rank == first:
            _complete([("send", there, second)])
            _complete([("receive", back, second)])
        else:
            _complete([("receive", there, first)])
            _complete([("send", back, first)])

    return _usual(turn, device, repeats)


def _complete(operations: list[tuple[str, Tensor, int]]) -> None:
    """Sends and receives as the runtime does, and waits."""
    if dist.get_backend() == "nccl":
        calls = {"send": dist.isend, "receive": dist.irecv}
        batch = [dist.P2POp(calls[what], tensor, peer) for what, tensor, peer in operations]
        works = list(dist.batch_isend_irecv(batch))
    else:
        found = [
            dist.isend(tensor, peer) if what == "send" else dist.irecv(tensor, peer)
            for what, tensor, peer in operations
        ]
        works = [work for work in found if work is not None]
    for work in works:
        work.wait()


def _sum(size: int, device: torch.device, repeats: int) -> float:
    buffer = torch.zeros(max(1, size // 4), device=device)
    return _usual(lambda: dist.all_reduce(buffer), device, repeats)


def _usual(turn: Callable[[], object], device: torch.device, repeats: int) -> float:
    times = []
    for number in range(_WARM_UP + repeats):
        start_s = time.perf_counter()
        turn()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= _WARM_UP:
            times.append(time.perf_counter() - start_s)
    return sorted(times)[len(times) // 4]
