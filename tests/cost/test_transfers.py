from dataclasses import replace
from math import ceil, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soaprl.cluster.cluster import Cluster, Device, GivenAllReduce
from soaprl.cluster.devices import device_type
from soaprl.cluster.grouping import hub_routes
from soaprl.cluster.presets import cluster_from_name
from soaprl.cluster.tables import ClusterTables, cluster_tables, collective_tables
from soaprl.cluster.topology import Wire, connect, star
from soaprl.cost.transfers import (
    ALGORITHMS,
    CollectiveTime,
    all_gather_time,
    all_reduce_time,
    all_to_all_time,
    collective_scratch,
    given_all_reduce,
    transfer_time,
)

GB = 1e9


def switched(
    num_nodes: int,
    per_node: int,
    *,
    port: float,
    nic: float = 1.0,
    shared: bool = False,
    latency: float = 0.0,
) -> Cluster:
    """Nodes with a switch; a NIC for each device, or one for the node that every device reaches at once."""
    devices, links = [], []
    for node in range(num_nodes):
        names = [f"{node}/{i}" for i in range(per_node)]
        devices += [Device(name=name, node=node, type=0) for name in names]
        wire = Wire(bandwidth_bytes_per_s=port, latency_s=latency, provenance="test")
        links += star(f"{node}/switch", names, wire)
        out = Wire(bandwidth_bytes_per_s=nic, latency_s=latency, provenance="test")
        links += star("fabric", [f"{node}/switch"] if shared else names, out)
    return connect(
        name="switched", device_types=(device_type("p100"),), devices=tuple(devices), links=tuple(links)
    )


def paper(cluster: Cluster) -> ClusterTables:
    """The tables without latencies: closed forms of bandwidth alone."""
    return cluster_tables(cluster, paper=True)


def busy_by_name(cluster: Cluster, collective: CollectiveTime) -> dict[str, float]:
    return {cluster.links[link].name: s for link, s in collective.busy_s.items()}


def test_a_transfer_takes_its_latencies_and_its_narrowest_link() -> None:
    cluster = cluster_from_name("k80-2x4")
    tables = cluster_tables(cluster)
    # Two PCIe links, network, two PCIe links: 4 * 0.5 us + 2.7 us; the uplinks are the narrowest.
    assert transfer_time(tables, 0, 4, 6 * GB) == pytest.approx(4 * 0.5e-6 + 2.7e-6 + 1.0)
    assert transfer_time(tables, 0, 1, 11 * GB) == pytest.approx(1e-6 + 1.0)
    assert transfer_time(tables, 3, 3, 5 * GB) == 0.0


def test_the_papers_transfer_takes_size_over_bandwidth() -> None:
    assert transfer_time(paper(cluster_from_name("p100-1x4")), 0, 3, 18.3 * GB) == 1.0


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
def test_all_reduce_on_a_switch_moves_twice_n_minus_1_over_n(n: int) -> None:
    cluster = switched(1, n, port=GB)
    collective = all_reduce_time(paper(cluster), range(n), GB)
    assert collective.time_s == pytest.approx(2 * (n - 1) / n)
    # Each port sends and receives that much, and nothing else is used.
    assert list(collective.busy_s.values()) == pytest.approx([2 * (n - 1) / n] * 2 * n)


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_all_gather_on_a_switch_moves_n_minus_1_over_n(n: int) -> None:
    collective = all_gather_time(paper(switched(1, n, port=GB)), range(n), GB)
    assert collective.time_s == pytest.approx((n - 1) / n)
    assert collective.algorithm == "ring"


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_all_to_all_on_a_switch_moves_n_minus_1_over_n(n: int) -> None:
    collective = all_to_all_time(paper(switched(1, n, port=GB)), range(n), GB)
    assert collective.time_s == pytest.approx((n - 1) / n)
    assert collective.algorithm == "pairwise"


def test_a_large_all_reduce_pays_for_each_round_of_the_ring() -> None:
    n, size = 4, 100 * GB
    tables = cluster_tables(cluster_from_name(f"a100-1x{n}"))
    collective = all_reduce_time(tables, range(n), size)
    hop_s = 0.6e-6
    expected = 6.6e-6 + 2 * (n - 1) * hop_s + 2 * (n - 1) / n * size / (300 * GB)
    assert collective.algorithm == "ring"
    assert collective.time_s == pytest.approx(expected, rel=1e-12)


def test_a_small_all_reduce_takes_a_trees_few_rounds() -> None:
    n = 8
    collective = all_reduce_time(cluster_tables(cluster_from_name("a100-1x8")), range(n), 8.0)
    rounds = 2 * ceil(log2(n))
    assert collective.algorithm == "tree"
    assert collective.time_s == pytest.approx(6.6e-6 + rounds * 0.6e-6, rel=1e-4)
    # The ring needs 14 rounds.
    assert collective.time_s < 6.6e-6 + 14 * 0.6e-6


