from collections import Counter
from collections.abc import Callable
from math import exp, inf, sqrt

import pytest

from soaprl.graph.operators import OperatorGraph
from soaprl.search.chain import Chain, Limits, Walker, accepts, begin, walk
from soaprl.search.proposals import Proposals, ProposalSettings
from soaprl.search.task import Best, Evaluator
from soaprl.simulator.evaluator import Simulator
from soaprl.strategy.baselines import single_device
from soaprl.strategy.strategy import OpConfig, Strategy
from tests.search.synthetic import Score, Steps, Synthetic, all_strategies, pointwise_chain, toy_problem
from tests.toys import ToyBuilder


def fresh(
    strategy: Strategy, score: Score, *, beta_relative: float = 10.0, best: Best | None = None
) -> Chain:
    best = best or Best(strategy=strategy, evaluation=score, history=())
    return begin(strategy, score, beta_relative=beta_relative, best=best, elapsed_s=0.0)


def started(
    evaluator: Synthetic, graph: OperatorGraph, num_devices: int, *, beta_relative: float = 10.0
) -> Chain:
    strategy = single_device(graph, toy_problem(graph, num_devices).cluster)
    return fresh(strategy, evaluator.evaluate(strategy), beta_relative=beta_relative)


def ignore(chain: Chain, step: int, now: float) -> None:
    pass


def walker(
    evaluator: Evaluator, proposals: Proposals, *, visit: Callable[[Chain, int, float], None] = ignore
) -> Walker:
    return Walker(
        evaluator=evaluator,
        proposals=proposals,
        seed=0,
        stream=1,
        first_number=1,
        elapsed=Steps(),
        visit=visit,
    )


def steps(number: int) -> Limits:
    return Limits(steps=number, end_s=inf, idle_steps=inf, idle_s=inf)


def test_a_proposal_is_compared_with_the_current_strategy_and_not_with_the_best() -> None:
    graph = pointwise_chain()
    strategy = single_device(graph, toy_problem(graph, 2).cluster)
    best = Best(strategy=strategy, evaluation=Score(iteration_time_s=1.0), history=())
    chain = fresh(strategy, Score(iteration_time_s=2.0), best=best)
    # Faster than the current 2 s, slower than the best 1 s; a uniform number of 1 is an exponential of 0.
    assert accepts(chain, Score(iteration_time_s=1.9), 0.0)


@pytest.mark.parametrize(("excess", "exponential"), [(0.1, 1.0), (0.2, 2.0), (0.05, 0.5)])
def test_a_slower_proposal_is_accepted_up_to_the_exponential_times_the_temperature(
    excess: float, exponential: float
) -> None:
    graph = pointwise_chain()
    strategy = single_device(graph, toy_problem(graph, 2).cluster)
    # beta = 10 / 1 s, so that exp(-beta * excess) equals the uniform number exp(-exponential) at equality.
    chain = fresh(strategy, Score(iteration_time_s=1.0), beta_relative=10.0)
    assert accepts(chain, Score(iteration_time_s=1.0 + 0.999 * excess), exponential)
    assert not accepts(chain, Score(iteration_time_s=1.0 + 1.001 * excess), exponential)


def test_what_does_not_fit_is_never_accepted_from_what_fits_and_what_fits_always_from_what_does_not() -> None:
    graph = pointwise_chain()
    strategy = single_device(graph, toy_problem(graph, 2).cluster)
    small, large = (Score(iteration_time_s=1.0, feasible=False, peak_memory_bytes=b) for b in (100, 200))
    slow = Score(iteration_time_s=50.0)
    assert not accepts(fresh(strategy, slow), small, 1e9)
    assert accepts(fresh(strategy, large), slow, 0.0)
    # Among infeasible ones memory decides: 100 more bytes at a temperature of 200 / 10 = 20 bytes.
    assert accepts(fresh(strategy, large), small, 0.0)
    assert accepts(fresh(strategy, small), large, 10.1)
    assert not accepts(fresh(strategy, small), large, 9.9)


