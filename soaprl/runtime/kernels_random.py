"""Kernels that draw random numbers: by global element index, so that they do not depend on the split."""

from math import pi

import torch
from torch import Tensor

from soaprl.runtime.calls import Kernel, LocalCall, Results
from soaprl.runtime.random_bits import keep_mask, uniform_for


def dropout(call: LocalCall) -> Results:
    """Dropout, native_dropout: one random number for each element."""
    x, p = call.local("input"), call["p"]
    if call["train"] is False or p == 0:
        return (x, torch.ones_like(x, dtype=torch.bool)) if len(call.results) > 1 else x
    mask = keep_mask(call.results[0], p, call.seed, x.device)
    kept = x * mask / (1 - p) if p < 1 else x * 0
    return (kept, mask) if len(call.results) > 1 else kept


def feature_dropout(call: LocalCall) -> Results:
    """Dropout of whole channels: one random number for each (sample, channel)."""
    x, p = call.local("input"), call["p"]
    if not call["train"] or p == 0:
        return x
    mask = keep_mask(call.results[0][:2], p, call.seed, x.device)
    return x * mask.reshape(*mask.shape, *[1] * (x.dim() - 2)) / (1 - p) if p < 1 else x * 0


def alpha_dropout(call: LocalCall) -> Results:
    """Dropout that keeps mean and variance of a SELU network (Klambauer et al. 2017, section 3)."""
    x = call.local("input")
    p: float = call["p"]
    if not call["train"] or p == 0:
        return x
    lowest = -1.7580993408473766
    scale: float = ((1 - p) * (1 + p * lowest**2)) ** -0.5
    mask = keep_mask(call.results[0], p, call.seed, x.device)
    return scale * torch.where(mask, x, lowest) - scale * p * lowest


def uniform(call: LocalCall) -> Results:
    """Rand, rand_like, uniform_: numbers in ``[from, to)``."""
    numbers = _numbers(call)
    if call.get("from") is None or call.get("to") is None:
        return numbers
    scaled: Tensor = numbers * (call["to"] - call["from"]) + call["from"]
    return scaled


def normal(call: LocalCall) -> Results:
    """randn, randn_like, normal_: by the transform of Box and Muller (1958)."""
    radius = (-2 * torch.log1p(-_numbers(call))).sqrt()
    numbers = radius * torch.cos(2 * pi * _numbers(call, stream=1))
    if call.get("mean") is None or call.get("std") is None:
        return numbers
    scaled: Tensor = numbers * call["std"] + call["mean"]
    return scaled


def bernoulli(call: LocalCall) -> Results:
    """One with probability `p`, or with the probability that each element of the argument is."""
    x, p = call.local("self"), call.get("p")
    drawn: Tensor = _numbers(call) < (x if p is None else p)
    return drawn.to(x.dtype)


def exponential(call: LocalCall) -> Results:
    """exponential_: by inversion."""
    numbers: Tensor = -torch.log1p(-_numbers(call)) / call["lambd"]
    return numbers


def leaky(call: LocalCall) -> Results:
    """rrelu: in training the slope of each negative element is uniform in ``[lower, upper)``."""
    x = call.local("self")
    if not call["training"]:
        return call.run()
    slope = call["lower"] + (call["upper"] - call["lower"]) * _numbers(call)
    return torch.where(x < 0, x * slope, x)


def _numbers(call: LocalCall, *, stream: int = 0) -> Tensor:
    """A number in [0, 1) for each element of the first result, in the type it is wanted in."""
    like = call.get("self")
    dtype = call.get("dtype") or (like.dtype if isinstance(like, Tensor) else torch.get_default_dtype())
    device = like.device if isinstance(like, Tensor) else call.get("device")
    return uniform_for(call.results[0], call.seed + stream, device or torch.get_default_device()).to(dtype)


def random_kernels() -> dict[str, Kernel]:
    """Kernels by target without overload and without the mark of an in-place call."""
    return {
        "aten.dropout": dropout,
        "aten.native_dropout": dropout,
        "aten.feature_dropout": feature_dropout,
        "aten.alpha_dropout": alpha_dropout,
        "aten.rand": uniform,
        "aten.rand_like": uniform,
        "aten.uniform": uniform,
        "aten.randn": normal,
        "aten.randn_like": normal,
        "aten.normal": normal,
        "aten.bernoulli": bernoulli,
        "aten.exponential": exponential,
        "aten.rrelu": leaky,
    }
