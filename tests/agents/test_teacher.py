from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
from soaprl_agents.training.collect import Lesson, collect, collect_all, searched, teach
from soaprl_agents.training.lessons import Lessons, load_lessons
from soaprl_agents.training.recipe import TeachingSection
from soaprl_agents.training.teacher import REFINING, SEQUENTIAL, Teacher
from soaprl_envs.choices import choices
from soaprl_envs.context import CONTEXT_COLUMNS
from soaprl_envs.features import problem_features
from soaprl_envs.problems import ProblemSpec, build_problem

from soaprl.errors import PolicyError
from soaprl.search.experts import starting_strategies
from soaprl.search.optcnn import plan_optcnn
from soaprl.simulator.evaluator import Simulator
from soaprl.strategy.strategy import Strategy
from tests.agents.networks import decided_network, larger_problem, small_problem

SETTINGS = TeachingSection(evaluations=1500)


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    return teach(larger_problem(), SETTINGS, 0)


def test_the_winner_is_a_strategy_of_the_time_that_is_claimed(lessons: Lessons) -> None:
    problem = larger_problem()
    offered, simulator = choices(problem), Simulator(problem)
    start_s, winner_s = lessons.times_s
    assert simulator.evaluate(offered.strategy(lessons.winner)).iteration_time_s == winner_s
    assert simulator.evaluate(offered.strategy(offered.start)).iteration_time_s == start_s
    assert winner_s < start_s


def test_excesses_are_what_simulation_says_of_each_candidate() -> None:
    problem = larger_problem()
    offered, simulator = choices(problem), Simulator(problem)
    teacher = Teacher(offered, problem_features(offered), 0)
    # Before the first change every row looks from data parallelism.
    while not teacher.rows:
        teacher.descend(max_visits=1)
    row = teacher.rows[0]
    group = [row.operator]
    times = []
    for config in offered.configs[row.operator]:
        evaluation = simulator.evaluate(offered.strategy(offered.start).replaced(group[0], config))
        times.append(evaluation.iteration_time_s)
    finite = np.isfinite(row.excess[: len(times)])
    expected = np.log(times) - log(min(times))
    np.testing.assert_allclose(row.excess[: len(times)][finite], expected[finite], atol=1e-6)
    assert (expected[~finite] > log(1.5)).all(), "only hopeless candidates are not simulated to their end"
    assert row.excess[len(times) :].size == 0 or np.isinf(row.excess[len(times) :]).all()


def test_rows_are_of_both_kinds_and_tell_what_is_decided(lessons: Lessons) -> None:
    column = CONTEXT_COLUMNS.index("neighbours_decided")
    first = lessons.features.order[0]
    decided = lessons.contexts[..., column].max(axis=1)
    of_first = lessons.operators == first
    assert (decided[of_first & (lessons.kinds == REFINING)] > 0).any()
    assert (decided[of_first & (lessons.kinds == SEQUENTIAL)] == 0).all(), (
        "nothing is decided before the first"
    )
    assert (lessons.excess.min(axis=1) == 0).all()
    assert (lessons.contexts[..., CONTEXT_COLUMNS.index("is_current")] == 0).all()


def test_teaching_is_the_same_for_the_same_seed(lessons: Lessons) -> None:
    again, other = teach(larger_problem(), SETTINGS, 0), teach(larger_problem(), SETTINGS, 1)
    assert (again.excess == lessons.excess).all()
    assert other.excess.shape != lessons.excess.shape or (other.excess != lessons.excess).any()


def test_lessons_are_collected_once_and_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "lessons.npz"
    taught = collect(
        Lesson("toy", larger_problem, 0, path), TeachingSection(evaluations=300), decided_network()
    )

    def never() -> None:
        raise AssertionError("the problem was made again")

    again = collect(Lesson("toy", never, 0, path), TeachingSection(evaluations=300), None)  # type: ignore[arg-type]
    for name in Lessons._fields[1:]:
        assert (getattr(again, name) == getattr(taught, name)).all()
    for one, other in zip(again.features, taught.features, strict=True):
        assert (one == other).all()


def test_damaged_lessons_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "lessons.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(PolicyError, match="expected lessons"):
        load_lessons(path, "toy")


