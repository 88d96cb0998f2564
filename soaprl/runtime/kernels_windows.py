"""Kernels that read windows: convolution, pooling, interpolation, padding.

Where a window reaches beyond the indices that exist (`LocalDim.first` below 0, `LocalDim.end` beyond the
extent), the part is at the tensor's true border and pads there; nowhere else.
"""

from collections.abc import Sequence
from math import inf, prod

import torch
import torch.nn.functional as F  # noqa: N812 (the library's own convention)
from torch import Tensor

from soaprl.runtime.calls import Kernel, LocalCall, LocalDims, Results
from soaprl.runtime.random_bits import global_index
from soaprl.runtime.shards import LocalDim


def per_dim(value: int | Sequence[int], num_dims: int) -> list[int]:
    """A schema's ``int[n]``: one number for each dimension, a single one repeated."""
    values = [value] if isinstance(value, int) else list(value)
    return values * num_dims if len(values) == 1 else values


def _whole_windows(call: LocalCall, source: LocalDims, num_dims: int) -> bool:
    """Whether the part has the last dimensions whole, so that the library knows where windows are."""
    return all(d.whole for d in (*source[-num_dims:], *call.results[0][-num_dims:]))


def window_padding(dims: LocalDims, literal: list[int]) -> list[tuple[int, int]]:
    """Padding before and after each of the last dimensions: beyond the true border, or `literal` if whole."""
    return [
        (p, p) if d.unlabelled else (max(-d.first, 0), max(d.end - d.extent, 0))
        for d, p in zip(dims[-len(literal) :], literal, strict=True)
    ]


def pad_last(tensor: Tensor, padding: list[tuple[int, int]], value: float = 0.0) -> Tensor:
    """`tensor` padded before and after each of its last dimensions."""
    if not any(before or after for before, after in padding):
        return tensor
    return F.pad(tensor, [n for pair in reversed(padding) for n in pair], value=value)


