import pytest

from soaprl.cluster.cluster import Cluster
from soaprl.errors import StrategyError
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.strategy import OpConfig
from soaprl.strategy.text import describe_devices, export_dot, export_text, group_operators
from tests.toys import chain, diamond, node_cluster, on_one_device, split, uniform_cluster

NODES = node_cluster(2, 4)


@pytest.mark.parametrize(
    ("devices", "cluster", "text"),
    [
        ((0, 1, 2, 3, 4, 5, 6, 7), NODES, "all"),
        ((0, 1, 2, 3), NODES, "node0"),
        ((4, 5, 6, 7), NODES, "node1"),
        (tuple(range(8)), node_cluster(3, 4), "node0-node1"),
        ((1, 2, 3), NODES, "1-3"),
        ((0, 2, 4, 6), NODES, "0-6 step 2"),
        ((3, 2, 1), NODES, "3-1 step -1"),
        ((5, 5, 5), NODES, "5 (x3)"),
        ((0, 1, 0, 1), NODES, "0-1, 0-1"),
        ((7,), NODES, "7"),
        ((0, 5), NODES, "0, 5"),
        ((3, 2, 1, 0), NODES, "3-0 step -1"),
        ((0,), uniform_cluster(1), "all"),
    ],
)
def test_devices_are_compressed(devices: tuple[int, ...], cluster: Cluster, text: str) -> None:
    assert describe_devices(devices, cluster) == text


def test_consecutive_operators_with_the_same_configuration_are_merged() -> None:
    graph = chain(num_operators=4, sample=8)
    strategy = data_parallel(graph, NODES).replaced(2, split(graph, 2, (0, 1), channel=2))
    groups = group_operators(graph, NODES, strategy)
    assert [(g.first, g.last, g.split, g.devices) for g in groups] == [
        (0, 1, "sample 8 (S)", "all"),
        (2, 2, "channel 2 (P)", "0-1"),
        (3, 3, "sample 8 (S)", "all"),
    ]


def test_the_report_shows_splits_with_their_kinds_and_counts_them() -> None:
    graph = chain(num_operators=3, sample=8)
    strategy = on_one_device(graph).replaced(
        1, split(graph, 1, (0, 1, 2, 3, 4, 5, 6, 7), sample=2, channel=2, in_channel=2)
    )
    lines = export_text(graph, NODES, strategy).splitlines()
    assert lines[0] == "strategy for chain (batch 8) on nodes-2x4 (8 devices)"
    assert lines[2] == "3 operators on 8 devices in 2 placements"
    counted = [line.split() for line in lines[3:8]]
    assert counted == [
        ["sample", "1", "operators", "split"],
        ["attribute", "0", "operators", "split"],
        ["parameter", "1", "operators", "split"],
        ["reduction", "1", "operators", "split"],
        ["not", "split", "2", "operators"],
    ]
    assert lines[-2].split("  ")[0] == "op1"
    assert "sample 2 (S) x channel 2 (P) x in_channel 2 (R)" in lines[-2]


def test_what_there_is_one_of_is_counted_in_the_singular() -> None:
    graph = chain(num_operators=1)
    lines = export_text(graph, uniform_cluster(1), on_one_device(graph)).splitlines()
    assert lines[0].endswith("(1 device)")
    assert lines[2] == "1 operator on 1 device in 1 placement"


def test_a_strategy_that_does_not_fit_the_cluster_is_not_described() -> None:
    graph = chain()
    strategy = on_one_device(graph, device=5)
    for export in (export_text, export_dot):
        with pytest.raises(StrategyError, match="found 5"):
            export(graph, uniform_cluster(2), strategy)


def test_the_graph_has_a_node_for_each_operator_and_an_edge_for_each_dependency() -> None:
    graph = diamond()
    text = export_dot(graph, uniform_cluster(2), on_one_device(graph).replaced(1, OpConfig((1, 1, 1), (1,))))
    edges = [line.strip().split(" [")[0] for line in text.splitlines() if "->" in line]
    assert sorted(edges) == ["o0 -> o1", "o0 -> o2", "o1 -> o3", "o2 -> o3"]
    colors = [line.split('fillcolor="')[1][:7] for line in text.splitlines() if "fillcolor" in line]
    # The second operator runs elsewhere.
    assert colors[0] == colors[2] == colors[3] != colors[1]
