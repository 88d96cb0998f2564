"""Which strategies `soaprl validate` runs, and what is predicted for them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from soaprl.cli.inputs import Prepared
from soaprl.cli.known import known_method
from soaprl.cli.output import say
from soaprl.cli.searching import make_budget, run_method
from soaprl.errors import SearchError, SoaprlError, StrategyError
from soaprl.report.validation import RANDOM
from soaprl.search.proposals import Proposals, ProposalSettings
from soaprl.simulator.evaluator import Simulator
from soaprl.simulator.problem import Problem
from soaprl.simulator.result import simulate
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.strategy import Strategy

# Random strategies are of these kinds in turn: all operators drawn, or a few operators of data parallelism.
_ALL, _FEW = RANDOM
# How many are drawn for each that is wanted, at most: small models have few.
_DRAWS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A strategy to run, who found it, and what it is predicted to take: in all, and of each processor."""

    found_by: str
    strategy: Strategy
    predicted_s: float
    busy_s: tuple[float, ...]


def choose(
    prepared: Prepared,
    simulator: Simulator,
    names: Sequence[str],
    *,
    num_strategies: int,
    budget_evaluations: int,
    seed: int,
) -> list[Chosen]:
    """So many different strategies that can run: those of methods first, then random ones.

    Args:
        prepared: The problem.
        simulator: Of the problem.
        names: The methods.
        num_strategies: How many.
        budget_evaluations: Of each search.
        seed: Of searches and random strategies.
    """
    found: dict[Strategy, str] = {}
    for name in names:
        try:
            result = run_method(
                simulator, known_method(name), make_budget(budget_evaluations, None), seed=seed
            )
        except (SearchError, StrategyError) as error:
            say(f"soaprl: {name} is left out: {error}")
            continue
        if _runs(prepared, result.strategy):
            found[result.strategy] = ", ".join(filter(None, [found.get(result.strategy), name]))
        else:
            say(f"soaprl: {name} is left out: the runtime cannot run what it found")
    for strategy, kind in islice(_random(prepared, seed), _DRAWS * num_strategies):
        if len(found) >= num_strategies:
            break
        if strategy not in found and _runs(prepared, strategy):
            found[strategy] = kind
    chosen = []
    for strategy, kind in list(found.items())[:num_strategies]:
        predicted_s, busy_s = predicted(prepared.problem, strategy, simulator)
        chosen.append(Chosen(found_by=kind, strategy=strategy, predicted_s=predicted_s, busy_s=busy_s))
    return chosen


def _random(prepared: Prepared, seed: int) -> Iterator[tuple[Strategy, str]]:
    """Random strategies without end."""
    problem = prepared.problem
    proposals = Proposals(problem.graph, problem.cluster.num_devices, ProposalSettings())
    rng = np.random.default_rng(seed)
    base = data_parallel(problem.graph, problem.cluster)
    while True:
        yield proposals.strategy(rng), _ALL
        other, few = proposals.strategy(rng), base
        for operator in rng.choice(len(base.configs), rng.integers(1, len(base.configs) // 2 + 2)).tolist():
            few = few.replaced(operator, other.configs[operator])
        yield few, _FEW


def _runs(prepared: Prepared, strategy: Strategy) -> bool:
    """Whether the runtime has what the strategy needs."""
    from soaprl.runtime import compile_program

    try:
        compile_program(prepared.problem.graph, strategy, num_ranks=prepared.problem.cluster.num_devices)
    except SoaprlError:
        return False
    return True


def predicted(problem: Problem, strategy: Strategy, simulator: Simulator) -> tuple[float, tuple[float, ...]]:
    """Seconds of an iteration, and those that each processor works."""
    simulated = simulate(problem, strategy, simulator=simulator)
    busy_s = simulated.device_busy_s + simulated.device_message_s
    return float(simulated.iteration_time_s), tuple(busy_s.tolist())
