"""Delta simulation against full simulation, to the last bit."""

import random
from dataclasses import fields, is_dataclass, replace
from math import inf
from typing import Any

import numpy as np
import pytest

from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.errors import SimulationError, StrategyError
from soaprl.search.proposals import Proposals, ProposalSettings
from soaprl.simulator import DeltaSimulator, Problem, SimulationOptions, Simulator, simulate
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.strategy import OpConfig, Sharding, Strategy
from tests.simulator.random_problems import random_config, random_problem, random_strategy
from tests.toys import chain


def changed(strategy: Strategy, changes: dict[int, OpConfig]) -> Strategy:
    configs = tuple(changes.get(o, config) for o, config in enumerate(strategy.configs))
    return replace(strategy, configs=configs)


def assert_equal(one: Any, other: Any, name: str = "result") -> None:
    """Every field, and every field of a field, to the last bit."""
    if isinstance(one, np.ndarray):
        assert np.array_equal(one, other), name
    elif is_dataclass(one) and not isinstance(one, (Problem, Strategy, type)):
        assert type(one) is type(other)
        for field in fields(one):
            assert_equal(getattr(one, field.name), getattr(other, field.name), f"{name}.{field.name}")
    else:
        assert one == other, name


def walk(
    rng: random.Random, problem: Problem, strategy: Strategy, steps: int, draw: Proposals | None
) -> None:
    """Random proposals, each compared with a full simulation; some are committed."""
    num_devices, n = problem.cluster.num_devices, len(problem.graph.operators)
    delta, full = DeltaSimulator(problem, strategy), Simulator(problem)
    assert delta.evaluation == full.evaluate(strategy)
    for step in range(steps):
        operators = rng.sample(range(n), 1 if rng.random() < 0.7 else min(n, rng.randint(1, 4)))
        changes = {o: random_config(rng, problem.graph, o, num_devices) for o in operators}
        if draw is not None:
            drawn = draw.block(0, 0, step)
            changes = {drawn.operators[0]: drawn.config(0)}
        limit_s = inf if rng.random() < 0.5 else delta.evaluation.iteration_time_s * rng.uniform(0.9, 1.3)
        expected = full.evaluate(changed(delta.strategy, changes))
        found = delta.propose_within(changes, limit_s)
        if found is None:
            assert expected.iteration_time_s > limit_s
            continue
        assert found == expected
        if rng.random() < 0.2:
            delta.commit()
            assert delta.evaluation == expected
        else:
            delta.rollback()


@pytest.mark.parametrize("seed", range(24))
def test_every_step_of_a_random_walk_is_what_full_simulation_says(seed: int) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng, num_operators=rng.randint(2, 12))
    walk(rng, problem, random_strategy(rng, problem.graph, problem.cluster.num_devices), 500, None)


@pytest.mark.parametrize("sharding", list(Sharding)[1:])
@pytest.mark.parametrize("seed", range(4))
def test_every_step_of_a_walk_of_sharded_strategies_is_what_full_simulation_says(
    seed: int, sharding: Sharding
) -> None:
    rng = random.Random(50 + seed)
    problem = random_problem(rng, num_operators=rng.randint(4, 12))
    problem = replace(problem, options=replace(problem.options, paper=False))
    strategy = random_strategy(rng, problem.graph, problem.cluster.num_devices)
    walk(rng, problem, replace(strategy, sharding=sharding), 200, None)


def chain_problem(depth: int, options: SimulationOptions | None = None) -> Problem:
    """A chain of layers on 8 devices: long runs, and in paper mode transfers that wait for them."""
    return Problem(
        graph=chain(num_operators=depth, sample=64, channel=512),
        cluster=cluster_from_name("p100-2x4"),
        cost=RooflineCostModel(),
        options=options or SimulationOptions(),
    )


