from functools import cache

import pytest

from soaprl.cluster.files import load_cluster
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.capture import capture_model
from soaprl.graph.factors import FactorKind
from soaprl.graph.operators import OperatorGraph
from soaprl.simulator import Problem, simulate
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.experts_megatron import megatron, megatron_degrees
from soaprl.strategy.placing import Inapplicable
from soaprl.strategy.strategy import Strategy
from soaprl.strategy.tensor_groups import GroupKind, lookups, tensor_groups
from tests.strategy.test_experts import degrees

BATCH, SEQUENCE, WIDTH, ITEMSIZE = 8, 8, 16, 4


@cache
def transformer(name: str, num_layers: int = 1) -> OperatorGraph:
    sizes = {"width": WIDTH, "num_heads": 4, "vocabulary": 32, "sequence": SEQUENCE}
    if name == "llama-7b":
        sizes["hidden"] = 24
    return capture_model(name, BATCH, options={**sizes, "num_layers": num_layers})


def strategy_of(graph: OperatorGraph, cluster: str, tensor_degree: int) -> Strategy:
    found = megatron(graph, load_cluster(cluster), tensor_degree=tensor_degree)
    assert isinstance(found, Strategy)
    return found


def test_one_layer_of_gpt2_has_the_degrees_written_by_hand() -> None:
    graph = transformer("gpt2")
    strategy = strategy_of(graph, "a100-1x8", 4)
    by_hand = {
        # GPT-2's table cannot be cut by rows: positions are folded into its look-up.
        "embedding": {"sample": 2, "dim1": 4},
        "layers.0.attention_norm": {"sample": 2, "dim1": 4},
        "layers.0.attention.query_key_value": {"sample": 2, "channel.1": 4},
        "layers.0.attention": {"sample": 2, "head": 4},
        "layers.0.attention.output": {"sample": 2, "in_channel.0": 4},
        "layers.0": {"sample": 2, "dim1": 4},
        "layers.0.feed_forward_norm": {"sample": 2, "dim1": 4},
        "layers.0.feed_forward.expand": {"sample": 2, "channel": 4},
        "layers.0.feed_forward.contract": {"sample": 2, "in_channel": 4},
        "layers.0#2": {"sample": 2, "dim1": 4},
        "norm": {"sample": 2, "dim1": 4},
        "output": {"sample": 2, "channel": 4},
        "log_sum_exp": {"sample": 2, "class": 4},
        "nll_from_log_sum_exp": {"sample": 2, "class": 4},
    }
    pairs = zip(graph.operators, strategy.configs, strict=True)
    assert {operator.name: degrees(operator, config) for operator, config in pairs} == by_hand
    # Sample is the first factor everywhere, so that part (i, k) is task 4 i + k on device 4 i + k.
    assert {config.devices for config in strategy.configs} == {tuple(range(8))}


def test_gates_and_separate_projections_of_llama_are_columns_and_its_table_is_cut_by_rows() -> None:
    graph = transformer("llama-7b")
    groups = {group.kind: group for group in tensor_groups(graph)}

    def names(indices: tuple[int, ...]) -> list[str]:
        return [graph.operators[index].name.removeprefix("layers.0.") for index in indices]

    attention, pair = groups[GroupKind.ATTENTION], groups[GroupKind.PAIR]
    assert names(attention.columns) == ["attention.query", "attention.key", "attention.value"]
    assert names(attention.rows) == ["attention.output"]
    assert names(pair.columns) == ["feed_forward.gate", "feed_forward.expand"]
    assert names(pair.rows) == ["feed_forward.contract"]
    assert names(groups[GroupKind.VOCABULARY].columns) == ["output"]
    embedding = graph.index["embedding"]
    assert lookups(graph).keys() == {embedding}
    strategy = strategy_of(graph, "a100-1x8", 4)
    assert degrees(graph.operators[embedding], strategy.configs[embedding]) == {"sample": 2, "vocabulary": 4}


@pytest.mark.parametrize("name", ["gpt2", "bert-large", "llama-7b", "vit-b-16", "moe"])
def test_nothing_is_exchanged_within_a_group(name: str) -> None:
    graph = transformer(name) if name in ("gpt2", "bert-large", "llama-7b") else capture_model(name, 8)
    strategy = strategy_of(graph, "a100-1x8", 2)
    groups = tensor_groups(graph)
    assert {GroupKind.ATTENTION, GroupKind.PAIR} <= {group.kind for group in groups}
    for group in groups:
        for index in group.factors:
            assert strategy.configs[index].devices == tuple(range(8))
            assert strategy.configs[index].degrees[group.factors[index]] == 2
        for row in group.rows:
            assert graph.operators[row].factors[group.factors[row]].kind is FactorKind.REDUCTION


@pytest.mark.parametrize("name", ["gpt2", "bert-large", "llama-7b"])
@pytest.mark.parametrize(("tensor", "num_devices"), [(2, 2), (4, 4), (2, 4), (4, 8)])
def test_a_layer_moves_two_all_reduces_forward_and_two_backward(
    name: str, tensor: int, num_devices: int
) -> None:
    cluster = load_cluster(f"a100-1x{num_devices}")
    forward, backward = [], []
    for num_layers in (1, 2):
        graph = transformer(name, num_layers)
        problem = Problem(graph=graph, cluster=cluster, cost=RooflineCostModel())
        result = simulate(problem, strategy_of(graph, cluster.name, tensor))
        forward.append(result.activation_bytes)
        backward.append(result.gradient_bytes)
    # An all-reduce of s bytes over t devices moves 2 (t - 1) s in all; over d groups of t devices, each with
    # its share of the batch, 2 (t - 1) b s h elements. Gradients of several columns (Llama's query, key and
    # value) are added on their device before they are sent.
    unit = (tensor - 1) * BATCH * SEQUENCE * WIDTH * ITEMSIZE
    assert forward[1] - forward[0] == 2 * 2 * unit
    assert backward[1] - backward[0] == 2 * 2 * unit


def test_tensor_degree_1_is_data_parallelism() -> None:
    graph, cluster = transformer("gpt2"), load_cluster("a100-1x8")
    assert strategy_of(graph, "a100-1x8", 1) == data_parallel(graph, cluster)


def test_tensor_degrees_divide_the_devices_and_leave_a_sample_and_a_head_for_each() -> None:
    # 4 heads, 8 samples.
    assert megatron_degrees(transformer("gpt2"), load_cluster("a100-1x8")) == (1, 2, 4)
    assert megatron_degrees(transformer("gpt2"), load_cluster("p100-4x4")) == (2, 4)
    too_small = megatron_degrees(transformer("gpt2"), load_cluster("k80-16x4"))
    assert isinstance(too_small, Inapplicable)
    assert "batch of 8 too small" in too_small.reason
    assert "at least 16 samples" in too_small.reason


def test_a_degree_that_is_not_legal_is_refused_with_those_that_are() -> None:
    found = megatron(transformer("gpt2"), load_cluster("a100-1x8"), tensor_degree=8)
    assert isinstance(found, Inapplicable)
    assert "expected a tensor degree of 1, 2, 4" in found.reason


@pytest.mark.parametrize("name", ["lenet", "alexnet", "rnnlm", "nmt", "dlrm"])
def test_what_has_no_attention_heads_is_no_transformer(name: str) -> None:
    graph, cluster = capture_model(name, 64), load_cluster("p100-1x4")
    for found in (megatron_degrees(graph, cluster), megatron(graph, cluster, tensor_degree=1)):
        assert isinstance(found, Inapplicable)
        assert "is no transformer" in found.reason
