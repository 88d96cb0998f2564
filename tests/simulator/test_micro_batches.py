"""Micro-batches and schedules: against the slow simulator, delta simulation and closed forms."""

import random
from dataclasses import replace
from math import inf

import numpy as np
import pytest

from soaprl.errors import StrategyError
from soaprl.graph.micro_batch import micro_batch
from soaprl.graph.operators import OperatorGraph, Term
from soaprl.simulator import DeltaSimulator, Problem, SimulationOptions, Simulator, TaskKind, simulate
from soaprl.strategy.baselines import unsplit
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import OpConfig, Strategy
from tests.simulator.random_problems import (
    random_config,
    random_micro_batches,
    random_problem,
    random_strategy,
)
from tests.simulator.reference import Reference
from tests.simulator.test_delta import assert_equal
from tests.simulator.test_reference import assert_same
from tests.toys import TableCost, ToyBuilder, chain, tied, uniform_cluster

ORDERS = [Schedule.GPIPE, Schedule.ONE_F_ONE_B]
SHAPES = [(1, 1), (1, 4), (2, 1), (2, 4), (3, 2), (4, 4), (4, 8), (4, 12)]


def one_stage_a_device(p: int, m: int, schedule: Schedule, *, per_stage: int = 2) -> Strategy:
    """A chain of `p` times `per_stage` whole operators, stage s on device s."""
    stages = tuple(s for s in range(p) for _ in range(per_stage))
    configs = tuple(OpConfig((1, 1, 1), (s,)) for s in stages)
    return Strategy(configs, micro_batches=m, schedule=schedule, stages=stages)


def pipe_problem(p: int, m: int, *, per_stage: int = 2, samples: int = 1, **costs: float) -> Problem:
    """The chain for `one_stage_a_device`; transfers take no time."""
    return Problem(
        graph=chain(num_operators=p * per_stage, sample=m * samples, channel=4),
        cluster=uniform_cluster(p, bandwidth=2.0**60),
        cost=TableCost(**costs),  # type: ignore[arg-type]
        options=SimulationOptions(optimizer="sgd"),
    )


@pytest.mark.parametrize("schedule", ORDERS)
@pytest.mark.parametrize(("p", "m"), SHAPES)
def test_the_bubble_of_balanced_stages_is_what_the_papers_say(p: int, m: int, schedule: Schedule) -> None:
    problem = pipe_problem(p, m, default_forward=1.0, default_backward=2.0)
    result = simulate(problem, one_stage_a_device(p, m, schedule))
    # A stage: 2 operators of 1 x 4 x 4 units of work, forward 1 s and backward 2 s a unit.
    stage_s = 2 * 16 * (1.0 + 2.0)
    assert result.device_busy_s.tolist() == [m * stage_s] * p
    assert result.iteration_time_s == (m + p - 1) * stage_s
    bubble = 1 - result.device_busy_s[0] / result.iteration_time_s
    assert bubble == pytest.approx((p - 1) / (m + p - 1))


@pytest.mark.parametrize("schedule", ORDERS)
@pytest.mark.parametrize(("p", "m"), SHAPES)
def test_activations_are_kept_for_as_many_micro_batches_as_the_schedule_has_in_flight(
    p: int, m: int, schedule: Schedule
) -> None:
    problem = pipe_problem(p, m, per_stage=1)
    # Each operator keeps 1,000 bytes of its own for its backward pass.
    kept = (Term(coefficient=1000.0, factors=(0,)),)
    operators = tuple(replace(op, internal_saved_bytes=kept) for op in problem.graph.operators)
    problem = replace(problem, graph=replace(problem.graph, operators=operators))
    result = simulate(problem, one_stage_a_device(p, m, schedule, per_stage=1))
    size = 1 * 4 * 4  # an activation: one sample of 4 channels of 4 bytes
    parameters = 2 * 4 * 4 * 4  # weights and their gradients; plain SGD has no state
    for stage in range(p):
        in_flight = m if schedule is Schedule.GPIPE else min(p - stage, m)
        activations = int(result.memory.peak_bytes[stage]) - parameters
        # Besides what is kept (the 1,000 bytes and the input of each): an output that is not read yet, the
        # gradient of an output, that of an input.
        passing = activations - in_flight * (1000 + size)
        assert passing in (size, 2 * size, 3 * size)
        assert passing == size or stage < p - 1


