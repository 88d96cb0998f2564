"""Times messages between ranks, sent as the runtime sends them; what computes meanwhile serves gloo likewise.

What takes long is repeated less often; ranks agree on how often by what the first of them saw (`_usual_s`).
Of the repeats the lower quartile counts: what else machines do only ever takes time away.

A processor that computes loses time to what travels meanwhile: to threads of the library, and to the system,
which handles packets within whatever runs. That is measured where it is lost (`carry_s_per_byte`): the clocks
of threads and processes do not show what the system does while a processor is idle.
"""

import time
from collections.abc import Callable
from math import ceil
from statistics import median
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from soaprl.runtime.distributed.scheduling import serve_gloo

# What to do ("send" or "receive"), with which tensor, and with whom.
Operation: TypeAlias = tuple[str, Tensor, int]

_FEWEST, _LONG_S = 3, 1.0
# How long ranks compute before they send a message whose latency is measured.
_BEFORE_S = 2e-3
# How often computing is timed beside messages, for how long, and for how much longer messages would travel.
_TRIALS, _COMPUTING_S, _LONGER = 5, 0.2, 1.5
_PIECES, _SMALLEST_PIECE = 64, 2**16
_ROWS, _COLUMNS = 1024, 128


def complete(operations: list[Operation]) -> None:
    """Sends and receives as the runtime does, and waits."""
    for work in begin(operations):
        work.wait()


def begin(operations: list[Operation]) -> list[dist.Work]:
    """Sends and receives as the runtime does."""
    if dist.get_backend() == "nccl":
        calls = {"send": dist.isend, "receive": dist.irecv}
        return list(
            dist.batch_isend_irecv([dist.P2POp(calls[w], tensor, peer) for w, tensor, peer in operations])
        )
    found = [
        dist.isend(tensor, peer) if what == "send" else dist.irecv(tensor, peer)
        for what, tensor, peer in operations
    ]
    return [work for work in found if work is not None]


def of_rank(value: float, source: int, device: torch.device) -> float:
    """What one rank has measured, for all."""
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(shared, source)
    return float(shared.item())


def one_way_s(rank: int, pair: tuple[int, int], size: int, device: torch.device, repeats: int) -> float:
    """Seconds of a message from a rank that has just computed to one that waits for it, as in a training.

    Half of what it takes there and back, less what the two compute before they send. Messages that follow
    each other at once find processors awake and caches warm: they are faster. Ranks of GPUs do not compute
    before, as what their kernels do takes no processor.
    """
    first, second = pair
    there, back = _bytes(size, device), _bytes(size, device)
    matrix, for_s = torch.zeros(_COLUMNS, _COLUMNS), 0.0 if device.type == "cuda" else _BEFORE_S

    def compute_s() -> float:
        start_s = now_s = time.perf_counter()
        while now_s < start_s + for_s:
            torch.mm(matrix, matrix)
            serve_gloo()
            now_s = time.perf_counter()
        return now_s - start_s

    def turn_s() -> tuple[float, float]:
        """Seconds of all, and of these those that this rank computed."""
        start_s = time.perf_counter()
        if rank == first:
            # Ready before the other one sends; NCCL's streams would do nothing else until it has.
            coming = begin([("receive", back, second)]) if dist.get_backend() != "nccl" else []
            own_s = compute_s()
            complete([("send", there, second)])
            for work in coming or begin([("receive", back, second)]):
                work.wait()
        else:
            complete([("receive", there, first)])
            own_s = compute_s()
            complete([("send", back, first)])
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start_s, own_s

    turn_s()
    turns = torch.tensor([turn_s() for _ in range(repeats)], dtype=torch.float64, device=device)
    others = torch.zeros_like(turns)
    complete([("receive", others, _peer(rank, pair)), ("send", turns, _peer(rank, pair))])
    return one_way_of(*((turns, others) if rank == first else (others, turns)))


def one_way_of(turns: Tensor, others: Tensor) -> float:
    """Seconds of a message, of turns there and back: half of what neither rank computed; the lower quartile.

    Args:
        turns: Shape [turns, 2]; of the rank that begins, seconds of a turn, and of these those it computed.
        others: The same of the other one, whose turns begin when they like.
    """
    return _usual(((turns[:, 0] - turns[:, 1] - others[:, 1]) / 2).tolist())


def both_ways_s(rank: int, pair: tuple[int, int], size: int, device: torch.device, repeats: int) -> float:
    """Seconds until two messages have come that the ranks of a pair send each other at once."""
    operations = _swap(rank, pair, size, device)
    return _usual_s(
        lambda: complete(operations), device, repeats, lambda value: _of_first(value, rank, pair, device)
    )


