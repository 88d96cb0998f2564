from dataclasses import replace
from math import log

import pytest
from soaprl_agents.searching import search_samples
from soaprl_agents.training.collect import teach
from soaprl_agents.training.judging import examination, judge
from soaprl_agents.training.recipe import TeachingSection

from soaprl.simulator.evaluator import Simulator
from tests.agents.networks import decided_network, larger_problem
from tests.search.synthetic import toy_task

SETTINGS = TeachingSection(evaluations=400)


def test_a_policy_is_judged_by_what_the_method_finds_with_16_evaluations() -> None:
    problem, network = larger_problem(), decided_network()
    lessons = teach(problem, SETTINGS, 0)
    verdict = judge(network, [examination(lambda: problem, lessons)])
    found = search_samples(toy_task(problem, Simulator(problem), evaluations=16), network)
    start_s, winner_s = lessons.times_s.tolist()
    assert verdict.first_excess == pytest.approx(min(1.0, log(found.initial_time_s / winner_s)))
    assert verdict.best_excess == pytest.approx(log(found.evaluation.iteration_time_s / winner_s))
    assert verdict.winner_speed_up == pytest.approx(min(1.0, log(start_s / winner_s)))
    assert verdict.winner_speed_up == pytest.approx(verdict.speed_up + verdict.best_excess)


def test_what_does_not_fit_in_memory_is_as_bad_as_can_be() -> None:
    problem, network = larger_problem(), decided_network()
    lessons = teach(problem, SETTINGS, 0)
    kinds = tuple(replace(kind, memory_bytes=1) for kind in problem.cluster.device_types)
    tiny = replace(problem, cluster=replace(problem.cluster, device_types=kinds))
    verdict = judge(network, [examination(lambda: tiny, lessons)])
    assert verdict.first_excess == 1.0
