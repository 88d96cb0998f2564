"""Models to graphs: factors, views, ties, losses, and what users get wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from soaprl.errors import CaptureError
from soaprl.graph.capture import capture_model, graph_from_factory
from soaprl.graph.factors import FactorKind
from soaprl.graph.operators import OperatorGraph, TensorRole


def captured(module: type[nn.Module], *shapes: tuple[int, ...], batch_size: int = 4) -> OperatorGraph:
    """The graph of a module whose inputs are floats with these shapes after the batch dimension."""

    def factory(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        return module(), tuple(torch.zeros(batch, *shape) for shape in shapes)

    return graph_from_factory(factory, batch_size, name="test")


class FusedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        q, k, v = (t.view(batch, steps, 4, 8).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, steps, 32)).square().mean()


def test_a_fused_projection_can_be_split_by_head() -> None:
    graph = captured(FusedAttention, (6, 32))
    qkv, attention, out = (
        graph.operators[graph.index[n]] for n in ("qkv", "scaled_dot_product_attention", "out")
    )
    assert [(f.name, f.extent, f.kind) for f in qkv.factors[2:5]] == [
        ("channel.0", 3, FactorKind.PARAMETER),
        ("channel.1", 4, FactorKind.PARAMETER),
        ("channel.2", 8, FactorKind.PARAMETER),
    ]
    produced = graph.tensors[qkv.outputs[0].tensor]
    assert produced.refined == ((4,), (6,), (3, 4, 8))
    # Queries, keys and values are three boxes of one tensor, told apart by a fixed first index.
    reads = [a for a in attention.inputs if a.tensor == qkv.outputs[0].tensor]
    assert [a.spans[2].interval(0, 1) for a in reads] == [(0, 1), (1, 2), (2, 3)]
    head = attention.factor_index("head")
    assert all(a.spans[3].factor == head for a in reads)
    # The output projection sums over (head, width): a row-parallel layer splits the reduction by head.
    assert [(f.extent, f.kind) for f in out.factors if f.kind is FactorKind.REDUCTION] == [
        (4, FactorKind.REDUCTION),
        (8, FactorKind.REDUCTION),
    ]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return functional.cross_entropy(self.head(self.embedding(ids)).flatten(0, 1), ids.flatten())


def test_a_tied_parameter_is_one_tensor_of_both_operators() -> None:
    def factory(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        return Tied(), (torch.zeros(batch, 5, dtype=torch.long),)

    graph = graph_from_factory(factory, 4, name="tied")
    parameters = [t for t in graph.tensors if t.role is TensorRole.PARAMETER]
    assert [(t.name, t.aliases) for t in parameters] == [("embedding.weight", ("head.weight",))]
    assert graph.num_parameters == 50 * 16
    readers = [op.name for op in graph.operators if op.parameters]
    assert readers == ["embedding", "head"]


def test_cross_entropy_can_be_split_by_class() -> None:
    def factory(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        return Tied(), (torch.zeros(batch, 5, dtype=torch.long),)

    graph = graph_from_factory(factory, 4, name="tied")
    total, loss = graph.operators[-2:]
    assert total.outputs[0].combine == "logaddexp"
    for op in (total, loss):
        assert (50, FactorKind.REDUCTION) in [(f.extent, f.kind) for f in op.factors if f.splittable]
    assert any(f.kind is FactorKind.SAMPLE for f in loss.factors)


class Bags(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(30, 16, mode=mode)

    def forward(self, ids: Tensor) -> Tensor:
        return self.bag(ids).square().mean()


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_of_equal_length_split_by_sample(mode: str) -> None:
    def factory(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        return Bags(mode), (torch.zeros(batch, 7, dtype=torch.long),)

    graph = graph_from_factory(factory, 4, name="bags")
    lookup, reduced = graph.operators[:2]
    assert [(f.name, f.extent) for f in lookup.factors] == [
        ("sample", 4), ("dim1", 7), ("channel", 16), ("vocabulary", 30)
    ]  # fmt: skip
    assert reduced.kind == mode
    assert [f.kind for f in reduced.factors if f.extent == 7] == [FactorKind.REDUCTION]


class ConvBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)) + y)
        return y.square().mean()


def test_normalization_activation_and_residual_are_folded_into_a_convolution() -> None:
    graph = captured(ConvBlock, (3, 10, 10))
    first, second = graph.operators[:2]
    assert [call.target.split(".")[1] for call in first.body] == ["conv2d", "batch_norm", "relu"]
    assert [call.target.split(".")[1] for call in second.body] == [
        "conv2d",
        "batch_norm",
        "add",
        "relu",
        "square",
    ]
    assert [f.name for f in first.factors if f.splittable] == ["sample", "channel", "height", "width"]
    assert {graph.tensors[a.tensor].name for a in first.parameters} == {
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
    }
    # The residual is read with the same spans as the convolution's output: no halo.
    residual = next(a for a in second.inputs if all(s.plain for s in a.spans))
    assert residual.tensor == first.outputs[0].tensor


def test_views_stay_operators_without_coarsening() -> None:
    def factory(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        return FusedAttention(), (torch.zeros(batch, 6, 32),)

    fine = graph_from_factory(factory, 4, name="fine", coarsened=False)
    coarse = graph_from_factory(factory, 4, name="coarse")
    assert sum(op.kind == "view" for op in fine.operators) >= 8
    assert not any(op.kind == "view" for op in coarse.operators)
    assert fine.num_parameters == coarse.num_parameters


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        y.relu_()
        return y.square().mean()


def test_readers_after_an_in_place_call_read_its_result() -> None:
    graph = captured(InPlace, (8,))
    assert [call.target.split(".")[1] for call in graph.operators[0].body] == ["linear", "relu_", "square"]


class InPlaceView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        y[:, 0].mul_(2)
        return y.square().mean()


def test_an_in_place_change_of_a_view_is_a_clear_error() -> None:
    with pytest.raises(CaptureError, match="changes a view of another tensor in place"):
        captured(InPlaceView, (8,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_factory_may_convert_its_model_and_ties_hold(dtype: torch.dtype) -> None:
    def factory(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        return Tied().to(dtype), (torch.zeros(batch, 5, dtype=torch.long),)

    graph = graph_from_factory(factory, 4, name="converted")
    parameters = [t for t in graph.tensors if t.role is TensorRole.PARAMETER]
    assert [(t.dtype, t.aliases) for t in parameters] == [
        (str(dtype).removeprefix("torch."), ("head.weight",))
    ]


class Empty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return torch.cat([y, y[:, :0]], dim=1).square().mean()


def test_a_tensor_without_elements_is_a_clear_error() -> None:
    with pytest.raises(CaptureError, match="has no elements"):
        captured(Empty, (8,))


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x).sum()
        return y if y.item() > 0 else -y


def test_a_forward_that_branches_on_data_is_a_clear_error() -> None:
    with pytest.raises(CaptureError, match=r"test cannot be exported|the forward of test raised"):
        captured(DataDependent, (8,))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (nn.Linear(2, 2), "returned Linear; expected"),
        ((nn.Linear(2, 2),), "returned a tuple of 1"),
        ((nn.Linear(2, 2), torch.zeros(2, 2)), r"returned \(Linear, Tensor\)"),
        (("model", ()), r"returned \(str, tuple\)"),
    ],
)
def test_a_factory_that_returns_the_wrong_thing_is_told_what_was_expected(made: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        graph_from_factory(lambda _: made, 4, name="wrong")


def test_a_factory_that_raises_is_quoted() -> None:
    def factory(batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        raise RuntimeError("no such width")

    with pytest.raises(CaptureError, match="batch size 4, raised RuntimeError: no such width"):
        graph_from_factory(factory, 4, name="raises")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere.py:factory", "cannot read the model file"),
        ("model.txt:factory", "expected a zoo model"),
        ("model.py", "expected a zoo model"),
    ],
)
def test_a_malformed_reference_is_a_clear_error(reference: str, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture_model(reference, 4)


def test_a_missing_factory_lists_what_the_file_defines(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text("from math import sqrt\nclass Net: ...\ndef build(batch_size): ...\n")
    with pytest.raises(CaptureError, match=r"has no function 'factory'; it defines build$"):
        capture_model(f"{path}:factory", 4)


def test_a_file_that_does_not_import_is_quoted(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text("import nothing_of_that_name\n")
    with pytest.raises(CaptureError, match="cannot be imported: ModuleNotFoundError"):
        capture_model(f"{path}:factory", 4)
