"""Judges a policy by whole strategies: what it decodes for problems that it does not learn from.

A policy that chooses well row by row may still decode badly, as what it decided before leads it to where no
lesson was. So validation problems are searched by the method `policy`, with 16 evaluations.

Metrics (TensorBoard), means over the validation problems:

- `valid/decoded/first_excess`: log(time of its most probable strategy / time of the teacher's winner), at
  most 1 a problem, also where it does not fit in memory.
- `valid/decoded/best_excess`: the same of the best of the 16.
- `valid/decoded/speed_up`: log(time of data parallelism / time of that best), at least 0. The teacher's own
  is `valid/decoded/winner_speed_up`.
"""

import time
from collections.abc import Callable, Sequence
from math import inf, isfinite, log
from typing import NamedTuple

import numpy as np
from soaprl_agents.decoding import ProblemPolicy
from soaprl_agents.network import PolicyNetwork
from soaprl_agents.searching.samples import Samples, SampleSettings
from soaprl_agents.training.lessons import Lessons
from soaprl_envs.choices import Choices, choices

from soaprl.search.stepping import run_procedure
from soaprl.search.task import Budget, SearchTask
from soaprl.simulator.evaluator import Simulator
from soaprl.simulator.problem import Problem

_EVALUATIONS = 16
_WORST = 1.0


class Examination(NamedTuple):
    """A problem on which policies are judged.

    Attributes:
        offered: Its candidates.
        lessons: What the teacher found.
        simulator: Of the problem.
    """

    offered: Choices
    lessons: Lessons
    simulator: Simulator


class Verdict(NamedTuple):
    """Means over problems; see the module."""

    first_excess: float
    best_excess: float
    speed_up: float
    winner_speed_up: float


def examination(make: Callable[[], Problem], lessons: Lessons) -> Examination:
    """Makes the problem that `lessons` were taught on ready to be decoded."""
    problem = make()
    return Examination(choices(problem), lessons, Simulator(problem))


def judge(network: PolicyNetwork, examinations: Sequence[Examination]) -> Verdict:
    """What `network` decodes for the problems, the same whenever it is asked."""
    found = [_judged(network, one) for one in examinations]
    return Verdict(*np.array(found).mean(axis=0).tolist())


def _judged(network: PolicyNetwork, one: Examination) -> Verdict:
    policy = ProblemPolicy(network, one.offered, one.lessons.features)
    task = SearchTask(
        problem=one.offered.problem,
        evaluator=one.simulator,
        budget=Budget(evaluations=_EVALUATIONS),
        clock=time.perf_counter,
    )
    found = run_procedure(task, Samples(task, lambda: policy, SampleSettings()))
    feasible = found.history_evaluations.tolist()
    start_s, winner_s = one.lessons.times_s.tolist()
    best_s = min((start_s, *found.history_best_s.tolist()))
    return Verdict(
        first_excess=_excess(found.initial_time_s if feasible[:1] == [1] else inf, winner_s),
        best_excess=_excess(best_s, winner_s),
        speed_up=_excess(start_s, best_s) if isfinite(best_s) else 0.0,
        winner_speed_up=_excess(start_s, winner_s),
    )


def _excess(time_s: float, best_s: float) -> float:
    """log(time / best), at most 1; 0 where nothing fits."""
    if not isfinite(best_s):
        return 0.0
    return min(_WORST, log(time_s / best_s)) if isfinite(time_s) else _WORST
