from collections.abc import Iterator
from functools import cache
from math import prod

import pytest

from soaprl.cluster.cluster import Cluster
from soaprl.cluster.files import load_cluster
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.capture import capture_model
from soaprl.graph.operators import Operator, OperatorGraph
from soaprl.graph.zoo import zoo_models
from soaprl.simulator import Problem, Simulator
from soaprl.strategy.experts import gnmt_expert, layer_shares, one_weird_trick
from soaprl.strategy.experts_megatron import megatron, megatron_degrees
from soaprl.strategy.placing import Cut, Inapplicable, by_sample, placed, sample_cuts
from soaprl.strategy.strategy import OpConfig, Strategy
from soaprl.strategy.validation import check_strategy
from tests.toys import chain, uniform_cluster

CLUSTERS = ("p100-4x4", "a100-1x8", "h100-4x8")
# One of each family in the default suite; all of the zoo with the slow tests.
REPRESENTATIVE = ("alexnet", "rnntc", "nmt", "vit-b-16", "moe", "dlrm")


@cache
def captured(name: str, num_devices: int) -> OperatorGraph:
    return capture_model(name, zoo_models()[name].batch_per_device * num_devices)


def degrees(operator: Operator, config: OpConfig) -> dict[str, int]:
    """The degrees above 1 by factor name."""
    named = zip(operator.factors, config.degrees, strict=True)
    return {factor.name: degree for factor, degree in named if degree > 1}


def built(graph: OperatorGraph, cluster: Cluster) -> Iterator[Strategy | Inapplicable]:
    yield one_weird_trick(graph, cluster)
    yield gnmt_expert(graph, cluster)
    tensor_degrees = megatron_degrees(graph, cluster)
    if not isinstance(tensor_degrees, Inapplicable):
        for degree in tensor_degrees:
            yield megatron(graph, cluster, tensor_degree=degree)


def check_experts(name: str, cluster_name: str) -> int:
    """How many expert strategies a model has; each is legal, and simulated to a positive time."""
    cluster = load_cluster(cluster_name)
    graph = captured(name, cluster.num_devices)
    simulator = Simulator(Problem(graph=graph, cluster=cluster, cost=RooflineCostModel()))
    strategies = [s for s in built(graph, cluster) if isinstance(s, Strategy)]
    for strategy in strategies:
        check_strategy(graph, cluster.num_devices, strategy)
        assert simulator.evaluate(strategy).iteration_time_s > 0
    return len(strategies)


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_every_kind_of_model_has_the_experts_that_are_made_for_it(name: str) -> None:
    # Tensor degrees of ViT's 12 and the mixture's 8 heads on 16 devices: 1, 2, 4 and 8. ViT begins with a
    # convolution and ends with a fully connected layer, so that the weird trick applies to it as well.
    expected = {"alexnet": 1, "rnntc": 1, "nmt": 1, "vit-b-16": 5, "moe": 4, "dlrm": 0}
    assert check_experts(name, "p100-4x4") == expected[name]


@pytest.mark.slow
@pytest.mark.parametrize("cluster_name", CLUSTERS)
@pytest.mark.parametrize("name", list(zoo_models()))
def test_experts_of_the_whole_zoo_are_legal_and_simulated(name: str, cluster_name: str) -> None:
    check_experts(name, cluster_name)


def test_the_weird_trick_splits_alexnet_as_its_paper_does() -> None:
    graph = captured("alexnet", 8)
    strategy = one_weird_trick(graph, load_cluster("k80-1x8"))
    assert isinstance(strategy, Strategy)
    for operator, config in zip(graph.operators, strategy.configs, strict=True):
        # Convolutions and pools: batch over the GPUs. Three fully connected layers: neurons over the GPUs.
        expected = {"channel": 8} if operator.kind == "linear" else {"sample": 8}
        assert degrees(operator, config) == expected, operator.name
        assert config.devices == tuple(range(8))


def test_the_weird_trick_splits_few_classes_by_sample_as_well() -> None:
    graph = captured("lenet", 16)
    strategy = one_weird_trick(graph, load_cluster("p100-4x4"))
    assert isinstance(strategy, Strategy)
    last = graph.index["linear3"]
    # 10 classes on 16 devices: 8 parts, twice. Devices of the same channels are 8 apart.
    assert degrees(graph.operators[last], strategy.configs[last]) == {"sample": 2, "channel": 8}
    assert strategy.configs[last].devices == tuple(range(16))


@pytest.mark.parametrize("name", ["nmt", "dlrm"])
def test_the_weird_trick_does_not_apply_without_convolutions(name: str) -> None:
    found = one_weird_trick(captured(name, 16), load_cluster("p100-4x4"))
    assert isinstance(found, Inapplicable)
    assert "no convolutional network" in found.reason


