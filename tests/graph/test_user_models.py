"""Models as users write them: each is captured, splits by sample, and keeps its structure."""

from math import prod
from pathlib import Path

import pytest

from soaprl.graph.capture import capture_model
from soaprl.graph.factors import FactorKind
from soaprl.graph.operators import Operator, OperatorGraph, TensorRole

FOLDER = Path(__file__).parents[1] / "user_models"
BATCH_SIZE = 8


def user_graph(name: str) -> OperatorGraph:
    """The graph of a file in the folder of user models."""
    return capture_model(f"{FOLDER / name}.py:factory", BATCH_SIZE)


def sample_extent(operator: Operator) -> int:
    """Product of the extents of an operator's sample factors; 1 without any."""
    return prod(f.extent for f in operator.factors if f.kind is FactorKind.SAMPLE)


def warnings(graph: OperatorGraph) -> list[str]:
    """The warnings among the notes."""
    return [note for note in graph.notes if note.startswith("warning")]


@pytest.mark.parametrize(
    "name",
    ["unet", "densenet", "gru_seq2seq", "small_moe", "tied_weights", "batch_second", "non_scalar_output"],
)
def test_every_operator_with_samples_splits_by_sample(name: str) -> None:
    graph = user_graph(name)
    assert not warnings(graph)
    for operator in graph.operators:
        assert sample_extent(operator) == BATCH_SIZE, f"{operator.name} does not see the whole batch"
        assert any(f.kind is FactorKind.SAMPLE and f.splittable for f in operator.factors)


def test_unet_reads_its_skip_connections_as_parts_of_a_concatenation() -> None:
    graph = user_graph("unet")
    joins = [op for op in graph.operators if op.kind == "cat"]
    assert joins
    for join in joins:
        channel = join.factors[1]
        spans = [a.spans[1] for a in join.inputs]
        assert len(spans) == 2
        # Each input covers its own run of the channels, and only that.
        first, second = (s.interval(0, channel.extent) for s in spans)
        assert first[1] - first[0] + second[1] - second[0] == channel.extent
        cut = first[1]
        assert spans[1].interval(0, cut)[0] >= spans[1].interval(0, cut)[1]


def test_densenet_layers_read_all_layers_before_them() -> None:
    graph = user_graph("densenet")
    assert max(len(op.inputs) for op in graph.operators if op.kind == "cat") >= 3


def test_seq2seq_shares_the_weights_of_its_unrolled_cells() -> None:
    graph = user_graph("gru_seq2seq")
    readers: dict[int, int] = {}
    for operator in graph.operators:
        for access in operator.parameters:
            readers[access.tensor] = readers.get(access.tensor, 0) + 1
    assert max(readers.values()) >= 2


def test_experts_are_operators_of_their_own() -> None:
    graph = user_graph("small_moe")
    assert sum("expert" in op.name for op in graph.operators) >= 4


def test_tied_weights_are_one_parameter() -> None:
    graph = user_graph("tied_weights")
    assert any(t.aliases for t in graph.tensors if t.role is TensorRole.PARAMETER)


def test_an_operator_without_a_rule_is_not_split_and_warned_of_once() -> None:
    graph = user_graph("unknown_operator")
    assert len(warnings(graph)) == 1
    assert "aten.linalg_inv.default (1)" in warnings(graph)[0]
    inverse = next(op for op in graph.operators if op.kind == "linalg_inv")
    assert inverse.factors == ()
    assert inverse.has_backward


def test_a_batch_in_the_second_dimension_is_found() -> None:
    graph = user_graph("batch_second")
    lstm = next(op for op in graph.operators if op.kind == "lstm")
    sample = next(k for k, f in enumerate(lstm.factors) if f.kind is FactorKind.SAMPLE)
    assert [s.factor for s in lstm.outputs[0].spans].index(sample) == 1


def test_a_model_without_a_loss_gets_a_stand_in_and_is_told() -> None:
    graph = user_graph("non_scalar_output")
    assert any("stands in for the loss" in note for note in graph.notes)
    assert graph.tensors[graph.loss].shape == ()