def chi_square(observed: Counter[Strategy], probabilities: dict[Strategy, float]) -> float:
    """The statistic in standard deviations above its mean; states expected less than 8 times are pooled."""
    total = sum(observed.values())
    expected = {state: total * p for state, p in probabilities.items()}
    cells = [(observed[s], e) for s, e in expected.items() if e >= 8]
    rest = [(observed[s], e) for s, e in expected.items() if e < 8]
    if rest:
        cells.append((sum(o for o, _ in rest), sum(e for _, e in rest)))
    assert len(cells) > 50
    degrees = len(cells) - 1
    return (sum((o - e) ** 2 / e for o, e in cells) - degrees) / sqrt(2 * degrees)


def normalized(weights: dict[Strategy, float]) -> dict[Strategy, float]:
    total = sum(weights.values())
    return {state: weight / total for state, weight in weights.items()}


def tied_chain() -> OperatorGraph:
    """Three operators that share a weight of one element; only the sample factor can be split."""
    builder = ToyBuilder(sample=2)
    weight = builder.parameter("weight", 1, 1)
    x = builder.input("x", channel=1)
    for index in range(3):
        x = builder.linear(f"op{index}", x, 1, weight=weight)
    return builder.build("tied")


@pytest.mark.parametrize("graph", [pointwise_chain(num_operators=3), tied_chain()], ids=["free", "tied"])
@pytest.mark.parametrize("kind", ["uniform", "mixture"])
def test_visits_to_a_three_operator_problem_follow_the_stationary_distribution(
    kind: str, graph: OperatorGraph
) -> None:
    evaluator = Synthetic()
    mixture = Proposals(graph, 2, ProposalSettings())
    proposals = Proposals(graph, 2, ProposalSettings(kind=kind, tied_moves=0.5))
    chain = started(evaluator, graph, 2, beta_relative=2.0)
    visits: Counter[Strategy] = Counter()

    def visit(chain: Chain, step: int, now: float) -> None:
        # Far enough apart that visits are nearly independent: each operator is proposed five times.
        if step % 15 == 0:
            visits[chain.current] += 1

    walk(walker(evaluator, proposals, visit=visit), chain, steps(120_000))
    beta = 1 / chain.time_scale_s
    boltzmann = {s: exp(-beta * evaluator.cost(s)) for s in all_strategies(graph, 2)}
    weighted = {
        s: w * exp(sum(mixture.log_probability(i, c) for i, c in enumerate(s.configs)))
        for s, w in boltzmann.items()
    }
    # 2 + 2^2 configurations of each of three operators.
    assert len(boltzmann) == 216
    right, wrong = (boltzmann, weighted) if kind == "uniform" else (weighted, boltzmann)
    assert chi_square(visits, normalized(right)) < 4
    assert chi_square(visits, normalized(wrong)) > 20


def test_a_tied_move_changes_the_operators_of_a_group_that_are_configured_alike() -> None:
    graph, evaluator = tied_chain(), Synthetic()
    proposals = Proposals(graph, 2, ProposalSettings(tied_moves=0.5))
    changed: list[int] = []
    last = started(evaluator, graph, 2).current

    class Watching:
        def evaluate(self, strategy: Strategy) -> Score:
            changed.append(sum(a != b for a, b in zip(strategy.configs, last.configs, strict=True)))
            return Score(iteration_time_s=1e9)

    # Nothing is accepted, so every proposal starts from three equal configurations.
    walk(walker(Watching(), proposals), fresh(last, Score(iteration_time_s=1.0)), steps(400))
    assert set(changed) == {0, 1, 3}
    # Half of the moves are tied; a quarter of all propose what is there already: 150 each, deviation 10.
    assert 110 < changed.count(3) < 190
    assert 110 < changed.count(1) < 190


