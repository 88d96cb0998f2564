import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from soaprl.cluster.cluster import Cluster, Device, DeviceType, Link, Overheads
from soaprl.cluster.devices import device_type
from soaprl.cluster.files import cluster_from_dict, cluster_to_dict, load_cluster, save_cluster
from soaprl.cluster.presets import cluster_from_name
from soaprl.errors import ClusterError, OutputError, SoaprlError, UnknownNameError

EXAMPLE = Path(__file__).parents[2] / "docs" / "clusters" / "two-kinds.yaml"


def switch_node(**changes: object) -> dict[str, Any]:
    topology = {"kind": "switch", "bandwidth_bytes_per_s": 1e9, "latency_s": 1e-6}
    return {"devices": {"p100": 2}, "topology": topology} | changes


def cluster_file(**changes: object) -> dict[str, Any]:
    return {"name": "mine", "nodes": [switch_node()]} | changes


def topology_file(topology: dict[str, object] | None) -> dict[str, Any]:
    return cluster_file(nodes=[switch_node(topology=topology)])


def write(folder: Path, data: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))
    return path


def names_on(cluster: Cluster, i: int, j: int) -> list[str]:
    return [cluster.links[link].name for link in cluster.routes[i][j]]


def test_a_preset_loads_by_its_name() -> None:
    assert load_cluster("p100-4x4") == cluster_from_name("p100-4x4")


def test_the_example_mixes_device_types_and_topologies() -> None:
    cluster = load_cluster(EXAMPLE)
    assert [t.name for t in cluster.device_types] == ["trial-card", "p100", "a100", "k80"]
    kinds = [cluster.device_types[d.type].name for d in cluster.devices]
    assert kinds == ["p100"] * 4 + ["a100"] * 4 + ["trial-card"] * 3 + ["k80"] + ["trial-card"] * 3 + ["k80"]
    assert cluster.device_types[1] == device_type("p100")
    assert cluster.device_types[0].memory_bytes == 24_000_000_000
    assert names_on(cluster, 0, 3) == ["node0/gpu0->node0/gpu3"]
    assert names_on(cluster, 0, 4) == ["node0/gpu0->node0/host", "node0/host->fabric", "fabric->node1/gpu0"]
    assert names_on(cluster, 4, 8)[1:] == [
        "fabric->node2/host",
        "node2/host->node2/pcie0",
        "node2/pcie0->node2/gpu0",
    ]


def test_a_single_node_needs_no_network() -> None:
    assert [link.name for link in cluster_from_dict(cluster_file()).links] == [
        "node0/gpu0->node0/switch", "node0/switch->node0/gpu0",
        "node0/gpu1->node0/switch", "node0/switch->node0/gpu1",
    ]  # fmt: skip


def test_links_of_a_node_may_be_given_one_by_one() -> None:
    link = {"bandwidth_bytes_per_s": 1e9, "latency_s": 0}
    links = [link | {"from": "gpu0", "to": "hub", "both_ways": True}, link | {"from": "hub", "to": "gpu1"},
             link | {"from": "gpu1", "to": "gpu0"}]  # fmt: skip
    node = switch_node(topology={"kind": "links", "switches": ["hub"], "links": links})
    cluster = cluster_from_dict(cluster_file(nodes=[node]))
    assert names_on(cluster, 0, 1) == ["node0/gpu0->node0/hub", "node0/hub->node0/gpu1"]
    assert names_on(cluster, 1, 0) == ["node0/gpu1->node0/gpu0"]


def test_numbers_may_be_written_as_people_write_them(tmp_path: Path) -> None:
    topology = "{kind: pairs, bandwidth_bytes_per_s: 18e9, latency_s: 1e-6}"
    text = f"{{name: m, nodes: [{{devices: {{p100: 2}}, topology: {topology}}}]}}"
    cluster = load_cluster(write(tmp_path, text))
    assert cluster.links[0].bandwidth_bytes_per_s == 18e9


