import pytest
from hypothesis import given
from hypothesis import strategies as st

from soaprl.cluster.files import load_cluster
from soaprl.cost.profiled.links import with_overheads
from soaprl.graph.capture import capture_model
from soaprl.runtime import compile_program
from soaprl.runtime.measuring.calibration import Load, Traffic, fit_overheads, traffic
from soaprl.strategy.baselines import data_parallel, unsplit
from soaprl.strategy.strategy import Strategy

OVERHEADS = st.floats(0, 1e-2), st.floats(0, 1e-3), st.floats(0, 1e-8)


def load(messages: int, num_bytes: int, busy_s: float, ran_s: float) -> Load:
    return Load(traffic=Traffic(num_messages=messages, num_bytes=num_bytes), predicted_s=busy_s, ran_s=ran_s)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10**7), st.floats(1e-3, 1.0)), min_size=4),
    *OVERHEADS,
)
def test_overheads_that_are_there_explain_all(
    ranks: list[tuple[int, int, float]], iteration_s: float, message_s: float, s_per_byte: float
) -> None:
    loads = [
        load(count, size, busy, busy + iteration_s + message_s * count + s_per_byte * size)
        for count, size, busy in ranks
    ]
    found = fit_overheads(loads)
    assert found.error_after == pytest.approx(0, abs=1e-6)
    assert min(found.iteration_s, found.message_s, found.s_per_byte) >= 0


def test_overheads_are_told_apart_where_strategies_differ_in_each() -> None:
    # 1 ms an iteration, 100 us a message, 2 ns a byte.
    loads = [
        load(count, size, 0.01, 0.01 + 1e-3 + 1e-4 * count + 2e-9 * size)
        for count, size in ((0, 0), (10, 0), (0, 10**6), (5, 10**6))
    ]
    found = fit_overheads(loads)
    assert found.iteration_s == pytest.approx(1e-3)
    assert found.message_s == pytest.approx(1e-4)
    assert found.s_per_byte == pytest.approx(2e-9)
    assert found.error_before > 0.05


def test_overheads_are_never_negative() -> None:
    found = fit_overheads([load(3, 100, 2.0, 1.0), load(0, 0, 2.0, 2.0)])
    assert (found.iteration_s, found.message_s, found.s_per_byte) == (0, 0, 0)
    assert found.error_before == found.error_after == pytest.approx(0.5)


def test_traffic_is_counted_on_both_sides() -> None:
    graph = capture_model("lenet", 4)
    first, *others = graph.operators
    whole = (unsplit(first, 0), *(unsplit(operator, 1) for operator in others))
    # The activation goes to rank 1, its gradient comes back.
    apart = compile_program(graph, Strategy(whole), num_ranks=2)
    size = 2 * graph.tensors[first.outputs[0].tensor].num_bytes
    assert traffic(graph, apart) == (Traffic(num_messages=2, num_bytes=size),) * 2
    split = compile_program(graph, data_parallel(graph, load_cluster("cpu-1x2")), num_ranks=2)
    for found in traffic(graph, split):
        assert found.num_bytes == 2 * 4 * graph.num_parameters
        assert found.num_messages >= 2


@pytest.mark.parametrize("name", ["cpu-1x2", "p100-2x2"])
def test_every_route_gets_at_least_what_is_added_and_the_shortest_no_more(name: str) -> None:
    before = load_cluster(name)
    after = with_overheads(before, 1e-3, 1e-9, provenance="calibrated today")
    added = []
    for source, row in enumerate(before.routes):
        for target, route in enumerate(row):
            old = sum(before.links[link].latency_s for link in route)
            new = sum(after.links[link].latency_s for link in after.routes[source][target])
            if source != target:
                added.append(new - old)
    assert min(added) == pytest.approx(1e-3)
    for old_link, new_link in zip(before.links, after.links, strict=True):
        slower = 1 / new_link.bandwidth_bytes_per_s - 1 / old_link.bandwidth_bytes_per_s
        assert slower == pytest.approx(1e-9)
    assert all(link.provenance.endswith("calibrated today") for link in after.links)
