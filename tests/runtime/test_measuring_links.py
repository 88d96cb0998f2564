"""Links: fits in closed form, clusters made of them, and a job of two processes that measures its own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soaprl.cluster.cluster import Cluster
from soaprl.cluster.devices import device_type
from soaprl.cluster.files import load_cluster, save_cluster
from soaprl.cost.profiled.links import PairLink, measured_cluster, predicted_all_reduces
from soaprl.runtime.measuring.links import SIZES, fit_line, measure_links
from tests.runtime.processes import run_processes

CPU = device_type("cpu")
FAST = PairLink(latency_s=1e-6, bandwidth_bytes_per_s=10e9)
SLOW = PairLink(latency_s=1e-5, bandwidth_bytes_per_s=1e9)


def route(cluster: Cluster, source: int, target: int) -> tuple[float, float]:
    """Latency and bandwidth of a route."""
    links = [cluster.links[link] for link in cluster.routes[source][target]]
    return sum(link.latency_s for link in links), min(link.bandwidth_bytes_per_s for link in links)


@given(st.floats(1e-7, 1e-3), st.floats(1e6, 1e12))
def test_a_link_that_is_as_the_model_says_is_found_again(latency_s: float, bandwidth: float) -> None:
    times = [latency_s + size / bandwidth for size in SIZES]
    line = fit_line(SIZES, times)
    for size, time_s in zip(SIZES, times, strict=True):
        assert line.time_s(size) == pytest.approx(time_s, rel=1e-5)
    assert line.error == pytest.approx(0, abs=1e-5)


def test_a_fit_minds_small_messages_as_much_as_large_ones() -> None:
    times = [1e-5 + size / 1e9 for size in SIZES]
    times[-1] *= 1.1
    line = fit_line(SIZES, times)
    assert line.latency_s == pytest.approx(1e-5, rel=0.02)
    assert 0.9e9 < line.bandwidth_bytes_per_s < 1e9


@pytest.mark.parametrize("times", [[1.0, 10.0, 100.0, 1e5], [1e-3, 1e-3, 1e-3, 1e-4]])
def test_a_fit_is_a_link_whatever_was_measured(times: list[float]) -> None:
    line = fit_line([10, 100, 1000, 10000], times)
    assert line.latency_s >= 0
    assert line.bandwidth_bytes_per_s > 0


def test_ranks_of_one_host_have_a_link_for_each_pair() -> None:
    pairs = {(0, 1): FAST, (0, 2): SLOW, (1, 2): FAST}
    cluster = measured_cluster("mine", ["a"] * 3, CPU, pairs, provenance="measured")
    assert len(cluster.links) == 6
    assert route(cluster, 0, 2) == route(cluster, 2, 0) == (1e-5, 1e9)
    assert route(cluster, 2, 1) == (1e-6, 10e9)
    assert {link.provenance for link in cluster.links} == {"measured"}


def test_hosts_share_one_wire_each_to_the_fabric() -> None:
    crossing = {(a, b): SLOW for a in (0, 1) for b in (2, 3)}
    pairs = {(0, 1): FAST, (2, 3): FAST, **crossing}
    cluster = measured_cluster("mine", ["a", "a", "b", "b"], CPU, pairs, provenance="measured")
    assert [device.node for device in cluster.devices] == [0, 0, 1, 1]
    assert route(cluster, 0, 1) == (1e-6, 10e9)
    latency, bandwidth = route(cluster, 0, 3)
    assert (latency, bandwidth) == (pytest.approx(1e-5), 1e9)
    shared = set(cluster.routes[0][2]) & set(cluster.routes[1][3])
    assert len(shared) == 2, "out of the one host, into the other"


def test_a_sum_over_two_ranks_takes_what_the_ring_takes() -> None:
    cluster = measured_cluster("mine", ["a", "a"], CPU, {(0, 1): FAST}, provenance="measured")
    small, large = predicted_all_reduces(cluster, [8, 8 + 10**9])
    # Two rounds of half the bytes each, in both directions at once: s / b in all.
    assert large - small == pytest.approx(10**9 / 10e9, rel=1e-6)


def test_a_measured_cluster_is_the_same_from_its_file(tmp_path: object) -> None:
    path = f"{tmp_path}/mine.yaml"
    cluster = measured_cluster("mine", ["a", "a"], CPU, {(0, 1): FAST}, provenance="measured")
    save_cluster(cluster, path)
    assert load_cluster(path).fingerprint == cluster.fingerprint


def measure(rank: int) -> None:
    heard: list[tuple[int, int]] = []
    measured = measure_links(
        f"host{rank}",
        torch.device("cpu"),
        sizes=(64, 4096, 65536),
        repeats=2,
        listen=lambda done, total: heard.append((done, total)),
    )
    assert measured.backend == "gloo"
    assert measured.hosts == ("host0", "host1")
    assert [pair for pair in measured.transfers_s] == [(0, 1)]  # noqa: C416
    assert all(time_s > 0 for time_s in (*measured.transfers_s[0, 1], *measured.all_reduces_s))
    assert heard == [(done, 6) for done in range(1, 7)]
    assert measured.lines[0, 1].bandwidth_bytes_per_s > 0


@pytest.mark.dist
def test_the_processes_of_a_job_measure_their_links_and_all_know_them() -> None:
    run_processes(measure, 2)
