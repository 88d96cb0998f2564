"""Stages against brute force, and the methods that make micro-batches."""

from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soaprl.cluster.files import load_cluster
from soaprl.cost.roofline import RooflineCostModel
from soaprl.errors import SearchError
from soaprl.graph.capture import capture_model
from soaprl.search.pipeline import pipelines
from soaprl.search.pipeline.balance import StageCosts, balanced
from soaprl.search.pipeline.moves import Moves
from soaprl.search.registry import search
from soaprl.simulator import Problem, Simulator
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import OpConfig, Sharding
from soaprl.strategy.validation import check_strategy
from tests.search.synthetic import toy_task
from tests.toys import TableCost, chain, node_cluster, toy_type, uniform_cluster


def costs_of(seed: int, num_stages: int, num_operators: int, *, capacity: float) -> StageCosts:
    rng = np.random.default_rng(seed)
    return StageCosts(
        time_s=rng.integers(1, 9, (num_stages, num_operators)).astype(np.float64),
        receive_s=rng.integers(0, 4, num_operators + 1).astype(np.float64),
        held_bytes=rng.integers(0, 5, num_operators).astype(np.float64),
        kept_bytes=rng.integers(0, 5, num_operators).astype(np.float64),
        in_flight=np.arange(num_stages, 0, -1).astype(np.float64),
        capacity_bytes=np.full(num_stages, capacity),
    )


def by_brute_force(costs: StageCosts) -> tuple[bool, float]:
    """Whether anything fits, and the slowest stage of the best of what fits (of all, if nothing does)."""
    num_stages, n = costs.time_s.shape
    found = {True: [np.inf], False: [np.inf]}
    for inner in combinations(range(1, n), num_stages - 1):
        slowest, fits = 0.0, True
        for s, (first, last) in enumerate(pairwise((0, *inner, n))):
            slowest = max(slowest, costs.receive_s[first] + sum(costs.time_s[s, first:last]))
            load = sum(costs.held_bytes[first:last]) + costs.in_flight[s] * sum(costs.kept_bytes[first:last])
            fits = fits and load <= costs.capacity_bytes[s]
        found[fits].append(slowest)
    fits = min(found[True]) < np.inf
    return fits, min(found[True]) if fits else min(found[False])


@given(
    seed=st.integers(0, 10_000),
    num_stages=st.integers(1, 4),
    more=st.integers(0, 5),
    capacity=st.sampled_from([8.0, 20.0, 30.0, 1e9]),
)
@settings(deadline=None)
def test_stages_are_the_best_that_fit(seed: int, num_stages: int, more: int, capacity: float) -> None:
    costs = costs_of(seed, num_stages, num_stages + more, capacity=capacity)
    cuts = balanced(costs)
    assert (cuts.fits, cuts.slowest_s) == by_brute_force(costs)
    assert sorted(set(cuts.stages)) == list(range(num_stages))
    assert list(cuts.stages) == sorted(cuts.stages)


@cache
def chain_problem(num_devices: int, *, sample: int = 16, memory_bytes: int = 1 << 30) -> Problem:
    cluster = uniform_cluster(
        num_devices, bandwidth=2.0**40, device_types=(toy_type(memory_bytes=memory_bytes),)
    )
    return Problem(graph=chain(num_operators=8, sample=sample), cluster=cluster, cost=TableCost())


@pytest.mark.parametrize("num_devices", [2, 4, 6])
def test_every_pipeline_is_legal_and_takes_about_what_was_estimated(num_devices: int) -> None:
    problem = chain_problem(num_devices)
    found = pipelines(problem)
    assert {p.num_stages for p in found} == {d for d in range(1, num_devices + 1) if num_devices % d == 0}
    simulator = Simulator(problem)
    for pipeline in found:
        strategy = pipeline.strategy
        check_strategy(problem.graph, num_devices, strategy)
        assert strategy.num_stages == pipeline.num_stages
        width = num_devices // pipeline.num_stages
        for stage, config in zip(strategy.stages, strategy.configs, strict=True):
            assert set(config.devices) <= set(range(stage * width, (stage + 1) * width))
        time_s = simulator.evaluate(strategy).iteration_time_s
        # Balanced stages and fast links: what is not estimated is that stages are seldom all as slow.
        assert 0.5 * pipeline.estimated_s < time_s <= pipeline.estimated_s * 1.01


