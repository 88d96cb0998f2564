"""An interrupt at any line of the simulator or the chain loses nothing."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from types import FrameType
from typing import Any

import pytest

from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.graph.operators import OperatorGraph
from soaprl.search.chain import Chain, Limits, Walker, begin, walk
from soaprl.search.proposals import Proposals, ProposalSettings
from soaprl.search.task import improved
from soaprl.simulator import Problem, Simulator
from soaprl.strategy.baselines import data_parallel
from tests.toys import chain, tied

STEPS = 150
WATCHED = ("simulator/engine.py", "simulator/evaluator.py", "search/scanning.py", "search/chain.py")


@contextmanager
def interrupted_at(line: int) -> Iterator[None]:
    """Raises KeyboardInterrupt before the so many-th line that runs in a watched file."""
    left = line

    def trace(frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        nonlocal left
        if not frame.f_code.co_filename.endswith(WATCHED):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


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
            with interrupted_at(line):
                chain, interrupted = walk(walker, chain, limits)
            if not interrupted:
                return chain, pieces
        except KeyboardInterrupt:
            # Before the first step: the chain is as it was.
            pass
        line, pieces = line + stride, pieces + 1
