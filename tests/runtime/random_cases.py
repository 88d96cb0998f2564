"""Cases with random shapes and options, for the operators whose regions depend on them most."""

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the library's own convention)
from torch import Tensor

from tests.runtime.cases import operation
from tests.runtime.checking import Case


def convolution(rng: random.Random) -> Case:
    """A convolution of one to three dimensions with any stride, padding, dilation and groups."""
    n = rng.choice([1, 1, 2, 2, 3])
    groups = rng.choice([1, 1, 2, 3])
    c_in, c_out = (groups * rng.randint(1, 3) for _ in range(2))
    kernel = [rng.randint(1, 4) for _ in range(n)]
    stride, dilation = ([rng.randint(1, 3) for _ in range(n)] for _ in range(2))
    padding = [rng.randint(0, k) for k in kernel]
    size = [d * (k - 1) + 1 + rng.randint(0, 6) for k, d in zip(kernel, dilation, strict=True)]
    function = getattr(F, f"conv{n}d")
    return operation(
        f"conv{n}d_{size}_{kernel}_stride_{stride}_padding_{padding}_dilation_{dilation}_groups_{groups}",
        lambda x, w, b: function(x, w, b, stride, padding, dilation, groups),
        _batch(c_in, *size),
        (c_out, c_in // groups, *kernel),
        (c_out,),
    )


def transposed_convolution(rng: random.Random) -> Case:
    """A transposed convolution of one or two dimensions with any stride, padding, dilation and groups."""
    n = rng.choice([1, 2])
    groups = rng.choice([1, 1, 2])
    c_in, c_out = (groups * rng.randint(1, 3) for _ in range(2))
    kernel = [rng.randint(1, 4) for _ in range(n)]
    stride, dilation = ([rng.randint(1, 3) for _ in range(n)] for _ in range(2))
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    padding = [rng.randint(0, r) for r in reach]
    extra = [rng.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)]
    size = [rng.randint(2, 5) + p for p in padding]
    function = getattr(F, f"conv_transpose{n}d")
    return operation(
        f"conv_transpose{n}d_{size}_{kernel}_stride_{stride}_padding_{padding}_dilation_{dilation}_{groups}",
        lambda x, w: function(x, w, None, stride, padding, extra, groups, dilation),
        _batch(c_in, *size),
        (c_in, c_out // groups, *kernel),
    )


def pooling(rng: random.Random) -> Case:
    """A pooling of one or two dimensions with any window."""
    n = rng.choice([1, 2])
    kernel, stride = ([rng.randint(1, 4) for _ in range(n)] for _ in range(2))
    padding, ceil = [rng.randint(0, k // 2) for k in kernel], rng.random() < 0.5
    size = [k + rng.randint(0, 7) for k in kernel]
    name = f"pool{n}d_{size}_{kernel}_stride_{stride}_padding_{padding}{'_ceil' if ceil else ''}"
    if rng.random() < 0.5:
        maximum = getattr(F, f"max_pool{n}d")
        dilation = [rng.randint(1, 2) if s > 2 * k else 1 for s, k in zip(size, kernel, strict=True)]
        return operation(
            f"max_{name}_{dilation}",
            lambda x: maximum(x, kernel, stride, padding, dilation, ceil_mode=ceil),
            _batch(2, *size),
        )
    average, counted = getattr(F, f"avg_pool{n}d"), rng.random() < 0.5
    return operation(
        f"avg_{name}{'_counted' if counted else ''}",
        lambda x: average(x, kernel, stride, padding, ceil, counted),
        _batch(2, *size),
    )


def resizing(rng: random.Random) -> Case:
    """Adaptive pooling to any size, or interpolation by any ratio."""
    size, out = ([rng.randint(1, 9) for _ in range(2)] for _ in range(2))
    if rng.random() < 0.5:
        return operation(f"adaptive_{size}_{out}", lambda x: F.adaptive_avg_pool2d(x, out), _batch(2, *size))
    ratio, mode = [rng.randint(1, 4) for _ in range(2)], rng.choice(["nearest", "bilinear"])
    larger = [s * r for s, r in zip(size, ratio, strict=True)]
    source, target = (size, larger) if rng.random() < 0.7 else (larger, size)
    return operation(
        f"{mode}_{source}_{target}", lambda x: F.interpolate(x, size=target, mode=mode), _batch(2, *source)
    )


def joining(rng: random.Random) -> Case:
    """Cat of up to four slices, padded, in any dimension."""
    dim, extents = rng.randint(0, 2), [rng.randint(3, 6) for _ in range(2)]
    count = rng.randint(1, 4)
    pads = [rng.randint(-1, 3) for _ in range(4)]

    def function(x: Tensor) -> Tensor:
        pieces = [x.narrow(dim, k % 2, 1 + k % 2) for k in range(count)]
        return F.pad(torch.cat([x, *pieces], dim), pads).exp()

    return operation(f"cat_{extents}_dim_{dim}_{count}_pad_{pads}", function, _batch(*extents))


def views(rng: random.Random) -> Case:
    """A linear layer between chains of random views."""
    heads, width, steps = rng.randint(1, 3), rng.randint(2, 4), rng.randint(2, 4)
    before, after = _view_chain(rng), _view_chain(rng)
    c_out = rng.choice([6, 8, 12])

    def function(x: Tensor, w: Tensor) -> Tensor:
        x = before(x).exp()
        x = x.reshape(*x.shape[:-1], -1).sum(-1, keepdim=True) + x
        x = x.reshape(-1, steps, heads * width)
        return after(F.linear(x, w).reshape(-1, steps, 2, c_out // 2)).sin()

    name = f"views_{heads}_{width}_{steps}_{c_out}_{before.__name__}_{after.__name__}"
    return operation(name, function, _batch(steps, heads, width), (c_out, heads * width))


def _view_chain(rng: random.Random) -> Callable[[Tensor], Tensor]:
    chains: list[Callable[[Tensor], Tensor]] = [_as_it_is, _swapped, _merged, _halved, _flipped_merge]
    return rng.choice(chains)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _swapped(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def _merged(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


def _halved(x: Tensor) -> Tensor:
    return torch.cat(x.split([1, x.shape[1] - 1], 1)[::-1], 1)


def _flipped_merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(1, 2)


def products(rng: random.Random) -> Case:
    """A product of matrices whose leading dimensions broadcast."""
    leading = [rng.randint(1, 3) for _ in range(rng.randint(0, 2))]
    row, inner, column = (rng.randint(1, 5) for _ in range(3))
    a = [1 if rng.random() < 0.3 else e for e in leading]
    b = [1 if rng.random() < 0.3 else e for e in leading][rng.randint(0, len(leading)) :]
    return operation(
        f"matmul_{a}_{b}_{row}_{inner}_{column}", torch.matmul, _batch(*a, row, inner), (*b, inner, column)
    )


def _batch(*rest: int) -> Any:
    return lambda n: (n, *rest)


GENERATORS = (convolution, transposed_convolution, pooling, resizing, joining, views, products)