def test_balanced_stages_of_equal_operators_reach_the_estimate() -> None:
    problem = chain_problem(4)
    for pipeline in pipelines(problem):
        p, m = pipeline.num_stages, pipeline.strategy.micro_batches
        if p == 4:
            assert pipeline.strategy.stages == (0, 0, 1, 1, 2, 2, 3, 3)
            # A stage: 2 operators of 16 / m x 4 x 4 units of work, 3 s a unit.
            assert pipeline.estimated_s == pytest.approx((m + p - 1) * 2 * 16 // m * 16 * 3)


def test_pipeline_takes_the_best_of_what_it_simulates_with_both_schedules() -> None:
    problem = chain_problem(4)
    simulator = Simulator(problem)
    result = search("pipeline", toy_task(problem, simulator, evaluations=None))
    best = [p for p in pipelines(problem) if p.num_stages > 1]
    assert result.num_evaluations == min(12, len(best)) + 2
    assert result.strategy.num_stages > 1
    assert result.strategy.schedule in (Schedule.ONE_F_ONE_B, Schedule.GPIPE)
    times = [simulator.evaluate(p.strategy).iteration_time_s for p in best[:12]]
    assert result.evaluation.iteration_time_s == pytest.approx(min(times))


def test_accumulation_keeps_one_stage_and_needs_less_memory() -> None:
    problem = chain_problem(4)
    simulator = Simulator(problem)
    found = search("accumulation", toy_task(problem, simulator, evaluations=None))
    whole = search("data-parallel", toy_task(problem, simulator, evaluations=None))
    assert found.strategy.num_stages == 1
    assert found.strategy.micro_batches > 1
    assert found.evaluation.peak_memory_bytes < whole.evaluation.peak_memory_bytes


def test_stages_that_do_not_fit_come_last() -> None:
    found = pipelines(chain_problem(2, memory_bytes=1400))
    assert {p.fits for p in found} == {True, False}
    assert [p.fits for p in found] == sorted((p.fits for p in found), reverse=True)


def test_transformers_are_cut_by_columns_and_rows_inside_of_stages() -> None:
    sizes = {"num_layers": 2, "width": 64, "num_heads": 4, "sequence": 16}
    graph = capture_model("gpt2", 16, options=sizes)
    problem = Problem(graph=graph, cluster=load_cluster("a100-1x4"), cost=RooflineCostModel())
    found = pipelines(problem)
    assert {(p.num_stages, p.tensor_degree) for p in found} >= {(1, 4), (2, 1), (2, 2), (4, 1)}
    simulator = Simulator(problem)
    for pipeline in found[:6]:
        assert simulator.evaluate(pipeline.strategy).feasible


@pytest.mark.parametrize(
    ("problem", "sharding", "message"),
    [
        (chain_problem(1), Sharding.NONE, "'pipeline' does not apply: there is one device"),
        (chain_problem(2, sample=1), Sharding.NONE, "expected a batch that can be cut into micro-batches"),
    ],
)
def test_where_there_is_no_pipeline_the_method_says_why(
    problem: Problem, sharding: Sharding, message: str
) -> None:
    task = replace(toy_task(problem, Simulator(problem), evaluations=None), sharding=sharding)
    with pytest.raises(SearchError, match=message):
        search("pipeline", task)


def test_optimizer_state_can_be_sharded_over_replicas_of_a_stage() -> None:
    problem = chain_problem(4)
    simulator = Simulator(problem)
    task = toy_task(problem, simulator, evaluations=None)
    plain = search("accumulation", task)
    sharded = search("accumulation", replace(task, sharding=Sharding.ZERO1))
    assert sharded.strategy.sharding is Sharding.ZERO1
    assert sharded.evaluation.peak_memory_bytes < plain.evaluation.peak_memory_bytes


def test_received_bytes_are_what_other_devices_hold_of_what_the_first_task_reads() -> None:
    graph = chain(num_operators=2, sample=4, channel=4)
    moves = Moves(graph, [0, 1])
    by_sample = OpConfig((2, 1, 1), (0, 1))
    by_channel = OpConfig((1, 2, 1), (0, 1))
    by_input = OpConfig((1, 1, 2), (0, 1))
    # The same parts on the same devices: nothing moves. Elements take 4 bytes.
    assert moves.received_bytes((by_sample, by_sample), 2).tolist() == [[0, 0], [0, 0]]
    # 2 of 4 samples of all 4 channels are on the other device.
    assert moves.received_bytes((by_sample, by_channel), 2)[1].tolist() == [0, 2 * 4 * 4]
    # Column, then row: half of the channels are read where they are made.
    assert moves.received_bytes((by_channel, by_input), 2)[1].tolist() == [0, 0]
    # A partial sum of what is read comes from the other device.
    assert moves.received_bytes((by_input, by_sample), 2)[1].tolist() == [0, 2 * 4 * 4]


def test_on_several_nodes_stages_and_replicas_take_turns_to_be_inside_of_one() -> None:
    cluster = node_cluster(2, 2, bandwidth=2.0**40, network_bandwidth=2.0**30)
    problem = Problem(graph=chain(num_operators=4, sample=8), cluster=cluster, cost=TableCost())
    found = {
        tuple(dict.fromkeys(config.devices for config in p.strategy.configs))
        for p in pipelines(problem)
        if p.num_stages == 2 and p.strategy.micro_batches == 2
    }
    assert found == {((0, 1), (2, 3)), ((0, 2), (1, 3))}
