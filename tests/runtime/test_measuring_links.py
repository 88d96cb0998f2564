"""Links: fits in closed form, clusters made of them, and a job of two processes that measures its own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soaprl.cluster.cluster import Cluster
from soaprl.cluster.devices import device_type
from soaprl.cluster.files import load_cluster, save_cluster
from soaprl.cost.profiled.links import PairLink, measured_cluster, predicted_all_reduces
from soaprl.runtime.measuring.links import SIZES, fit_line, fit_link, measure_links, steady_line
from soaprl.runtime.measuring.messages import carry_s_per_byte, one_way_of, possible_loss, travelled_bytes
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


@given(
    st.floats(1e-7, 1e-3),
    st.floats(1e6, 1e9),
    st.integers(0, 2**16),
    st.floats(10, 1000),
    st.floats(0.97, 1.03),
)
def test_what_a_link_lets_pass_at_once_does_not_count_as_its_bandwidth(
    latency_s: float, bandwidth: float, burst: int, faster: float, noise: float
) -> None:
    """A token bucket: so many bytes pass faster, the others as fast as it fills."""
    times = [
        latency_s + min(size, burst) / (faster * bandwidth) + max(0, size - burst) / bandwidth
        for size in SIZES
    ]
    times[-2] *= noise
    link = fit_link(SIZES, times, times[0])
    # The largest is explained within 10 %, and nearly all of it is bytes over bandwidth.
    assert link.bandwidth_bytes_per_s == pytest.approx(bandwidth, rel=0.12)
    assert 0 <= link.latency_s <= latency_s * 1.01 + SIZES[0] / bandwidth


def test_a_limited_link_as_it_was_measured() -> None:
    # veth with two token buckets of 1 Gbit/s and 8 KB in a row, content is 1448 of 1514 bytes: 119.6 MB/s.
    times = [30e-6, 29e-6, 107e-6, 547e-6, 2.25e-3, 8.929e-3, 35.674e-3, 142.5e-3]
    link = fit_link(SIZES, times, 30e-6)
    assert link.bandwidth_bytes_per_s == pytest.approx(117.6e6, rel=0.005)
    assert 15e-6 < link.latency_s < 30e-6
    assert fit_line(SIZES, times).bandwidth_bytes_per_s > 125e6, "of all sizes alike"


def test_a_line_is_steady_as_far_down_as_it_explains_what_was_measured() -> None:
    sizes = (10, 100, 1000, 10000)
    assert steady_line(sizes, [2e-6, 1.1e-5, 1.01e-4, 1.001e-3]).latency_s == pytest.approx(1e-6)
    upper = steady_line(sizes, [1e-6, 1e-4, 1e-3, 1e-2])
    assert upper.bandwidth_bytes_per_s == pytest.approx(1e6)
    unsteady = [2e-5, 3e-5, 5e-4, 2e-3]
    assert steady_line(sizes, unsteady) == fit_line(sizes, unsteady)


def test_copies_in_memory_are_a_line_through_all_sizes() -> None:
    # Two processes of one machine: what is in caches is copied at 9 GB/s, 16 MB at 5.
    times = [26e-6, 26e-6, 28e-6, 31e-6, 54e-6, 131e-6, 600e-6, 2.9e-3]
    assert 5e9 < fit_link(SIZES, times, 26e-6).bandwidth_bytes_per_s < 8e9


@pytest.mark.parametrize("times", [[1.0, 10.0, 100.0, 1e5], [1e-3, 1e-3, 1e-3, 1e-4]])
def test_a_fit_is_a_link_whatever_was_measured(times: list[float]) -> None:
    sizes = [10, 100, 1000, 10000]
    for line in (fit_line(sizes, times), fit_link(sizes, times, times[0])):
        assert line.latency_s >= 0
        assert line.bandwidth_bytes_per_s > 0


def test_a_message_takes_half_of_a_turn_in_which_nobody_computed() -> None:
    computed, message_s = (
        [[2e-3, 2e-3], [2.5e-3, 2.1e-3], [2e-3, 3e-3], [9e-3, 2e-3]],
        [7e-5, 8e-5, 9e-5, 1e-3],
    )
    turns = [[a + b + 2 * m, a] for (a, b), m in zip(computed, message_s, strict=True)]
    others = [[1.0, b] for _, b in computed]
    # Of four the second is the lower quartile.
    found = one_way_of(torch.tensor(turns, dtype=torch.float64), torch.tensor(others, dtype=torch.float64))
    assert found == pytest.approx(8e-5)


def test_what_follows_computing_is_no_error_of_the_fit() -> None:
    link = fit_link(SIZES, [3e-5 + size / 1e9 for size in SIZES], 9e-5)
    assert link.error == pytest.approx(0, abs=1e-6)
    assert link.latency_s == pytest.approx(9e-5 - SIZES[0] / 1e9)


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
    assert measured.smallest_s[0, 1] > 0
    assert measured.carry_s_per_byte >= 0
    # A round trip, 3 sizes both ways, 3 sums, and computing beside messages.
    assert heard == [(done, 8) for done in range(1, 9)]
    everyone: list[object] = [None, None]
    torch.distributed.all_gather_object(everyone, measured)
    assert everyone[0] == everyone[1]
    assert measured.lines[0, 1].bandwidth_bytes_per_s > 0


@pytest.mark.dist
def test_the_processes_of_a_job_measure_their_links_and_all_know_them() -> None:
    run_processes(measure, 2)


def lose(rank: int) -> None:
    lost = carry_s_per_byte(rank, (0, 1), 1e-9, trials=2, for_s=0.02)
    everyone: list[float] = [-1.0, -1.0]
    torch.distributed.all_gather_object(everyone, lost)
    assert everyone == [lost, lost]
    assert 0 <= lost <= 0.5e-9


def test_what_has_travelled_is_told_by_what_is_left_and_is_one_message_at_least() -> None:
    assert travelled_bytes(0.25, 1e-6, size=100_000, count=5) == pytest.approx(2 * 250_000)
    assert travelled_bytes(9.0, 1e-6, size=100_000, count=5) == 2 * 100_000


def test_no_more_than_all_of_the_time_is_lost_to_bytes() -> None:
    assert possible_loss(75e-9, 8e-9) == 4e-9
    assert possible_loss(1e-9, 8e-9) == 1e-9
    assert possible_loss(-1e-9, 8e-9) == 0.0


@pytest.mark.dist
def test_both_ranks_know_what_computing_loses_to_messages() -> None:
    run_processes(lose, 2)
