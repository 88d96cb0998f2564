"""An interrupt at any moment of the simulator or of a search loses nothing."""

from math import inf

import pytest

from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.operators import OperatorGraph
from soaprl.search.chain import Chain, Limits, Walker, begin, walk
from soaprl.search.proposals import Proposals, ProposalSettings
from soaprl.search.task import improved
from soaprl.simulator import Problem, Simulator
from soaprl.strategy.baselines import data_parallel
from tests.search.interruption import interrupted_at, interrupted_in_compiled_code
from tests.toys import chain, tied

STEPS = 150
WATCHED = ("simulator/engine.py", "simulator/evaluator.py", "search/scanning.py", "search/chain.py")


@pytest.mark.parametrize("graph", [chain(num_operators=5, sample=16, channel=16), tied()])
def test_a_chain_interrupted_again_and_again_makes_the_same_steps(graph: OperatorGraph) -> None:
    problem = Problem(graph=graph, cluster=cluster_from_name("p100-1x4"), cost=RooflineCostModel())
    proposals = Proposals(graph, 4, ProposalSettings(tied_moves=0.5))
    start = data_parallel(graph, problem.cluster)
    evaluation = Simulator(problem).evaluate(start)
    best = improved(None, start, evaluation, number=1, elapsed_s=0.0)
    fresh = begin(start, evaluation, beta_relative=20.0, best=best, elapsed_s=0.0)
    limits = Limits(steps=STEPS, end_s=inf, idle_steps=inf, idle_s=inf)

    def walker(simulator: Simulator) -> Walker:
        return Walker(
            evaluator=simulator,
            proposals=proposals,
            seed=1,
            stream=0,
            first_number=1,
            elapsed=lambda: 0.0,
            visit=lambda chain, step, now: None,
        )

    whole, _ = walk(walker(Simulator(problem)), fresh, limits)
    assert whole.accepted > 3
    for stride, num_pieces in ((11, 10), (37, 5), (101, 3)):
        chain, pieces = in_pieces(walker(Simulator(problem)), fresh, limits, stride)
        assert chain == whole
        assert pieces > num_pieces


def in_pieces(walker: Walker, chain: Chain, limits: Limits, stride: int) -> tuple[Chain, int]:
    """Goes on after an interrupt at line `stride`, then 2 `stride`, and so on, with the same simulator."""
    line, pieces = stride, 1
    while True:
        try:
            with interrupted_at(line, WATCHED):
                chain, interrupted = walk(walker, chain, limits)
            if not interrupted:
                return chain, pieces
        except KeyboardInterrupt:
            # Before the first step: the chain is as it was.
            pass
        line, pieces = line + stride, pieces + 1


@pytest.mark.parametrize("fresh_simulators", [False, True], ids=["same simulator", "fresh simulators"])
@pytest.mark.parametrize("graph", [chain(num_operators=6, sample=64, channel=64), tied(sample=64)])
def test_signals_in_the_middle_of_compiled_scans_lose_and_repeat_no_proposal(
    graph: OperatorGraph, fresh_simulators: bool
) -> None:
    problem = Problem(graph=graph, cluster=cluster_from_name("p100-1x4"), cost=RooflineCostModel())
    proposals = Proposals(graph, 4, ProposalSettings())
    limits = Limits(steps=1500, end_s=inf, idle_steps=inf, idle_s=inf)
    evaluator = Simulator(problem)
    start = data_parallel(graph, problem.cluster)
    evaluation = evaluator.evaluate(start)
    best = improved(None, start, evaluation, number=1, elapsed_s=0.0)
    fresh = begin(start, evaluation, beta_relative=20.0, best=best, elapsed_s=0.0)

    def walker(simulator: Simulator) -> Walker:
        return Walker(simulator, proposals, 1, 0, 1, lambda: 0.0, lambda chain, step, now: None)

    whole, _ = walk(walker(evaluator), fresh, limits)
    assert whole.accepted > 10
    at_hand, interrupted, struck, pieces = fresh, True, [], 0
    while interrupted:
        simulator = Simulator(problem) if fresh_simulators else evaluator
        with interrupted_in_compiled_code(5e-4 * pieces, struck):
            at_hand, interrupted = walk(walker(simulator), at_hand, limits)
        pieces += 1
    assert at_hand == whole
    assert len(struck) > 5
