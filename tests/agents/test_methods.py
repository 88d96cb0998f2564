import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from soaprl_agents.checkpoints import Checkpoint, save_checkpoint
from soaprl_agents.methods import learned_methods

from soaprl.errors import PolicyError
from soaprl.search.registry import find_method, search
from soaprl.search.task import SearchResult
from soaprl.simulator.evaluator import Simulator
from soaprl.strategy.baselines import data_parallel, single_device
from soaprl.strategy.strategy import Sharding
from soaprl.strategy.validation import check_strategy
from tests.agents.networks import decided_network, larger_problem
from tests.search.synthetic import toy_task

NAMES = ["policy", "guided", "finetune"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(made, Checkpoint(network=decided_network(), name="toy"))
    return made


def found(folder: Path, name: str, **options: object) -> SearchResult:
    task = toy_task(larger_problem(), Simulator(larger_problem()), evaluations=40)
    return search(learned_methods(folder)[name], replace(task, **options))


def same(one: SearchResult, other: SearchResult) -> bool:
    return (one.strategy, one.num_evaluations, one.history_best_s.tolist()) == (
        other.strategy,
        other.num_evaluations,
        other.history_best_s.tolist(),
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_learned_method_finds_a_legal_strategy_at_least_as_good_as_data_parallelism(
    folder: Path, name: str
) -> None:
    problem = larger_problem()
    result = found(folder, name, seed=2)
    check_strategy(problem.graph, problem.cluster.num_devices, result.strategy)
    known = Simulator(problem).evaluate(result.strategy)
    assert result.evaluation.iteration_time_s == known.iteration_time_s
    start = Simulator(problem).evaluate(data_parallel(problem.graph, problem.cluster))
    assert result.evaluation.iteration_time_s <= start.iteration_time_s
    assert (result.method, result.seed, result.num_evaluations) == (name, 2, 40)


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_find_equal_strategies_and_other_seeds_search_otherwise(folder: Path, name: str) -> None:
    one, again, other = (found(folder, name, seed=seed) for seed in (1, 1, 3))
    assert same(one, again)
    assert not same(one, other)


@pytest.mark.parametrize("name", ["policy", "guided"])
def test_a_resumed_search_makes_the_steps_of_an_uninterrupted_one(
    folder: Path, tmp_path: Path, name: str
) -> None:
    state = tmp_path / "state.json"
    task = toy_task(larger_problem(), Simulator(larger_problem()), evaluations=25, state_path=state)
    method = learned_methods(folder)[name]
    search(method, task)
    longer = replace(task, budget=replace(task.budget, evaluations=40), resume=True)
    assert same(search(method, longer), found(folder, name))


def test_a_walk_begins_at_the_given_strategy(folder: Path) -> None:
    problem = larger_problem()
    start = single_device(problem.graph, problem.cluster)
    task = toy_task(problem, Simulator(problem), evaluations=3)
    result = search(learned_methods(folder)["guided"], task, start=start)
    assert result.initial_time_s == Simulator(problem).evaluate(start).iteration_time_s


def test_strategies_are_sharded_as_the_task_says(folder: Path) -> None:
    for name in NAMES:
        assert found(folder, name, sharding=Sharding.ZERO2).strategy.sharding is Sharding.ZERO2


def test_a_missing_policy_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="Name the folder of a trained policy"):
        found(tmp_path, "policy")


def test_learned_methods_are_found_beside_the_others() -> None:
    assert find_method("guided", learned_methods()).name == "guided"
    assert list(learned_methods()) == NAMES


def test_listing_the_methods_imports_neither_torch_nor_stable_baselines() -> None:
    code = (
        "import sys, soaprl.cli.known as known; known.known_methods();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'stable_baselines3', 'torch_geometric')))"
    )
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ".:envs:agents"}).returncode == 0