def test_every_pair_of_a_mesh_works_at_once() -> None:
    # Each of 12 links carries a quarter in the reduce-scatter and a quarter in the all-gather.
    collective = all_reduce_time(paper(cluster_from_name("p100-1x4")), range(4), 18.3 * GB)
    assert collective.algorithm == "mesh"
    assert collective.time_s == pytest.approx(2 / 4)
    assert len(collective.busy_s) == 12


def test_a_quad_of_a_cube_mesh_is_a_mesh() -> None:
    tables = paper(cluster_from_name("p100-1x8"))
    quad = all_reduce_time(tables, [4, 5, 6, 7], 18.3 * GB)
    assert quad.algorithm == "mesh"
    assert quad.time_s == pytest.approx(2 / 4)
    assert all_reduce_time(tables, [2, 3, 4, 5], 18.3 * GB).algorithm != "mesh"


def test_hierarchical_beats_the_ring_where_each_device_has_a_nic() -> None:
    nodes, per_node, port, nic = 4, 8, 300 * GB, 25 * GB
    cluster = switched(nodes, per_node, port=port, nic=nic)
    collective = all_reduce_time(paper(cluster), range(nodes * per_node), GB)
    assert collective.algorithm == "hierarchical"
    # Eight rings over four nodes, an eighth of the bytes each, on NICs of their own.
    across = 2 * (nodes - 1) / nodes * GB / per_node / nic
    assert collective.time_s == pytest.approx(across)
    ring = 2 * 31 / 32 * GB / nic
    assert collective.time_s < ring / 7
    # Ports carry the scatter and gather inside nodes.
    busy = busy_by_name(cluster, collective)
    assert busy["0/0->0/switch"] == pytest.approx(2 * (per_node - 1) / per_node * GB / port)
    assert busy["0/0->fabric"] == pytest.approx(across)


def test_a_shared_nic_carries_the_rings_of_all_its_devices() -> None:
    nodes, per_node = 2, 4
    cluster = switched(nodes, per_node, port=1000 * GB, nic=GB, shared=True)
    collective = all_reduce_time(paper(cluster), range(8), GB)
    # Four rings over two nodes with a quarter each: 2 * (1/2) * (1/4) * 4 of the bytes.
    assert collective.algorithm == "hierarchical"
    assert collective.time_s == pytest.approx(1.0)
    assert busy_by_name(cluster, collective)["0/switch->fabric"] == pytest.approx(1.0)


def test_one_device_in_each_node_forms_a_ring_over_nodes() -> None:
    cluster = switched(4, 2, port=100 * GB, nic=GB)
    collective = all_reduce_time(paper(cluster), [0, 2, 4, 6], GB)
    assert collective.time_s == pytest.approx(2 * 3 / 4)
    assert collective.algorithm == "ring"


def test_nodes_with_unequal_members_still_reduce() -> None:
    cluster = switched(2, 4, port=100 * GB, nic=GB)
    collective = all_reduce_time(paper(cluster), [0, 1, 2, 4], GB)
    # The flat ring crosses each NIC it uses once: 2 * 3/4 of the bytes.
    assert collective.algorithm in {"ring", "tree"}
    assert collective.time_s <= 2 * 3 / 4 + 1e-9


def test_crossing_pcie_switches_wait_for_the_shared_uplink() -> None:
    cluster = cluster_from_name("k80-1x4")
    collective = all_to_all_time(paper(cluster), range(4), 4 * GB)
    # Two devices under each switch send 1 GB to each of two devices under the other one: 4 GB at 6 GB/s.
    assert collective.time_s == pytest.approx(4 / 6)


@pytest.mark.parametrize("members", [[], [2]])
def test_less_than_two_devices_have_nothing_to_do(members: list[int]) -> None:
    tables = cluster_tables(cluster_from_name("p100-1x4"))
    for collective in (all_reduce_time, all_gather_time, all_to_all_time):
        assert collective(tables, members, GB) == CollectiveTime(time_s=0.0, algorithm="none", busy_s={})


def test_no_bytes_take_no_time() -> None:
    tables = cluster_tables(cluster_from_name("p100-1x4"))
    assert all_reduce_time(tables, range(4), 0).time_s == 0.0