@pytest.mark.parametrize("scans", [False, True], ids=["synthetic", "simulated"])
def test_a_chain_leaves_a_start_that_it_would_never_propose(scans: bool) -> None:
    graph = tied_chain()
    problem = toy_problem(graph, 2)
    evaluator: Evaluator = Simulator(problem) if scans else Synthetic()
    proposals = Proposals(graph, 2, ProposalSettings(max_tasks=1))
    # Two tasks for each operator, where proposals have one.
    start = Strategy((OpConfig((2, 1, 1), (0, 1)),) * 3)
    assert proposals.log_probability(0, start.configs[0]) == -inf
    chain = begin(
        start,
        evaluator.evaluate(start),
        beta_relative=0.01,
        best=Best(strategy=start, evaluation=evaluator.evaluate(start), history=()),
        elapsed_s=0.0,
    )
    walker = Walker(evaluator, proposals, 0, 0, 0, lambda: 0.0, lambda *_: None)
    ended, _ = walk(walker, chain, Limits(steps=200, end_s=inf, idle_steps=inf, idle_s=inf))
    assert all(config.num_tasks == 1 for config in ended.current.configs)


def test_operators_without_shared_parameters_are_never_tied() -> None:
    proposals = Proposals(pointwise_chain(num_operators=3), 2, ProposalSettings())
    assert [proposals.tied(index) for index in range(3)] == [(0,), (1,), (2,)]
    assert Proposals(tied_chain(), 2, ProposalSettings()).tied(1) == (0, 1, 2)


def test_the_best_strategy_never_gets_worse_and_is_the_best_visited() -> None:
    graph, evaluator = pointwise_chain(num_operators=3), Synthetic()
    chain = started(evaluator, graph, 2, beta_relative=1.0)
    visited = [chain.evaluation.iteration_time_s]
    bests: list[float] = []

    def visit(chain: Chain, step: int, now: float) -> None:
        visited.append(chain.evaluation.iteration_time_s)
        bests.append(chain.best.time_s)

    end, _ = walk(walker(evaluator, Proposals(graph, 2, ProposalSettings()), visit=visit), chain, steps(500))
    assert bests == sorted(bests, reverse=True)
    assert end.best.time_s == min(visited)
    # Hot enough that the chain moved away from its best again.
    assert end.evaluation.iteration_time_s > end.best.time_s


def test_walking_in_two_parts_is_walking_in_one() -> None:
    graph, evaluator = pointwise_chain(num_operators=3), Synthetic()
    proposals = Proposals(graph, 2, ProposalSettings())
    chain = started(evaluator, graph, 2)
    whole, _ = walk(walker(evaluator, proposals), chain, steps(1500))
    half, _ = walk(walker(evaluator, proposals), chain, steps(700))
    both, _ = walk(walker(evaluator, proposals), half, steps(1500))
    assert (both.step, both.current, both.accepted) == (whole.step, whole.current, whole.accepted)
    assert both.best.strategy == whole.best.strategy


@pytest.mark.parametrize("at", [1, 2, 137])
def test_an_interrupt_during_an_evaluation_loses_no_step(at: int) -> None:
    graph, evaluator = pointwise_chain(num_operators=3), Synthetic()
    proposals = Proposals(graph, 2, ProposalSettings())
    chain = started(evaluator, graph, 2)

    class Interrupting:
        calls = 0

        def evaluate(self, strategy: Strategy) -> Score:
            self.calls += 1
            if self.calls == at:
                raise KeyboardInterrupt
            return evaluator.evaluate(strategy)

    stopped, interrupted = walk(walker(Interrupting(), proposals), chain, steps(300))
    assert interrupted
    assert stopped.step == at - 1
    on, _ = walk(walker(evaluator, proposals), stopped, steps(300))
    whole, _ = walk(walker(evaluator, proposals), chain, steps(300))
    assert (on.current, on.accepted, on.step) == (whole.current, whole.accepted, 300)
