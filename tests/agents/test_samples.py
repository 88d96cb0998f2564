import numpy as np
from soaprl_agents.decoding import ready_policy, sweep
from soaprl_agents.searching.samples import Sampler, Samples, SampleSettings, decode_batch

from soaprl.search.experts import starts_for
from soaprl.search.stepping import run_procedure
from soaprl.search.task import Evaluation
from soaprl.simulator.evaluator import Simulator
from soaprl.strategy.strategy import Strategy
from tests.agents.networks import decided_network, larger_problem
from tests.search.synthetic import toy_task


class Listening:
    """A simulator that remembers what it was asked."""

    def __init__(self) -> None:
        self._simulator = Simulator(larger_problem())
        self.asked: list[Strategy] = []
        self.times_s: list[float] = []

    def evaluate(self, strategy: Strategy) -> Evaluation:
        found = self._simulator.evaluate(strategy)
        self.asked.append(strategy)
        self.times_s.append(found.iteration_time_s)
        return found


def searched(settings: SampleSettings, *, evaluations: int) -> Listening:
    policy, listening = ready_policy(decided_network(), larger_problem()), Listening()
    task = toy_task(larger_problem(), listening, evaluations=evaluations)
    run_procedure(task, Samples(task, lambda: policy, settings))
    return listening


def test_nothing_is_evaluated_twice_but_a_start_that_is_the_most_probable_strategy() -> None:
    asked = searched(SampleSettings(), evaluations=100).asked
    assert len(asked) > 20
    assert len(set(asked[1:])) == len(asked[1:])


def test_first_comes_the_most_probable_strategy_of_two_sweeps_then_data_parallelism_and_experts() -> None:
    policy = ready_policy(decided_network(), larger_problem())
    contexts = policy.contexts(1)
    for _ in range(2):
        sweep(policy, contexts, np.random.default_rng(9), num_greedy=1)
    starts = [s for _, s in starts_for(toy_task(larger_problem(), Simulator(larger_problem())), None)]
    asked = searched(SampleSettings(), evaluations=30).asked
    assert asked[0] == policy.choices.strategy(contexts.chosen[0])
    assert asked[1 : 1 + len(starts)] == starts


def test_the_second_batch_refines_the_best_of_what_came_before() -> None:
    settings = SampleSettings(first=4, batch=5, num_batches=2)
    found = searched(settings, evaluations=100)
    policy = ready_policy(decided_network(), larger_problem())
    first = {policy.choices.strategy(row) for row in decode_batch(policy, (0, 0), settings, size=4)}
    before = [number for number, strategy in enumerate(found.asked) if strategy in first]
    best = min(range(max(before) + 1), key=found.times_s.__getitem__)
    base = policy.choices.nearest(found.asked[best])
    rows = decode_batch(policy, (0, 1), settings, size=5, refined=base)
    assert {policy.choices.strategy(row) for row in rows} - set(found.asked[: max(before) + 1]) == set(
        found.asked[max(before) + 1 :]
    )


def test_a_sampler_has_the_first_batch_and_the_starts() -> None:
    task = toy_task(larger_problem(), Simulator(larger_problem()))
    policy = ready_policy(decided_network(), larger_problem())
    starts = tuple(strategy for _, strategy in starts_for(task, None))
    settings = SampleSettings(first=5)
    sampler = Sampler(task, policy, starts, settings)
    found = [sampler.strategy(number) for number in range(sampler.num_strategies)]
    rows = [policy.choices.strategy(row) for row in decode_batch(policy, (0, 0), settings, size=5)]
    assert found == [rows[0], *starts, *rows[1:]]