@pytest.mark.parametrize("name", ["k80-2x4", "p100-2x8", "v100-2x5", "a100-2x3", "cpu-1x2", "h100-1x1"])
def test_presets_survive_a_round_trip_without_listing_routes(name: str, tmp_path: Path) -> None:
    cluster = cluster_from_name(name)
    save_cluster(cluster, tmp_path / "c.yaml")
    loaded = load_cluster(tmp_path / "c.yaml")
    assert loaded == cluster
    assert loaded.fingerprint == cluster.fingerprint
    assert cluster_to_dict(cluster)["routes"] == []


def test_the_example_survives_a_round_trip_through_json() -> None:
    cluster = load_cluster(EXAMPLE)
    again = cluster_from_dict(json.loads(json.dumps(cluster_to_dict(cluster), sort_keys=True)))
    assert again.fingerprint == cluster.fingerprint


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """Any devices and links, with routes that no search would find."""
    types = [
        DeviceType(
            name=f"type{i}",
            peak_flops_per_s=(("float32", draw(st.floats(1e9, 1e15))),),
            memory_bytes=draw(st.integers(1, 10**12)),
            memory_bandwidth_bytes_per_s=draw(st.floats(1e6, 1e13)),
            kernel_launch_s=draw(st.floats(0, 1e-3)),
            matmul_efficiency=draw(st.floats(0.01, 1)),
            memory_efficiency=draw(st.floats(0.01, 1)),
        )
        for i in range(draw(st.integers(1, 3)))
    ]
    count = draw(st.integers(1, 5))
    nodes = sorted(draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)))
    devices = [
        Device(name=f"d{i}", node=nodes[i], type=draw(st.integers(0, len(types) - 1))) for i in range(count)
    ]
    ends = st.sampled_from([*(d.name for d in devices), "switch", "fabric"])
    links = []
    for i in range(draw(st.integers(1, 8))):
        source, target = draw(st.one_of(st.just(("", "")), st.tuples(ends, ends)))
        links.append(
            Link(
                name=draw(st.sampled_from([f"link{i}", f"{source}->{target}" if source else "loose"])),
                bandwidth_bytes_per_s=draw(st.floats(1, 1e12)),
                latency_s=draw(st.floats(0, 1)),
                provenance=draw(st.sampled_from(["", "measured"])),
                source=source,
                target=target,
            )
        )
    path = st.lists(st.integers(0, len(links) - 1), min_size=1, max_size=3).map(tuple)
    routes = tuple(tuple(() if i == j else draw(path) for j in range(count)) for i in range(count))
    seconds = st.floats(0, 1)
    overheads = Overheads(
        task_s=draw(seconds),
        iteration_s=draw(seconds),
        message_s=draw(seconds),
        message_s_per_byte=draw(seconds),
        collective_s=draw(seconds),
        collective_s_per_byte=draw(seconds),
        carry_s_per_byte=draw(seconds),
        reduced_s_per_byte=draw(seconds),
        provenance="calibrated",
    )
    return Cluster(
        name="random",
        device_types=tuple(types),
        devices=tuple(devices),
        links=tuple(links),
        routes=routes,
        overheads=draw(st.sampled_from([Overheads(), overheads])),
    )


@settings(max_examples=60, deadline=None)
@given(cluster=clusters())
def test_any_cluster_survives_a_round_trip(cluster: Cluster) -> None:
    text = yaml.safe_dump(cluster_to_dict(cluster))
    loaded = cluster_from_dict(yaml.safe_load(text))
    assert loaded == cluster
    assert loaded.fingerprint == cluster.fingerprint