@pytest.mark.parametrize("sharding", [Sharding.ZERO1, Sharding.ZERO2])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_walk_from_sharded_data_parallelism_follows_its_runs_exactly(
    sharding: Sharding, overlap: bool
) -> None:
    options = SimulationOptions(overlap_synchronization=overlap, gradient_compression="int8")
    problem = chain_problem(12, options)
    proposals = Proposals(problem.graph, problem.cluster.num_devices, ProposalSettings())
    strategy = replace(data_parallel(problem.graph, problem.cluster), sharding=sharding)
    walk(random.Random(6), problem, strategy, 200, proposals)


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_walk_from_data_parallelism_follows_its_runs_exactly(paper: bool, overlap: bool) -> None:
    problem = chain_problem(12, SimulationOptions(paper=paper, overlap_synchronization=overlap))
    proposals = Proposals(problem.graph, problem.cluster.num_devices, ProposalSettings())
    strategy = data_parallel(problem.graph, problem.cluster)
    walk(random.Random(5), problem, strategy, 300, proposals)


def test_most_tasks_of_a_proposal_are_done_in_runs() -> None:
    problem = chain_problem(40)
    delta = DeltaSimulator(problem, data_parallel(problem.graph, problem.cluster))
    operator = len(problem.graph.operators) // 2
    degrees = (1,) * len(problem.graph.operators[operator].factors)
    for device in range(8):
        delta.propose(operator, OpConfig(degrees, (device,)))
        delta.rollback()
    _, num_tasks, in_runs = delta._engine.record.gains.tolist()
    assert in_runs > 0.7 * num_tasks > 0


@pytest.mark.parametrize("seed", range(5))
def test_the_result_has_every_field_of_a_full_simulation(seed: int) -> None:
    rng = random.Random(100 + seed)
    problem = random_problem(rng, num_operators=6)
    num_devices = problem.cluster.num_devices
    delta = DeltaSimulator(problem, random_strategy(rng, problem.graph, num_devices))
    for step in range(20):
        operator = rng.randrange(6)
        changes = {operator: random_config(rng, problem.graph, operator, num_devices)}
        delta.propose_all(changes)
        assert_equal(delta.result(), simulate(problem, changed(delta.strategy, changes)))
        if step % 3 == 0:
            delta.commit()
        else:
            delta.rollback()
        assert_equal(delta.result(), simulate(problem, delta.strategy))


def test_a_rolled_back_proposal_leaves_nothing_behind() -> None:
    problem = chain_problem(3)
    strategy = data_parallel(problem.graph, problem.cluster)
    delta = DeltaSimulator(problem, strategy)
    before = delta.evaluation
    delta.propose(1, OpConfig((1,) * len(problem.graph.operators[1].factors), (3,)))
    delta.rollback()
    assert delta.strategy == strategy
    assert delta.evaluation == before
    assert delta.propose_all({}) == before


def test_proposals_are_closed_before_the_next_and_only_once() -> None:
    problem = chain_problem(2)
    delta = DeltaSimulator(problem, data_parallel(problem.graph, problem.cluster))
    with pytest.raises(SimulationError, match="expected an open proposal, found none"):
        delta.commit()
    config = delta.strategy.configs[0]
    delta.propose(0, config)
    with pytest.raises(SimulationError, match="expected no open proposal, found one"):
        delta.propose(0, config)
    delta.rollback()
    assert delta.propose_within({0: config}, 0.0) is None
    with pytest.raises(SimulationError, match="expected an open proposal"):
        delta.rollback()


def test_an_illegal_configuration_is_refused_and_changes_nothing() -> None:
    problem = chain_problem(2)
    delta = DeltaSimulator(problem, data_parallel(problem.graph, problem.cluster))
    before = delta.evaluation
    with pytest.raises(StrategyError):
        delta.propose(0, OpConfig((1,) * len(problem.graph.operators[0].factors), (99,)))
    assert delta.propose_all({}) == before


def test_plans_have_room_for_a_change_to_be_taken_back_and_tried_again() -> None:
    graph = chain(num_operators=100, sample=16, channel=16)
    problem = Problem(graph=graph, cluster=cluster_from_name("p100-4x4"), cost=RooflineCostModel())
    simulator = Simulator(problem)
    simulator.evaluate(data_parallel(graph, problem.cluster))
    plans = simulator.engine.graph.plans
    used = int(plans.cursor[:3].max())
    assert used >= 100 * 16
    num_links = len(problem.cluster.links)
    assert len(plans.time_s) >= 3 * used + problem.cluster.num_devices + num_links
