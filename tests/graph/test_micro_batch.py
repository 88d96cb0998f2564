"""The graph of a micro-batch is that of a capture with its size; repeating it shares what is shared."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from soaprl.errors import GraphError
from soaprl.graph.capture import graph_from_factory
from soaprl.graph.files import graph_fingerprint, graph_from_dict, graph_to_dict
from soaprl.graph.micro_batch import micro_batch
from soaprl.graph.operators import OperatorGraph, TensorRole
from soaprl.graph.repeat import loss_weight, repeated
from soaprl.graph.zoo import Option, build
from tests.toys import chain

SMALL: dict[str, Option] = {"num_layers": 1, "width": 8, "num_heads": 2, "vocabulary": 30, "sequence": 4}
UNROLLED: dict[str, Option] = {"steps": 4, "chunk": 2, "hidden": 8, "vocabulary": 20}
MODELS: list[tuple[str, dict[str, Option]]] = [
    ("lenet", {}),
    ("alexnet", {}),
    ("gpt2", SMALL),
    ("bert-large", {**SMALL}),
    ("llama-7b", {"num_layers": 1}),
    ("vit-b-16", {"num_layers": 1}),
    ("dlrm", {}),
    ("moe", {"num_layers": 1}),
    ("rnntc", UNROLLED),
    ("nmt", UNROLLED),
]


def captured(name: str, batch_size: int, options: dict[str, Option]) -> OperatorGraph:
    return graph_from_factory(lambda batch: build(name, batch, **options), batch_size, name=name)


def differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from differences(a.get(key), b.get(key), f"{path}/{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{path}/{k}")
    elif a != b:
        yield path, a, b


@pytest.mark.parametrize(("name", "options"), MODELS, ids=[name for name, _ in MODELS])
def test_a_micro_batch_is_what_a_capture_of_its_size_gives(name: str, options: dict[str, Option]) -> None:
    large, small = captured(name, 12, options), captured(name, 4, options)
    found = list(differences(graph_to_dict(micro_batch(large, 3)), graph_to_dict(small)))
    # The sum over all tokens is divided by their number, a literal, which stays that of the whole batch.
    literals = [(12 * 4, 4 * 4)] if name == "nmt" else []
    assert [(a, b) for _, a, b in found] == literals


def test_what_runs_over_samples_survives_the_file_and_is_no_part_of_the_fingerprint() -> None:
    graph = captured("lenet", 4, {})
    content = graph_to_dict(graph)
    assert graph_from_dict(content) == graph
    labels = next(t for t in graph.tensors if t.role is TensorRole.INPUT and t.dtype == "int64")
    assert labels.sample_dims == (0,)
    for tensor in content["tensors"]:
        tensor.pop("sample_dims", None)
    assert graph_fingerprint(graph_from_dict(content)) == graph_fingerprint(graph)


def test_copies_share_parameters_and_have_everything_else_for_themselves() -> None:
    graph = chain(num_operators=2, sample=6)
    found = repeated(graph, 3)
    assert len(found.graph.operators) == 6
    assert [found.graph.operators[i].name for i in found.copies(1)] == ["op1@0", "op1@1", "op1@2"]
    weights = {op.parameters[0].tensor for op in found.graph.operators}
    assert weights == {op.parameters[0].tensor for op in graph.operators}
    assert found.graph.num_parameters == graph.num_parameters
    assert len(set(found.losses)) == len(found.losses) == 3
    assert [len(copies) for copies in found.inputs] == [3]
    samples = {f.extent for op in found.graph.operators for f in op.factors if f.name == "sample"}
    assert samples == {2}
    names = [tensor.name for tensor in found.graph.tensors]
    assert len(set(names)) == len(names)
    for i in range(3):
        own = {a.tensor for o in range(2) for a in found.graph.operators[i * 2 + o].outputs}
        assert found.losses[i] in own


def test_one_micro_batch_is_the_batch() -> None:
    graph = chain()
    assert micro_batch(graph, 1) is graph


@pytest.mark.parametrize("number", [0, 3, 8])
def test_a_batch_without_such_parts_is_refused(number: int) -> None:
    with pytest.raises(GraphError, match=f"divides the batch of 4, found {number}"):
        micro_batch(chain(sample=4), number)


class _Mixing(nn.Module):
    def __init__(self, *, total: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.total = total

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.total:
            return y.square().mean() + y.sum()
        half = y.shape[0] // 2
        return (y[:half] - y[half:]).square().mean()


def test_samples_that_meet_are_refused_with_the_operator_that_mixes_them() -> None:
    graph = graph_from_factory(lambda b: (_Mixing(total=False), (torch.randn(b, 4),)), 8, name="mixing")
    with pytest.raises(GraphError, match=r"'mixing' cannot be cut into micro-batches: operator '.*' reads"):
        micro_batch(graph, 2)


@pytest.mark.parametrize(("name", "options", "weight"), [("gpt2", SMALL, 0.25), ("nmt", UNROLLED, 1.0)])
def test_losses_of_micro_batches_are_weighted_as_the_loss_says(
    name: str, options: dict[str, Option], weight: float
) -> None:
    assert loss_weight(captured(name, 4, options), 4) == weight


def test_a_mean_plus_a_sum_has_no_weight() -> None:
    graph = graph_from_factory(lambda b: (_Mixing(total=True), (torch.randn(b, 4),)), 8, name="mixing")
    with pytest.raises(GraphError, match="found both"):
        loss_weight(graph, 2)
