from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soaprl.cluster.cluster import Overheads
from soaprl.cluster.files import load_cluster
from soaprl.cost.profiled.fitting import fit_collective
from soaprl.cost.profiled.links import predicted_all_reduces, with_collectives
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.capture import capture_model
from soaprl.runtime.measuring.calibration import Load, Traffic, fit_overheads, loads
from soaprl.simulator.problem import Problem
from soaprl.simulator.result import simulate
from soaprl.strategy.baselines import data_parallel, unsplit
from soaprl.strategy.strategy import Strategy

OVERHEADS = st.floats(0, 1e-2), st.floats(0, 1e-4), st.floats(0, 1e-3), st.floats(0, 1e-8)
SIZES = (1024, 2**16, 2**20, 2**24)


def load(
    passes: int, messages: int, num_bytes: int, busy_s: float, ran_s: float, *, reduced: int = 0
) -> Load:
    done = Traffic(num_passes=passes, num_messages=messages, num_bytes=num_bytes, num_reduced_bytes=reduced)
    return Load(traffic=done, predicted_s=busy_s, ran_s=ran_s)


@given(
    st.lists(
        st.tuples(st.integers(0, 90), st.integers(0, 40), st.integers(0, 10**7), st.floats(1e-3, 1.0)),
        min_size=5,
    ),
    *OVERHEADS,
)
def test_overheads_that_are_there_explain_all(
    ranks: list[tuple[int, int, int, float]],
    iteration_s: float,
    task_s: float,
    message_s: float,
    s_per_byte: float,
) -> None:
    done = [
        load(p, m, n, busy, busy + iteration_s + task_s * p + message_s * m + s_per_byte * n)
        for p, m, n, busy in ranks
    ]
    found = fit_overheads(done)
    assert found.error_after == pytest.approx(0, abs=1e-6)
    assert min(found.iteration_s, found.task_s, found.message_s, found.message_s_per_byte) >= 0


def test_overheads_are_told_apart_where_strategies_differ_in_each() -> None:
    # 1 ms an iteration, 30 us a pass, 100 us a message, 2 ns a byte.
    done = [
        load(p, m, n, 0.01, 0.01 + 1e-3 + 3e-5 * p + 1e-4 * m + 2e-9 * n)
        for p, m, n in ((0, 0, 0), (20, 0, 0), (10, 10, 0), (30, 0, 10**6), (5, 5, 10**6))
    ]
    # And 3 ns more a byte of a sum.
    done.append(load(10, 0, 10**6, 0.01, 0.01 + 1e-3 + 3e-4 + 2e-3 + 3e-3, reduced=10**6))
    found = fit_overheads(done)
    assert found.iteration_s == pytest.approx(1e-3)
    assert found.task_s == pytest.approx(3e-5)
    assert found.message_s == pytest.approx(1e-4)
    assert found.message_s_per_byte == pytest.approx(2e-9)
    assert found.reduced_s_per_byte == pytest.approx(3e-9)
    assert found.error_before > 0.05


def test_overheads_are_never_negative() -> None:
    found = fit_overheads([load(5, 3, 100, 2.0, 1.0), load(0, 0, 0, 2.0, 2.0)])
    assert (found.iteration_s, found.task_s, found.message_s, found.message_s_per_byte) == (0, 0, 0, 0)
    assert found.error_before == found.error_after == pytest.approx(0.5)


def test_a_fit_leaves_what_collectives_take() -> None:
    found = fit_overheads([load(0, 0, 0, 1.0, 1.5), load(0, 0, 0, 2.0, 2.5)])
    entered = found.entered(Overheads(collective_s=1e-4, collective_s_per_byte=1e-9), "calibrated today")
    assert (entered.collective_s, entered.collective_s_per_byte) == (1e-4, 1e-9)
    assert entered.iteration_s == pytest.approx(0.5)
    assert entered.provenance == "calibrated today"


