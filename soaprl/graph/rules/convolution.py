"""Convolutions and transposed convolutions in one, two and three dimensions.

    conv2d: x[n, i, win(h), win(w)] w[o, i, ..] b[o] -> y[n, o, h, w]

With groups, channels are the row-major product of `group` and the channels inside a group; a depthwise
convolution has one channel in each group, and its groups are simply its channels.
"""

from dataclasses import dataclass
from functools import partial
from math import prod

from soaprl.graph.rules.base import (
    WHOLE,
    Dim,
    Label,
    Node,
    NodeArgument,
    Rule,
    RuleTable,
    Value,
    plain,
    product,
    window,
)
from soaprl.graph.rules.labels import (
    Operand,
    arguments,
    build,
    each,
    flag,
    integer,
    integers,
    results,
    spatial_names,
    tensor,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """Where a target has its arguments after input, weight and bias: -1 for one it lacks."""

    stride: int = 3
    padding: int = 4
    dilation: int = 5
    groups: int = 6
    transposed: bool = False


def register(table: RuleTable) -> None:
    """Adds the rules of this file to `table`."""
    forward = _Form()
    backward = _Form(groups=6, dilation=7, transposed=True)
    for n in (1, 2, 3):
        table.register(f"aten.conv{n}d")(partial(convolution, num_spatial=n, form=forward))
        table.register(f"aten.conv_transpose{n}d")(partial(convolution, num_spatial=n, form=backward))
    table.register("aten.convolution", "aten._convolution")(general_convolution)
    table.register("aten.im2col")(im2col)


def general_convolution(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``aten.convolution``, which is told whether it is transposed."""
    weight = tensor(node, values, 1, "weight")
    if weight is None:
        return None
    form = _Form(groups=8, transposed=flag(node, 6, "transposed"))
    return convolution(node, values, num_spatial=len(weight.shape) - 2, form=form)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Channels:
    """How the channels of input, weight and output follow from labels."""

    output_labels: tuple[Label, ...]
    reduction_labels: tuple[Label, ...]
    x: Dim
    weight: tuple[Dim, Dim]
    y: Dim


def convolution(node: Node, values: tuple[Value, ...], *, num_spatial: int, form: _Form) -> Rule | None:
    """The rule of every convolution; the input may lack its sample dimension."""
    x, weight, bias = (tensor(node, values, p, n) for p, n in enumerate(("input", "weight", "bias")))
    names_of = spatial_names(num_spatial)
    groups = integer(node, form.groups, "groups", 1)
    if x is None or weight is None or names_of is None or not groups or len(node.results) != 1:
        return None
    y = results(node, values)[0]
    num_leading = len(x.shape) - num_spatial - 1
    channels = _channels(weight, groups, transposed=form.transposed)
    windows = _windows(node, x, y, weight, names_of, form)
    if num_leading not in (0, 1) or channels is None or windows is None:
        return None
    leading = (Label(name="sample", extent=x.shape[0]),)[:num_leading]
    spatial = tuple(Label(name=n, extent=e) for n, e in zip(names_of, y.shape[-num_spatial:], strict=True))
    output_labels = (*leading, *channels.output_labels, *spatial)
    labels = (*output_labels, *channels.reduction_labels)
    samples = tuple(plain(label.name) for label in leading)
    flops = each(_flops_per_output(x, y, weight, num_spatial, transposed=form.transposed), labels)
    operands = [
        Operand(value=x, dims=(*samples, channels.x, *windows), gradient=flops, saved=weight.requires_grad),
        Operand(
            value=weight,
            dims=(*channels.weight, *(WHOLE,) * num_spatial),
            gradient=flops,
            saved=x.requires_grad,
        ),
    ]
    if bias is not None:
        operands.append(Operand(value=bias, dims=(channels.y,), gradient=each(1, output_labels)))
    return build(
        node,
        values,
        labels=labels,
        operands=operands,
        result_dims=[(*samples, channels.y, *(plain(n) for n in names_of))],
        forward_flops=flops,
        kind=f"conv{'_transpose' if form.transposed else ''}{num_spatial}d",
        matmul=True,
    )


def _flops_per_output(x: Value, y: Value, weight: Value, num_spatial: int, *, transposed: bool) -> float:
    """FLOPs for each output element and input channel; a transposed kernel is applied at each input."""
    taps = 2.0 * prod(weight.shape[2:])
    if transposed:
        return taps * prod(x.shape[-num_spatial:]) / prod(y.shape[-num_spatial:])
    return taps


def _channels(weight: Value, groups: int, *, transposed: bool) -> _Channels | None:
    """The weight is ``[g * o, i, ..]``, or ``[g * i, o, ..]`` if it is transposed."""
    if weight.shape[0] % groups:
        return None
    inside = weight.shape[0] // groups
    num_out, num_in = (weight.shape[1], inside) if transposed else (inside, weight.shape[1])
    if groups > 1 and num_out == num_in == 1:
        channel = Label(name="channel", extent=groups)
        dim = plain("channel")
        return _Channels(output_labels=(channel,), reduction_labels=(), x=dim, weight=(dim, WHOLE), y=dim)
    out, inner = Label(name="channel", extent=num_out), Label(name="in_channel", extent=num_in)
    x, y = plain("in_channel"), plain("channel")
    outputs: tuple[Label, ...] = (out,)
    if groups > 1:
        x, y = product("group", "in_channel"), product("group", "channel")
        outputs = (Label(name="group", extent=groups), out)
    weight_dims = (x, plain("channel")) if transposed else (y, plain("in_channel"))
    return _Channels(output_labels=outputs, reduction_labels=(inner,), x=x, weight=weight_dims, y=y)


def _windows(
    node: Node, x: Value, y: Value, weight: Value, names_of: tuple[str, ...], form: _Form
) -> tuple[Dim, ...] | None:
    count = len(names_of)
    kernels = weight.shape[2:]
    strides = integers(node.argument(form.stride, "stride", 1), count)
    dilations = integers(node.argument(form.dilation, "dilation", 1), count)
    if strides is None or dilations is None or len(kernels) != count:
        return None
    paddings = _paddings(node.argument(form.padding, "padding", 0), kernels, dilations)
    if paddings is None:
        return None
    make = _transposed_window if form.transposed else window
    return tuple(
        make(name, kernel=k, stride=s, padding=p, dilation=d)
        for name, k, s, p, d in zip(names_of, kernels, strides, paddings, dilations, strict=True)
    )


def _paddings(
    padding: NodeArgument, kernels: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Padding before the first index; ``same`` puts an odd one out at the end."""
    if padding == "valid":
        return (0,) * len(kernels)
    if padding == "same":
        return tuple(d * (k - 1) // 2 for k, d in zip(kernels, dilations, strict=True))
    return integers(padding, len(kernels))


def _transposed_window(label: str, *, kernel: int, stride: int, padding: int, dilation: int) -> Dim:
    """Output ``o`` reads inputs ``i`` with ``i * stride - padding + k * dilation == o`` for some tap ``k``.

    The first is the least ``i`` with ``i * stride >= o + padding - dilation * (kernel - 1)``, the last the
    greatest with ``i * stride <= o + padding``.
    """
    return Dim(
        label=label,
        div=stride,
        add_first=padding - dilation * (kernel - 1) + stride - 1,
        add_last=padding,
    )


def im2col(node: Node, values: tuple[Value, ...]) -> Rule | None:
    """``x[n, c, :, :] -> y[n, c * tap, position]``: the windows of a convolution, side by side."""
    (x,), (y,) = arguments(node, values), results(node, values)
    if len(x.shape) != 4 or len(y.shape) != 3 or y.shape[1] % x.shape[1]:
        return None
    labels = (
        Label(name="sample", extent=x.shape[0]),
        Label(name="channel", extent=x.shape[1]),
        Label(name="tap", extent=y.shape[1] // x.shape[1], splittable=False),
        Label(name="position", extent=y.shape[2], splittable=False),
    )
    sample, channel = plain("sample"), plain("channel")
    operand = Operand(value=x, dims=(sample, channel, WHOLE, WHOLE), gradient=each(1, labels))
    result = (sample, product("channel", "tap"), plain("position"))
    return build(node, values, labels=labels, operands=[operand], result_dims=[result])