def test_the_teacher_starts_where_optcnn_ends() -> None:
    """OptCNN's optimum takes a sixth less here than experts' strategies and what descent from them finds."""
    problem = build_problem(ProblemSpec(model="synthetic-1037", cluster="random-1037"))
    offered = choices(problem)
    simulator = Simulator(problem)

    def time_s(strategy: Strategy) -> float:
        return simulator.evaluate(strategy).iteration_time_s

    planned_s = time_s(offered.strategy(offered.nearest(plan_optcnn(problem).strategy)))
    assert planned_s < 0.85 * min(time_s(strategy) for _, strategy in starting_strategies(problem))
    lessons = teach(problem, TeachingSection(evaluations=100), 0)
    assert lessons.times_s[1] == time_s(offered.strategy(lessons.winner)) <= planned_s


@pytest.mark.parametrize(("number", "max_operators", "ahead"), [(219, 160, "without"), (47, 64, "with")])
def test_the_better_of_two_searches_teaches(number: int, max_operators: int, ahead: str) -> None:
    spec = ProblemSpec(model=f"synthetic-{number}", cluster=f"random-{number}", max_operators=max_operators)
    problem, settings = build_problem(spec), TeachingSection(evaluations=500)
    offered = choices(problem)
    features = problem_features(offered)
    planned = offered.nearest(plan_optcnn(problem).strategy)
    found = {
        which: searched(
            Teacher(offered, features, 0), offered, settings, starts, np.random.default_rng((0, 1))
        )
        for which, starts in (("without", []), ("with", [planned]))
    }
    better = min(found.values(), key=lambda teacher: teacher.winner_s)
    assert better is found[ahead]
    assert found["with"].winner_s != pytest.approx(found["without"].winner_s, rel=0.1)
    lessons = teach(problem, settings, 0)
    assert lessons.times_s[1] == better.winner_s
    assert (lessons.winner == better.winner).all()
    assert lessons.operators.tolist() == [row.operator for row in better.rows]


def test_lessons_of_another_problem_are_an_error(tmp_path: Path) -> None:
    """As when a suite has changed since the training began."""
    path, settings = tmp_path / "lessons.npz", TeachingSection(evaluations=50)
    collect(Lesson("toy", small_problem, 0, path), settings, None)
    with pytest.raises(
        PolicyError, match="expected lessons of other, found lessons of toy: the suite has changed"
    ):
        collect(Lesson("other", small_problem, 0, path), settings, None)


def test_lessons_do_not_depend_on_how_many_processes_teach_them(tmp_path: Path) -> None:
    settings, said = TeachingSection(evaluations=200), list[str]()

    def lessons(workers: int) -> list[Lessons]:
        folder = tmp_path / str(workers)
        folder.mkdir()
        planned = [Lesson(f"toy-{seed}", small_problem, seed, folder / f"{seed}.npz") for seed in range(3)]
        say = lambda done, name: said.append(f"{done} {name}")  # noqa: E731
        # Each of two processes teaches one lesson, so that the third is taught by another.
        return list(collect_all(planned, settings, decided_network(), workers=workers, say=say, each=1))

    for one, other in zip(lessons(1), lessons(2), strict=True):
        for name in Lessons._fields[1:]:
            assert (getattr(one, name) == getattr(other, name)).all()
    assert said[:3] == ["0 toy-0", "1 toy-1", "2 toy-2"]
    assert {word.split()[0] for word in said[3:6]} == {"1", "2", "3"}


def test_a_problem_of_which_nothing_fits_in_memory_has_lessons_without_rows(tmp_path: Path) -> None:
    problem = small_problem()
    tiny = replace(
        problem.cluster,
        device_types=tuple(replace(kind, memory_bytes=1) for kind in problem.cluster.device_types),
    )
    path = tmp_path / "lessons.npz"
    lesson = Lesson("tiny", lambda: replace(problem, cluster=tiny), 0, path)
    found = collect(lesson, TeachingSection(evaluations=200), None)
    assert len(found.operators) == len(load_lessons(path, "tiny").excess) == 0
    assert not np.isfinite(found.times_s).any()
