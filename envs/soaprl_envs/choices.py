"""The candidates of every operator of a problem: what a learned policy chooses between."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log

import numpy as np
from numpy.typing import NDArray

from soaprl.cluster.tables import IntArray
from soaprl.errors import StrategyError
from soaprl.search.experts import expert_strategies
from soaprl.search.stages import model_parallel
from soaprl.simulator.problem import Problem
from soaprl.strategy.baselines import unsplit
from soaprl.strategy.placing import by_sample
from soaprl.strategy.strategy import OpConfig, Strategy
from soaprl.strategy.validation import check_strategy
from soaprl_envs.menus import dealt, device_groups
from soaprl_envs.tables import CandidateTables, candidate_tables

MIN_CANDIDATES = 16


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The candidates of a problem with N operators, at most K for each.

    Attributes:
        problem: The problem.
        configs: For each operator its candidates: the start, then what experts use, then what
            `soaprl_envs.menus` deals out; no duplicates.
        mask: Shape [N, K]; whether an operator has a candidate with this number.
        start: Shape [N]; the candidate of data parallelism.
        experts: The strategies of experts that apply, by name; each can be expressed.
    """

    problem: Problem
    configs: tuple[tuple[OpConfig, ...], ...]
    mask: NDArray[np.bool_]
    start: IntArray
    experts: tuple[tuple[str, Strategy], ...]

    @property
    def num_operators(self) -> int:
        """N."""
        return len(self.configs)

    @property
    def num_candidates(self) -> int:
        """K: the most candidates of an operator."""
        return int(self.mask.shape[1])

    @cached_property
    def tables(self) -> CandidateTables:
        """What each candidate costs by itself, and where its tasks are."""
        return candidate_tables(self.problem, self.configs, self.start)

    @cached_property
    def _numbers(self) -> tuple[dict[OpConfig, int], ...]:
        return tuple({config: c for c, config in enumerate(configs)} for configs in self.configs)

    def strategy(self, chosen: Sequence[int] | IntArray) -> Strategy:
        """The strategy with candidate ``chosen[o]`` for each operator o.

        Raises:
            StrategyError: There is not one number for each operator, or an operator has no such candidate.
        """
        numbers = [int(number) for number in chosen]
        if len(numbers) != self.num_operators:
            raise StrategyError(
                f"expected one candidate for each of the {self.num_operators} operators of"
                f" {self.problem.graph.name!r}, found {len(numbers)}."
            )
        for operator, (number, configs) in enumerate(zip(numbers, self.configs, strict=True)):
            if not 0 <= number < len(configs):
                raise StrategyError(
                    f"operator {self.problem.graph.operators[operator].name!r}: expected a candidate from 0"
                    f" to {len(configs) - 1}, found {number}. Choose where the mask is true."
                )
        return Strategy(tuple(configs[n] for n, configs in zip(numbers, self.configs, strict=True)))

    def number(self, operator: int, config: OpConfig) -> int | None:
        """Which candidate of `operator` a configuration is; None if it is none."""
        return self._numbers[operator].get(config)

    def nearest(self, strategy: Strategy) -> IntArray:
        """For each operator the candidate that is most like its configuration in `strategy`.

        The same one if it is a candidate; otherwise the one with the most similar degrees (sum of the
        differences of their logarithms) and devices (share of them that both have).

        Returns:
            Shape [N].
        """
        check_strategy(self.problem.graph, self.problem.cluster.num_devices, strategy)
        return np.array([self._nearest(o, config) for o, config in enumerate(strategy.configs)], np.int64)

    def _nearest(self, operator: int, config: OpConfig) -> int:
        known = self.number(operator, config)
        if known is not None:
            return known
        distances = [_distance(config, other) for other in self.configs[operator]]
        return min(range(len(distances)), key=distances.__getitem__)


def choices(problem: Problem, *, max_candidates: int = 64) -> Choices:
    """The candidates of `problem`, at most `max_candidates` for each operator; always the same ones.

    Raises:
        StrategyError: `max_candidates` is too small for the start, the experts and some alternatives.
    """
    if max_candidates < MIN_CANDIDATES:
        raise StrategyError(f"expected max_candidates of at least {MIN_CANDIDATES}, found {max_candidates}.")
    graph, cluster = problem.graph, problem.cluster
    everywhere = range(cluster.num_devices)
    experts = (*expert_strategies(problem), ("model-parallel", model_parallel(problem)))
    groups = device_groups(cluster)
    configs = []
    for o, operator in enumerate(graph.operators):
        start = by_sample(operator, everywhere) if operator.factors else unsplit(operator, 0)
        fixed = (start, *(strategy.configs[o] for _, strategy in experts))
        others = dealt(operator, groups, limit=max_candidates)
        configs.append(_first_distinct((*fixed, *others), max_candidates))
    most = max(len(found) for found in configs)
    mask = np.array([[c < len(found) for c in range(most)] for found in configs], np.bool_)
    return Choices(
        problem=problem,
        configs=tuple(configs),
        mask=mask,
        start=np.zeros(len(configs), np.int64),
        experts=experts,
    )


def _first_distinct(configs: Iterable[OpConfig], limit: int) -> tuple[OpConfig, ...]:
    return tuple(dict.fromkeys(configs))[:limit]


def _distance(one: OpConfig, other: OpConfig) -> float:
    degrees = sum(abs(log(a / b)) for a, b in zip(one.degrees, other.degrees, strict=True))
    mine, theirs = set(one.devices), set(other.devices)
    return degrees + 1.0 - len(mine & theirs) / len(mine | theirs)