def test_what_bytes_take_on_their_way_is_a_part_of_what_is_fitted() -> None:
    found = fit_overheads([load(0, 0, n, 1.0, 1.0 + 3e-9 * n) for n in (0, 10**6, 10**8)])
    # Measured with the links, 2 of 3 ns for each byte; full links lost more than runs do.
    assert found.entered(Overheads(carry_s_per_byte=2e-9), "").message_s_per_byte == pytest.approx(1e-9)
    entered = found.entered(Overheads(carry_s_per_byte=4e-9), "")
    assert (entered.message_s_per_byte, entered.carry_s_per_byte) == (0.0, pytest.approx(3e-9))
    nothing = fit_overheads([load(0, 0, 0, 1.0, 1.5)]).entered(Overheads(carry_s_per_byte=4e-9), "")
    assert (nothing.message_s_per_byte, nothing.carry_s_per_byte) == (0.0, 4e-9)
    # A byte of a sum takes 2 + 3 ns, whatever full links lost.
    summed = [
        load(0, 0, n, 1.0, 1.0 + 2e-9 * n + 3e-9 * c, reduced=c)
        for n, c in ((0, 0), (10**7, 0), (10**8, 10**8))
    ]
    entered = fit_overheads(summed).entered(Overheads(carry_s_per_byte=4e-9), "")
    assert (entered.message_s_per_byte, entered.carry_s_per_byte) == (0.0, pytest.approx(2e-9))
    assert entered.reduced_s_per_byte == pytest.approx(3e-9)


def test_traffic_is_counted_on_both_sides() -> None:
    graph, cluster = capture_model("lenet", 4), load_cluster("cpu-1x2")
    problem = Problem(graph=graph, cluster=cluster, cost=RooflineCostModel())
    first, *others = graph.operators
    apart = Strategy((unsplit(first, 0), *(unsplit(operator, 1) for operator in others)))
    found = list(loads(problem, [apart, data_parallel(graph, cluster)], [(1.0, 2.0), (3.0, 3.0)]))
    # The activation goes to rank 1, its gradient comes back.
    size = 2 * graph.tensors[first.outputs[0].tensor].num_bytes
    assert [f.traffic.num_messages for f in found[:2]] == [2, 2]
    assert [f.traffic.num_bytes for f in found[:2]] == pytest.approx([size, size], rel=1e-6)
    trained = sum(operator.has_backward for operator in others)
    assert [f.traffic.num_reduced_bytes for f in found[:2]] == [0, 0]
    assert [f.traffic.num_passes for f in found[:2]] == [1 + first.has_backward, len(others) + trained]
    for f in found[2:]:
        # A ring over two sends as much as it sums, and receives it.
        assert f.traffic.num_bytes == pytest.approx(2 * 4 * graph.num_parameters, rel=1e-6)
        assert f.traffic.num_reduced_bytes == pytest.approx(f.traffic.num_bytes, rel=1e-6)
        # Cells travel together, and cost no message each.
        assert f.traffic.num_messages == 0
    assert [f.ran_s for f in found] == [1.0, 2.0, 3.0, 3.0]
    assert all(f.predicted_s > 0 for f in found)


def test_what_is_charged_is_what_was_counted() -> None:
    graph, cluster = capture_model("lenet", 4), load_cluster("cpu-1x2")
    problem = Problem(graph=graph, cluster=cluster, cost=RooflineCostModel())
    overheads = Overheads(message_s=1e-3, message_s_per_byte=1e-9, reduced_s_per_byte=2e-9)
    charged = replace(problem, cluster=replace(cluster, overheads=overheads))
    apart = [unsplit(operator, number % 2) for number, operator in enumerate(graph.operators)]
    strategies = [data_parallel(graph, cluster), Strategy(tuple(apart))]
    for strategy in strategies:
        taken_s = simulate(charged, strategy).device_message_s.tolist()
        counted = [found.traffic for found in loads(problem, [strategy], [(1.0, 1.0)])]
        expected = [1e-3 * f.num_messages + 1e-9 * f.num_bytes + 2e-9 * f.num_reduced_bytes for f in counted]
        assert taken_s == pytest.approx(expected, rel=1e-6)


def test_a_collective_is_fitted_beyond_its_links() -> None:
    modelled = [1e-5 + size / 1e9 for size in SIZES]
    measured = [m + 2e-4 + size * 5e-10 for m, size in zip(modelled, SIZES, strict=True)]
    assert fit_collective(SIZES, measured, modelled) == pytest.approx((2e-4, 5e-10))
    assert fit_collective(SIZES, [m / 2 for m in modelled], modelled) == (0.0, 0.0)


def test_a_cluster_with_fitted_collectives_predicts_what_was_measured() -> None:
    bare = load_cluster("cpu-1x2")
    measured = [2 * t + 1e-4 for t in predicted_all_reduces(bare, SIZES)]
    fitted = with_collectives(bare, SIZES, measured)
    assert predicted_all_reduces(fitted, SIZES) == pytest.approx(measured, rel=0.02)
    assert fitted.overheads.collective_s > 1e-4
