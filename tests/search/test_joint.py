"""Joint search: its arms, how evaluations are dealt out to them, and what it finds."""

import random
from dataclasses import replace
from itertools import groupby

import pytest

from soaprl.cluster.cluster import DeviceType
from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.model import Shard, TaskTime
from soaprl.cost.roofline import RooflineCostModel
from soaprl.errors import SearchError
from soaprl.graph.capture import capture_model
from soaprl.graph.operators import Operator, OperatorGraph
from soaprl.search.joint import JointSettings, joint
from soaprl.search.joint.arms import Arm, Waves
from soaprl.search.joint.moves import Moves, kinds
from soaprl.search.pipeline import pipelines
from soaprl.search.registry import search
from soaprl.search.task import ProgressReport, SearchTask
from soaprl.simulator import Evaluation, Problem, SimulationOptions, Simulator
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import Sharding, Strategy
from tests.search.synthetic import Score, Steps, Synthetic, toy_problem, toy_task
from tests.simulator.random_problems import random_problem, random_strategy
from tests.toys import TableCost, chain, data_parallel_toy, toy_type, uniform_cluster


def all_arms(task: SearchTask) -> list[Arm]:
    waves, found, number = Waves(task), list[Arm](), 0
    while wave := waves.wave(number):
        found += wave
        number += 1
    return found


def test_arms_are_all_shardings_of_the_whole_batch_and_of_each_number_of_micro_batches() -> None:
    problem = toy_problem(chain(num_operators=4, sample=8), 2)
    arms = all_arms(toy_task(problem, Synthetic()))
    counts = [1, *dict.fromkeys(arm.micro_batches for arm in arms if arm.micro_batches > 1)]
    assert sorted(counts) == [1, 2, 4, 8]
    assert [(arm.micro_batches, arm.sharding) for arm in arms] == [(m, s) for m in counts for s in Sharding]
    for arm in arms:
        for _, strategy in arm.starts:
            assert (strategy.micro_batches, strategy.sharding) == (arm.micro_batches, arm.sharding)
            Simulator(problem).evaluate(strategy)
        assert len({strategy for _, strategy in arm.starts}) == len(arm.starts)
    schedules = {s.schedule for arm in arms for _, s in arm.starts if s.num_stages > 1}
    assert schedules == {Schedule.ONE_F_ONE_B, Schedule.GPIPE}


def test_what_the_task_or_the_problem_decides_is_no_choice() -> None:
    problem = toy_problem(chain(num_operators=4, sample=8), 2)
    task = toy_task(problem, Synthetic())
    assert {arm.sharding for arm in all_arms(replace(task, sharding=Sharding.ZERO2))} == {Sharding.ZERO2}
    assert {arm.micro_batches for arm in all_arms(replace(task, micro_batches=4))} == {4}
    paper = replace(problem, options=SimulationOptions(paper=True))
    assert {arm.sharding for arm in all_arms(replace(task, problem=paper))} == {Sharding.NONE}
    alone = toy_problem(chain(num_operators=4, sample=8), 1)
    assert {arm.sharding for arm in all_arms(toy_task(alone, Synthetic()))} == {Sharding.NONE}


