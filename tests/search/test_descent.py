from itertools import product
from math import prod

import pytest

from soaprl.graph.operators import OperatorGraph
from soaprl.search.descent import candidates, coordinate_descent, coordinates
from soaprl.search.metropolis import metropolis
from soaprl.simulator import Problem, Simulator
from soaprl.strategy.strategy import OpConfig, Strategy
from tests.search.synthetic import Score, Synthetic, pointwise_chain, toy_problem, toy_task
from tests.toys import TableCost, chain, diamond, node_cluster, on_one_device, tied, uniform_cluster


def neighbours_by_hand(graph: OperatorGraph, strategy: Strategy) -> list[Strategy]:
    """Everything that differs in one operator, for extents of 4 (or 2 and 1) on four devices in one node."""
    devices = {
        1: [(0,), (1,), (2,), (3,)],
        2: [(0, 1), (2, 3), (0, 2), (1, 3)],
        4: [(0, 1, 2, 3)],
    }
    found: list[Strategy] = []
    for index, operator in enumerate(graph.operators):
        for degrees in product(*([d for d in (1, 2, 4) if extent % d == 0] for extent in operator.extents)):
            placements = devices.get(prod(degrees), [])
            found += [strategy.replaced(index, OpConfig(degrees, chosen)) for chosen in placements]
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("graph", [chain(), diamond(), pointwise_chain(num_operators=5, sample=4)])
def test_the_result_is_a_local_optimum_of_its_neighbourhood(graph: OperatorGraph, seed: int) -> None:
    evaluator = Synthetic(seed=seed, pair=2.0)
    result = coordinate_descent(toy_task(toy_problem(graph, 4), evaluator, evaluations=50_000, seed=seed))
    assert result.num_evaluations < 50_000
    times = [evaluator.cost(strategy) for strategy in neighbours_by_hand(graph, result.strategy)]
    assert len(times) >= 9 * len(graph.operators)
    assert min(times) >= result.evaluation.iteration_time_s
    assert result.evaluation.iteration_time_s < result.initial_time_s


def test_candidates_are_even_degrees_on_structured_devices() -> None:
    # Even degrees of 4 x 4 x 4 on 4 devices: 1 whole, 3 with 2 tasks, 6 with 4. Devices for them: 4, 4 and 1.
    cluster = uniform_cluster(4)
    found = candidates(chain().operators[0], cluster)
    assert len(found) == len(set(found)) == 1 * 4 + 3 * 4 + 6 * 1
    assert all(4 % config.num_tasks == 0 for config in found)
    # Two tasks on two nodes of two devices: a block in each node, or one device of each node.
    two = {
        config.devices
        for config in candidates(chain().operators[0], node_cluster(2, 2))
        if config.num_tasks == 2
    }
    assert two == {(0, 1), (2, 3), (0, 2), (1, 3)}


def test_uneven_parts_are_no_candidates() -> None:
    # 6 is not divisible by 4, and 3 tasks do not divide 4 devices.
    degrees = {
        config.degrees for config in candidates(chain(sample=6, channel=1).operators[0], uniform_cluster(4))
    }
    assert degrees == {(1, 1, 1), (2, 1, 1)}


def test_a_local_optimum_is_left_alone_after_one_look_at_every_neighbour() -> None:
    problem = toy_problem(diamond(), 4)
    first = coordinate_descent(toy_task(problem, Synthetic(), evaluations=50_000))
    again = coordinate_descent(toy_task(problem, Synthetic(), evaluations=50_000), first.strategy)
    assert again.strategy == first.strategy
    assert again.num_accepted == 0
    # The start, and each candidate of each operator but the one that it has.
    num_candidates = sum(len(candidates(op, problem.cluster)) for op in problem.graph.operators)
    assert again.num_evaluations == 1 + num_candidates - len(problem.graph.operators)


def test_descent_from_what_mcmc_found_is_never_worse_and_says_by_how_much_it_falls_short() -> None:
    problem = Problem(graph=diamond(sample=8, channel=8), cluster=node_cluster(2, 2), cost=TableCost())
    simulator = Simulator(problem)
    found = metropolis(toy_task(problem, simulator, evaluations=30))
    descended = coordinate_descent(toy_task(problem, simulator, evaluations=50_000), found.strategy)
    assert descended.initial_time_s == found.evaluation.iteration_time_s
    assert descended.evaluation.iteration_time_s < found.evaluation.iteration_time_s


class Together:
    """Operators must be configured alike, or it takes long; unsplit, it takes longer than split in two."""

    def evaluate(self, strategy: Strategy) -> Score:
        different = len(set(strategy.configs)) - 1
        return Score(iteration_time_s=100.0 * different + 2.0 - (strategy.configs[0].num_tasks == 2))


def test_operators_that_share_parameters_are_moved_together() -> None:
    problem = toy_problem(tied(), 2)
    start = on_one_device(problem.graph)
    result = coordinate_descent(toy_task(problem, Together(), evaluations=1000), start)
    assert result.evaluation.iteration_time_s == 1.0
    assert len(set(result.strategy.configs)) == 1
    # Without the group no single change of either operator would have improved.
    apart = toy_problem(chain(num_operators=2), 2)
    stuck = coordinate_descent(toy_task(apart, Together(), evaluations=1000), on_one_device(apart.graph))
    assert stuck.evaluation.iteration_time_s == 2.0


def test_coordinates_are_all_operators_and_all_groups_in_the_seeds_order() -> None:
    assert sorted(coordinates(tied(), seed=0)) == [(0,), (0, 1), (1,)]
    assert sorted(coordinates(diamond(), seed=3)) == [(0,), (1,), (2,), (3,)]
    orders = {coordinates(chain(num_operators=6), seed) for seed in range(5)}
    assert len(orders) == 5