def test_gnmts_layers_have_a_device_of_each_node_and_its_softmax_has_all() -> None:
    graph, cluster = captured("nmt", 16), load_cluster("p100-4x4")
    strategy = gnmt_expert(graph, cluster)
    assert isinstance(strategy, Strategy)
    configs = dict(zip((op.name for op in graph.operators), strategy.configs, strict=True))
    replicas = {"sample": 4}
    # Two encoder and two decoder layers for four GPUs; GPU k of node i is device 4 i + k.
    for gpu, layer in enumerate(
        ("encoder.layers.0", "encoder.layers.1", "decoder.layers.0", "decoder.layers.1")
    ):
        for step in ("", "#2", "#3", "#4"):
            operator = graph.operators[graph.index[layer + step]]
            assert degrees(operator, configs[operator.name]) == replicas
            assert configs[operator.name].devices == (gpu, 4 + gpu, 8 + gpu, 12 + gpu)
    assert configs["source_embedding"].devices == configs["encoder.layers.0"].devices
    assert configs["target_embedding"].devices == configs["decoder.layers.0"].devices
    # The attention comes after the decoder's last layer in this model.
    assert configs["attention.bmm"].devices == configs["decoder.layers.1"].devices
    for name, classes in (
        ("softmax", "channel"),
        ("log_sum_exp", "class"),
        ("nll_from_log_sum_exp", "class"),
    ):
        operator = graph.operators[graph.index[name]]
        assert degrees(operator, configs[name]) == {"sample": 4, classes: 4}
        assert configs[name].devices == tuple(range(16))


def test_recurrent_layers_share_out_more_devices_by_sample() -> None:
    graph = captured("rnnlm", 8)
    strategy = gnmt_expert(graph, load_cluster("a100-1x8"))
    assert isinstance(strategy, Strategy)
    first, second = (strategy.configs[graph.index[f"recurrent.layers.{layer}#2"]] for layer in (0, 1))
    assert first == OpConfig((4,), (0, 1, 2, 3))
    assert second == OpConfig((4,), (4, 5, 6, 7))


def test_layers_are_dealt_to_devices_in_equal_contiguous_shares() -> None:
    assert layer_shares(4, 4) == (range(0, 1), range(1, 2), range(2, 3), range(3, 4))
    assert layer_shares(2, 8) == (range(0, 4), range(4, 8))
    assert layer_shares(3, 8) == (range(0, 2), range(2, 5), range(5, 8))
    # Five layers on two devices: three and two.
    assert layer_shares(5, 2) == (range(0, 1),) * 3 + (range(1, 2),) * 2


def test_gnmt_does_not_apply_to_what_is_not_recurrent_or_to_a_tiny_batch() -> None:
    for graph, cluster, reason in (
        (captured("alexnet", 8), "k80-1x8", "no recurrent network"),
        (capture_model("rnnlm", 3), "p100-4x4", "at least 4 samples, one a node, found 3"),
    ):
        found = gnmt_expert(graph, load_cluster(cluster))
        assert isinstance(found, Inapplicable)
        assert reason in found.reason


def test_a_batch_that_is_enough_for_the_nodes_alone_uses_one_device_of_each_layer() -> None:
    # Two layers on eight GPUs have four each, and a batch of three cannot be cut into four.
    strategy = gnmt_expert(capture_model("rnnlm", 3), load_cluster("a100-1x8"))
    assert isinstance(strategy, Strategy)
    recurrent = [c.devices for c in strategy.configs if len(c.degrees) == 1]
    assert set(recurrent) == {(0,), (4,)}


def test_tasks_are_placed_by_their_parts_and_strides() -> None:
    operator = chain(sample=4, channel=6).operators[0]
    config = placed(operator, {0: Cut(2, 3), 1: Cut(3, 1)}, (10, 11, 12, 13, 14, 15))
    assert config == OpConfig((2, 3, 1), (10, 11, 12, 13, 14, 15))
    swapped = placed(operator, {0: Cut(2, 1), 1: Cut(3, 2)}, range(6))
    assert swapped.devices == (0, 2, 4, 1, 3, 5)


def test_samples_are_cut_no_further_than_they_allow() -> None:
    operator = chain(sample=3).operators[0]
    assert sample_cuts(operator, 8, stride=2) == {0: Cut(degree=3, stride=2)}
    assert prod(by_sample(operator, range(8)).degrees) == 3


def test_a_toy_without_attention_convolutions_or_recurrence_has_no_expert() -> None:
    assert all(isinstance(found, Inapplicable) for found in built(chain(), uniform_cluster(2)))