class Recording(Synthetic):
    """Remembers the arm of each strategy it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.arms: list[tuple[int, Sharding]] = []

    def evaluate(self, strategy: Strategy) -> Score:
        self.arms.append((strategy.micro_batches, strategy.sharding))
        return super().evaluate(strategy)


def test_a_bracket_gives_each_round_as_many_evaluations_and_half_as_many_arms() -> None:
    evaluator = Recording()
    problem = toy_problem(chain(num_operators=4, sample=8), 2)
    num_starts = len(Waves(toy_task(problem, evaluator)).wave(0)[0].starts)
    settings = JointSettings(arms=4, first_steps=8)
    joint(toy_task(problem, evaluator, evaluations=4 * num_starts + 3 * 32), None, settings)
    runs = [len(list(group)) for _, group in groupby(evaluator.arms)]
    assert runs[:4] == [num_starts] * 4
    # Four arms of 8 steps, two of 16, one of 32; the same arm may end a round and begin the next.
    steps = evaluator.arms[4 * num_starts :]
    rounds = [steps[:32], steps[32:64], steps[64:]]
    assert [len(set(one)) for one in rounds] == [4, 2, 1]
    assert [{one.count(arm) for arm in one} for one in rounds] == [{8}, {16}, {32}]
    assert set(rounds[2]) < set(rounds[1]) < set(rounds[0])


def test_after_a_bracket_the_next_wave_is_opened_and_steps_are_twice_as_many() -> None:
    evaluator = Recording()
    problem = toy_problem(chain(num_operators=4, sample=8), 2)
    first, second = (Waves(toy_task(problem, evaluator)).wave(k) for k in (0, 1))
    opened = [sum(len(arm.starts) for arm in wave) for wave in (first, second)]
    settings = JointSettings(arms=2, first_steps=4)
    # A bracket of two rounds of 8 evaluations, then one of two rounds of 16.
    joint(toy_task(problem, evaluator, evaluations=opened[0] + 16 + opened[1] + 32), None, settings)
    at = opened[0] + 16
    assert {m for m, _ in evaluator.arms[:at]} == {1}
    assert {m for m, _ in evaluator.arms[at : at + opened[1]]} == {second[0].micro_batches}
    last = evaluator.arms[at + opened[1] :]
    assert [{one.count(arm) for arm in one} for one in (last[:16], last[16:])] == [{8}, {16}]


def chain_of_layers(memory_bytes: int = 1 << 30) -> Problem:
    return Problem(
        graph=chain(num_operators=8, sample=8, channel=8),
        cluster=uniform_cluster(4, bandwidth=2.0**10, device_types=(toy_type(memory_bytes=memory_bytes),)),
        cost=TableCost(),
        options=SimulationOptions(prefetch=1),
    )


def peak_bytes(strategy: Strategy) -> int:
    return Simulator(chain_of_layers()).evaluate(strategy).peak_memory_bytes


def test_it_finds_the_sharding_or_the_micro_batches_without_which_nothing_fits() -> None:
    plain = data_parallel_toy(chain_of_layers().graph, 4)
    sharded = peak_bytes(replace(plain, sharding=Sharding.ZERO3))
    problem = chain_of_layers(sharded - 1)
    found = search("joint", toy_task(problem, Simulator(problem), evaluations=300))
    assert found.evaluation.feasible
    assert found.strategy.micro_batches > 1 or found.strategy.sharding is Sharding.ZERO3
    assert found.evaluation == Simulator(problem).evaluate(found.strategy)


def test_every_evaluation_is_that_of_a_fresh_simulator() -> None:
    problem = chain_of_layers()
    asked: set[tuple[int, Sharding]] = set()

    class Checked(Simulator):
        def evaluate_within(self, strategy: Strategy, limit_s: float) -> Evaluation | None:
            asked.add((strategy.micro_batches, strategy.sharding))
            found = super().evaluate_within(strategy, limit_s)
            expected = Simulator(self.problem).evaluate(strategy)
            assert found == expected or (found is None and expected.iteration_time_s > limit_s)
            return found

    evaluator = Checked(problem)
    task = toy_task(problem, evaluator, evaluations=260)
    found = joint(task, None, JointSettings(arms=3, first_steps=3))
    assert found.num_evaluations == 260
    assert {m for m, _ in asked} > {1, 2}
    assert {sharding for _, sharding in asked} == set(Sharding)


@pytest.mark.parametrize("cluster", ["a100-1x4", "p100-2x2"])
def test_it_is_at_least_as_good_as_every_expert_for_a_transformer(cluster: str) -> None:
    sizes = {"num_layers": 2, "width": 64, "num_heads": 4, "sequence": 16}
    graph = capture_model("gpt2", 16, options=sizes)
    problem = Problem(graph=graph, cluster=cluster_from_name(cluster), cost=RooflineCostModel())
    simulator = Simulator(problem)
    task = toy_task(problem, simulator, evaluations=400)
    found = search("joint", task)
    for name in ("data-parallel", "megatron", "fsdp", "pipeline", "accumulation"):
        for sharding in Sharding if name in ("megatron", "data-parallel") else [Sharding.NONE]:
            expert = search(name, replace(task, sharding=sharding))
            assert found.evaluation.iteration_time_s <= expert.evaluation.iteration_time_s, (name, sharding)
    assert found.num_evaluations == 400


class Counting:
    """A cost model, and a clock that moves by a second with each task that the model is asked about."""

    name = "counting"

    def __init__(self) -> None:
        self.now = 0.0

    def task_time(
        self, graph: OperatorGraph, operator: Operator, shard: Shard, device_type: DeviceType
    ) -> TaskTime:
        self.now += 1.0
        return TableCost().task_time(graph, operator, shard, device_type)

    def update_time(self, num_bytes: int, device_type: DeviceType) -> float:
        return TableCost().update_time(num_bytes, device_type)

    def __call__(self) -> float:
        return self.now


def test_a_budget_in_seconds_ends_it_between_estimates() -> None:
    cost = Counting()
    problem = Problem(graph=chain(num_operators=8, sample=64), cluster=uniform_cluster(8), cost=cost)
    pipelines(problem)
    all_estimates_s, cost.now = cost.now, 0.0
    evaluator = Recording()
    task = toy_task(problem, evaluator, evaluations=None, seconds=0.1 * all_estimates_s, clock=cost)
    found = joint(task)
    # The first wave and a bracket ask for no estimate; the second wave would take ten times the budget.
    assert {m for m, _ in evaluator.arms} == {1}
    assert found.num_evaluations == evaluator.calls > 16
    assert 0.1 * all_estimates_s <= found.search_time_s < 0.2 * all_estimates_s


def test_even_without_time_a_search_makes_one_evaluation() -> None:
    cost = Counting()
    problem = Problem(graph=chain(num_operators=4, sample=8), cluster=uniform_cluster(2), cost=cost)
    task = toy_task(problem, Recording(), evaluations=None, seconds=1.0, clock=cost)
    found = joint(replace(task, micro_batches=4))
    assert (found.num_evaluations, found.strategy.micro_batches) == (1, 4)


def test_while_it_estimates_it_says_so() -> None:
    problem = toy_problem(chain(num_operators=4, sample=8), 2)
    reports: list[ProgressReport] = []
    joint(toy_task(problem, Synthetic(), evaluations=300, clock=Steps(step=1.0), progress=reports.append))
    stages = [stage for stage, _ in groupby(report.stage for report in reports)]
    assert stages.count("more micro-batches") == 1
    assert stages[0].startswith("bracket 1: ")


def test_a_given_strategy_comes_first_and_decides_only_where_the_search_begins() -> None:
    problem = chain_of_layers()
    plain = replace(data_parallel_toy(problem.graph, 4), sharding=Sharding.ZERO1)
    start = replace(plain, micro_batches=2, schedule=Schedule.GPIPE)
    evaluator = Recording()
    task = toy_task(problem, evaluator, evaluations=500)
    found = search("joint", task, start=start)
    assert found.initial_time_s == evaluator.cost(start)
    # Its arm alone makes the steps of the first bracket; then the others are opened, as without it.
    assert set(evaluator.arms[:9]) == {(2, Sharding.ZERO1)}
    assert {(m, s) for m in (1, 2) for s in Sharding} <= set(evaluator.arms)
    again = search("joint", toy_task(problem, Recording(), evaluations=200), start=found.strategy)
    assert again.evaluation.iteration_time_s <= found.evaluation.iteration_time_s


@pytest.mark.parametrize("wrong", [{"arms": 0}, {"first_steps": 0}, {"temperature": 0.0}])
def test_settings_without_sense_are_errors(wrong: dict[str, int]) -> None:
    with pytest.raises(SearchError, match="expected"):
        JointSettings(**wrong)  # type: ignore[arg-type]


def test_layers_of_a_transformer_are_of_one_kind_and_other_shapes_of_another() -> None:
    sizes = {"num_layers": 3, "width": 64, "num_heads": 4, "sequence": 16}
    graph = capture_model("gpt2", 4, options=sizes)
    found = kinds(graph)
    members: dict[int, list[str]] = {}
    for kind, operator in zip(found, graph.operators, strict=True):
        members.setdefault(kind, []).append(operator.kind)
    assert all(len(set(names)) == 1 for names in members.values())
    attention = [names for names in members.values() if "attention" in names[0]]
    assert [len(names) for names in attention] == [3]


@pytest.mark.parametrize("seed", range(6))
def test_a_step_changes_a_proposal_or_takes_whole_kinds_from_another_strategy(seed: int) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng, num_operators=7)
    graph, n = problem.graph, problem.cluster.num_devices
    current, donor = (random_strategy(rng, graph, n) for _ in range(2))
    moves, kind_of = Moves(graph, n, seed), kinds(graph)
    crossed = 0
    for step in range(60):
        found = moves.changed(3, step, current, [donor])
        assert found == moves.changed(3, step, current, [donor])
        different = {o for o in range(len(graph.operators)) if found.configs[o] != current.configs[o]}
        alike = {k for o in different for k in range(len(kind_of)) if kind_of[k] == kind_of[o]}
        if different and all(found.configs[k] == donor.configs[k] for k in alike):
            crossed += 1
        else:
            # All operators of a proposal were configured alike, and are so again.
            assert len({found.configs[o] for o in different}) <= 1
            assert len({current.configs[o] for o in different}) <= 1
    assert 10 < crossed < 50
    assert moves.energy(3, 1) > 0
    others = [Moves(graph, n, seed).changed(4, step, current, []) for step in range(30)]
    assert others != [moves.changed(3, step, current, []) for step in range(30)]
