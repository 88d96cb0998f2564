import numpy as np
import pytest

from soaprl.cluster.cluster import COLLECTIVE_BASE_S
from soaprl.cluster.presets import cluster_from_name
from soaprl.cluster.tables import cluster_tables


@pytest.mark.parametrize("name", ["k80-2x4", "p100-2x2", "a100-1x1", "v100-1x8"])
def test_tables_hold_the_same_routes(name: str) -> None:
    cluster = cluster_from_name(name)
    tables = cluster_tables(cluster)
    count = cluster.num_devices
    for i in range(count):
        for j in range(count):
            begin, end = tables.route_offsets[i * count + j : i * count + j + 2]
            links = tables.route_links[begin:end]
            assert tuple(links) == cluster.routes[i][j]
            latency = sum(cluster.links[link].latency_s for link in links)
            narrowest = min((cluster.links[link].bandwidth_bytes_per_s for link in links), default=np.inf)
            assert tables.route_latency_s[i * count + j] == pytest.approx(latency)
            assert tables.route_bandwidth_bytes_per_s[i * count + j] == narrowest
    assert tuple(tables.device_node) == tuple(d.node for d in cluster.devices)
    assert tuple(tables.device_type) == tuple(d.type for d in cluster.devices)


@pytest.mark.parametrize(
    ("name", "meshes"),
    [
        ("p100-2x4", [0, 0, 0, 0, 1, 1, 1, 1]),
        ("v100-1x3", [0, 0, 0]),
        ("p100-1x8", [0, 0, 0, 0, 1, 1, 1, 1]),  # the quads of the cube mesh
        ("a100-1x4", [0, 1, 2, 3]),  # ports are shared
        ("k80-1x2", [0, 1]),
        ("p100-2x1", [0, 1]),
    ],
)
def test_meshes_are_devices_with_a_link_for_each_pair(name: str, meshes: list[int]) -> None:
    assert cluster_tables(cluster_from_name(name)).device_mesh.tolist() == meshes


def test_the_paper_knows_no_latencies() -> None:
    cluster = cluster_from_name("k80-2x4")
    tables, paper = cluster_tables(cluster), cluster_tables(cluster, paper=True)
    assert tables.collective_base_s == COLLECTIVE_BASE_S
    assert tables.route_latency_s.max() > 0
    assert paper.collective_base_s == 0
    assert not paper.route_latency_s.any()
    assert not paper.link_latency_s.any()
    np.testing.assert_array_equal(paper.link_bandwidth_bytes_per_s, tables.link_bandwidth_bytes_per_s)
