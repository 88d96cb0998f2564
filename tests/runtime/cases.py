"""The operators, and small models, that the execution tests split."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the library's own convention)
from torch import Tensor, nn

from soaprl.graph.operators import Operator
from tests.runtime.checking import Case, OneOperation

Shape = tuple[int, ...]


def operation(
    name: str,
    function: Callable[..., Any],
    *shapes: Callable[[int], Shape] | Shape,
    high: int = 5,
    **options: Any,
) -> Case:
    """A case of one function; a shape that is a list is of class indices below `high`."""

    def factory(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        made = [shape(batch) if callable(shape) else shape for shape in shapes]
        floats = [None if isinstance(s, list) else s for s in made]
        module = OneOperation(function, floats, seed=len(name))
        return module, tuple(_input(s, k, high) for k, s in enumerate(made))

    return Case(name=name, factory=factory, **options)


def _input(shape: Shape | list[int], seed: int, high: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(shape, list):
        return torch.randint(0, high, shape, generator=generator)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@contextmanager
def in_double() -> Iterator[None]:
    """New floating-point tensors are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def of_module(
    name: str, make: Callable[[], nn.Module], *inputs: Callable[[int], Tensor], **options: Any
) -> Case:
    """A case of a module, whose parameters and inputs are drawn by a fixed seed."""

    def factory(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        torch.manual_seed(0)
        with in_double():
            return make(), tuple(draw(batch) for draw in inputs)

    return Case(name=name, factory=factory, **options)


def normal(*rest: int) -> Callable[[int], Tensor]:
    """Normal numbers, the batch first."""
    return lambda n: torch.randn(n, *rest, dtype=torch.float64)


def labels_below(high: int, *rest: int) -> Callable[[int], Tensor]:
    """Integers below `high`, the batch first."""
    return lambda n: torch.randint(0, high, (n, *rest))


def _batch(*rest: int) -> Callable[[int], Shape]:
    return lambda n: (n, *rest)


def _ids(*rest: int) -> Callable[[int], list[int]]:
    return lambda n: [n, *rest]


def dense_cases() -> list[Case]:
    """Products of matrices."""
    return [
        operation("linear", F.linear, _batch(3, 7), (6, 7), (6,)),
        operation("linear_without_bias", F.linear, _batch(5), (4, 5)),
        operation("linear_of_a_vector", lambda x, w, b: F.linear(x[0], w, b), _batch(5), (4, 5), (4,)),
        operation("matmul_2_2", torch.matmul, _batch(5), (5, 3)),
        operation("matmul_3_2", torch.matmul, _batch(3, 5), (5, 3)),
        operation("matmul_broadcast", torch.matmul, _batch(1, 3, 5), (2, 5, 4)),
        operation("matmul_2_1", torch.matmul, _batch(5), (5,)),
        operation("matmul_1_2", lambda x, w: torch.matmul(x[1], w), _batch(5), (5, 3)),
        operation("dot", lambda x, w: torch.dot(x[0], w), _batch(5), (5,)),
        operation("bmm", torch.bmm, _batch(3, 5), _batch(5, 2)),
        operation("addmm", torch.addmm, (6,), _batch(5), (5, 6)),
        operation(
            "addmm_scaled",
            lambda s, a, b: torch.addmm(s, a, b, beta=0.5, alpha=2),
            _batch(6),
            _batch(5),
            (5, 6),
        ),
        operation("baddbmm", torch.baddbmm, _batch(3, 2), _batch(3, 5), _batch(5, 2)),
        operation("outer", torch.outer, _batch(), (5,)),
        operation("einsum", lambda a, b: torch.einsum("nij,jk->nki", a, b), _batch(3, 4), (4, 5)),
        operation("einsum_sum", lambda a: torch.einsum("nij->n", a), _batch(3, 4)),
        operation(
            "einsum_three", lambda a, b, c: torch.einsum("ni,ij,nj->n", a, b, c), _batch(3), (3, 4), _batch(4)
        ),
        operation("linear_gelu", lambda x, w: F.gelu(F.linear(x, w)), _batch(3, 7), (6, 7)),
        operation("linear_residual", lambda x, w, b: x + F.linear(x, w, b), _batch(3, 6), (6, 6), (6,)),
        operation("inner", torch.inner, _batch(5), (5,)),
        operation("mv", torch.mv, _batch(5), (5,)),
        operation("cdist", torch.cdist, _batch(3, 5), _batch(4, 5)),
        operation("bilinear", F.bilinear, _batch(3), _batch(4), (5, 3, 4), (5,)),
    ]


def _conv(**options: Any) -> Callable[..., Tensor]:
    return lambda x, w, b: F.conv2d(x, w, b, **options)


def _transposed(**options: Any) -> Callable[..., Tensor]:
    return lambda x, w, b: F.conv_transpose2d(x, w, b, **options)


def convolution_cases() -> list[Case]:
    """Convolutions with every option, plain and transposed."""
    x, w, b = _batch(4, 9, 8), (6, 4, 3, 3), (6,)
    return [
        operation(
            "conv1d",
            lambda x, w, b: F.conv1d(x, w, b, stride=2, padding=2),
            _batch(3, 11),
            (5, 3, 4),
            (5,),
        ),
        operation("conv2d", _conv(padding=1), x, w, b),
        operation("conv2d_valid", _conv(), x, w, b),
        operation("conv2d_stride", _conv(stride=2, padding=1), x, w, b),
        operation("conv2d_wide_stride", _conv(stride=4, padding=0), x, w, b),
        operation("conv2d_dilation", _conv(padding=(2, 3), dilation=(2, 3)), x, w, b),
        operation("conv2d_1x1", _conv(), x, (6, 4, 1, 1), b),
        operation("conv2d_1x1_padding", _conv(padding=1), x, (6, 4, 1, 1), b),
        operation("conv2d_same", lambda x, w, b: F.conv2d(x, w, b, padding="same"), x, (6, 4, 4, 3), b),
        operation("conv2d_groups", _conv(groups=2, padding=1), x, (6, 2, 3, 3), b),
        operation("conv2d_depthwise", _conv(groups=4, padding=1), x, (4, 1, 3, 3), (4,)),
        operation("conv2d_depth_multiplier", _conv(groups=4, padding=1), x, (8, 1, 3, 3), (8,)),
        operation("conv2d_no_bias", lambda x, w: F.conv2d(x, w, padding=1), x, w),
        operation("conv2d_unbatched", lambda x, w, b: F.conv2d(x[0], w, b, padding=1), x, w, b),
        operation("conv2d_whole_kernel", _conv(), x, (6, 4, 9, 8), b),
        operation(
            "conv3d",
            lambda x, w, b: F.conv3d(x, w, b, stride=(1, 2, 1), padding=1),
            _batch(2, 4, 5, 3),
            (3, 2, 2, 3, 3),
            (3,),
        ),
        operation(
            "convolution",
            lambda x, w, b: torch.convolution(x, w, b, (2, 1), (1, 1), (1, 1), False, (0, 0), 1),
            x,
            w,
            b,
        ),
        operation("im2col", lambda x: F.unfold(x, (3, 2), padding=1), x),
        operation(
            "conv_transpose1d",
            lambda x, w, b: F.conv_transpose1d(x, w, b, stride=3, padding=1),
            _batch(3, 6),
            (3, 4, 5),
            (4,),
        ),
        operation(
            "conv_transpose2d", _transposed(stride=2, padding=1, output_padding=1), x, (4, 5, 3, 3), (5,)
        ),
        operation("conv_transpose2d_gaps", _transposed(stride=3), _batch(2, 4, 3), (2, 3, 2, 2), (3,)),
        operation(
            "conv_transpose2d_dilation", _transposed(stride=2, padding=2, dilation=2), x, (4, 5, 3, 3), (5,)
        ),
        operation("conv_transpose2d_groups", _transposed(groups=2, stride=2), x, (4, 3, 3, 2), (6,)),
        operation(
            "conv_transpose3d",
            lambda x, w: F.conv_transpose3d(x, w, stride=2),
            _batch(2, 3, 2, 3),
            (2, 3, 2, 3, 2),
        ),
    ]


def pooling_cases() -> list[Case]:
    """Pooling with every option."""
    x = _batch(3, 9, 8)
    return [
        operation("max_pool1d", lambda x: F.max_pool1d(x, 3, 2, 1), _batch(3, 9)),
        operation("max_pool2d", lambda x: F.max_pool2d(x, 2), x),
        operation("max_pool2d_overlap", lambda x: F.max_pool2d(x, 3, 2, 1), x),
        operation("max_pool2d_dilation", lambda x: F.max_pool2d(x, 3, 1, 1, dilation=2), x),
        operation("max_pool2d_ceil", lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), x),
        operation("max_pool2d_rows", lambda x: F.max_pool2d(x, (3, 1), (1, 1), (1, 0)), x),
        operation("max_pool2d_indices", lambda x: F.max_pool2d(x, 2, return_indices=True)[0], x),
        operation("max_pool3d", lambda x: F.max_pool3d(x, 2, 1), _batch(2, 3, 4, 3)),
        operation("avg_pool1d", lambda x: F.avg_pool1d(x, 3, 2, 1), _batch(3, 9)),
        operation("avg_pool2d", lambda x: F.avg_pool2d(x, 2), x),
        operation("avg_pool2d_padding", lambda x: F.avg_pool2d(x, 3, 2, 1), x),
        operation(
            "avg_pool2d_without_padding", lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), x
        ),
        operation("avg_pool2d_ceil", lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), x),
        operation("avg_pool2d_divisor", lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5), x),
        operation("avg_pool3d", lambda x: F.avg_pool3d(x, (2, 3, 1), 1, (1, 1, 0)), _batch(2, 3, 4, 3)),
        operation("adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 4), _batch(3, 9)),
        operation("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, (5, 3)), x),
        operation("adaptive_avg_pool2d_larger", lambda x: F.adaptive_avg_pool2d(x, (11, 2)), x),
        operation("adaptive_avg_pool2d_global", lambda x: F.adaptive_avg_pool2d(x, 1), x),
        operation("adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, (4, 3)), x),
        operation("adaptive_max_pool1d", lambda x: F.adaptive_max_pool1d(x, 4), _batch(3, 9)),
        operation("adaptive_max_pool3d", lambda x: F.adaptive_max_pool3d(x, 2), _batch(2, 3, 4, 3)),
        operation("adaptive_avg_pool3d", lambda x: F.adaptive_avg_pool3d(x, (2, 3, 2)), _batch(2, 3, 4, 3)),
    ]


def embedding_cases() -> list[Case]:
    """Table look-ups."""
    return [
        operation("embedding", lambda i, w: F.embedding(i, w), _ids(3), (5, 4)),
        operation("embedding_padding", lambda i, w: F.embedding(i, w, padding_idx=2), _ids(6), (5, 4)),
        of_module("embedding_bag_sum", lambda: nn.EmbeddingBag(5, 3, mode="sum"), labels_below(5, 4)),
        of_module("embedding_bag_mean", lambda: nn.EmbeddingBag(5, 3, mode="mean"), labels_below(5, 4)),
        of_module("embedding_bag_max", lambda: nn.EmbeddingBag(5, 3, mode="max"), labels_below(5, 4)),
        of_module(
            "embedding_bag_padding",
            lambda: nn.EmbeddingBag(5, 3, mode="mean", padding_idx=1),
            labels_below(5, 4),
        ),
    ]


def recurrent_cases() -> list[Case]:
    """Recurrent layers and cells."""
    return [
        of_module("lstm", lambda: nn.LSTM(3, 4), lambda n: torch.randn(5, n, 3, dtype=torch.float64)),
        of_module("lstm_deep", lambda: nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True), normal(5, 3)),
        of_module("lstm_no_bias", lambda: nn.LSTM(3, 4, bias=False, batch_first=True), normal(5, 3)),
        of_module("gru", lambda: nn.GRU(3, 4, 2, batch_first=True), normal(5, 3)),
        of_module("rnn", lambda: nn.RNN(3, 4, batch_first=True, nonlinearity="relu"), normal(5, 3)),
        of_module(
            "lstm_dropout",
            lambda: nn.LSTM(3, 4, 3, batch_first=True, dropout=0.5),
            normal(5, 3),
            matches_eager=False,
        ),
        of_module("lstm_cell", lambda: nn.LSTMCell(3, 4), normal(3)),
        of_module("gru_cell", lambda: nn.GRUCell(3, 4), normal(3)),
        of_module(
            "rnn_tanh",
            lambda: nn.RNN(3, 4, bidirectional=True),
            lambda n: torch.randn(5, n, 3, dtype=torch.float64),
        ),
        of_module("rnn_relu_cell", lambda: nn.RNNCell(3, 4, nonlinearity="relu"), normal(3)),
        of_module("rnn_cell", lambda: nn.RNNCell(3, 4), normal(3)),
    ]


def keep_statistics_whole(operator: Operator, factor: int) -> bool:
    """Batch normalization differs by design when samples or positions are split; channels may be."""
    named = operator.factors[factor].name
    return not any("batch_norm" in call.target for call in operator.body) or "channel" in named


def normalization_cases() -> list[Case]:
    """Normalizations, softmax and attention."""
    x = _batch(6, 4, 3)
    return [
        of_module("batch_norm", lambda: nn.BatchNorm2d(6), normal(6, 4, 3), may_split=keep_statistics_whole),
        of_module("batch_norm_1d", lambda: nn.BatchNorm1d(6), normal(6), may_split=keep_statistics_whole),
        operation(
            "batch_norm_frozen",
            lambda x, w, b: F.batch_norm(
                x,
                torch.full((6,), 0.5, dtype=torch.float64),
                torch.full((6,), 2.0, dtype=torch.float64),
                w,
                b,
            ),
            x,
            (6,),
            (6,),
        ),
        operation("instance_norm", lambda x: F.instance_norm(x), x),
        of_module("layer_norm", lambda: nn.LayerNorm((4, 3)), normal(6, 4, 3)),
        operation("layer_norm_plain", lambda x: F.layer_norm(x, (3,)), x),
        of_module("group_norm", lambda: nn.GroupNorm(3, 6), normal(6, 4, 3)),
        of_module("rms_norm", lambda: nn.RMSNorm(3), normal(6, 4, 3)),
        operation("softmax", lambda x: F.softmax(x, 1), x),
        operation("log_softmax", lambda x: F.log_softmax(x, -1), x),
        operation("normalize", lambda x: F.normalize(x, dim=-1), x),
    ]


def attention_cases() -> list[Case]:
    """Scaled dot-product attention."""
    q, k = _batch(4, 5, 3), _batch(4, 6, 3)
    f = F.scaled_dot_product_attention
    return [
        operation("attention", f, q, k, _batch(4, 6, 2)),
        operation("attention_causal", lambda q, k, v: f(q, k, v, is_causal=True), q, k, k),
        operation("attention_scale", lambda q, k, v: f(q, k, v, scale=0.3), q, k, k),
        operation("attention_mask", lambda q, k, v, m: f(q, k, v, attn_mask=m), q, k, k, (5, 6)),
        operation(
            "attention_key_mask",
            lambda q, k, v, m: f(q, k, v, attn_mask=m[:, None, None, :]),
            q,
            k,
            k,
            _batch(6),
        ),
        operation(
            "attention_bool_mask",
            lambda q, k, v, m: f(q, k, v, attn_mask=m[:, None] > 0),
            q,
            k,
            k,
            _ids(5, 6),
        ),
        operation(
            "attention_groups",
            lambda q, k, v: f(q, k, v, enable_gqa=True),
            _batch(6, 5, 3),
            _batch(2, 6, 3),
            _batch(2, 6, 3),
        ),
        operation(
            "attention_groups_causal",
            lambda q, k, v: f(q, k, v, enable_gqa=True, is_causal=True),
            _batch(6, 5, 3),
            _batch(3, 5, 3),
            _batch(3, 5, 3),
        ),
        operation(
            "attention_three_dims",
            lambda q, k, v: f(q, k, v, is_causal=True),
            _batch(5, 3),
            _batch(5, 3),
            _batch(5, 3),
        ),
        operation(
            "attention_dropout", lambda q, k, v: f(q, k, v, dropout_p=0.4), q, k, k, matches_eager=False
        ),
        operation(
            "attention_dropout_causal",
            lambda q, k, v: f(q, k, v, dropout_p=0.4, is_causal=True),
            q,
            k,
            k,
            matches_eager=False,
        ),
    ]


def pointwise_cases() -> list[Case]:
    """Pointwise operators, with broadcasting and in place."""
    x = _batch(5, 4)
    return [
        operation("add", torch.add, x, x),
        operation("add_alpha", lambda a, b: torch.add(a, b, alpha=3), x, (5, 1)),
        operation("mul_broadcast", torch.mul, x, (4,)),
        operation("mul_outer", torch.mul, _batch(1, 4), (5, 1)),
        operation("mul_scalar", lambda a: a * 3, x),
        operation("div", lambda a, b: a / (b.square() + 1), x, _batch(1, 4)),
        operation("rsub", lambda a: 1 - a, x),
        operation("unary_chain", lambda a: F.gelu(a).tanh().sigmoid().square().exp(), x),
        operation("activations", lambda a: F.silu(F.leaky_relu(F.elu(F.softplus(a)))), x),
        operation(
            "more_activations", lambda a: F.mish(F.hardswish(F.selu(F.relu6(a + 2) - 1))) + F.logsigmoid(a), x
        ),
        operation("roots", lambda a: (a.square() + 1).rsqrt() + (a.abs() + 1).log().sqrt().reciprocal(), x),
        operation("waves", lambda a: a.sin() * a.cos() + a.atan() - a.erf() + a.expm1(), x),
        operation("comparisons", lambda a, b: a * ((a > b) & ~(b < 0) | (a == 0)), x, (4,)),
        operation(
            "two_by_two", lambda a, b: torch.minimum(a, b) + torch.logaddexp(a, b) + torch.hypot(a, b), x, x
        ),
        operation("floor_divide", lambda a: a * (a.detach() * 9).floor().remainder(3), x),
        operation(
            "fixed_tables", lambda a: a * torch.linspace(0, 1, 4, dtype=torch.float64) + torch.eye(5, 4), x
        ),
        operation("nan_to_num", lambda a: torch.nan_to_num(a / (a > 0)), x),
        operation("relu_in_place", lambda a: F.relu(a * 2, inplace=True), x),
        operation("add_in_place", lambda a, b: (a * 2).add_(b), x, (4,)),
        operation("where", lambda a, b: torch.where(a > 0, a, b), x, (5, 4)),
        operation("masked_fill", lambda a: a.masked_fill(a < 0, -2.0), x),
        operation("clamp", lambda a: a.clamp(-0.5, 0.5), x),
        operation("pow", lambda a: a.pow(3), x),
        operation("maximum", torch.maximum, x, (5, 4)),
        operation("addcmul", lambda a, b, c: torch.addcmul(a, b, c, value=0.5), x, (4,), (5, 1)),
        operation("lerp", lambda a, b: torch.lerp(a, b, 0.3), x, x),
        operation("prelu", F.prelu, _batch(5, 4), (5,)),
        operation("glu", lambda a: F.glu(a, 1), _batch(6, 4)),
        operation("cast", lambda a: a.float().double(), x),
        operation("likes", lambda a: a * torch.full_like(a, 2.0) + torch.ones_like(a), x),
        operation("new", lambda a: a + a.new_full((5, 1), 2.0) + a.new_zeros(4), x),
        operation("arange", lambda a: a * torch.arange(4), x),
        operation("triangle_constant", lambda a: a * torch.ones(5, 4, dtype=torch.float64).triu(1), x),
        operation("triangle", lambda a: a.tril(1), x),
        operation("sliced_constant", lambda a: a * (torch.arange(9, dtype=torch.float64)[2:6] + 1), x),
    ]


def dropout_cases() -> list[Case]:
    """Dropout; its masks are our own."""
    return [
        operation("dropout", lambda a: F.dropout(a, 0.3), _batch(5, 4), matches_eager=False),
        operation(
            "dropout_viewed",
            lambda a: F.dropout(a, 0.3).reshape(-1, 2, 2, 4),
            _batch(4, 4),
            matches_eager=False,
        ),
        operation("feature_dropout", lambda a: F.dropout2d(a, 0.3), _batch(5, 4, 2), matches_eager=False),
        operation(
            "alpha_dropout",
            lambda a: F.alpha_dropout(a, 0.3, training=True),
            _batch(5, 4),
            matches_eager=False,
        ),
        operation(
            "noise", lambda a: a * torch.rand_like(a) + torch.randn_like(a), _batch(5, 4), matches_eager=False
        ),
        operation(
            "made_noise", lambda a: a * torch.rand(5, 1) + torch.randn(4), _batch(5, 4), matches_eager=False
        ),
        operation(
            "bernoulli",
            lambda a: a * torch.bernoulli(a.detach().sigmoid()),
            _batch(5, 4),
            matches_eager=False,
        ),
        operation("rrelu", lambda a: F.rrelu(a, training=True), _batch(5, 4), matches_eager=False),
        operation(
            "dropout_of_a_partial_sum",
            lambda x, w: F.dropout(F.linear(x, w), 0.3),
            _batch(7),
            (6, 7),
            matches_eager=False,
        ),
    ]


def joining_cases() -> list[Case]:
    """Calls that put tensors together or make them larger."""
    x, y = _batch(5, 4), _batch(3, 4)
    image = _batch(2, 4, 6)
    up = F.interpolate
    return [
        operation("cat", lambda a, b: torch.cat([a, b, a * 2], 1), x, y),
        operation("cat_first", lambda a, b: torch.cat([a, b]), x, (2, 5, 4)),
        operation("hstack", lambda a, b: torch.hstack([a, b]), x, y),
        operation("vstack", lambda a, b: torch.vstack([a, b]), x, (2, 5, 4)),
        operation("nearest_line", lambda a: up(a, scale_factor=2), _batch(2, 6)),
        operation("nearest_volume", lambda a: up(a, scale_factor=2), _batch(2, 2, 3, 2)),
        operation(
            "grid_sample",
            lambda a, g: F.grid_sample(a, g.tanh(), align_corners=False),
            image,
            _batch(3, 5, 2),
        ),
        operation("cat_split_later", lambda a, b: torch.cat([a, b], 1).reshape(-1, 4, 2, 4).sum(2), x, y),
        operation("stack", lambda a, b: torch.stack([a, b], 1), x, x),
        operation("pad", lambda a: F.pad(a, (1, 2, 0, 3)), x),
        operation("pad_value", lambda a: F.pad(a, (1, 2), value=1.5), x),
        operation("pad_negative", lambda a: F.pad(a, (-1, 2, 1, -2)), x),
        operation("pad_reflect", lambda a: F.pad(a, (1, 2), mode="reflect"), x),
        operation("pad_replicate", lambda a: F.pad(a, (1, 2, 1, 0), mode="replicate"), image),
        operation("repeat", lambda a: a.repeat(1, 2, 3), x),
        operation("repeat_interleave", lambda a: a.repeat_interleave(2, 1), x),
        operation("nearest", lambda a: up(a, scale_factor=2), image),
        operation("nearest_size", lambda a: up(a, size=(12, 6)), image),
        operation("nearest_odd", lambda a: up(a, size=(7, 9)), image),
        operation("nearest_smaller", lambda a: up(a, size=(2, 3)), image),
        operation("bilinear_up", lambda a: up(a, scale_factor=3, mode="bilinear"), image),
        operation("bilinear_size", lambda a: up(a, size=(8, 18), mode="bilinear"), image),
        operation(
            "bilinear_corners", lambda a: up(a, size=(8, 7), mode="bilinear", align_corners=True), image
        ),
        operation("bilinear_smaller", lambda a: up(a, size=(2, 2), mode="bilinear"), image),
        operation("linear_up", lambda a: up(a, scale_factor=2, mode="linear"), _batch(2, 6)),
        operation("trilinear_up", lambda a: up(a, scale_factor=2, mode="trilinear"), _batch(2, 2, 3, 2)),
        operation("bicubic_up", lambda a: up(a, scale_factor=2, mode="bicubic"), image),
        operation("pixel_shuffle", lambda a: F.pixel_shuffle(a, 2), _batch(8, 3, 2)),
        operation("pixel_unshuffle", lambda a: F.pixel_unshuffle(a, 2), _batch(2, 4, 6)),
        operation("channel_shuffle", lambda a: F.channel_shuffle(a, 2), _batch(6, 3, 2)),
    ]


def view_cases() -> list[Case]:
    """Views and chains of them, before and after a split operator."""
    x = _batch(6, 4)
    return [
        operation("view", lambda a: a.view(-1, 2, 3, 4).exp(), x),
        operation("flatten", lambda a: a.flatten(1).exp(), x),
        operation("flatten_samples", lambda a: a.reshape(-1, 4).exp(), x),
        operation("permute", lambda a: a.permute(2, 0, 1).exp(), x),
        operation("transpose_view", lambda a: a.transpose(1, 2).reshape(-1, 2, 12).exp(), x),
        operation("expand", lambda a: a[:, None].expand(-1, 3, -1, -1).exp(), x),
        operation("slice", lambda a: a[:, 1:4].exp(), x),
        operation("slice_half", lambda a: a[:, 3:].exp(), x),
        operation("slice_step", lambda a: a[:, 1::2].exp(), x),
        operation("slice_of_slice", lambda a: a[:, 1:5][:, 2:, 1:].exp(), x),
        operation("select", lambda a: a[:, 2].exp(), x),
        operation("select_last", lambda a: a[..., -1].exp(), x),
        operation("tensor_split", lambda a: a.tensor_split(4, 1)[1].exp(), x),
        operation("movedim", lambda a: a.movedim(1, -1).mT.exp(), x),
        operation(
            "meshgrid",
            lambda a, b: a[:, :, None] * torch.stack(torch.meshgrid(b, b, indexing="ij"))[0],
            _batch(4),
            (4,),
        ),
        operation("chunk", lambda a: torch.mul(*a.chunk(2, 1)), x),
        operation(
            "split_sizes",
            lambda a: a.split([2, 4], 1)[1].exp() * a.split([2, 4], 1)[0].sum(),
            x,
        ),
        operation("unbind", lambda a: a.unbind(1)[0] * a.unbind(1)[3], x),
        operation("squeeze", lambda a: a[:, :1].squeeze(1).unsqueeze(-1).exp(), x),
        operation("uneven_view", lambda a: a.reshape(-1, 3, 8).exp().reshape(-1, 6, 4).sin(), x),
        operation("broken_view", lambda a: a.transpose(1, 2).reshape(-1, 6, 4).exp(), x),
        operation("fused_qkv", lambda x, w: _heads(F.linear(x, w)), _batch(3, 5), (24, 5)),
        operation("fused_qkv_chunks", lambda x, w: _chunked_heads(F.linear(x, w)), _batch(3, 5), (24, 5)),
        operation("linear_of_a_view", lambda x, w: F.linear(x.reshape(-1, 2, 12), w), x, (5, 12)),
        operation(
            "linear_of_merged_heads",
            lambda x, w: F.linear(x.transpose(1, 2).flatten(2), w),
            _batch(3, 2, 4),
            (5, 12),
        ),
        operation(
            "conv_of_a_slice", lambda x, w: F.conv1d(x[:, :, 2:8], w, padding=1), _batch(3, 9), (4, 3, 3)
        ),
        operation(
            "conv_of_a_view", lambda x, w: F.conv1d(x.flatten(2), w, padding=1), _batch(3, 3, 4), (4, 3, 3)
        ),
        operation(
            "pool_of_a_conv_view",
            lambda x, w: F.avg_pool1d(F.conv1d(x, w).reshape(-1, 2, 16), 3, 2),
            _batch(3, 10),
            (4, 3, 3),
        ),
    ]


def _heads(qkv: Tensor) -> Tensor:
    q, k, v = qkv.reshape(-1, 3, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _chunked_heads(qkv: Tensor) -> Tensor:
    q, k, v = (part.reshape(-1, 3, 2, 4).transpose(1, 2) for part in qkv.chunk(3, -1))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def reduction_cases() -> list[Case]:
    """Reductions and scans."""
    x = _batch(5, 4)
    return [
        operation("sum", lambda a: a.sum(), x),
        operation("sum_dim", lambda a: a.sum(1), x),
        operation("sum_keepdim", lambda a: a.sum((0, 2), keepdim=True), x),
        operation("mean", lambda a: a.mean(), x),
        operation("mean_dim", lambda a: a.exp().mean((1, 2)), x),
        operation("mean_keepdim", lambda a: a - a.mean(1, keepdim=True), x),
        operation("amax", lambda a: a.amax(1), x),
        operation("amin", lambda a: a.amin((0, 2)), x),
        operation("max_all", lambda a: a.max() - a.min(), x),
        operation("max_dim", lambda a: a.max(1)[0], x),
        operation("logsumexp", lambda a: a.logsumexp((1, 2)), x),
        operation("var", lambda a: a.var(1), x),
        operation("std", lambda a: a.std(), x),
        operation("norm", lambda a: torch.linalg.vector_norm(a, dim=1), x),
        operation("min_dim", lambda a: a.min(1)[0] + a.median(1)[0], x),
        operation("var_mean", lambda a: torch.var_mean(a, (1, 2))[0], x),
        operation("matrix_norm", lambda a: a.norm(dim=(1, 2)), x),
        operation("count_nonzero", lambda a: a.sum(1) * (a > 0).count_nonzero(1), x),
        operation("cumprod", lambda a: a.cumprod(2), x),
        operation("logcumsumexp", lambda a: a.logcumsumexp(1), x),
        operation("prod", lambda a: a.prod(1), x),
        operation("cumsum", lambda a: a.cumsum(1), x),
        operation("argmax", lambda a: a * a.argmax(1, keepdim=True), x),
    ]


def indexing_cases() -> list[Case]:
    """Reading and writing by index."""
    x = _batch(5, 4)
    return [
        operation("gather", lambda a, i: a.gather(1, i), x, _ids(3, 4)),
        operation("gather_smaller", lambda a, i: a.gather(1, i), x, _ids(3, 2)),
        operation("index_select", lambda a, i: a.index_select(1, i), x, lambda n: [7]),
        operation("index", lambda a, i: a[:, i], x, lambda n: [2, 3]),
        operation("index_pair", lambda a, i: a[i, i], x, lambda n: [3], high=4),
        operation("index_apart", lambda a, i: a[i, :, i], x, lambda n: [3], high=4),
        operation("index_put", lambda a, b, i: a.index_put((torch.arange(4), i), b), x, _batch(4), _ids()),
        operation("scatter_add", lambda a, b, i: a.scatter_add(1, i, b), x, _batch(3, 4), _ids(3, 4)),
        operation("scatter", lambda a, i: a.scatter(1, i, 0.5), x, _ids(1, 4)),
        operation("index_add", lambda a, b, i: a.index_add(1, i, b), x, _batch(3, 4), lambda n: [3]),
        operation("take_along_dim", lambda a, i: torch.take_along_dim(a, i, 1), x, _ids(3, 4)),
        operation(
            "scatter_reduce", lambda a, b, i: a.scatter_reduce(1, i, b, "sum"), x, _batch(3, 4), _ids(3, 4)
        ),
        operation("index_copy", lambda a, b: a.index_copy(1, torch.arange(2) * 3, b), x, _batch(2, 4)),
        operation("index_fill", lambda a: a.index_fill(1, torch.arange(2) * 3, 2.0), x),
        operation("argsort", lambda a: a.gather(1, a.argsort(1)), x),
        operation("topk", lambda a: a.topk(2, 1)[0], x),
        operation("sort", lambda a: a.sort(1)[0], x),
        operation("one_hot", lambda i, w: F.one_hot(i, 6).double() @ w, _ids(3), (6, 4)),
        operation("roll", lambda a: a.roll(2, 1), x),
        operation("flip", lambda a: a.flip(1), x),
        operation("unfold", lambda a: a.unfold(1, 3, 1), x),
        operation("diagonal", lambda a: a.diagonal(dim1=1, dim2=2), x),
    ]


def loss_cases() -> list[Case]:
    """Losses, all reductions."""
    x = _batch(5, 3)
    cross = F.cross_entropy
    labels = lambda n: [n, 3]  # noqa: E731
    cases = [
        operation("mse", F.mse_loss, x, x),
        operation("mse_sum", lambda a, b: F.mse_loss(a, b, reduction="sum"), x, x),
        operation("l1", lambda a, b: F.l1_loss(a, b, reduction="none"), x, x),
        operation("smooth_l1", F.smooth_l1_loss, x, x),
        operation("huber", lambda a, b: F.huber_loss(a, b, delta=0.5), x, x),
        operation("soft_margin", lambda a, b: F.soft_margin_loss(a, b.detach().sign()), x, x),
        operation("kl_div", lambda a, b: F.kl_div(a, b.sigmoid(), reduction="sum") / 4, x, x),
        operation("bce", lambda a, b: F.binary_cross_entropy(a.sigmoid(), b.sigmoid()), x, x),
        operation("bce_logits", lambda a, b: F.binary_cross_entropy_with_logits(a, b.sigmoid()), x, x),
        operation(
            "bce_pos_weight",
            lambda a, b, w: F.binary_cross_entropy_with_logits(a, b.sigmoid(), pos_weight=w.exp().detach()),
            x,
            x,
            (3,),
        ),
        operation("poisson", F.poisson_nll_loss, x, x),
        operation("hinge", lambda a, b: F.hinge_embedding_loss(a, b.detach().sign()), x, x),
        operation("pairwise_distance", F.pairwise_distance, _batch(5), _batch(5)),
        operation("nll", lambda a, t: F.nll_loss(F.log_softmax(a, 1), t), x, labels),
        operation("nll_ignore", lambda a, t: F.nll_loss(F.log_softmax(a, 1), t, ignore_index=2), x, labels),
        operation("cross_entropy_probabilities", lambda a, b: cross(a, b.softmax(1)), x, x),
        operation("cross_entropy_rows", lambda a, t: cross(a, t), _batch(5), lambda n: [n]),
        operation("cross_entropy_one", lambda a, t: cross(a[0], t[0]), _batch(5), lambda n: [n]),
        operation(
            "cross_entropy_viewed", lambda a, t: cross(a.reshape(-1, 5), t.reshape(-1)), _batch(3, 5), labels
        ),
        operation("cosine_similarity", lambda a, b: F.cosine_similarity(a, b, dim=1), x, x),
    ]
    for reduction in ("mean", "sum", "none"):
        for smoothing in (0.0, 0.2):
            for weighted in (False, True):
                options = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": 1}

                def loss(
                    a: Tensor, t: Tensor, w: Tensor, options: dict = options, weighted: bool = weighted
                ) -> Tensor:
                    return cross(a, t, weight=w.exp().detach() if weighted else None, **options)

                name = f"cross_entropy_{reduction}_{smoothing}{'_weighted' if weighted else ''}"
                cases.append(operation(name, loss, x, labels, (5,)))
    return cases
