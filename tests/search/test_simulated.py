"""Searches on top of the real simulator."""

from dataclasses import replace
from pathlib import Path

import pytest

from soaprl.graph.operators import OperatorGraph
from soaprl.search.metropolis import MetropolisSettings, metropolis, paper_settings
from soaprl.search.proposals import ProposalSettings
from soaprl.search.registry import compare, methods, search
from soaprl.search.task import Budget
from soaprl.simulator import Evaluation, Problem, Simulator, simulate
from soaprl.strategy.strategy import Strategy
from tests.search.synthetic import all_strategies, pointwise_chain, toy_task
from tests.toys import TableCost, ToyBuilder, chain, diamond, node_cluster, tied, toy_type, uniform_cluster


def heavy_weights(*, memory_bytes: int = 1 << 30) -> Problem:
    """One operator with 64 weights for each of 4 samples, on two devices."""
    builder = ToyBuilder(sample=4)
    builder.linear("heavy", builder.input("x", channel=1), 64)
    cluster = uniform_cluster(2, device_types=(toy_type(memory_bytes=memory_bytes),))
    return Problem(graph=builder.build("heavy"), cluster=cluster, cost=TableCost())


@pytest.mark.parametrize("graph", [chain(num_operators=2, sample=2, channel=2), pointwise_chain(sample=2)])
@pytest.mark.parametrize("settings", [MetropolisSettings(beta_relative=50.0), paper_settings()])
def test_the_optimum_over_all_strategies_is_found(graph: OperatorGraph, settings: MetropolisSettings) -> None:
    problem = Problem(graph=graph, cluster=uniform_cluster(2, bandwidth=4.0), cost=TableCost())
    simulator = Simulator(problem)
    settings = replace(settings, beta_relative=50.0, num_random_starts=3)
    allowed = [
        strategy
        for strategy in all_strategies(graph, 2)
        if settings.proposal.reductions or all(config.degrees[2:] != (2,) for config in strategy.configs)
    ]
    optimum = min(simulator.evaluate(strategy).iteration_time_s for strategy in allowed)
    result = metropolis(toy_task(problem, simulator, evaluations=4000), settings)
    assert result.evaluation.iteration_time_s == optimum


# What has a strategy for two linear branches; experts are for whole kinds of models.
APPLICABLE = [name for name in methods() if name not in ("one-weird-trick", "gnmt-expert", "megatron")]


@pytest.mark.parametrize("name", APPLICABLE)
def test_what_a_method_reports_is_what_simulation_says(name: str) -> None:
    problem = Problem(graph=diamond(sample=8, channel=8), cluster=node_cluster(2, 2), cost=TableCost())
    result = search(name, toy_task(problem, Simulator(problem), evaluations=200))
    replayed = simulate(problem, result.strategy)
    assert replayed.iteration_time_s == result.evaluation.iteration_time_s
    assert replayed.communication_bytes == result.evaluation.communication_bytes


def test_search_splits_the_channels_where_weights_are_heavy() -> None:
    problem = heavy_weights()
    data_parallel, found = compare(
        problem, Simulator(problem), ["data-parallel", "mcmc"], Budget(evaluations=500)
    )
    # A half of 4 x 64 x 1 units takes 128 s forward and 256 s backward. Halves of the samples must then
    # all-reduce 64 x 4 bytes over links of 1 byte/s, 2 (n - 1) / n = 1 times; halves of the channels do not.
    assert data_parallel.evaluation.iteration_time_s == pytest.approx(128 + 256 + 256, rel=1e-4)
    assert found.evaluation.iteration_time_s == 128 + 256
    assert found.strategy.configs[0].degrees == (1, 2, 1)


def test_an_interrupted_search_resumes_bit_for_bit_in_a_fresh_simulator(tmp_path: Path) -> None:
    problem = Problem(graph=tied(sample=4, channel=4), cluster=uniform_cluster(4), cost=TableCost())
    settings = MetropolisSettings(beta_relative=50.0)

    class Interrupting:
        def __init__(self, at: int) -> None:
            self.simulator, self.left = Simulator(problem), at

        def evaluate(self, strategy):  # type: ignore[no-untyped-def]
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return self.simulator.evaluate(strategy)

    whole = metropolis(toy_task(problem, Simulator(problem), evaluations=600), settings)
    task = toy_task(problem, Interrupting(222), evaluations=600, state_path=tmp_path / "state.json")
    assert metropolis(task, settings).interrupted
    resumed = metropolis(replace(task, evaluator=Simulator(problem), resume=True), settings)
    assert resumed.strategy == whole.strategy
    assert resumed.num_accepted == whole.num_accepted
    assert resumed.history_best_s.tolist() == whole.history_best_s.tolist()


def test_a_search_that_starts_from_what_does_not_fit_ends_with_what_does() -> None:
    roomy = heavy_weights()
    needed = search("data-parallel", toy_task(roomy, Simulator(roomy))).evaluation.peak_memory_bytes
    # Data parallelism keeps all weights on both devices; halves of the channels keep half of them.
    problem = heavy_weights(memory_bytes=needed - 1)
    simulator = Simulator(problem)
    assert not search("data-parallel", toy_task(problem, simulator)).evaluation.feasible
    found = search("mcmc", toy_task(problem, simulator, evaluations=500)).evaluation
    assert found.feasible
    assert found.peak_memory_bytes < needed


class Unbounded:
    """A simulator that never stops early."""

    def __init__(self, problem: Problem) -> None:
        self.simulator = Simulator(problem)

    def evaluate(self, strategy: Strategy) -> Evaluation:
        return self.simulator.evaluate(strategy)


class Counting(Unbounded):
    """A simulator that may stop early, and counts how often it does."""

    num_cut = 0

    def evaluate_within(self, strategy: Strategy, limit_s: float) -> Evaluation | None:
        found = self.simulator.evaluate_within(strategy, limit_s)
        self.num_cut += found is None
        return found


@pytest.mark.parametrize("tied_moves", [0.0, 0.4])
def test_stopping_early_does_not_change_the_chain(tied_moves: float) -> None:
    problem = Problem(graph=tied(sample=4, channel=4), cluster=uniform_cluster(4), cost=TableCost())
    settings = MetropolisSettings(beta_relative=50.0, proposal=ProposalSettings(tied_moves=tied_moves))
    counting = Counting(problem)
    whole, cut = (
        metropolis(toy_task(problem, evaluator, evaluations=800), settings)
        for evaluator in (Unbounded(problem), counting)
    )
    assert counting.num_cut > 100
    assert cut.strategy == whole.strategy
    assert cut.evaluation == whole.evaluation
    assert cut.num_accepted == whole.num_accepted
    assert cut.history_best_s.tolist() == whole.history_best_s.tolist()
    assert cut.history_evaluations.tolist() == whole.history_evaluations.tolist()
