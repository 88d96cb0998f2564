"""Links between the processes of a job: timed with the calls of the runtime, fitted to the link model.

The ranks of each pair send each other messages of the same size at once, as they do in a training. With s
bytes the link model says t = latency + s / bandwidth. Some links let small messages, or the first of many,
pass faster than what they carry for long: a limited network interface saves up what it may send (a token
bucket), buffers fill. So the bandwidth is that of the largest messages, and of smaller ones as far down as
the same line explains them, implemented in `steady_line`; the latency is that of the smallest message from a
rank that has computed to one that waits, implemented in `fit_link`.

All ranks also sum buffers of the same sizes. What the collective model makes of the fitted links is set
beside those times, so that its error is known. And it is measured what computing loses to messages.
"""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from statistics import median

import torch
import torch.distributed as dist

from soaprl.runtime.distributed.groups import join_process_group
from soaprl.runtime.measuring.messages import both_ways_s, carry_s_per_byte, of_rank, one_way_s, sum_s

# From messages that only cost latency to those that only cost bandwidth.
SIZES = tuple(2**k for k in range(10, 25, 2))
_FEWEST_BYTES_PER_S = 1.0
# How far a time may be off a line that explains it, and of how many sizes at least.
_STEADY, _FEWEST = 0.1, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A fitted link.

    Attributes:
        latency_s: Time of an empty message; not below 0.
        bandwidth_bytes_per_s: Bytes per second beyond that.
        error: Median relative error of the fit over the sizes, of messages that follow each other at once.
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
        smallest_s: For each pair of ranks, lower first, the time of a message of the smallest size alone.
        transfers_s: For each pair, the time of a message of each size while another goes the other way.
        all_reduces_s: The time of a sum over all ranks of each size.
        carry_s_per_byte: See `soaprl.cluster.cluster.Overheads`.
    """

    backend: str
    hosts: tuple[str, ...]
    sizes: tuple[int, ...]
    smallest_s: dict[tuple[int, int], float]
    transfers_s: dict[tuple[int, int], tuple[float, ...]]
    all_reduces_s: tuple[float, ...]
    carry_s_per_byte: float

    @property
    def lines(self) -> dict[tuple[int, int], Line]:
        """The fitted link of each pair."""
        return {
            pair: fit_link(self.sizes, times, self.smallest_s[pair])
            for pair, times in self.transfers_s.items()
        }


def fit_link(sizes: Sequence[int], times_s: Sequence[float], smallest_s: float) -> Line:
    """A link with the bandwidth of large messages and the latency of the smallest; see the module.

    Args:
        sizes: Bytes of the messages, ascending.
        times_s: What they took.
        smallest_s: What the smallest took alone.
    """
    steady = steady_line(sizes, times_s)
    latency_s = max(0.0, smallest_s - sizes[0] / steady.bandwidth_bytes_per_s)
    errors = [abs(steady.time_s(s) - t) / t for s, t in zip(sizes, times_s, strict=True)]
    return replace(steady, latency_s=latency_s, error=median(errors))


def steady_line(sizes: Sequence[int], times_s: Sequence[float]) -> Line:
    """The line through the largest messages and as many smaller ones as it explains, each within 10 %.

    Where it would not even explain the three largest, nothing is steady (copies in memory take the longer the
    less of them is in caches), and it is the line through all.
    """
    for first in range(len(sizes) - _FEWEST + 1):
        line = fit_line(sizes[first:], times_s[first:])
        off = [abs(line.time_s(s) / t - 1) for s, t in zip(sizes[first:], times_s[first:], strict=True)]
        if max(off) <= _STEADY:
            return line
    return fit_line(sizes, times_s)


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
    """Measures all pairs, the sum over all, and computing beside messages; every rank of the job calls it.

    Args:
        host: Names this rank's machine.
        device: Where this rank's tensors are.
        sizes: Bytes of the messages.
        repeats: How often each is sent, at most.
        listen: Called with the number of measurements done, and of all.

    Returns:
        The same for all ranks.
    """
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    hosts: list[str] = [""] * num_ranks
    dist.all_gather_object(hosts, host)
    pairs = list(combinations(range(num_ranks), 2))
    smallest: dict[tuple[int, int], float] = {}
    transfers: dict[tuple[int, int], tuple[float, ...]] = {}
    total, done = len(pairs) * (len(sizes) + 1) + len(sizes) + 1, 0

    def shared(measure: Callable[[], float], members: Sequence[int]) -> float:
        """What the first of these ranks measures; all of them measure it, nobody else works meanwhile."""
        nonlocal done
        dist.barrier()
        value = of_rank(measure() if rank in members else 0.0, members[0], device)
        done += 1
        listen(done, total)
        return value

    for pair in pairs:
        smallest[pair] = shared(partial(one_way_s, rank, pair, sizes[0], device, repeats), pair)
        transfers[pair] = tuple(
            shared(partial(both_ways_s, rank, pair, size, device, repeats), pair) for size in sizes
        )
    sums = tuple(shared(partial(sum_s, size, device, repeats), range(num_ranks)) for size in sizes)
    return MeasuredLinks(
        backend=str(dist.get_backend()),
        hosts=tuple(hosts),
        sizes=tuple(sizes),
        smallest_s=smallest,
        transfers_s=transfers,
        all_reduces_s=sums,
        carry_s_per_byte=shared(_carry(rank, transfers, sizes, device), (0, num_ranks - 1)),
    )


def _carry(
    rank: int,
    transfers: Mapping[tuple[int, int], Sequence[float]],
    sizes: Sequence[int],
    device: torch.device,
) -> Callable[[], float]:
    """Measures what computing loses to messages between the first rank and the last.

    They are of different hosts if there are several. Kernels of a GPU need no processor to carry bytes.
    """
    pair = (0, dist.get_world_size() - 1)
    if device.type != "cpu" or pair not in transfers:
        return lambda: 0.0
    bandwidth = steady_line(sizes, transfers[pair]).bandwidth_bytes_per_s
    return lambda: carry_s_per_byte(rank, pair, 1 / bandwidth)


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
