"""What rules say: labels, how dimensions follow from them, FLOPs and bytes, against closed forms."""

import pytest
import torch

from soaprl.graph.rules import default_rules
from soaprl.graph.rules.base import WHOLE, Dim, Rule, offset, plain, product, window
from tests.graph.rule_cases import Called, call, calls, operator, outcomes, total, two_calls

_CASES = dict(calls())


def test_linear_names_leading_dims_output_and_contraction() -> None:
    called = call("aten.linear.default", torch.ones(3, 4, 8), torch.ones(5, 8), torch.ones(5))
    assert called.extents == {"dim0": 3, "dim1": 4, "channel": 5, "in_channel": 8}
    assert called.rule.arguments == (
        (plain("dim0"), plain("dim1"), plain("in_channel")),
        (plain("channel"), plain("in_channel")),
        (plain("channel"),),
    )
    assert called.flops() == 2 * 3 * 4 * 5 * 8
    assert [called.gradient_flops(k) for k in range(3)] == [2 * 3 * 4 * 5 * 8, 2 * 3 * 4 * 5 * 8, 3 * 4 * 5]
    assert called.rule.matmul
    assert called.splittable == ("dim0", "dim1", "channel", "in_channel")


def test_batched_product_broadcasts_a_matrix_over_the_batch() -> None:
    called = call("aten.matmul.default", torch.ones(2, 1, 5, 6), torch.ones(3, 6, 7))
    assert called.rule.arguments == (
        (plain("dim0"), WHOLE, plain("dim2"), plain("in_channel")),
        (plain("dim1"), plain("in_channel"), plain("channel")),
    )
    assert called.flops() == 2 * (2 * 3) * 5 * 6 * 7


def test_einsum_of_three_contracts_from_left_to_right() -> None:
    called = call(
        "aten.einsum.default", "ij,jk,kl->il", [torch.ones(3, 4), torch.ones(4, 5), torch.ones(5, 6)]
    )
    # (ij, jk) costs 2 * 3 * 4 * 5 and leaves ik; (ik, kl) costs 2 * 3 * 5 * 6.
    assert called.flops() == 2 * 3 * 4 * 5 + 2 * 3 * 5 * 6


def test_convolution_reads_windows_and_multiplies_kernel_times_channels() -> None:
    x, weight = torch.ones(2, 8, 11, 10), torch.ones(6, 8, 3, 5)
    called = call("aten.conv2d.default", x, weight, None, [2, 1], [1, 2])
    assert called.extents == {"sample": 2, "channel": 6, "height": 6, "width": 10, "in_channel": 8}
    assert called.rule.arguments[0][2:] == (
        window("height", kernel=3, stride=2, padding=1),
        window("width", kernel=5, stride=1, padding=2),
    )
    assert called.flops() == 2 * (2 * 6 * 6 * 10) * 8 * 3 * 5


def test_grouped_convolution_has_groups_as_a_label_of_their_own() -> None:
    x, weight = torch.ones(2, 8, 5, 5), torch.ones(12, 2, 3, 3)
    called = call("aten.conv2d.default", x, weight, torch.ones(12), [1, 1], [0, 0], [1, 1], 4)
    assert called.extents == {"sample": 2, "group": 4, "channel": 3, "height": 3, "width": 3, "in_channel": 2}
    assert called.rule.arguments[0][1] == product("group", "in_channel")
    assert called.rule.arguments[1][:2] == (product("group", "channel"), plain("in_channel"))
    assert called.rule.arguments[2] == (product("group", "channel"),)
    assert called.rule.results[0][1] == product("group", "channel")
    # A twelfth of outputs for each of 2 input channels: groups divide the work by their number.
    assert called.flops() == 2 * (2 * 12 * 3 * 3) * 2 * 9


def test_depthwise_convolution_is_split_by_channel() -> None:
    x, weight = torch.ones(2, 8, 5, 5), torch.ones(8, 1, 3, 3)
    called = call("aten.conv2d.default", x, weight, None, [1, 1], [0, 0], [1, 1], 8)
    assert called.extents == {"sample": 2, "channel": 8, "height": 3, "width": 3}
    assert called.rule.arguments[0][1] == called.rule.arguments[1][0] == plain("channel")