CLUSTERS = ["k80-2x4", "p100-2x4", "p100-1x8", "v100-2x8", "a100-2x4", "cpu-2x2"]


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(CLUSTERS),
    subset=st.sets(st.integers(0, 7), min_size=2),
    small=st.floats(1, 1e9),
    factor=st.floats(1, 100),
)
def test_more_bytes_never_take_less_time(name: str, subset: set[int], small: float, factor: float) -> None:
    tables = cluster_tables(cluster_from_name(name))
    members = sorted(m for m in subset if m < tables.num_devices)
    for collective in (all_reduce_time, all_gather_time, all_to_all_time):
        assert collective(tables, members, small).time_s <= collective(tables, members, small * factor).time_s


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(CLUSTERS), subset=st.sets(st.integers(0, 7), min_size=2), size=st.floats(1, 1e9))
def test_no_link_is_busy_longer_than_the_collective(name: str, subset: set[int], size: float) -> None:
    cluster = cluster_from_name(name)
    tables = cluster_tables(cluster)
    members = sorted(m for m in subset if m < tables.num_devices)
    collective = all_reduce_time(tables, members, size)
    allowed = {link for i in members for j in members for link in cluster.routes[i][j]}
    assert set(collective.busy_s) <= allowed
    assert all(0 < s <= collective.time_s for s in collective.busy_s.values())
    # A reduction cannot send less than everyone's bytes but one's own share, both ways.
    if len(members) > 1:
        sent = sum(
            s * tables.link_bandwidth_bytes_per_s[link]
            for link, s in collective.busy_s.items()
            if cluster.links[link].source in {cluster.devices[m].name for m in members}
        )
        assert sent >= 2 * (len(members) - 1) * size * (1 - 1e-9)


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(CLUSTERS), subset=st.sets(st.integers(0, 7), min_size=2), size=st.floats(1, 1e9))
def test_a_gather_takes_no_longer_than_a_reduction(name: str, subset: set[int], size: float) -> None:
    tables = cluster_tables(cluster_from_name(name))
    members = sorted(m for m in subset if m < tables.num_devices)
    assert all_gather_time(tables, members, size).time_s <= all_reduce_time(tables, members, size).time_s


def test_scratch_is_clean_after_every_call() -> None:
    tables = cluster_tables(cluster_from_name("p100-2x4"))
    scratch = collective_scratch(tables)
    for members in ([0, 1], [0, 1, 2, 3], list(range(8)), [0, 1, 4]):
        first = all_reduce_time(tables, members, GB, scratch=scratch)
        assert not scratch.busy_s.any()
        assert not scratch.num_links.any()
        assert all_reduce_time(tables, members, GB, scratch=scratch) == first
        assert all_reduce_time(tables, members, GB) == first


def test_the_algorithms_of_the_docstring_all_occur() -> None:
    seen = {
        all_reduce_time(cluster_tables(cluster_from_name(name)), range(8), size).algorithm
        for name in ("a100-1x8", "a100-2x4", "v100-2x4")
        for size in (1.0, 1e6, 1e10)
    } | {all_reduce_time(cluster_tables(cluster_from_name("p100-1x4")), range(4), 1e6).algorithm}
    assert seen == set(ALGORITHMS) - {"none", "pairwise"}


def test_devices_out_of_order_or_twice_are_put_in_order() -> None:
    tables = cluster_tables(cluster_from_name("a100-2x4"))
    assert all_reduce_time(tables, [7, 0, 3, 0], GB) == all_reduce_time(tables, np.array([0, 3, 7]), GB)


@pytest.mark.parametrize("name", ["k80-3x8", "p100-4x8", "v100-3x8", "h100-5x3", "cpu-3x5"])
@pytest.mark.parametrize("paper", [False, True])
def test_collectives_need_no_table_of_all_routes(name: str, paper: bool) -> None:
    cluster = cluster_from_name(name)
    routes = hub_routes(cluster.devices, cluster.links, "fabric")
    assert routes is not None
    table = cluster_tables(cluster, paper=paper)
    hub = collective_tables(replace(cluster, routes=routes), paper=paper)
    rng, algorithms = np.random.default_rng(0), set()
    for _ in range(100):
        members = rng.permutation(cluster.num_devices)[: rng.integers(1, cluster.num_devices + 1)].tolist()
        num_bytes = int(rng.integers(0, 10 ** rng.integers(1, 9)))
        for collective in (all_reduce_time, all_gather_time, all_to_all_time):
            expected = collective(table, members, num_bytes)
            assert collective(hub, members, num_bytes) == expected
            algorithms.add(expected.algorithm)
    assert {"ring", "tree", "pairwise"} <= algorithms or paper


def test_a_given_all_reduce_is_looked_up_by_its_devices_and_bytes() -> None:
    known = (
        GivenAllReduce(devices=(0, 1), num_bytes=8, time_s=3.0, links=(), busy_s=()),
        GivenAllReduce(devices=(0, 2), num_bytes=8, time_s=4.0, links=(5, 1), busy_s=(2.0, 3.5)),
        GivenAllReduce(devices=(0, 2), num_bytes=16, time_s=5.0, links=(2,), busy_s=(4.5,)),
    )
    cluster = replace(cluster_from_name("p100-1x3"), all_reduces=known)
    tables = cluster_tables(cluster)
    links, busy_s = np.zeros(6, np.int64), np.zeros(6)
    for one in known:
        time_s, count = given_all_reduce(tables, np.array(one.devices), one.num_bytes, links, busy_s)
        assert (time_s, count) == (one.time_s, len(one.links))
        assert tuple(links[:count]) == one.links
        assert tuple(busy_s[:count]) == one.busy_s
    for devices, num_bytes in (((0, 1), 16), ((1, 2), 8), ((0,), 8)):
        with pytest.raises(AssertionError):
            given_all_reduce(tables, np.array(devices), num_bytes, links, busy_s)
    assert cluster.fingerprint != replace(cluster, all_reduces=()).fingerprint