def sum_s(size: int, device: torch.device, repeats: int) -> float:
    """Seconds of a sum over all ranks; all of them call it."""
    buffer = torch.zeros(max(1, size // 4), device=device)
    return _usual_s(lambda: dist.all_reduce(buffer), device, repeats, lambda value: of_rank(value, 0, device))


def carry_s_per_byte(
    rank: int, pair: tuple[int, int], s_per_byte: float, *, trials: int = _TRIALS, for_s: float = _COMPUTING_S
) -> float:
    """Seconds that a rank of the pair computes less for each byte that goes out or comes in meanwhile.

    Both ranks compute, first alone and then beside messages both ways that would take longer. How many bytes
    have travelled is told by how long the others take afterwards. Means of both ranks, as far as they are
    possible: where messages hardly move while both compute, few bytes are blamed for all that is lost.

    Args:
        rank: This rank, one of the pair.
        pair: The ranks.
        s_per_byte: What a byte takes when nobody computes.
        trials: How often; the median counts.
        for_s: How long they compute each time.
    """
    size = max(_SMALLEST_PIECE, ceil(_LONGER * for_s / s_per_byte / _PIECES))
    count = ceil(_LONGER * for_s / s_per_byte / size)
    device = torch.device("cpu")
    swap, meeting = _swap(rank, pair, size, device), _swap(rank, pair, 1, device)
    # As large as a layer's parameters and activations: caches matter.
    weights, inputs = torch.zeros(_ROWS, _ROWS), torch.zeros(_ROWS, _COLUMNS)
    outputs = torch.zeros_like(inputs)

    def computed_per_s() -> float:
        done, start_s = 0, time.perf_counter()
        while (now_s := time.perf_counter()) < start_s + for_s:
            torch.mm(weights, inputs, out=outputs)
            serve_gloo()
            done += 1
        return done / (now_s - start_s)

    def trial() -> float:
        complete(meeting)
        alone = computed_per_s()
        complete(meeting)
        works = [work for _ in range(count) for work in begin(swap)]
        beside, start_s = computed_per_s(), time.perf_counter()
        for work in works:
            work.wait()
        left_s, lost_s = time.perf_counter() - start_s, (1 - beside / alone) * for_s
        return lost_s / travelled_bytes(left_s, s_per_byte, size=size, count=count)

    computed_per_s()
    own = torch.tensor([median(trial() for _ in range(trials))], dtype=torch.float64)
    other = torch.zeros_like(own)
    peer = _peer(rank, pair)
    complete([("receive", other, peer), ("send", own, peer)])
    return possible_loss(float((own + other).item()) / 2, s_per_byte)


def travelled_bytes(left_s: float, s_per_byte: float, *, size: int, count: int) -> float:
    """How many bytes of `count` messages each way have travelled if the others take `left_s`.

    At least one message: a link so slow that none has come loses what it loses to that one.
    """
    left = min(left_s / s_per_byte / (size * count), 1.0)
    return 2 * max((1 - left) * size * count, size)


def possible_loss(measured_s_per_byte: float, s_per_byte: float) -> float:
    """What was measured, not below 0 and no more than all the time that bytes take which travel both ways."""
    return min(max(0.0, measured_s_per_byte), s_per_byte / 2)


def _bytes(size: int, device: torch.device) -> Tensor:
    return torch.zeros(size, dtype=torch.uint8, device=device)


def _peer(rank: int, pair: tuple[int, int]) -> int:
    """The other rank of the pair."""
    return pair[1] if rank == pair[0] else pair[0]


def _swap(rank: int, pair: tuple[int, int], size: int, device: torch.device) -> list[Operation]:
    """A message to the other rank of the pair, and one from it."""
    peer = _peer(rank, pair)
    return [("receive", _bytes(size, device), peer), ("send", _bytes(size, device), peer)]


def _of_first(value: float, rank: int, pair: tuple[int, int], device: torch.device) -> float:
    """What the first rank of a pair has measured, for both."""
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    first, second = pair
    complete([("send", shared, second)] if rank == first else [("receive", shared, first)])
    return float(shared.item())


def _usual_s(
    turn: Callable[[], object], device: torch.device, repeats: int, agreed: Callable[[float], float]
) -> float:
    """The lower quartile of what a turn takes, over at most so many."""

    def timed_s() -> float:
        start_s = time.perf_counter()
        turn()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start_s

    timed_s()
    usual_s = max(agreed(timed_s()), 1e-9)
    count = max(min(repeats, _FEWEST), min(repeats, int(_LONG_S / usual_s)))
    return _usual([timed_s() for _ in range(count)])


def _usual(times_s: list[float]) -> float:
    """The lower quartile."""
    return sorted(times_s)[len(times_s) // 4]
