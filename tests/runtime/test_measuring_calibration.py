import pytest
from hypothesis import given
from hypothesis import strategies as st

from soaprl.cluster.files import load_cluster
from soaprl.cost.profiled.links import with_latency
from soaprl.graph.capture import capture_model
from soaprl.runtime import compile_program
from soaprl.runtime.measuring.calibration import Load, fit_overhead, num_messages
from soaprl.strategy.baselines import data_parallel, unsplit
from soaprl.strategy.strategy import Strategy


@given(
    st.lists(st.tuples(st.integers(0, 40), st.floats(1e-3, 1.0)), min_size=1, max_size=12),
    st.floats(0, 1e-3),
)
def test_an_overhead_that_is_there_is_found(ranks: list[tuple[int, float]], message_s: float) -> None:
    loads = [
        Load(num_messages=count, predicted_s=busy, ran_s=busy + message_s * count) for count, busy in ranks
    ]
    found = fit_overhead(loads)
    if any(count for count, _ in ranks):
        assert found.message_s == pytest.approx(message_s, rel=1e-6, abs=1e-12)
    assert found.error_after == pytest.approx(0, abs=1e-6)
    assert found.error_after <= found.error_before + 1e-9


def test_an_overhead_is_never_negative() -> None:
    found = fit_overhead([Load(num_messages=3, predicted_s=2.0, ran_s=1.0)])
    assert found.message_s == 0
    assert found.error_before == found.error_after == pytest.approx(1.0)


def test_messages_are_counted_on_both_sides() -> None:
    graph = capture_model("lenet", 4)
    first, *others = graph.operators
    whole = (unsplit(first, 0), *(unsplit(operator, 1) for operator in others))
    # The activation goes to rank 1, its gradient comes back.
    apart = compile_program(graph, Strategy(whole), num_ranks=2)
    assert num_messages(apart) == (2, 2)
    split = compile_program(graph, data_parallel(graph, load_cluster("cpu-1x2")), num_ranks=2)
    assert num_messages(split) == (0, 0)


@pytest.mark.parametrize("name", ["cpu-1x2", "p100-2x2"])
def test_every_route_gets_at_least_what_is_added_and_the_shortest_no_more(name: str) -> None:
    before = load_cluster(name)
    after = with_latency(before, 1e-3, provenance="calibrated today")
    added = []
    for source, row in enumerate(before.routes):
        for target, route in enumerate(row):
            old = sum(before.links[link].latency_s for link in route)
            new = sum(after.links[link].latency_s for link in after.routes[source][target])
            if source != target:
                added.append(new - old)
    assert min(added) == pytest.approx(1e-3)
    assert all(link.provenance.endswith("calibrated today") for link in after.links)
