import math
from dataclasses import replace

import pytest

from soaprl.cluster.cluster import Cluster, Device, Link
from soaprl.cluster.devices import device_type
from soaprl.cluster.topology import Wire, connect, one_way, pairs, pcie_tree, star
from soaprl.errors import ClusterError

A, B, C = (Device(name=name, node=0, type=0) for name in "abc")


def wire(bandwidth: float = 1.0, latency: float = 0.0) -> Wire:
    return Wire(bandwidth_bytes_per_s=bandwidth, latency_s=latency, provenance="test")


def build(devices: tuple[Device, ...], links: list[Link]) -> Cluster:
    return connect(name="small", device_types=(device_type("p100"),), devices=devices, links=tuple(links))


def test_a_route_takes_the_fewest_links() -> None:
    slow = [one_way("a", "b", wire(1)), one_way("b", "a", wire(1))]
    quick_detour = star("s", "ab", wire(100))
    assert build((A, B), quick_detour + slow).routes[0][1] == (4,)


def test_among_equally_long_routes_the_widest_counts() -> None:
    narrow, wide = star("s", "ab", wire(1)), star("t", "ab", wire(2))
    assert build((A, B), narrow + wide).routes == (((), (4, 7)), ((6, 5), ()))


def test_among_equal_routes_the_lowest_index_counts() -> None:
    links = star("s", "ab", wire()) + star("t", "ab", wire())
    assert build((A, B), links).routes[0][1] == (0, 3)
    parallel = [one_way("a", "b", wire()), one_way("a", "b", wire()), one_way("b", "a", wire())]
    assert build((A, B), parallel).routes[0][1] == (0,)


def test_a_wide_start_does_not_hide_a_narrow_end() -> None:
    # a-s-b is narrowed to 2 by its end, a-t-b to 3 by its start.
    links = [
        one_way("a", "s", wire(9)), one_way("s", "b", wire(2)),
        one_way("a", "t", wire(3)), one_way("t", "b", wire(9)), one_way("b", "a", wire(1)),
    ]  # fmt: skip
    assert build((A, B), links).routes[0][1] == (2, 3)


def test_devices_forward_what_is_not_for_them() -> None:
    ring = [one_way("a", "b", wire()), one_way("b", "c", wire()), one_way("c", "a", wire())]
    assert build((A, B, C), ring).routes[0][2] == (0, 1)


def test_listed_routes_win() -> None:
    links = star("s", "ab", wire(1)) + star("t", "ab", wire(2))
    cluster = connect(
        name="small",
        device_types=(device_type("p100"),),
        devices=(A, B),
        links=tuple(links),
        listed_routes={(0, 1): (0, 3)},
    )
    assert cluster.routes[0][1] == (0, 3)
    assert cluster.routes[1][0] == (6, 5)


def test_pairs_are_all_ordered_pairs() -> None:
    ends = [(link.source, link.target) for link in pairs("abc", wire())]
    assert sorted(ends) == [(x, y) for x in "abc" for y in "abc" if x != y]


def test_the_last_switch_of_a_tree_may_be_partly_filled() -> None:
    links = pcie_tree("n", "abc", per_switch=2, device_wire=wire(2), uplink_wire=wire(1))
    switches = {link.target for link in links if link.source in "abc"}
    assert switches == {"n/pcie0", "n/pcie1"}
    assert len(links) == 2 * (3 + 2)


def test_unreachable_devices_are_named() -> None:
    with pytest.raises(ClusterError, match="no route from device 'b' to 'a'"):
        build((A, B), [one_way("a", "b", wire())])


def test_an_empty_cluster_is_refused() -> None:
    with pytest.raises(ClusterError, match="is empty: expected at least one device"):
        build((), [])


def test_equal_device_names_are_refused() -> None:
    with pytest.raises(ClusterError, match="device name 'a' is there twice"):
        build((A, A), [])


def test_devices_out_of_node_order_are_refused() -> None:
    with pytest.raises(ClusterError, match="grouped by node"):
        build((replace(A, node=1), B), star("s", "ab", wire()))


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_bandwidth_that_is_not_positive_names_its_link(value: float) -> None:
    with pytest.raises(ClusterError, match=r"link 'a->s': expected a positive bandwidth_bytes_per_s, found"):
        build((A, B), star("s", "ab", wire(value)))


@pytest.mark.parametrize("value", [-1e-6, math.inf, math.nan])
def test_a_negative_latency_names_its_link(value: float) -> None:
    with pytest.raises(ClusterError, match=r"link 'a->s': expected a latency_s of 0 or more, found"):
        build((A, B), star("s", "ab", wire(1, value)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peak_flops_per_s": (("float16", 1.0),)}, "peak_flops_per_s must have float32; found float16"),
        ({"peak_flops_per_s": (("float32", 0.0),)}, "positive peak_flops_per_s of float32, found 0.0"),
        ({"memory_bytes": 0}, "positive memory_bytes, found 0"),
        ({"memory_bandwidth_bytes_per_s": -1.0}, "positive memory_bandwidth_bytes_per_s, found -1.0"),
        ({"kernel_launch_s": -1.0}, "kernel_launch_s of 0 or more, found -1.0"),
        ({"matmul_efficiency": 0.0}, "matmul_efficiency above 0 and at most 1, found 0.0"),
        ({"memory_efficiency": 1.5}, "memory_efficiency above 0 and at most 1, found 1.5"),
    ],
)
def test_a_wrong_device_type_says_which_number(change: dict[str, object], message: str) -> None:
    kind = replace(device_type("p100"), **change)  # type: ignore[arg-type]
    with pytest.raises(ClusterError, match=f"device type 'p100': .*{message}"):
        connect(name="small", device_types=(kind,), devices=(A,), links=())
