"""Calls of operators on real tensors, as `Node`s and `Value`s: what the tests of the rules go through."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch

from soaprl.graph.operators import TensorRole
from soaprl.graph.rules import default_rules
from soaprl.graph.rules.base import Node, NodeArgument, Rule, RuleResult, Value, ValueRef, Work

Make: TypeAlias = Callable[..., torch.Tensor]
Case: TypeAlias = tuple[str, tuple[object, ...], dict[str, object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """A call, what it took and gave, and what its rule says.

    Attributes:
        node: The call.
        values: Arguments, then results.
        tensors: The same, as tensors.
        result: What the table says about it.
    """

    node: Node
    values: tuple[Value, ...]
    tensors: tuple[torch.Tensor, ...]
    result: RuleResult

    @property
    def rule(self) -> Rule:
        assert isinstance(self.result, Rule), f"{self.node.target}: {self.result}"
        return self.result

    @property
    def extents(self) -> dict[str, int]:
        return {label.name: label.extent for label in self.rule.labels}

    @property
    def splittable(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.rule.labels if label.splittable)

    def flops(self) -> float:
        return total(self.rule.forward_flops, self.extents)

    def gradient_flops(self, argument: int) -> float:
        return total(self.rule.gradient_flops[argument], self.extents)


def total(terms: tuple[Work, ...], extents: dict[str, int]) -> float:
    """The value of a work formula."""
    total = 0.0
    for term in terms:
        product = term.coefficient
        for label in term.labels:
            product *= extents[label]
        total += product
    return total


def operator(target: str) -> Callable[..., object]:
    """The function that a target names."""
    namespace, name, overload = target.split(".")
    return cast("Callable[..., object]", getattr(getattr(getattr(torch.ops, namespace), name), overload))


def outcomes(outcome: object) -> list[torch.Tensor]:
    """The results of a call as a list."""
    return list(
        cast("tuple[torch.Tensor, ...]", outcome if isinstance(outcome, list | tuple) else (outcome,))
    )


def call(target: str, *args: object, **kwargs: object) -> Called:
    """Calls an operator and asks the table for its rule."""
    tensors: list[torch.Tensor] = []
    arguments = tuple(_argument(a, tensors) for a in args)
    keywords = tuple((k, _argument(a, tensors)) for k, a in kwargs.items())
    with torch.no_grad():
        results = outcomes(operator(target)(*[_copied(a) for a in args], **kwargs))
    first = len(tensors)
    tensors += results
    values = tuple(_value(f"v{k}", t, activation=k >= first) for k, t in enumerate(tensors))
    node = Node(
        name="call",
        target=target,
        module="",
        args=arguments,
        kwargs=keywords,
        results=tuple(range(first, len(tensors))),
    )
    return Called(
        node=node, values=values, tensors=tuple(tensors), result=default_rules().apply(node, values)
    )


def two_calls(
    logits: torch.Tensor, target: torch.Tensor
) -> tuple[tuple[Node, tuple[Value, ...]], tuple[Node, tuple[Value, ...]]]:
    """The two calls that capture makes of a mean cross-entropy with class indices."""
    rows = logits.logsumexp(1)
    tensors = (logits, rows, target, logits.sum())
    values = tuple(_value(f"v{k}", t, activation=k in (1, 3)) for k, t in enumerate(tensors))
    first = Node(
        name="loss",
        target="soaprl.log_sum_exp",
        module="",
        args=(ValueRef(0), 1),
        kwargs=(),
        results=(1,),
    )
    arguments = (ValueRef(0), ValueRef(1), ValueRef(2), None, 1, 1, -100, 0.0)
    second = Node(
        name="loss#2",
        target="soaprl.nll_from_log_sum_exp",
        module="",
        args=arguments,
        kwargs=(),
        results=(3,),
    )
    return (first, values), (second, values)


def _argument(argument: object, tensors: list[torch.Tensor]) -> NodeArgument:
    if isinstance(argument, torch.Tensor):
        tensors.append(argument)
        return ValueRef(len(tensors) - 1)
    if isinstance(argument, list | tuple):
        return tuple(_argument(a, tensors) for a in argument)
    if argument is None or isinstance(argument, bool | int | float | str):
        return argument
    return str(argument).removeprefix("torch.")


def _copied(argument: object) -> object:
    """In-place operators must not change the arguments."""
    if isinstance(argument, torch.Tensor):
        return argument.clone()
    if isinstance(argument, list | tuple):
        return [_copied(a) for a in argument]
    return argument


def _value(name: str, tensor: torch.Tensor, *, activation: bool) -> Value:
    return Value(
        name=name,
        role=TensorRole.ACTIVATION if activation else TensorRole.INPUT,
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        itemsize=tensor.dtype.itemsize,
        requires_grad=tensor.is_floating_point(),
    )


def calls() -> Iterator[tuple[str, Case]]:
    """Names and (target, args, kwargs) of many calls, in the forms in which PyTorch captures them."""
    generator = torch.Generator().manual_seed(0)

    def real(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def ids(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    for target, args, kwargs in [
        *_products(real),
        *_convolutions(real),
        *_pools(real),
        *_layers(real, ids),
        *_attentions(real),
        *_pointwise(real),
        *_reductions(real),
        *_losses(real, ids),
        *_indexed(real, ids),
        *_joined(real),
        *_views(real),
    ]:
        shown = ", ".join(_shown(a) for a in (*args, *kwargs.values()))
        yield f"{target}({shown})", (target, args, kwargs)


def _shown(argument: object) -> str:
    if isinstance(argument, torch.Tensor):
        return "x".join(str(e) for e in argument.shape) or "scalar"
    if isinstance(argument, list):
        return f"[{' '.join(_shown(a) for a in argument)}]"
    return str(argument)


def _products(real: Make) -> list[Case]:
    return [
        ("aten.linear.default", (real(5, 6, 8), real(7, 8), real(7)), {}),
        ("aten.linear.default", (real(8), real(7, 8)), {}),
        ("aten.matmul.default", (real(4, 3, 5, 6), real(6, 7)), {}),
        ("aten.matmul.default", (real(3, 5, 6), real(2, 1, 6, 7)), {}),
        ("aten.matmul.default", (real(5, 6), real(6)), {}),
        ("aten.matmul.default", (real(6), real(3, 6, 4)), {}),
        ("aten.matmul.default", (real(6), real(6)), {}),
        ("aten.mm.default", (real(5, 6), real(6, 7)), {}),
        ("aten.mv.default", (real(5, 6), real(6)), {}),
        ("aten.bmm.default", (real(3, 5, 6), real(3, 6, 7)), {}),
        ("aten.addmm.default", (real(7), real(5, 6), real(6, 7)), {"beta": 0.5}),
        ("aten.baddbmm.default", (real(3, 1, 7), real(3, 5, 6), real(3, 6, 7)), {}),
        ("aten.outer.default", (real(5), real(6)), {}),
        ("aten.einsum.default", ("bij,bkj->bik", [real(3, 4, 5), real(3, 6, 5)]), {}),
        ("aten.einsum.default", ("bhtd,bhud->bhtu", [real(2, 3, 4, 5), real(2, 3, 6, 5)]), {}),
        ("aten.einsum.default", ("ij,jk,kl", [real(3, 4), real(4, 5), real(5, 6)]), {}),
        ("aten.einsum.default", ("ij->ji", [real(3, 4)]), {}),
        ("aten.bilinear.default", (real(4, 5), real(4, 6), real(3, 5, 6), real(3)), {}),
        ("aten.cdist.default", (real(2, 4, 3), real(2, 5, 3)), {}),
    ]


def _convolutions(real: Make) -> list[Case]:
    image, signal, volume = real(3, 8, 11, 10), real(3, 8, 17), real(2, 4, 6, 7, 5)
    return [
        ("aten.conv2d.default", (image, real(6, 8, 3, 3), real(6), [1, 1], [1, 1]), {}),
        ("aten.conv2d.default", (image, real(6, 8, 3, 2), None, [2, 3], [1, 0], [2, 1]), {}),
        ("aten.conv2d.default", (image, real(12, 2, 3, 3), None, [1, 1], [0, 0], [1, 1], 4), {}),
        ("aten.conv2d.default", (image, real(8, 1, 3, 3), real(8), [1, 1], [1, 1], [1, 1], 8), {}),
        ("aten.conv2d.default", (image, real(16, 1, 3, 3), real(16), [1, 1], [1, 1], [1, 1], 8), {}),
        ("aten.conv2d.default", (image[0], real(6, 8, 3, 3)), {}),
        ("aten.conv2d.padding", (image, real(6, 4, 4, 3), None, [1, 1], "same", [1, 2], 2), {}),
        ("aten.conv1d.padding", (signal, real(6, 8, 3), real(6)), {}),
        ("aten.conv1d.default", (signal, real(6, 8, 3), real(6), [2], [3], [2]), {}),
        ("aten.conv3d.default", (volume, real(6, 4, 3, 3, 3), real(6), [2, 2, 2], [1, 1, 1]), {}),
        (
            "aten.convolution.default",
            (image, real(6, 8, 3, 3), None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1),
            {},
        ),
        (
            "aten.convolution.default",
            (image, real(8, 6, 3, 3), None, [2, 2], [1, 1], [1, 1], True, [0, 0], 1),
            {},
        ),
        ("aten.conv_transpose1d.default", (signal, real(8, 6, 3), real(6), [2], [1], [1]), {}),
        ("aten.conv_transpose1d.default", (signal, real(8, 6, 2), None, [3], [0], [1], 1, [2]), {}),
        ("aten.conv_transpose2d.input", (image, real(8, 3, 3, 2), real(6), [2, 1], [0, 1], [0, 0], 2), {}),
        ("aten.conv_transpose2d.input", (image, real(8, 1, 4, 4), real(8), [2, 2], [1, 1], [0, 0], 8), {}),
        ("aten.conv_transpose3d.input", (volume, real(4, 2, 3, 3, 3), real(2)), {}),
    ]


def _pools(real: Make) -> list[Case]:
    image, signal, volume = real(2, 3, 11, 10), real(2, 3, 13), real(2, 3, 6, 7, 8)
    return [
        ("aten.max_pool2d.default", (image, [2, 2], [2, 2]), {}),
        ("aten.max_pool2d.default", (image, [3, 3], [2, 2], [1, 1], [1, 1], True), {}),
        ("aten.max_pool2d.default", (image, [3, 2], [1, 2], [0, 0], [2, 3]), {}),
        ("aten.max_pool2d.default", (image[0], [3, 3]), {}),
        ("aten.max_pool2d_with_indices.default", (image, [2, 2], [2, 2]), {}),
        ("aten.max_pool1d.default", (signal, [2], [2]), {}),
        ("aten.max_pool3d.default", (volume, [2, 2, 2], [2, 2, 2]), {}),
        ("aten.avg_pool2d.default", (image, [3, 3], [2, 2], [1, 1]), {}),
        ("aten.avg_pool2d.default", (image, [3, 3], [3, 3], [0, 0], True, False), {}),
        ("aten.avg_pool1d.default", (signal, [3], [2]), {}),
        ("aten.avg_pool3d.default", (volume, [2, 2, 2], [2, 2, 2]), {}),
        ("aten.adaptive_avg_pool2d.default", (image, [1, 1]), {}),
        ("aten.adaptive_avg_pool2d.default", (image, [5, 7]), {}),
        ("aten.adaptive_avg_pool1d.default", (signal, [5]), {}),
        ("aten.adaptive_avg_pool3d.default", (volume, [2, 3, 3]), {}),
        ("aten.adaptive_max_pool2d.default", (image, [3, 4]), {}),
        ("aten.adaptive_max_pool1d.default", (signal, [4]), {}),
    ]


def _layers(real: Make, ids: Make) -> list[Case]:
    image = real(4, 6, 5, 7)
    lstm = [real(20, 8), real(20, 5), real(20), real(20), real(20, 5), real(20, 5), real(20), real(20)]
    both = [real(15, 8), real(15, 5), real(15), real(15), real(15, 8), real(15, 5), real(15), real(15)]
    return [
        ("aten.embedding.default", (real(10, 4), ids(10, 5, 6)), {}),
        ("aten.embedding.default", (real(10, 4), ids(10, 5), 0), {}),
        (
            "aten.embedding_bag.padding_idx",
            (real(10, 4), ids(10, 12), torch.tensor([0, 3, 7]), False, 0, False, None, False, None),
            {},
        ),
        ("aten.one_hot.default", (ids(6, 4, 3), 6), {}),
        (
            "aten.lstm.input",
            (real(7, 4, 8), [real(2, 4, 5), real(2, 4, 5)], lstm, True, 2, 0.0, True, False, False),
            {},
        ),
        ("aten.gru.input", (real(4, 7, 8), real(2, 4, 5), both, True, 1, 0.0, True, True, True), {}),
        (
            "aten.rnn_tanh.input",
            (real(7, 4, 8), real(1, 4, 5), [real(5, 8), real(5, 5)], False, 1, 0.0, True, False, False),
            {},
        ),
        (
            "aten.lstm_cell.default",
            (real(4, 8), [real(4, 5), real(4, 5)], real(20, 8), real(20, 5), real(20), real(20)),
            {},
        ),
        ("aten.gru_cell.default", (real(4, 8), real(4, 5), real(15, 8), real(15, 5), real(15), real(15)), {}),
        (
            "aten.rnn_tanh_cell.default",
            (real(4, 8), real(4, 5), real(5, 8), real(5, 5), real(5), real(5)),
            {},
        ),
        (
            "aten.batch_norm.default",
            (image, real(6), real(6), real(6), real(6).abs(), False, 0.1, 1e-5, False),
            {},
        ),
        ("aten.instance_norm.default", (image, real(6), real(6), None, None, True, 0.1, 1e-5, False), {}),
        ("aten.instance_norm.default", (image, None, None, None, None, True, 0.1, 1e-5, False), {}),
        ("aten.group_norm.default", (image, 3, real(6), real(6), 1e-5, False), {}),
        ("aten.layer_norm.default", (real(4, 5, 6), [6], real(6), real(6), 1e-5, False), {}),
        ("aten.layer_norm.default", (real(4, 5, 6), [5, 6], real(5, 6), None, 1e-5, False), {}),
        ("aten.rms_norm.default", (real(4, 5, 6), [6], real(6)), {}),
        ("aten.softmax.int", (real(4, 5, 6), -1), {}),
        ("aten.softmax.int", (real(4, 5, 6), 1, torch.float64), {}),
        ("aten.log_softmax.int", (real(4, 5, 6), 1), {}),
    ]


def _attentions(real: Make) -> list[Case]:
    q, k, v = real(2, 4, 6, 8), real(2, 4, 5, 8), real(2, 4, 5, 3)
    target = "aten.scaled_dot_product_attention.default"
    return [
        (target, (q, k, v), {}),
        (target, (q, q, q, None, 0.0, True), {}),
        (target, (q, k, v, real(6, 5), 0.0), {"scale": 0.3}),
        (target, (q, k, v, real(2, 1, 1, 5)), {}),
        (target, (q, k[:, :2], k[:, :2]), {"enable_gqa": True}),
        (target, (q, k[:, :2], k[:, :2], real(4, 6, 5)), {"enable_gqa": True}),
        (target, (q[0], k[0], v[0]), {}),
        (target, (real(2, 3, 4, 6, 8), real(2, 3, 4, 5, 8), real(2, 3, 4, 5, 8)), {}),
    ]


def _pointwise(real: Make) -> list[Case]:
    x, y, row = real(4, 5, 6), real(4, 5, 6), real(6)
    mask = x > 0
    unary = (
        "abs clone cos elu erf exp floor gelu hardsigmoid hardswish hardtanh isnan leaky_relu log_sigmoid "
        "mish neg relu relu6 relu_ sigmoid sign silu sin softplus sqrt square tanh tanh_ zeros_like"
    )
    return [
        *((f"aten.{name}.default", (x,), {}) for name in unary.split()),
        ("aten.add.Tensor", (x, 1), {}),
        ("aten.add.Tensor", (x, row), {"alpha": 2}),
        ("aten.add_.Tensor", (x, real(5, 1)), {}),
        ("aten.sub.Tensor", (real(5, 1), x), {}),
        ("aten.rsub.Scalar", (x, 1), {}),
        ("aten.mul.Tensor", (x, real(4, 1, 1)), {}),
        ("aten.div.Tensor", (x, y), {}),
        ("aten.pow.Tensor_Scalar", (x, 2), {}),
        ("aten.pow.Scalar", (2, x), {}),
        ("aten.maximum.default", (x, row), {}),
        ("aten.max.other", (x, y), {}),
        ("aten.where.self", (mask, x, row), {}),
        ("aten.where.ScalarOther", (mask, x, 0.0), {}),
        ("aten.masked_fill.Scalar", (x, mask[0], -1e9), {}),
        ("aten.clamp.default", (x, 0), {}),
        ("aten.clamp.Tensor", (x, row, row + 1), {}),
        ("aten.gt.Scalar", (x, 0), {}),
        ("aten.eq.Tensor", (x, row), {}),
        ("aten.__and__.Tensor", (mask, mask), {}),
        ("aten.bitwise_not.default", (mask,), {}),
        ("aten.to.dtype", (x, torch.float16), {}),
        ("aten.type_as.default", (x, row.double()), {}),
        ("aten.lerp.Scalar", (x, y, 0.5), {}),
        ("aten.addcmul.default", (x, y, row), {"value": 0.1}),
        ("aten.prelu.default", (x, real(5)), {}),
        ("aten.prelu.default", (x, real(1)), {}),
        ("aten.glu.default", (x, -1), {}),
        ("aten.glu.default", (real(4, 6, 5), 1), {}),
        ("aten.zeros.default", ([3, 4],), {}),
        ("aten.arange.default", (7,), {}),
        ("aten.full_like.default", (x, 2.0), {}),
    ]


def _reductions(real: Make) -> list[Case]:
    x = real(4, 5, 6)
    return [
        ("aten.sum.default", (x,), {}),
        ("aten.sum.dim_IntList", (x, [-1], True), {}),
        ("aten.mean.default", (x,), {}),
        ("aten.mean.dim", (x, [0, 2]), {}),
        ("aten.amax.default", (x, [1]), {}),
        ("aten.amin.default", (x, [1], True), {}),
        ("aten.max.default", (x,), {}),
        ("aten.max.dim", (x, 1), {}),
        ("aten.min.dim", (x, -1, True), {}),
        ("aten.logsumexp.default", (x, [1]), {}),
        ("aten.var.dim", (x, [1], False), {}),
        ("aten.var.correction", (x,), {}),
        ("aten.std.dim", (x, [0, 1]), {}),
        ("aten.var_mean.dim", (x, [1]), {}),
        ("aten.argmax.default", (x, 1), {}),
        ("aten.argmax.default", (x,), {}),
        ("aten.linalg_vector_norm.default", (x,), {}),
        ("aten.linalg_vector_norm.default", (x, 2, [1], True), {}),
        ("aten.prod.dim_int", (x, 1), {}),
        ("aten.any.dim", (x > 0, 1), {}),
        ("aten.all.default", (x > 0,), {}),
        ("aten.median.dim", (x, 1), {}),
        ("aten.cumsum.default", (x, 1), {}),
        ("aten.logcumsumexp.default", (x, 0), {}),
        ("aten.cummax.default", (x, 0), {}),
    ]


def _losses(real: Make, ids: Make) -> list[Case]:
    x, y = real(6, 5), real(6, 5)
    pixels = real(2, 5, 3, 4)
    return [
        ("aten.mse_loss.default", (x, y), {}),
        ("aten.mse_loss.default", (x, y, 0), {}),
        ("aten.l1_loss.default", (x, y, 2), {}),
        ("aten.smooth_l1_loss.default", (x, y), {}),
        ("aten.huber_loss.default", (x, y, 0), {}),
        ("aten.hinge_embedding_loss.default", (x, y.sign(), 1.0, 0), {}),
        ("aten.kl_div.default", (x, y.sigmoid(), 0), {}),
        ("aten.binary_cross_entropy.default", (x.sigmoid(), y.sigmoid(), None, 0), {}),
        ("aten.binary_cross_entropy_with_logits.default", (x, y.sigmoid(), None, real(5), 0), {}),
        ("aten.cross_entropy_loss.default", (x, ids(5, 6)), {}),
        ("aten.cross_entropy_loss.default", (x, y.softmax(1), real(5).abs(), 0), {}),
        ("aten.cross_entropy_loss.default", (pixels, ids(5, 2, 3, 4), None, 0), {}),
        ("aten.nll_loss_nd.default", (x, ids(5, 6), None, 0), {}),
        ("aten.cosine_similarity.default", (x, y), {}),
    ]


def _indexed(real: Make, ids: Make) -> list[Case]:
    x = real(4, 5, 6)
    index = ids(5, 4, 3, 6)
    return [
        ("aten.gather.default", (x, 1, index), {}),
        ("aten.gather.default", (x, 1, ids(5, 2, 3, 6)), {}),
        ("aten.take_along_dim.default", (x, ids(5, 4, 1, 1), 1), {}),
        ("aten.index_select.default", (x, 1, ids(5, 7)), {}),
        ("aten.index.Tensor", (x, [None, ids(5, 7)]), {}),
        ("aten.index.Tensor", (x, [ids(4, 3, 1), ids(5, 7)]), {}),
        ("aten.index.Tensor", (x, [ids(4, 3), None, ids(6, 3)]), {}),
        ("aten.index_put.default", (x, [ids(4, 2)], real(2, 5, 6)), {}),
        ("aten.index_put.default", (x, [None, ids(5, 2)], real(1)), {}),
        ("aten.scatter.value", (x, 1, index, 1.0), {}),
        ("aten.scatter.src", (x, 1, index, real(4, 3, 6)), {}),
        ("aten.scatter_add.default", (x, 1, index, real(4, 5, 6)), {}),
        ("aten.scatter_add.default", (x, 1, ids(5, 2, 3, 6), real(4, 5, 6)), {}),
        ("aten.index_add.default", (x, 1, ids(5, 2), real(4, 2, 6)), {}),
        ("aten.topk.default", (x, 2), {}),
        ("aten.sort.default", (x, 1), {}),
        ("aten.argsort.default", (x,), {}),
        ("aten.roll.default", (x, [1], [1]), {}),
        ("aten.flip.default", (x, [1]), {}),
        ("aten.tril.default", (x,), {}),
        ("aten.unfold.default", (x, 1, 3, 2), {}),
        ("aten.diagonal.default", (x, 0, 0, 2), {}),
        ("aten.grid_sampler.default", (real(2, 3, 4, 5), real(2, 6, 7, 2), 0, 0, False), {}),
        ("aten.im2col.default", (real(2, 3, 6, 7), [2, 3], [1, 2], [1, 0], [2, 1]), {}),
    ]


def _joined(real: Make) -> list[Case]:
    x, image = real(4, 5, 6), real(2, 3, 6, 8)
    return [
        ("aten.cat.default", ([x, real(4, 2, 6), x], 1), {}),
        ("aten.cat.default", ([x, real(1, 5, 6)],), {}),
        ("aten.concat.default", ([x, x], -1), {}),
        ("aten.hstack.default", ([x, x],), {}),
        ("aten.stack.default", ([x, x, x], 1), {}),
        ("aten.pad.default", (x, [1, 2]), {}),
        ("aten.pad.default", (x, [-1, 2, 0, 1], "constant", 3.0), {}),
        ("aten.pad.default", (x, [1, 2], "replicate"), {}),
        ("aten.constant_pad_nd.default", (x, [0, 0, 2, 1]), {}),
        ("aten.repeat.default", (x, [2, 1, 3, 1]), {}),
        ("aten.tile.default", (x, [2, 1]), {}),
        ("aten.repeat_interleave.self_int", (x, 3, 1), {}),
        ("aten.upsample_nearest2d.vec", (image, None, [2.0, 3.0]), {}),
        ("aten.upsample_nearest2d.vec", (image, [3, 20], None), {}),
        ("aten.upsample_nearest1d.vec", (x, None, [2.0]), {}),
        ("aten.upsample_bilinear2d.vec", (image, None, False, [2.0, 2.0]), {}),
        ("aten.upsample_bilinear2d.vec", (image, [3, 24], False, None), {}),
        ("aten.upsample_bilinear2d.vec", (image, [12, 12], True, None), {}),
        ("aten.upsample_linear1d.vec", (x, None, False, [3.0]), {}),
        ("aten.upsample_bicubic2d.vec", (image, None, False, [2.0, 2.0]), {}),
        ("aten.pixel_shuffle.default", (real(2, 12, 3, 4), 2), {}),
        ("aten.pixel_unshuffle.default", (real(2, 3, 6, 4), 2), {}),
        ("aten.channel_shuffle.default", (real(2, 6, 3, 4), 3), {}),
    ]


def _views(real: Make) -> list[Case]:
    x, one = real(4, 6, 8), real(4, 1, 8)
    return [
        ("aten.view.default", (x, [4, -1, 2]), {}),
        ("aten.reshape.default", (x, [24, 8]), {}),
        ("aten.flatten.using_ints", (x, 1), {}),
        ("aten.unflatten.int", (x, -1, [2, 4]), {}),
        ("aten.t.default", (x[0],), {}),
        ("aten.numpy_T.default", (x[0],), {}),
        ("aten.mT.default", (x,), {}),
        ("aten.transpose.int", (x, 1, -1), {}),
        ("aten.swapaxes.default", (x, 0, 1), {}),
        ("aten.permute.default", (x, [2, 0, -2]), {}),
        ("aten.movedim.int", (x, 0, 2), {}),
        ("aten.movedim.intlist", (x, [0, 2], [1, 0]), {}),
        ("aten.expand.default", (one, [3, -1, 5, -1]), {}),
        ("aten.expand_as.default", (one, x), {}),
        ("aten.broadcast_tensors.default", ([x, one[:, 0:1, :], x[0]],), {}),
        ("aten.meshgrid.indexing", ([x[0, 0], x[0, :, 0]],), {"indexing": "ij"}),
        ("aten.meshgrid.indexing", ([x[0, 0], x[0, :, 0], x[:, 0, 0]],), {"indexing": "xy"}),
        ("aten.unsqueeze.default", (x, -1), {}),
        ("aten.unsqueeze.default", (x, 1), {}),
        ("aten.squeeze.dim", (one, 1), {}),
        ("aten.squeeze.dim", (x, 1), {}),
        ("aten.squeeze.default", (one,), {}),
        ("aten.squeeze.dims", (one[:1], [0, 1]), {}),
        ("aten.slice.Tensor", (x, 1, 1, 5), {}),
        ("aten.slice.Tensor", (x, 1, -3, 9223372036854775807), {}),
        ("aten.slice.Tensor", (x, 1, None, 2), {}),
        ("aten.slice.Tensor", (x, 1, 1, 9223372036854775807, 2), {}),
        ("aten.narrow.default", (x, 1, 2, 3), {}),
        ("aten.select.int", (x, 1, -1), {}),
        ("aten.unbind.int", (x, 1), {}),
        ("aten.split.Tensor", (x, 4, 1), {}),
        ("aten.split_with_sizes.default", (x, [1, 5], 1), {}),
        ("aten.chunk.default", (x, 3, -1), {}),
        ("aten.tensor_split.sections", (x, 3, 1), {}),
        ("aten.hsplit.int", (x, 2), {}),
        ("aten.contiguous.default", (x,), {}),
        ("aten.detach.default", (x,), {}),
        ("aten.alias.default", (x,), {}),
        ("aten.view_as.default", (x, real(24, 8)), {}),
    ]