def test_overheads_are_a_part_of_the_fingerprint_and_where_they_are_from_is_not() -> None:
    plain = cluster_from_name("cpu-1x2")
    slower = replace(plain, overheads=Overheads(task_s=1e-5))
    assert slower.fingerprint != plain.fingerprint
    known = replace(slower, overheads=Overheads(task_s=1e-5, provenance="calibrated"))
    assert known.fingerprint == slower.fingerprint
    assert replace(plain, overheads=Overheads(provenance="guessed")).fingerprint == plain.fingerprint
    carrying = replace(plain, overheads=Overheads(task_s=1e-5, carry_s_per_byte=1e-9))
    assert carrying.fingerprint != slower.fingerprint


def test_two_device_types_of_one_name_cannot_be_written() -> None:
    kind = device_type("p100")
    cluster = Cluster(
        name="odd",
        device_types=(kind, kind),
        devices=(Device(name="d", node=0, type=1),),
        links=(),
        routes=(((),),),
    )
    with pytest.raises(ClusterError, match="names of device types must differ"):
        cluster_to_dict(cluster)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        save_cluster(cluster_from_name("p100-1x2"), tmp_path / "no" / "folder.yaml")
    assert list(tmp_path.iterdir()) == []


def link(source: str, target: str, **more: object) -> dict[str, object]:
    return {"from": source, "to": target, "bandwidth_bytes_per_s": 1e9, "latency_s": 0} | more


PAIR = [{"name": "a", "type": "p100", "node": 0}, {"name": "b", "type": "p100", "node": 0}]
WRONG: list[tuple[dict[str, Any], type[SoaprlError], str]] = [
    (
        topology_file({"kind": "switch", "bandwidth_bytes_per_s": -5, "latency_s": 0}),
        ClusterError,
        r"nodes\[0\]\.topology\.bandwidth_bytes_per_s: expected greater than 0, found -5",
    ),
    (
        topology_file({"kind": "pairs", "bandwidth_bytes_per_s": 0, "latency_s": 0}),
        ClusterError,
        r"topology\.bandwidth_bytes_per_s: expected greater than 0, found 0",
    ),
    (
        topology_file({"kind": "pairs", "bandwidth_bytes_per_s": 1, "latency_s": -1}),
        ClusterError,
        r"topology\.latency_s: expected greater than or equal to 0, found -1",
    ),
    (
        topology_file({"kind": "pairs", "bandwith_bytes_per_s": 1, "latency_s": 0}),
        ClusterError,
        r"nodes\[0\]\.topology: unknown key 'bandwith_bytes_per_s'\. Did you mean 'bandwidth_bytes_per_s'\?",
    ),
    (
        topology_file({"kind": "swich", "bandwidth_bytes_per_s": 1, "latency_s": 0}),
        ClusterError,
        r"nodes\[0\]\.topology: expected a kind of 'switch', 'pairs', 'pcie_tree', 'links', found 'swich'",
    ),
    (
        topology_file({"bandwidth_bytes_per_s": 1, "latency_s": 0}),
        ClusterError,
        r"nodes\[0\]\.topology: expected a key 'kind', found none",
    ),
    (
        topology_file({"kind": "pairs", "latency_s": 0}),
        ClusterError,
        r"nodes\[0\]\.topology\.bandwidth_bytes_per_s: expected this key, found none",
    ),
    (
        cluster_file(overheads={"message_s": -1}),
        ClusterError,
        r"overheads\.message_s: expected greater than or equal to 0, found -1",
    ),
    (cluster_file(node=[]), ClusterError, r"unknown key 'node'\. Did you mean 'nodes'\?"),
    (cluster_file(nodes=[switch_node(count=10**9)]), ClusterError, "at most 16384 devices, found 2000000000"),
    (cluster_file(nodes=[]), ClusterError, "is empty: expected at least one device"),
    (cluster_file(nodes=[switch_node(devices={})]), ClusterError, r"nodes\[0\]\.devices: "),
    (
        cluster_file(nodes=[switch_node(devices={"p10": 2})]),
        UnknownNameError,
        "unknown device type 'p10'.*'p100'",
    ),
    (
        cluster_file(nodes=[switch_node(devices={"p100": "two"})]),
        ClusterError,
        r"devices\.p100: .*found 'two'",
    ),
    (
        cluster_file(nodes=[switch_node(topology=None)]),
        ClusterError,
        "no route from device 'node0/gpu0' to 'node0/gpu1'",
    ),
    (
        cluster_file(nodes=[switch_node(count=2)]),
        ClusterError,
        "no route from device 'node0/gpu0' to 'node1/gpu0'",
    ),
    ({"name": "mine"}, ClusterError, "either 'nodes' .* or 'devices'"),
    (cluster_file(devices=PAIR), ClusterError, "either 'nodes' .* or 'devices'"),
    (
        cluster_file(links=[link("a", "b")]),
        ClusterError,
        "'links', 'routes' and 'switches' belong to 'devices'",
    ),
    (
        cluster_file(format="soaprl-strategy"),
        ClusterError,
        "format: expected 'soaprl-cluster', found 'soaprl-strategy'",
    ),
    (cluster_file(version=2), ClusterError, "version: expected 1, found 2"),
    ({"name": "mine", "devices": []}, ClusterError, "is empty: expected at least one device"),
    (
        {"name": "mine", "devices": PAIR, "links": [link("a", "bb")]},
        ClusterError,
        "links: unknown device or switch 'bb'",
    ),
    (
        {"name": "mine", "devices": PAIR, "links": [link("a", "b")]},
        ClusterError,
        "no route from device 'b' to 'a'",
    ),
    (
        {"name": "mine", "devices": PAIR, "links": [link("a", "")]},
        ClusterError,
        "a link needs both 'from' and 'to'",
    ),
    (
        {"name": "mine", "devices": PAIR, "links": [link("", "", name="loose", both_ways=True)]},
        ClusterError,
        "'both_ways' needs 'from' and 'to'",
    ),
    (
        {"name": "mine", "devices": PAIR, "routes": [{"from": "a", "to": "b", "links": [7]}]},
        ClusterError,
        "expected indices of links below 0, found 7 from 'a' to 'b'",
    ),
    (
        {"name": "mine", "devices": PAIR, "routes": [{"from": "a", "to": "c", "links": [0]}]},
        ClusterError,
        "routes: unknown device 'c'",
    ),
    (
        {
            "name": "mine",
            "devices": PAIR,
            "network": {"per": "node", "bandwidth_bytes_per_s": 1, "latency_s": 0},
        },
        ClusterError,
        "'network' belongs to 'nodes'",
    ),
]


