"""A problem made ready for environments: its candidates, its baseline, and how strategies are scored.

The *baseline* is data parallelism, started as `Choices.start`. Where that does not fit in memory, it is the
quickest of the experts' strategies and model parallelism that fits; where none fits, the one of least peak
memory.

The *effective time* of a strategy is its iteration time if it fits in memory. One that does not fit is
infeasible, never just slow; so that rewards are finite and less memory is better, its effective time is

    4 x max(iteration time, baseline time) x (its peak memory / the smallest device's memory, at least 1).
"""

from dataclasses import dataclass
from functools import cached_property

from soaprl.search.task import rank
from soaprl.simulator import Evaluation, Patterns, Simulator
from soaprl.simulator.problem import Problem
from soaprl.strategy.strategy import Strategy
from soaprl_envs.choices import Choices, choices
from soaprl_envs.features import ProblemFeatures, problem_features
from soaprl_envs.problems.specs import ProblemSpec

INFEASIBLE_FACTOR = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a strategy is compared with.

    Attributes:
        name: ``data-parallel``, an expert, or ``model-parallel``.
        strategy: The strategy.
        evaluation: What the simulator says about it.
    """

    name: str
    strategy: Strategy
    evaluation: Evaluation

    @property
    def time_s(self) -> float:
        """Its iteration time, whether or not it fits."""
        return self.evaluation.iteration_time_s


@dataclass(frozen=True, kw_only=True)
class Arena:
    """A problem made ready; see the module.

    Attributes:
        number: Its number in the generator.
        name: Its name.
        spec: What it can be built from again, if there is such a thing.
        choices: The candidates.
        baseline: What strategies are compared with.
        start: What the simulator says about `Choices.start`.
        capacity_bytes: Memory of the smallest device.
        patterns: What simulators of the problem have computed, which all walks share.
    """

    number: int
    name: str
    spec: ProblemSpec | None
    choices: Choices
    baseline: Baseline
    start: Evaluation
    capacity_bytes: int
    patterns: Patterns

    @property
    def problem(self) -> Problem:
        """The problem."""
        return self.choices.problem

    @cached_property
    def features(self) -> ProblemFeatures:
        """What a policy sees of it before anything is decided."""
        return problem_features(self.choices)

    def effective_s(self, evaluation: Evaluation) -> float:
        """The effective time of a strategy, seconds."""
        if evaluation.feasible:
            return evaluation.iteration_time_s
        slowest = max(evaluation.iteration_time_s, self.baseline.time_s)
        return INFEASIBLE_FACTOR * slowest * max(1.0, evaluation.peak_memory_bytes / self.capacity_bytes)

    @property
    def baseline_s(self) -> float:
        """The effective time of the baseline."""
        return self.effective_s(self.baseline.evaluation)


def make_arena(
    problem: Problem,
    *,
    number: int = 0,
    name: str = "",
    spec: ProblemSpec | None = None,
    max_candidates: int = 64,
) -> Arena:
    """Makes a problem ready."""
    found = choices(problem, max_candidates=max_candidates)
    patterns = Patterns(problem)
    simulator = Simulator(problem, patterns=patterns)
    start = simulator.evaluate(found.strategy(found.start))
    types = problem.cluster.device_types
    return Arena(
        number=number,
        name=name or f"{problem.graph.name}@{problem.cluster.name}",
        spec=spec,
        choices=found,
        baseline=_baseline(found, simulator, start),
        start=start,
        capacity_bytes=min(types[device.type].memory_bytes for device in problem.cluster.devices),
        patterns=patterns,
    )


def _baseline(found: Choices, simulator: Simulator, start: Evaluation) -> Baseline:
    first = Baseline(name="data-parallel", strategy=found.strategy(found.start), evaluation=start)
    if start.feasible:
        return first
    others = [
        Baseline(name=name, strategy=strategy, evaluation=simulator.evaluate(strategy))
        for name, strategy in found.experts
    ]
    return min([first, *others], key=lambda baseline: rank(baseline.evaluation))
