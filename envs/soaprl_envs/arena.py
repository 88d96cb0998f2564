"""A problem made ready for environments: its candidates, its baseline, and how strategies are scored.

The *baseline* is data parallelism, started as `Choices.start`. Where that does not fit in memory, it is the
quickest of the experts' strategies and model parallelism that fits; where none fits, the one of least peak
memory.

The *effective time* of a strategy is its iteration time if it fits in memory. One that does not fit is
infeasible, never just slow; so that rewards are finite and less memory is better, its effective time is

    4 x max(iteration time, baseline time) x (its peak memory / the smallest device's memory, at least 1).
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

from soaprl.errors import SimulationError
from soaprl.search.task import rank
from soaprl.simulator import Evaluation, Simulator
from soaprl.simulator.problem import Problem
from soaprl.strategy.strategy import Strategy
from soaprl_envs.choices import MIN_CANDIDATES, Choices, choices
from soaprl_envs.features import ProblemFeatures, problem_features
from soaprl_envs.problems.generators import ProblemGenerator
from soaprl_envs.problems.specs import ProblemSpec
from soaprl_envs.spaces import SpaceLimits

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
    """

    number: int
    name: str
    spec: ProblemSpec | None
    choices: Choices
    baseline: Baseline
    start: Evaluation
    capacity_bytes: int

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
    simulator = Simulator(problem)
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


class ArenaPool:
    """The problems of a generator, each made ready once; environments may share one pool in one thread.

    Args:
        generator: The problems.
        limits: The largest problem that is let in.
        keep: How many are kept; beyond that, the one used longest ago is made ready anew when needed.
    """

    def __init__(self, generator: ProblemGenerator, limits: SpaceLimits, *, keep: int = 64) -> None:
        if not generator.names:
            raise SimulationError("expected a generator with at least one problem, found none.")
        self.generator = generator
        self.limits = limits
        self._keep = keep
        self._known: OrderedDict[int, Arena] = OrderedDict()

    @property
    def num_problems(self) -> int:
        """Number of problems."""
        return len(self.generator.names)

    def arena(self, number: int) -> Arena:
        """Problem `number`.

        Raises:
            SimulationError: There is no such problem, or it is larger than the limits.
            SoaprlError: It cannot be built.
        """
        if not 0 <= number < self.num_problems:
            raise SimulationError(f"expected a problem from 0 to {self.num_problems - 1}, found {number}.")
        if number not in self._known:
            problem, name = self.generator.problem(number), self.generator.names[number]
            self.limits.check(name, problem)
            self._known[number] = make_arena(
                problem,
                number=number,
                name=name,
                spec=self.generator.spec(number),
                max_candidates=max(self.limits.candidates, MIN_CANDIDATES),
            )
            while len(self._known) > self._keep:
                self._known.popitem(last=False)
        self._known.move_to_end(number)
        return self._known[number]
