"""Batch normalization over several tasks: which calls, which tasks belong together, and the arithmetic.

Tasks that normalize the same channels each give a row (count, mean, sum of squared deviations) for each
channel. The rows of all are combined as Chan, Golub and LeVeque (1983, equation 2.1) do, which loses no
digits where mean is large beside deviation. Implemented in `combine`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from soaprl.graph.operators import Call, Operator, OperatorGraph, Ref
from soaprl.runtime.calls import LocalCall
from soaprl.runtime.program import BatchNorm, Box

_TRAINING, _MOMENTUM = 5, 6
_RUNNING = ((3, "running_mean"), (4, "running_var"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalization:
    """A batch normalization in training mode, in the body of an operator.

    Attributes:
        call: Index of the call in the body.
        channel_factors: The factors that its channels are made of.
        running: Positions among the operator's buffers of the running mean and variance, or None without.
        momentum: Weight of a new batch in the running statistics.
    """

    call: int
    channel_factors: tuple[int, ...]
    running: tuple[int, int] | None
    momentum: float


def normalizations(operator: Operator) -> tuple[Normalization, ...]:
    """The batch normalizations of `operator` that are in training mode, in order."""
    return tuple(
        _normalization(index, call)
        for index, call in enumerate(operator.body)
        if call.target.startswith("aten.batch_norm") and bool(_argument(call, _TRAINING, "training"))
    )


def _normalization(index: int, call: Call) -> Normalization:
    buffers = [_argument(call, position, name) for position, name in _RUNNING]
    refs = [ref for ref in buffers if isinstance(ref, Ref) and ref.source == "buffer"]
    momentum = _argument(call, _MOMENTUM, "momentum")
    return Normalization(
        call=index,
        channel_factors=call.arg_dims[0][1].factors,
        running=(refs[0].index, refs[1].index) if len(refs) == 2 else None,
        momentum=float(momentum) if isinstance(momentum, int | float) else 0.1,
    )


def _argument(call: Call, position: int, name: str) -> object:
    return call.args[position] if position < len(call.args) else dict(call.kwargs).get(name)


def channel_groups(boxes: tuple[Box, ...], normalization: Normalization) -> tuple[tuple[int, ...], ...]:
    """The tasks that normalize the same channels, by first task."""
    groups: dict[Box, list[int]] = {}
    for part, box in enumerate(boxes):
        groups.setdefault(tuple(box[f] for f in normalization.channel_factors), []).append(part)
    return tuple(tuple(group) for group in groups.values())


def synchronized_calls(
    operator: Operator, boxes: tuple[Box, ...], batch_norm: BatchNorm
) -> tuple[Normalization, ...]:
    """The normalizations whose statistics several tasks share: each is the end of a stage."""
    if batch_norm == "local":
        return ()
    return tuple(n for n in normalizations(operator) if len(channel_groups(boxes, n)) < len(boxes))


def running_writers(graph: OperatorGraph) -> dict[int, tuple[tuple[int, int], ...]]:
    """For each buffer of running statistics, the (operator, call)s that update it, in order."""
    found: dict[int, list[tuple[int, int]]] = {}
    for number, operator in enumerate(graph.operators):
        for n in normalizations(operator):
            for position in n.running or ():
                found.setdefault(operator.buffers[position].tensor, []).append((number, n.call))
    return {tensor: tuple(writers) for tensor, writers in found.items()}


def statistics_row(x: Tensor) -> Tensor:
    """Count, mean and sum of squared deviations of each channel of `x[n, c, ..]`; shape: [3, c]."""
    rest = [d for d in range(x.dim()) if d != 1]
    x = x if x.dtype is torch.float64 else x.float()
    mean = x.mean(rest)
    deviations = (x - _along_channels(mean, x)).square().sum(rest)
    count = torch.full_like(mean, x.numel() // max(x.shape[1], 1))
    return torch.stack([count, mean, deviations])


def combine(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and sum of squared deviations of each channel from rows of parts; `table[parts, 3, c]`."""
    counts, means, deviations = table.unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    spread = (deviations + counts * (means - mean).square()).sum(0)
    return count, mean, spread


def normalize(call: LocalCall, table: Tensor) -> Tensor:
    """The local part of a batch normalization, with the statistics of all parts."""
    x = call.local("input")
    count, mean, spread = combine(table)
    scale = (spread / count + call["eps"]).rsqrt()
    if call["weight"] is not None:
        scale = scale * call["weight"]
    y = (x - _along_channels(mean, x)) * _along_channels(scale, x)
    if call["bias"] is not None:
        y = y + _along_channels(call["bias"], x)
    return y.to(x.dtype)


def batch_statistics(table: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel, as running statistics take them."""
    count, mean, spread = combine(table)
    return mean, spread / (count - 1).clamp(min=1)


def _along_channels(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (x.dim() - 2))
