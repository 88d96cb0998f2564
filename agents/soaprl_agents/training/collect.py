"""Collects lessons of many problems, a file for each: what is there already is not collected again."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from soaprl_agents.decoding import ProblemPolicy, sweep
from soaprl_agents.network import PolicyNetwork
from soaprl_agents.training.lessons import Lessons, load_lessons, make_lessons, save_lessons
from soaprl_agents.training.recipe import TeachingSection
from soaprl_agents.training.teacher import Teacher
from soaprl_envs.choices import choices
from soaprl_envs.features import problem_features

from soaprl.simulator.problem import Problem

_SAMPLES = 8


class Lesson(NamedTuple):
    """What is to be taught: a problem that is made when its turn comes, a seed, and the file for the rows."""

    make: Callable[[], Problem]
    seed: int
    path: Path


def collect(lesson: Lesson, settings: TeachingSection, network: PolicyNetwork | None) -> Lessons:
    """The lessons at ``lesson.path``; taught now and written there if the file is missing.

    Args:
        lesson: The problem.
        settings: How it is taught.
        network: If given, the teacher also starts from its samples.

    Raises:
        PolicyError: There is a file, and it is damaged.
        OutputError: The file cannot be written.
    """
    if lesson.path.is_file():
        return load_lessons(lesson.path)
    found = teach(lesson.make(), settings, lesson.seed, network)
    save_lessons(lesson.path, found)
    return found


def teach(
    problem: Problem, settings: TeachingSection, seed: int, network: PolicyNetwork | None = None
) -> Lessons:
    """Search `problem` as the teacher does, for ``settings.evaluations``; see `Teacher`."""
    offered = choices(problem)
    features = problem_features(offered)
    teacher = Teacher(offered, features, seed)
    start_s = teacher.winner_s
    rng = np.random.default_rng((seed, 1))
    starts = [offered.nearest(strategy) for _, strategy in offered.experts]
    if network is not None:
        starts += _samples(ProblemPolicy(network, offered, features), rng)
    teacher.begin_at(starts)
    for chosen in starts[len(offered.experts) :]:
        teacher.visit(chosen, max_visits=offered.num_operators)
    while teacher.num_evaluations < settings.evaluations:
        changed = teacher.descend(max_visits=offered.num_operators)
        teacher.recite(share=settings.recited, disturbance=settings.disturbance)
        if changed < offered.num_operators // 10:
            teacher.disturb(settings.kicks * float(rng.random()))
    return make_lessons(features, teacher.rows, teacher.winner, (start_s, teacher.winner_s))


def _samples(policy: ProblemPolicy, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """What the policy would do, so that the teacher says what was wrong with it."""
    return list(sweep(policy, policy.contexts(_SAMPLES), rng).chosen)