def test_transposed_convolution_applies_its_kernel_at_every_input() -> None:
    x, weight = torch.ones(2, 8, 5, 7), torch.ones(8, 6, 3, 3)
    called = call("aten.conv_transpose2d.input", x, weight, None, [2, 2])
    assert called.flops() == pytest.approx(2 * (2 * 8 * 5 * 7) * 6 * 9)
    # Output 4 = 2 * 2 + 0 = 2 * 1 + 2 is reached from inputs 1 and 2.
    dim = called.rule.arguments[0][2]
    assert ((4 + dim.add_first) // dim.div, (4 + dim.add_last) // dim.div) == (1, 2)


def test_adaptive_pooling_reads_from_floor_to_ceiling() -> None:
    called = call("aten.adaptive_avg_pool1d.default", torch.ones(2, 3, 10), [4])
    dim = called.rule.arguments[0][2]
    first = [(i * dim.mul + dim.add_first) // dim.div for i in range(4)]
    last = [(i * dim.mul + dim.add_last) // dim.div for i in range(4)]
    assert first == [0, 2, 5, 7]  # floor(10 i / 4)
    assert last == [2, 4, 7, 9]  # ceil(10 (i + 1) / 4) - 1


def test_max_pool_with_indices_keeps_planes_whole() -> None:
    called = call("aten.max_pool2d_with_indices.default", torch.ones(2, 3, 8, 8), [2, 2], [2, 2])
    assert called.splittable == ("sample", "channel")
    assert called.rule.saves_results == (False, True)


def test_embedding_reads_rows_instead_of_the_table() -> None:
    weight, ids = torch.ones(100, 16), torch.zeros(4, 5, dtype=torch.int64)
    called = call("aten.embedding.default", weight, ids)
    assert called.extents == {"dim0": 4, "dim1": 5, "channel": 16, "vocabulary": 100}
    assert called.rule.arguments[0] == (plain("vocabulary"), plain("channel"))
    table, rows = 4 * 100 * 16, 4 * 4 * 5 * 16
    assert table + total(called.rule.internal_bytes, called.extents) == rows


@pytest.mark.parametrize(
    ("layers", "directions", "hidden", "inputs"), [(1, 1, 5, 8), (2, 1, 5, 8), (1, 2, 6, 3), (2, 2, 4, 7)]
)
def test_lstm_costs_its_products_for_every_step(
    layers: int, directions: int, hidden: int, inputs: int
) -> None:
    steps, samples = 7, 4
    weights = []
    for layer in range(layers):
        width = inputs if layer == 0 else directions * hidden
        for _ in range(directions):
            weights += [torch.ones(4 * hidden, width), torch.ones(4 * hidden, hidden)]
    state = torch.ones(layers * directions, samples, hidden)
    x = torch.ones(steps, samples, inputs)
    options = (False, layers, 0.0, True, directions == 2, False)
    called = call("aten.lstm.input", x, [state, state], weights, *options)
    inner = inputs + (layers - 1) * directions * hidden + layers * hidden
    products = 2 * samples * steps * directions * 4 * hidden * inner
    pointwise = 45 * samples * steps * layers * directions * hidden
    assert called.flops() == products + pointwise
    # Two products backward for each forward; beside them a word for each number of the initial state.
    gradients = sum(called.gradient_flops(k) for k in range(3 + len(weights)))
    assert gradients == 2 * (products + pointwise) + 2 * samples
    assert called.splittable == ("sample",)
    assert called.rule.num_kernels == layers * directions * (1 + 2 * steps)


def test_lstm_cell_is_split_by_hidden_unit_across_all_gates() -> None:
    h = torch.ones(4, 5)
    called = call("aten.lstm_cell.default", torch.ones(4, 8), [h, h], torch.ones(20, 8), torch.ones(20, 5))
    assert called.splittable == ("sample", "hidden")
    assert called.rule.arguments[3][0] == product("gate", "hidden")
    assert called.flops() == 2 * 4 * 20 * 8 + 2 * 4 * 20 * 5 + 45 * 4 * 5


def test_normalized_dims_stay_whole() -> None:
    layer = call("aten.layer_norm.default", torch.ones(4, 5, 6), [6], torch.ones(6), torch.ones(6))
    assert layer.splittable == ("dim0", "dim1")
    group = call("aten.group_norm.default", torch.ones(4, 6, 5, 5), 3)
    assert group.splittable == ("sample", "group")
    softmax = call("aten.softmax.int", torch.ones(4, 5, 6), 1)
    assert softmax.splittable == ("dim0", "dim2")
    assert softmax.rule.saves_results == (True,)


def test_batch_norm_is_split_along_everything() -> None:
    v = torch.ones(6)
    called = call("aten.batch_norm.default", torch.ones(4, 6, 5, 7), v, v, v, v, False, 0.1, 1e-5, False)
    assert called.splittable == ("sample", "channel", "height", "width")
    assert called.rule.arguments[1:] == ((plain("channel"),),) * 4


def test_attention_shares_key_heads_among_query_heads() -> None:
    q, k = torch.ones(2, 12, 6, 8), torch.ones(2, 4, 5, 8)
    called = call("aten.scaled_dot_product_attention.default", q, k, k, enable_gqa=True)
    assert called.rule.arguments[0][1] == product("head", "head_group")
    assert called.rule.arguments[1][1] == plain("head")
    assert called.splittable == ("sample", "head", "head_group", "query")
    scores = 2 * 12 * 6 * 5
    assert called.flops() == 2 * scores * 8 + 2 * scores * 8 + 12 * scores
    # Forward scores again, and two products for each of the two forward ones.
    assert sum(called.gradient_flops(p) for p in range(3)) == 5 * 2 * scores * 8


def test_broadcast_operands_are_whole_where_they_have_one_index() -> None:
    called = call("aten.add.Tensor", torch.ones(4, 5, 6), torch.ones(5, 1))
    assert called.rule.arguments[1] == (plain("dim1"), WHOLE)
    assert called.rule.pointwise
    assert not called.rule.additive


@pytest.mark.parametrize(
    ("target", "args", "arguments", "result"),
    [
        ("aten.relu.default", 1, (False,), True),
        ("aten.relu_.default", 1, (False,), True),
        ("aten.gelu.default", 1, (True,), False),
        ("aten.add.Tensor", 2, (False, False), False),
        ("aten.mul.Tensor", 2, (True, True), False),
        ("aten.exp.default", 1, (False,), True),
    ],
)
def test_pointwise_operators_keep_what_their_gradient_needs(
    target: str, args: int, arguments: tuple[bool, ...], result: bool
) -> None:
    called = call(target, *(torch.ones(3, 4) for _ in range(args)))
    assert called.rule.saves_arguments == arguments
    assert called.rule.saves_results == (result,)


def test_a_product_keeps_only_the_factor_of_what_needs_a_gradient() -> None:
    called = call("aten.mul.Tensor", torch.ones(3, 4), torch.ones(3, 4, dtype=torch.int64))
    assert called.rule.saves_arguments == (False, True)
    assert called.rule.gradient_flops[1] == ()


def test_dropout_keeps_a_byte_for_each_element_and_passes_partial_sums() -> None:
    called = call("aten.dropout.default", torch.ones(3, 4), 0.5, True)
    assert total(called.rule.internal_saved_bytes, called.extents) == 3 * 4
    assert called.rule.additive
    assert not isinstance(call("aten.dropout.default", torch.ones(3, 4), 0.5, False).result, Rule)


def test_reductions_that_combine_can_be_split_and_others_cannot() -> None:
    x = torch.ones(4, 5)
    combined = {
        "aten.sum.dim_IntList": "sum",
        "aten.mean.dim": "sum",
        "aten.amax.default": "max",
        "aten.amin.default": "min",
        "aten.logsumexp.default": "logaddexp",
    }
    for target, combine in combined.items():
        called = call(target, x, [1])
        assert called.rule.combine == combine
        assert called.splittable == ("dim0", "dim1")
    for target in ("aten.var.dim", "aten.prod.dim_int", "aten.argmax.default", "aten.cumsum.default"):
        called = call(target, x, [1] if "var" in target else 1)
        assert called.splittable == ("dim0",)


def test_losses_are_scalars_that_every_element_adds_to() -> None:
    called = call("aten.mse_loss.default", torch.ones(6, 5), torch.ones(6, 5))
    assert called.rule.results == ((),)
    assert called.splittable == ("dim0", "dim1")
    kept = call("aten.mse_loss.default", torch.ones(6, 5), torch.ones(6, 5), 0)
    assert kept.rule.results == ((plain("dim0"), plain("dim1")),)


def test_cross_entropy_in_two_calls_can_be_split_by_class() -> None:
    logits, ids = torch.ones(6, 50), torch.zeros(6, dtype=torch.int64)
    first = default_rules().apply(*two_calls(logits, ids)[0])
    second = default_rules().apply(*two_calls(logits, ids)[1])
    assert isinstance(first, Rule)
    assert isinstance(second, Rule)
    assert first.combine == "logaddexp"
    assert [(b.name, b.extent, b.splittable) for b in first.labels] == [
        ("dim0", 6, True),
        ("class", 50, True),
    ]
    assert second.results == ((),)
    # A mean divides by what all targets weigh, so every part reads all of them.
    assert second.arguments == ((plain("dim0"), plain("class")), (plain("dim0"),), (WHOLE,))
    direct = call("aten.cross_entropy_loss.default", logits, torch.ones(6, 50) / 50)
    assert direct.splittable == ("dim0",)


def test_joined_tensors_lie_one_after_the_other() -> None:
    called = call("aten.cat.default", [torch.ones(4, 2), torch.ones(4, 3), torch.ones(4, 1)], 1)
    assert [dims[1] for dims in called.rule.arguments] == [offset("dim1", -s) for s in (0, 2, 5)]
    assert not any(dims[1].plain for dims in called.rule.arguments)


def test_stacked_and_repeated_dims_stay_whole() -> None:
    assert call("aten.stack.default", [torch.ones(4, 2)] * 3, 1).splittable == ("dim0", "dim2")
    repeated = call("aten.repeat_interleave.self_int", torch.ones(4, 2), 3, 1)
    assert repeated.rule.results[0][1] == product("dim1", "repeat1")
    assert repeated.splittable == ("dim0", "dim1")


def test_strided_slice_is_a_call_and_a_plain_one_a_view() -> None:
    strided = call("aten.slice.Tensor", torch.ones(4, 9), 1, 2, 9, 3)
    assert strided.rule.arguments[0][1] == Dim(label="dim1", mul=3, add_first=2, add_last=2)
    assert not isinstance(call("aten.slice.Tensor", torch.ones(4, 9), 1, 2, 9).result, Rule)


def test_what_a_rule_does_not_cover_is_none() -> None:
    x = torch.ones(4, 5)
    assert call("aten.index.Tensor", x, [x[:, 0] > 0]).result is None
    assert call("aten.einsum.default", "...i,i->...", [x, torch.ones(5)]).result is None
    assert call("aten.linalg_inv.default", torch.eye(4)).result is None


# Kernels for accelerators alone keep other tensors than what stands in for them on a CPU, and
# compositions of calls keep copies and intermediate results.
_KEPT_OTHERWISE = (
    "aten.hinge_embedding_loss",
    "aten.lstm",
    "aten.gru",
    "aten.rnn",
    "aten.scaled_dot_product_attention",
    "aten.layer_norm",
    "aten.instance_norm",
    "aten.embedding_bag",
    "aten.take_along_dim",
    "aten.matmul.default(6, 3x6x4)",
    "aten.matmul.default(3x5x6, 2x1x6x7)",
    "aten.conv2d.padding",
    "aten.pow.Scalar",
    "aten.index_add",
    "aten.argsort",
    "aten.batch_norm",
    "aten.binary_cross_entropy_with_logits",
)


@pytest.mark.parametrize("name", [n for n in _CASES if not n.startswith(_KEPT_OTHERWISE)])
def test_rules_keep_what_autograd_keeps(name: str) -> None:
    target, args, kwargs = _CASES[name]
    called = call(target, *args, **kwargs)
    if not isinstance(called.result, Rule):
        return
    kept: set[int] = set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    fresh: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        taken = [_tracked(a, fresh) for a in args]
        before = [t.untyped_storage().data_ptr() for t in fresh]
        kept.clear()
        results = outcomes(operator(target)(*taken, **kwargs))
    after = [t.untyped_storage().data_ptr() for t in results]
    assert called.rule.saves_results == tuple(pointer in kept for pointer in after)
    in_place = [pointer in after for pointer in before]
    for saved, pointer, changed in zip(called.rule.saves_arguments, before, in_place, strict=True):
        assert changed or saved == (pointer in kept)


def _tracked(argument: object, fresh: list[torch.Tensor]) -> object:
    """A copy that is no leaf, so that it may be changed in place."""
    if isinstance(argument, torch.Tensor):
        copy = argument.clone()
        fresh.append(copy.requires_grad_() * 1 if argument.is_floating_point() else copy)
        return fresh[-1]
    return [_tracked(a, fresh) for a in argument] if isinstance(argument, list | tuple) else argument


def _described(called: Called) -> set[str]:
    return {
        label for dims in (*called.rule.arguments, *called.rule.results) for d in dims for label in d.labels
    }


@pytest.mark.parametrize("name", _CASES)
def test_every_label_is_a_dimension_of_something_and_work_is_over_labels(name: str) -> None:
    target, args, kwargs = _CASES[name]
    called = call(target, *args, **kwargs)
    if isinstance(called.result, Rule):
        assert set(called.extents) == _described(called)
        rule = called.rule
        works = (*rule.forward_flops, *rule.internal_bytes, *rule.internal_saved_bytes)
        gradients = [w for terms in rule.gradient_flops for w in terms]
        assert {label for w in (*works, *gradients) for label in w.labels} <= set(called.extents)
        assert called.flops() >= 0