@pytest.mark.parametrize(("data", "kind", "message"), WRONG)
def test_a_wrong_file_says_where_and_what(
    data: dict[str, Any], kind: type[SoaprlError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message) as caught:
        load_cluster(write(tmp_path, data))
    assert "\n" not in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_equal_names_of_own_device_types_are_refused(tmp_path: Path) -> None:
    own = cluster_to_dict(cluster_from_name("p100-1x1"))["device_types"]
    assert isinstance(own, list)
    with pytest.raises(ClusterError, match="device_types: names must differ; found p100, p100"):
        load_cluster(write(tmp_path, cluster_file(device_types=own * 2)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"nowhere\.yaml': there is no such file"):
        load_cluster(tmp_path / "nowhere.yaml")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="expected a readable text file"):
        load_cluster(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("name: [", "expected YAML; .*line 2"), ("", "found NoneType"), ("- 1", "found list")],
)
def test_text_that_is_no_cluster_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=message) as caught:
        load_cluster(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ClusterError, match="expected a readable text file"):
        load_cluster(path)


def test_a_name_that_is_neither_preset_nor_file_says_both() -> None:
    with pytest.raises(ClusterError, match=r"expected KIND-NODESxGPUS.* or the path of a cluster file"):
        load_cluster("my cluster")
