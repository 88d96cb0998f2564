"""A chain that scans is the chain that evaluates one proposal after the other."""

from dataclasses import replace
from math import ceil, inf

import pytest

from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.operators import OperatorGraph
from soaprl.search.chain import Chain, Limits, Walker, begin, walk
from soaprl.search.metropolis import metropolis
from soaprl.search.proposals import Proposals, ProposalSettings
from soaprl.search.task import Budget, Evaluation, improved
from soaprl.simulator import Candidates, Problem, Scale, Simulator
from soaprl.simulator import Evaluation as SimulatedEvaluation
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.strategy import Sharding, Strategy
from tests.search.synthetic import Steps, toy_task
from tests.toys import chain as toy_chain
from tests.toys import tied as toy_tied


class OneByOne:
    """An evaluator that cannot scan, or stop early."""

    def __init__(self, problem: Problem) -> None:
        self._simulator = Simulator(problem)

    def evaluate(self, strategy: Strategy) -> Evaluation:
        return self._simulator.evaluate(strategy)


def walked(
    problem: Problem,
    evaluator: OneByOne | Simulator,
    settings: ProposalSettings,
    steps: float,
    beta: float,
    sharding: Sharding = Sharding.NONE,
) -> tuple[Chain, list[int]]:
    start = replace(data_parallel(problem.graph, problem.cluster), sharding=sharding)
    evaluation = Simulator(problem).evaluate(start)
    best = improved(None, start, evaluation, number=1, elapsed_s=0.0)
    visited: list[int] = []
    walker = Walker(
        evaluator=evaluator,
        proposals=Proposals(problem.graph, problem.cluster.num_devices, settings),
        seed=3,
        stream=0,
        first_number=1,
        elapsed=lambda: 0.0,
        visit=lambda chain, step, now: visited.append(step),
    )
    fresh = begin(start, evaluation, beta_relative=beta, best=best, elapsed_s=0.0)
    chain, interrupted = walk(walker, fresh, Limits(steps=steps, end_s=inf, idle_steps=inf, idle_s=inf))
    assert not interrupted
    return chain, visited


@pytest.mark.parametrize("graph", ["chain", "tied"])
@pytest.mark.parametrize("beta", [3.0, 300.0])
@pytest.mark.parametrize("tied_moves", [0.0, 0.6])
def test_a_scanning_chain_is_the_same_draw_for_draw(graph: str, beta: float, tied_moves: float) -> None:
    made = toy_chain(num_operators=6, sample=64, channel=64) if graph == "chain" else toy_tied(sample=64)
    problem = Problem(graph=made, cluster=cluster_from_name("p100-1x4"), cost=RooflineCostModel())
    settings = ProposalSettings(tied_moves=tied_moves)
    scanned, visited = walked(problem, Simulator(problem), settings, 1500, beta)
    single, every = walked(problem, OneByOne(problem), settings, 1500, beta)
    assert scanned == single
    assert scanned.accepted > 0
    assert every == list(range(1, 1501))
    assert visited[-1] == 1500
    assert visited == sorted(visited)


def test_chains_of_several_shardings_scan_with_one_simulator_and_the_same_proposals() -> None:
    graph = toy_chain(num_operators=6, sample=64, channel=64)
    problem = Problem(graph=graph, cluster=cluster_from_name("p100-1x4"), cost=RooflineCostModel())
    simulator, settings = Simulator(problem), ProposalSettings()
    evaluator = Simulator(problem)
    proposals = Proposals(graph, 4, settings)
    count = sum(map(len, proposals.tables))
    arrays = [
        simulator.pattern_numbers(proposals, Strategy((), sharding), count)
        for sharding in (*Sharding, *Sharding)
    ]
    assert len({id(array) for array in arrays}) == len(Sharding)
    for sharding in (Sharding.ZERO3, Sharding.NONE, Sharding.ZERO1, Sharding.ZERO3):
        scanned, _ = walked(problem, evaluator, settings, 600, 300.0, sharding)
        single, _ = walked(problem, OneByOne(problem), settings, 600, 300.0, sharding)
        assert scanned == single
        assert scanned.current.sharding is scanned.best.strategy.sharding is sharding


@pytest.mark.parametrize("graph", [toy_chain(num_operators=4, sample=64, channel=64), toy_tied()])
@pytest.mark.parametrize("share", [0.999, 0.6, 0.01])
def test_a_chain_that_does_not_fit_in_memory_at_first_is_the_same_too(
    graph: OperatorGraph, share: float
) -> None:
    cluster = cluster_from_name("p100-1x4")
    start = data_parallel(graph, cluster)
    cost = RooflineCostModel()
    needed = Simulator(Problem(graph=graph, cluster=cluster, cost=cost)).evaluate(start).peak_memory_bytes
    small = replace(cluster.device_types[0], memory_bytes=int(share * needed))
    problem = Problem(graph=graph, cluster=replace(cluster, device_types=(small,)), cost=cost)
    scanned, _ = walked(problem, Simulator(problem), ProposalSettings(), 600, 50.0)
    single, _ = walked(problem, OneByOne(problem), ProposalSettings(), 600, 50.0)
    assert scanned == single
    assert scanned.evaluation.feasible or share < 0.9


def test_a_scan_stops_at_the_step_limit_and_goes_on_from_there() -> None:
    graph = toy_chain(num_operators=6, sample=64, channel=64)
    problem = Problem(graph=graph, cluster=cluster_from_name("p100-1x4"), cost=RooflineCostModel())
    for steps in (1, 7, 511, 513, 4.5):
        chain, visited = walked(problem, Simulator(problem), ProposalSettings(), steps, 100.0)
        assert chain.step == visited[-1] == ceil(steps)


class Counting(Simulator):
    """Counts what it is asked for."""

    num_scans, num_single = 0, 0

    def scan(
        self, strategy: Strategy, candidates: Candidates, first: int, end: int, scale: Scale
    ) -> tuple[int, SimulatedEvaluation | None]:
        self.num_scans += 1
        return super().scan(strategy, candidates, first, end, scale)

    def evaluate_within(self, strategy: Strategy, limit_s: float) -> SimulatedEvaluation | None:
        self.num_single += 1
        return super().evaluate_within(strategy, limit_s)


@pytest.mark.parametrize("budget", [Budget(evaluations=4000), Budget(evaluations=4000, seconds=1e3)])
def test_searches_with_patience_and_limits_of_time_leave_refused_proposals_to_compiled_code(
    budget: Budget,
) -> None:
    graph = toy_chain(num_operators=6, sample=64, channel=64)
    problem = Problem(graph=graph, cluster=cluster_from_name("p100-1x4"), cost=RooflineCostModel())
    counting, clock = Counting(problem), Steps(1e-4)
    found = metropolis(replace(toy_task(problem, counting, clock=clock), budget=budget))
    # The two starts alone are asked for one by one.
    assert counting.num_single == 2
    assert counting.num_scans < found.num_evaluations / 4
    # One reading for each scan, and a few for each start.
    assert clock.now / clock.step < counting.num_scans + 50