def _same_padding(call: LocalCall, num_dims: int) -> list[tuple[int, int]]:
    kernel, dilation = call["weight"].shape[2:], per_dim(call["dilation"], num_dims)
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    whole = [(t // 2, t - t // 2) if call["padding"] == "same" else (0, 0) for t in totals]
    touched = window_padding(call.dims["input"], [0] * num_dims)
    spatial = call.dims["input"][-num_dims:]
    return [w if d.unlabelled else t for w, t, d in zip(whole, touched, spatial, strict=True)]


def convolution(call: LocalCall) -> Results:
    """conv1d, conv2d, conv3d: explicit padding at true borders, local groups, bias once."""
    x, weight = call.local("input"), call.local("weight")
    num_dims = weight.dim() - 2
    if isinstance(call["padding"], str):
        padding = _same_padding(call, num_dims)
    else:
        padding = window_padding(call.dims["input"], per_dim(call["padding"], num_dims))
    groups = x.shape[-num_dims - 1] // weight.shape[1]
    if any(before != after for before, after in padding):
        x, padding = pad_last(x, padding), [(0, 0)] * num_dims
    result: Tensor = getattr(torch, f"conv{num_dims}d")(
        x,
        weight,
        call["bias"] if call.lead else None,
        stride=per_dim(call["stride"], num_dims),
        padding=[before for before, _ in padding],
        dilation=per_dim(call["dilation"], num_dims),
        groups=groups,
    )
    return result


def transposed_convolution(call: LocalCall) -> Results:
    """conv_transpose1d, 2d, 3d: without padding on the local inputs, then cropped to the part's outputs."""
    x, weight = call.local("input"), call.local("weight")
    num_dims = weight.dim() - 2
    stride, padding, dilation = (per_dim(call[n], num_dims) for n in ("stride", "padding", "dilation"))
    groups = call.results[0][-num_dims - 1].size // weight.shape[1]
    function = getattr(torch, f"conv_transpose{num_dims}d")
    if 0 in x.shape:
        out: Tensor = x.new_zeros(call.result_shape)
    else:
        out = function(x, weight, None, stride=stride, dilation=dilation, groups=groups)
        for d in range(-num_dims, 0):
            result, source = call.results[0][d], call.dims["input"][d]
            out = _crop_or_pad(out, d, result.start + padding[d] - source.start * stride[d], result.size)
    if call["bias"] is not None and call.lead:
        out = out + call["bias"].reshape(-1, *[1] * num_dims)
    return out


def _crop_or_pad(tensor: Tensor, d: int, start: int, length: int) -> Tensor:
    """Indices ``[start, start + length)`` of dimension `d` (negative), zeros where there are none."""
    size = tensor.shape[d]
    lo, hi = min(max(start, 0), size), min(max(start + length, 0), size)
    before = min(max(-start, 0), length)
    pads = [0, 0] * (-d - 1) + [before, length - before - (hi - lo)]
    return F.pad(tensor.narrow(d, lo, hi - lo), pads)


def general_convolution(call: LocalCall) -> Results:
    """aten.convolution, which is told whether it is transposed."""
    return transposed_convolution(call) if call["transposed"] else convolution(call)


def max_pool(call: LocalCall) -> Results:
    """max_pool1d, 2d, 3d: minus infinity beyond true borders."""
    num_dims = int(call.target.split(".")[1][8])
    kernel, dilation = per_dim(call["kernel_size"], num_dims), per_dim(call["dilation"], num_dims)
    stride = per_dim(call["stride"] or kernel, num_dims)
    x, dims = call.local("self"), call.dims["self"]
    if _whole_windows(call, dims, num_dims) or all(d.unlabelled for d in dims[-num_dims:]):
        return call.run()
    padding = window_padding(dims, per_dim(call["padding"], num_dims))
    pooled: Tensor = getattr(torch, f"max_pool{num_dims}d")(
        pad_last(x, padding, -inf), kernel, stride, 0, dilation
    )
    return pooled


def average_pool(call: LocalCall) -> Results:
    """avg_pool1d, 2d, 3d: sums of windows, divided by how much of each window counts."""
    num_dims = int(call.target.split(".")[1][8])
    x, dims = call.local("self"), call.dims["self"][-num_dims:]
    if _whole_windows(call, dims, num_dims) or all(d.unlabelled for d in dims):
        return call.run()
    kernel = per_dim(call["kernel_size"], num_dims)
    stride, padding = per_dim(call["stride"] or kernel, num_dims), per_dim(call["padding"], num_dims)
    x = pad_last(x, window_padding(dims, padding))
    average: Tensor = getattr(F, f"avg_pool{num_dims}d")(x, kernel, stride)
    if call.get("divisor_override"):
        scale: float = prod(kernel) / call["divisor_override"]
        return average * scale
    outputs = call.results[0][-num_dims:]
    for d in range(num_dims):
        border = padding[d] if call["count_include_pad"] else 0
        first = outputs[d].indices() * stride[d] - padding[d]
        weight = (kernel[d] / _counted(first, kernel[d], dims[d].extent, border)).to(average)
        average = average * weight.reshape(-1, *[1] * (num_dims - 1 - d))
    return average


def _counted(first: Tensor, kernel: int, extent: int, border: int) -> Tensor:
    """How many indices of the windows at `first` count: those in ``[-border, extent + border)``."""
    return ((first + kernel).clamp(max=extent + border) - first.clamp(min=-border)).double()


def _along(tensor: Tensor, d: int, matrix: Tensor) -> Tensor:
    """Dimension `d` of `tensor` multiplied by `matrix` of shape ``[new, old]``."""
    return (tensor.movedim(d, -1) @ matrix.to(tensor).T).movedim(-1, d)


def _weights(rows: Tensor, columns: Tensor, values: Tensor, source: LocalDim, num_rows: int) -> Tensor:
    """A matrix over the local indices of `source` that adds `values` at global `columns`."""
    assert (columns >= source.start).all(), "a window starts before the region that the rule names"
    assert (columns < source.stop).all(), "a window ends behind the region that the rule names"
    matrix = torch.zeros(num_rows, source.size, dtype=torch.float64)
    return matrix.index_put((rows, columns - source.start), values, accumulate=True)


def adaptive_average_pool(call: LocalCall) -> Results:
    """adaptive_avg_pool1d, 2d, 3d: one averaging matrix for each dimension."""
    num_dims, x = int(call.target.split(".")[1][17]), call.local("self")
    if _whole_windows(call, call.dims["self"], num_dims):
        return call.run()
    for d in range(-num_dims, 0):
        source, out = call.dims["self"][d], call.results[0][d]
        rows, columns, values = [], [], []
        for row, index in enumerate(out.indices().tolist()):
            first, end = _adaptive_window(index, source.extent, out.extent)
            rows += [row] * (end - first)
            columns += list(range(first, end))
            values += [1.0 / (end - first)] * (end - first)
        where, weights = torch.tensor([rows, columns]), torch.tensor(values, dtype=torch.float64)
        x = _along(x, d, _weights(where[0], where[1], weights, source, out.size))
    return x


def _adaptive_window(index: int, source: int, out: int) -> tuple[int, int]:
    return index * source // out, -(-(index + 1) * source // out)


def adaptive_max_pool(call: LocalCall) -> Results:
    """adaptive_max_pool1d, 2d, 3d: the maximum over each window; the second result is its flat index."""
    num_dims, x = int(call.target.split(".")[1][17]), call.local("self")
    if all(d.whole for d in call.dims["self"][-num_dims:]):
        return tuple(call.run())
    flat = global_index(call.dims["self"][-num_dims:], x.device).expand(x.shape)
    for d in range(-num_dims, 0):
        source, out = call.dims["self"][d], call.results[0][d]
        best = []
        for index in out.indices().tolist():
            first, end = _adaptive_window(index, source.extent, out.extent)
            assert source.start <= first < end <= source.stop, "a window leaves its region"
            values, where = x.narrow(d, first - source.start, end - first).max(dim=d, keepdim=True)
            best.append((values, flat.narrow(d, first - source.start, end - first).gather(d, where)))
        x, flat = torch.cat([v for v, _ in best], d), torch.cat([i for _, i in best], d)
    return x, flat


def interpolate(call: LocalCall) -> Results:
    """Every upsample operation: a matrix of weights for each dimension."""
    name, x = call.target.split(".")[1], call.local("input")
    num_dims = int(name[-2])
    if _whole_windows(call, call.dims["input"], num_dims):
        return call.run()
    scales = call.get("scale_factors") or [None] * num_dims
    for d in range(-num_dims, 0):
        source, out = call.dims["input"][d], call.results[0][d]
        columns, values = _interpolation(name, source.extent, out, scales[d], bool(call.get("align_corners")))
        rows = torch.arange(out.size)[:, None].expand(columns.shape)
        used = values != 0
        x = _along(x, d, _weights(rows[used], columns[used], values[used], source, out.size))
    return x


def _interpolation(
    name: str, extent: int, out: LocalDim, scale_factor: float | None, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """Source indices and weights of each output index; both of shape ``[out.size, taps]``."""
    index = out.indices().double()
    ratio = 1.0 / scale_factor if scale_factor else extent / out.extent
    if "nearest" in name:
        # The library computes nearest indices in single precision.
        shift = 0.5 if "exact" in name else 0.0
        position = ((index.float() + shift) * torch.tensor(ratio, dtype=torch.float32)).floor()
        return position.long().clamp(max=extent - 1)[:, None], torch.ones(len(index), 1, dtype=torch.float64)
    if align_corners:
        position = index * ((extent - 1) / (out.extent - 1) if out.extent > 1 else 0.0)
    else:
        position = ratio * (index + 0.5) - 0.5
    if "cubic" not in name:
        position = position.clamp(min=0)
    base = position.floor()
    fraction = position - base
    if "cubic" in name:
        offsets, weights = torch.arange(-1, 3), _cubic_weights(fraction)
    else:
        offsets, weights = torch.arange(2), torch.stack([1 - fraction, fraction], 1)
    return (base.long()[:, None] + offsets).clamp(0, extent - 1), weights


def _cubic_weights(t: Tensor) -> Tensor:
    """Weights of four taps for cubic convolution (Keys 1981, a = -0.75); shape ``[len(t), 4]``."""
    a = -0.75

    def near(x: Tensor) -> Tensor:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Tensor) -> Tensor:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return torch.stack([far(t + 1), near(t), near(1 - t), far(2 - t)], 1)


def pad(call: LocalCall) -> Results:
    """aten.pad and constant_pad_nd: at the true borders; a dimension without a window is whole."""
    literal = list(call["pad"])
    pads: list[int] = []
    for k, d in enumerate(range(-1, -len(literal) // 2 - 1, -1)):
        source, out, before = call.dims["self"][d], call.results[0][d], literal[2 * k]
        if source.unlabelled:
            pads += literal[2 * k : 2 * k + 2]
        elif source.size == 0:
            pads += [out.size, 0]
        else:
            pads += [source.start + before - out.start, out.stop - (source.stop + before)]
    return call.run(pad=pads)


# On a part that is the whole these only call the library.
PLAIN_WHERE_WHOLE = (
    convolution,
    max_pool,
    average_pool,
    adaptive_average_pool,
    adaptive_max_pool,
    interpolate,
)


def window_kernels() -> dict[str, Kernel]:
    """Kernels by target without overload."""
    table: dict[str, Kernel] = {
        "aten.pad": pad,
        "aten.constant_pad_nd": pad,
        "aten.convolution": general_convolution,
    }
    for n in (1, 2, 3):
        table[f"aten.conv{n}d"] = convolution
        table[f"aten.conv_transpose{n}d"] = transposed_convolution
        table[f"aten.max_pool{n}d"] = max_pool
        table[f"aten.avg_pool{n}d"] = average_pool
        table[f"aten.adaptive_avg_pool{n}d"] = adaptive_average_pool
        table[f"aten.adaptive_max_pool{n}d"] = adaptive_max_pool
        table[f"aten.upsample_nearest{n}d"] = interpolate
        table[f"aten._upsample_nearest_exact{n}d"] = interpolate
    for name in ("linear1d", "bilinear2d", "trilinear3d", "bicubic2d"):
        table[f"aten.upsample_{name}"] = interpolate
    return table