@pytest.mark.parametrize("seed", range(40))
def test_random_micro_batches_have_exactly_the_trace_of_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng, num_operators=rng.randint(1, 6))
    simulator = Simulator(problem)
    for _ in range(3):
        strategy = random_micro_batches(rng, problem)
        assert_same(simulate(problem, strategy, simulator=simulator), Reference(problem, strategy))


@pytest.mark.parametrize("seed", range(10))
def test_every_step_of_a_walk_with_micro_batches_is_what_full_simulation_says(seed: int) -> None:
    rng = random.Random(400 + seed)
    problem = random_problem(rng, num_operators=rng.randint(2, 8))
    strategy = random_micro_batches(rng, problem)
    part = micro_batch(problem.graph, strategy.micro_batches)
    delta = DeltaSimulator(problem, strategy)
    for _ in range(30):
        operators = rng.sample(range(len(part.operators)), rng.randint(1, min(2, len(part.operators))))
        changes = {o: random_config(rng, part, o, problem.cluster.num_devices) for o in operators}
        limit_s = inf if rng.random() < 0.5 else delta.evaluation.iteration_time_s * rng.uniform(0.9, 1.3)
        found = delta.propose_within(changes, limit_s)
        configs = tuple(changes.get(o, config) for o, config in enumerate(delta.strategy.configs))
        expected = Simulator(problem).evaluate(replace(delta.strategy, configs=configs))
        if found is None:
            assert expected.iteration_time_s > limit_s
            continue
        assert found == expected
        assert_equal(delta.result(), simulate(problem, replace(delta.strategy, configs=configs)))
        if rng.random() < 0.4:
            delta.commit()
        else:
            delta.rollback()


@pytest.mark.parametrize("seed", range(8))
def test_a_simulator_goes_from_any_micro_batches_to_any_others(seed: int) -> None:
    rng = random.Random(500 + seed)
    problem = random_problem(rng, num_operators=6)
    simulator = Simulator(problem)
    for _ in range(12):
        strategy = random_micro_batches(rng, problem)
        if rng.random() < 0.3:
            strategy = random_strategy(rng, problem.graph, problem.cluster.num_devices)
        assert simulator.evaluate(strategy) == Simulator(problem).evaluate(strategy)


def test_without_a_schedule_one_micro_batch_is_the_whole_batch() -> None:
    rng = random.Random(0)
    problem = random_problem(rng, num_operators=6)
    strategy = random_strategy(rng, problem.graph, problem.cluster.num_devices)
    assert replace(strategy, micro_batches=1, schedule=Schedule.NONE, stages=()) == strategy
    simulator = Simulator(problem)
    simulator.evaluate(strategy)
    assert simulator.engine.problem is problem


@pytest.mark.parametrize("schedule", list(Schedule))
def test_one_stage_is_gradient_accumulation(schedule: Schedule) -> None:
    """The same computing time; parameters count, and gradients are synchronized, once."""
    graph = chain(num_operators=3, sample=8, channel=4)
    problem = Problem(graph=graph, cluster=uniform_cluster(2), cost=TableCost())
    configs = tuple(OpConfig((2, 1, 1), (0, 1)) for _ in graph.operators)
    whole = simulate(problem, Strategy(configs))
    cut = simulate(problem, Strategy(configs, micro_batches=4, schedule=schedule))
    assert cut.device_busy_s.tolist() == whole.device_busy_s.tolist()
    assert cut.synchronization_bytes == whole.synchronization_bytes
    assert cut.memory.parameters_bytes.tolist() == whole.memory.parameters_bytes.tolist()
    assert cut.memory.optimizer_bytes.tolist() == whole.memory.optimizer_bytes.tolist()
    assert int((cut.tasks.kind == TaskKind.SYNCHRONIZATION).sum()) == 3
    # Each device keeps for a sample its three inputs of 16 bytes, of 4 samples or of 1; besides, in a
    # backward pass, one output or gradient of a micro-batch.
    kept = 3 * 16 * (1 if schedule is Schedule.ONE_F_ONE_B else 4)
    assert cut.memory.activations_bytes.tolist() == [kept + 16] * 2
    assert whole.memory.activations_bytes.tolist() == [3 * 16 * 4 + 16 * 4] * 2


