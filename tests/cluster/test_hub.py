import random
from dataclasses import replace

import numpy as np
import pytest

from soaprl.cluster.cluster import MAX_TABLE_DEVICES, Cluster, Device, Link
from soaprl.cluster.files import cluster_from_dict, cluster_to_dict
from soaprl.cluster.grouping import find_hubs, hub_routes
from soaprl.cluster.hub import HubRoutes
from soaprl.cluster.presets import cluster_from_name
from soaprl.cluster.tables import cluster_tables, collective_tables
from soaprl.cluster.topology import Wire, both_ways, connect, one_way
from soaprl.errors import ClusterError
from tests.toys import toy_type

KINDS = ["k80-3x8", "p100-4x8", "v100-3x8", "a100-2x4", "h100-5x3", "cpu-3x5"]


def around_hub(cluster: Cluster) -> Cluster:
    """The same cluster with its routes kept around a hub."""
    routes = hub_routes(cluster.devices, cluster.links, find_hubs(cluster.devices, cluster.links)[0])
    assert routes is not None
    return replace(cluster, routes=routes)


def random_nodes(rng: random.Random) -> tuple[tuple[Device, ...], tuple[Link, ...]]:
    """Nodes of random wiring around a fabric, some with several ways out, of random bandwidths."""
    devices: list[Device] = []
    links: list[Link] = []

    def wire() -> Wire:
        return Wire(bandwidth_bytes_per_s=rng.choice([1.0, 2.0, 3.0]), latency_s=rng.random(), provenance="")

    for node in range(rng.randint(2, 4)):
        names = [f"n{node}/d{i}" for i in range(rng.randint(1, 4))]
        inner = [*names, *(f"n{node}/s{i}" for i in range(rng.randint(0, 2)))]
        devices += [Device(name=name, node=node, type=0) for name in names]
        for first in inner:
            for second in inner:
                if first < second and rng.random() < 0.6:
                    links += both_ways(first, second, wire())
            if rng.random() < 0.7 or first == inner[0]:
                links += both_ways(first, "fabric", wire())
    rng.shuffle(links)
    return tuple(devices), tuple(links)


@pytest.mark.parametrize("name", KINDS)
def test_routes_around_a_hub_are_those_of_the_table(name: str) -> None:
    cluster = cluster_from_name(name)
    hub = around_hub(cluster)
    assert tuple(tuple(row) for row in hub.routes) == cluster.routes
    assert hub.fingerprint == cluster.fingerprint


def test_routes_around_a_hub_are_those_of_the_table_for_random_wirings() -> None:
    rng, compared = random.Random(1), 0
    while compared < 150:
        devices, links = random_nodes(rng)
        routes = hub_routes(devices, links, "fabric")
        arguments = {"name": "random", "device_types": (toy_type(),), "devices": devices, "links": links}
        if routes is None:
            with pytest.raises(ClusterError, match="no route"):
                connect(**arguments)
            continue
        assert tuple(tuple(row) for row in routes) == connect(**arguments).routes
        compared += 1


@pytest.mark.parametrize("name", KINDS)
def test_tables_from_a_hub_are_those_of_the_table(name: str) -> None:
    cluster = cluster_from_name(name)
    expected, found = cluster_tables(cluster), cluster_tables(around_hub(cluster))
    for field in expected._fields:
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), field)
    np.testing.assert_array_equal(
        collective_tables(around_hub(cluster)).device_mesh, expected.device_mesh, "device_mesh"
    )


def test_a_cluster_may_have_more_devices_than_a_table_has_room_for() -> None:
    cluster = cluster_from_name("p100-1024x4")
    assert isinstance(cluster.routes, HubRoutes)
    assert cluster.num_devices > MAX_TABLE_DEVICES
    small = cluster_from_name("p100-2x4")
    for i, j in ((0, 1), (0, 5), (5, 0)):
        found = [cluster.links[link].name for link in cluster.routes[i][j]]
        assert found == [small.links[link].name for link in small.routes[i][j]]
    assert [cluster.links[link].target for link in cluster.routes[1][4095]] == [
        "node0/host",
        "fabric",
        "node1023/host",
        "node1023/gpu3",
    ]
    with pytest.raises(ClusterError, match="4096 devices, more than the 2048 that can be simulated one by"):
        cluster_tables(cluster)


def test_a_cluster_without_a_hub_has_a_table_as_long_as_there_is_room() -> None:
    def ring(count: int) -> tuple[tuple[Device, ...], tuple[Link, ...]]:
        devices = tuple(Device(name=f"d{i}", node=0, type=0) for i in range(count))
        wire = Wire(bandwidth_bytes_per_s=1.0, latency_s=0.0, provenance="")
        return devices, tuple(one_way(f"d{i}", f"d{(i + 1) % count}", wire) for i in range(count))

    devices, links = ring(300)
    assert isinstance(
        connect(name="ring", device_types=(toy_type(),), devices=devices, links=links).routes, tuple
    )
    devices, links = ring(MAX_TABLE_DEVICES + 1)
    with pytest.raises(ClusterError, match="Larger clusters need groups of at most 512 devices that meet in"):
        connect(name="ring", device_types=(toy_type(),), devices=devices, links=links)


def test_a_large_cluster_in_a_file_is_the_same_cluster() -> None:
    cluster = cluster_from_name("h100-300x8")
    loaded = cluster_from_dict(cluster_to_dict(cluster))
    assert loaded == cluster
    assert loaded.fingerprint == cluster.fingerprint
    assert loaded.fingerprint != cluster_from_name("h100-301x8").fingerprint


def test_a_cluster_of_nodes_in_a_file_may_be_large() -> None:
    cluster = cluster_from_dict(
        {
            "format": "soaprl-cluster",
            "version": 1,
            "name": "mixed",
            "nodes": [
                {"count": 200, "devices": {"h100": 8}, "topology": SWITCH},
                {"count": 150, "devices": {"a100": 6}, "topology": SWITCH},
            ],
            "network": {"per": "device", "bandwidth_bytes_per_s": 5e10, "latency_s": 1e-6},
        }
    )
    assert cluster.num_devices == 2500
    assert isinstance(cluster.routes, HubRoutes)
    assert set(cluster.routes.shape.tolist()) == {0, 1}


SWITCH = {"kind": "switch", "bandwidth_bytes_per_s": 4e11, "latency_s": 1e-6}
