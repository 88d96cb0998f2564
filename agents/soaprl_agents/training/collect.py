"""Collects lessons of many problems, a file for each: what is there already is not collected again."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from soaprl_agents.decoding import ProblemPolicy, sweep
from soaprl_agents.network import PolicyNetwork
from soaprl_agents.processes import processes, shifts
from soaprl_agents.training.lessons import Lessons, load_lessons, make_lessons, save_lessons
from soaprl_agents.training.recipe import TeachingSection
from soaprl_agents.training.teacher import Teacher
from soaprl_envs.choices import Choices, choices
from soaprl_envs.features import problem_features

from soaprl.search.optcnn import plan_optcnn
from soaprl.simulator.problem import Problem

_SAMPLES = 8
_LESSONS_A_SHIFT = 24


class Lesson(NamedTuple):
    """What is to be taught.

    Attributes:
        name: Of the problem.
        make: Makes the problem when its turn comes.
        seed: Of the teacher.
        path: The file for the rows.
    """

    name: str
    make: Callable[[], Problem]
    seed: int
    path: Path


def collect_all(
    lessons: Sequence[Lesson],
    settings: TeachingSection,
    network: PolicyNetwork | None,
    *,
    workers: int,
    say: Callable[[int, str], None],
    each: int = _LESSONS_A_SHIFT,
) -> Iterator[Lessons]:
    """The lessons in their order, after those that are missing have been taught, by several processes.

    A lesson is a function of its problem, its seed and the network: how many processes there are changes
    nothing. An interrupt waits for the lessons that are being taught.

    Args:
        lessons: What is to be taught.
        settings: How it is taught.
        network: If given, the teacher also starts from its samples.
        workers: Processes; 1: this one.
        say: Told how many lessons are there, and the name of the last or next one.
        each: About how many lessons a process teaches before another takes its place.

    Raises:
        PolicyError: A file is damaged or of another problem.
        OutputError: A file cannot be written.
    """
    missing = [lesson for lesson in lessons if not lesson.path.is_file()]
    if workers > 1 and len(missing) > 1:
        taught = _taught(missing, settings, network, workers, each)
        for done, lesson in enumerate(taught, len(lessons) - len(missing) + 1):
            say(done, lesson.name)
    for number, lesson in enumerate(lessons):
        say(number, lesson.name)
        yield collect(lesson, settings, network)


def _taught(
    missing: Sequence[Lesson],
    settings: TeachingSection,
    network: PolicyNetwork | None,
    workers: int,
    each: int,
) -> Iterator[Lesson]:
    """Every missing lesson, when it has been written to its file."""
    for shift in shifts(missing, workers * each):
        with processes(min(workers, len(shift))) as pool:
            running = {pool.submit(_write, lesson, settings, network): lesson for lesson in shift}
            for future in as_completed(running):
                future.result()
                yield running[future]


def _write(lesson: Lesson, settings: TeachingSection, network: PolicyNetwork | None) -> None:
    """Like `collect`, for a process that need not hand the rows back."""
    collect(lesson, settings, network)


def collect(lesson: Lesson, settings: TeachingSection, network: PolicyNetwork | None) -> Lessons:
    """The lessons at ``lesson.path``; taught now and written there if the file is missing.

    Args:
        lesson: The problem.
        settings: How it is taught.
        network: If given, the teacher also starts from its samples.

    Raises:
        PolicyError: There is a file, and it is damaged or of another problem.
        OutputError: The file cannot be written.
    """
    if lesson.path.is_file():
        return load_lessons(lesson.path, lesson.name)
    found = teach(lesson.make(), settings, lesson.seed, network)
    save_lessons(lesson.path, lesson.name, found)
    return found


def teach(
    problem: Problem, settings: TeachingSection, seed: int, network: PolicyNetwork | None = None
) -> Lessons:
    """Search `problem` twice, also from OptCNN's optimum and without it; the lessons of what ended earlier.

    Where many operators would have to change at once, descent does not get from the one to where the other
    leads, and either may be far ahead.
    """
    offered = choices(problem)
    features = problem_features(offered)
    rng = np.random.default_rng((seed, 1))
    samples = [] if network is None else _samples(ProblemPolicy(network, offered, features), rng)
    planned = offered.nearest(plan_optcnn(problem).strategy)
    searches = [
        searched(Teacher(offered, features, seed), offered, settings, starts, deepcopy(rng))
        for starts in (samples, [planned, *samples])
    ]
    best = min(searches, key=lambda teacher: teacher.winner_s)
    return make_lessons(features, best.rows, best.winner, (best.start_s, best.winner_s))


def searched(
    teacher: Teacher,
    offered: Choices,
    settings: TeachingSection,
    starts: Sequence[NDArray[np.int64]],
    rng: np.random.Generator,
) -> Teacher:
    """The teacher after ``settings.evaluations``.

    It begins at the best of the experts' strategies and of `starts`; it descends from all of the latter.
    """
    teacher.begin_at([*(offered.nearest(strategy) for _, strategy in offered.experts), *starts])
    for chosen in starts:
        teacher.visit(chosen, max_visits=offered.num_operators)
    while teacher.num_evaluations < settings.evaluations:
        changed = teacher.descend(max_visits=offered.num_operators)
        teacher.recite(share=settings.recited, disturbance=settings.disturbance)
        if changed < offered.num_operators // 10:
            teacher.disturb(settings.kicks * float(rng.random()))
    return teacher


def _samples(policy: ProblemPolicy, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """What the policy would do, so that the teacher says what was wrong with it."""
    return list(sweep(policy, policy.contexts(_SAMPLES), rng).chosen)