def test_tied_weights_of_two_stages_are_synchronized_once() -> None:
    problem = Problem(
        graph=tied(sample=4), cluster=uniform_cluster(2), cost=TableCost(update_s_per_byte=0.25)
    )
    configs = tuple(unsplit(op, stage) for stage, op in enumerate(problem.graph.operators))
    strategy = Strategy(configs, micro_batches=4, schedule=Schedule.ONE_F_ONE_B, stages=(0, 1))
    result = simulate(problem, strategy)
    assert int((result.tasks.kind == TaskKind.SYNCHRONIZATION).sum()) == 1
    assert_same(result, Reference(problem, strategy))


@pytest.mark.parametrize("schedule", ORDERS)
def test_devices_take_turns_in_the_order_of_the_schedule(schedule: Schedule) -> None:
    problem = pipe_problem(3, 4, per_stage=1)
    result = simulate(problem, one_stage_a_device(3, 4, schedule, per_stage=1))
    tasks = result.tasks
    passes: dict[int, list[tuple[float, str]]] = {0: [], 1: [], 2: []}
    for k in range(tasks.num_tasks):
        kind, operator = TaskKind(int(tasks.kind[k])), int(tasks.operator[k])
        if kind in (TaskKind.FORWARD, TaskKind.BACKWARD):
            name = f"{'F' if kind is TaskKind.FORWARD else 'B'}{operator // 3}"
            passes[int(tasks.source[k])].append((float(tasks.start_s[k]), name))
    text = {device: " ".join(name for _, name in sorted(found)) for device, found in passes.items()}
    gpipe = "F0 F1 F2 F3 B0 B1 B2 B3"
    expected = {
        Schedule.GPIPE: {0: gpipe, 1: gpipe, 2: gpipe},
        Schedule.ONE_F_ONE_B: {
            0: "F0 F1 F2 B0 F3 B1 B2 B3",
            1: "F0 F1 B0 F2 B1 F3 B2 B3",
            2: "F0 B0 F1 B1 F2 B2 F3 B3",
        },
    }
    assert text == expected[schedule]


def graph_of(sample: int) -> OperatorGraph:
    return chain(num_operators=2, sample=sample)


@pytest.mark.parametrize("schedule", ORDERS)
def test_an_update_comes_after_all_passes_of_its_device_with_or_without_parameters(
    schedule: Schedule,
) -> None:
    # The gradients of stage 1 are complete two backward tasks before its passes are.
    builder = ToyBuilder(sample=1)
    x = builder.linear("first", builder.input("x", channel=4), 4)
    y = builder.linear("second", builder.add("plain 2", builder.add("plain 1", x)), 4)
    builder.mean("loss", y)
    graph = builder.build()
    stages = tuple(int(operator.name != "first") for operator in graph.operators)
    configs = tuple(unsplit(op, s) for op, s in zip(graph.operators, stages, strict=True))
    strategy = Strategy(configs, micro_batches=1, schedule=schedule, stages=stages)
    cost = TableCost(update_s_per_byte=10.0)
    result = simulate(Problem(graph=graph, cluster=uniform_cluster(2), cost=cost), strategy)
    tasks = result.tasks
    took_s = tasks.finish_s - tasks.start_s
    for device in range(2):
        passes = np.isin(tasks.kind, (TaskKind.FORWARD, TaskKind.BACKWARD)) & (tasks.source == device)
        update = (tasks.kind == TaskKind.UPDATE) & (tasks.source == device)
        # 4 x 4 weights of 4 bytes.
        assert took_s[update].tolist() == [640.0]
        assert tasks.start_s[update].tolist() == [tasks.finish_s[passes].max()]
    # One micro-batch: everything comes one after the other, but stage 1 is updated meanwhile.
    assert result.iteration_time_s == took_s.sum() - 640.0


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Strategy((), micro_batches=2), "expected 2 configurations"),
        (
            Strategy((OpConfig((4, 1, 1), (0, 0, 1, 1)),) * 2, micro_batches=2),
            "'op0@0', factor 'sample': expected a degree from 1 to 2, found 4",
        ),
    ],
)
def test_what_cannot_be_simulated_is_an_error_and_the_simulator_goes_on(
    strategy: Strategy, message: str
) -> None:
    problem = Problem(graph=graph_of(4), cluster=uniform_cluster(2), cost=TableCost())
    simulator = Simulator(problem)
    good = Strategy((OpConfig((1, 1, 1), (0,)),) * 2, micro_batches=2)
    before = simulator.evaluate(good)
    with pytest.raises(StrategyError, match=message):
        simulator.evaluate(strategy)
    assert simulator.evaluate(good) == before
