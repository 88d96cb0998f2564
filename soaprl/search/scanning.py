"""Walks over proposals that are refused without returning to Python for each.

Nearly all proposals of a chain are refused, and a refused one changes nothing. So a simulator that can is
given a block of proposals and what the limit of each depends on (`soaprl.simulator.trial.Scale`), and comes
back with the first one that matters. The chain is the same, draw for draw.
"""

from math import ceil
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from soaprl.search.proposals import Draws, Proposals
from soaprl.search.task import BoundedEvaluator
from soaprl.simulator import Candidates, Evaluation, Rows, Scale
from soaprl.strategy.strategy import OpConfig, Strategy

_SHORTEST, _LONGEST = 8, 512
_SOON_S, _LATE_S = 2e-3, 1e-2


@runtime_checkable
class ScanningEvaluator(BoundedEvaluator, Protocol):
    """An evaluator that can look for the first proposal of interest."""

    def scan(
        self, strategy: Strategy, candidates: Candidates, first: int, end: int, scale: Scale
    ) -> tuple[int, Evaluation | None]:
        """See `soaprl.simulator.Simulator.scan`."""
        ...

    def pattern_numbers(self, owner: object, strategy: Strategy, count: int) -> NDArray[np.int64]:
        """See `soaprl.simulator.Simulator.pattern_numbers`."""
        ...


class Scanner:
    """Scans the blocks of one chain.

    Args:
        evaluator: Scans.
        proposals: Draws the blocks.
        strategy: What the chain stands at; all that follow have its sharding and its micro-batches.
    """

    def __init__(self, evaluator: ScanningEvaluator, proposals: Proposals, strategy: Strategy) -> None:
        self._evaluator, self._proposals = evaluator, proposals
        tables = proposals.tables
        ties = [proposals.tied(o) for o in range(len(tables))]
        self._first = np.cumsum([0, *map(len, tables)], dtype=np.int64)[:-1]
        self._patterns = evaluator.pattern_numbers(proposals, strategy, sum(map(len, tables)))
        self._tie_begin = np.cumsum([0, *map(len, ties)], dtype=np.int64)
        self._ties = np.array([member for group in ties for member in group], np.int64)
        self._is_tied = np.array([len(group) > 1 for group in ties])
        self._old = np.zeros(len(tables), np.float64)
        self._old_configs: list[OpConfig | None] = [None] * len(tables)
        self._length = _SHORTEST
        self._block: Draws | None = None
        self._candidates: Candidates | None = None
        self._new: NDArray[np.float64] = np.zeros(0, np.float64)

    def next(
        self, strategy: Strategy, scale: Scale, draws: Draws, first: int, end: float
    ) -> tuple[int, Evaluation | None]:
        """Looks at some proposals of a block, from `first` on and at most to `end`, which may be a fraction.

        Returns:
            The row of the first that is within its limit, and its evaluation; or the row to go on at, and
            None.
        """
        candidates = self._of_block(draws)
        last = ceil(min(first + self._length, end, len(draws.operators)))
        tied = first + np.flatnonzero(candidates.rows.tied[first:last])
        operators = candidates.rows.operators[tied]
        for operator in set(operators.tolist()):
            self._look_up(operator, strategy.configs[operator])
        old = self._old[operators]
        # As `log_ratio`.
        candidates.rows.ratios[tied] = np.where(old == -np.inf, 0.0, self._new[tied] - old)
        return self._evaluator.scan(strategy, candidates, first, last, scale)

    def took(self, elapsed_s: float) -> None:
        """Adapts how many proposals are looked at before the clock is, to how long the last ones took."""
        if elapsed_s < _SOON_S:
            self._length = min(2 * self._length, _LONGEST)
        elif elapsed_s > _LATE_S:
            self._length = max(self._length // 2, _SHORTEST)

    def _look_up(self, operator: int, config: OpConfig) -> None:
        """Keeps the probability that a proposal for `operator` is what it has now."""
        if self._old_configs[operator] is not config:
            self._old[operator] = self._proposals.log_probability(operator, config)
            self._old_configs[operator] = config

    def _of_block(self, draws: Draws) -> Candidates:
        """The block as compiled code sees it."""
        if self._block is draws and self._candidates is not None:
            return self._candidates
        operators = np.array(draws.operators, np.int64)
        tied = (np.array(draws.tied) & self._is_tied[operators]).astype(np.int64)
        rows = Rows(
            first=self._first,
            patterns=self._patterns,
            tie_begin=self._tie_begin,
            ties=self._ties,
            operators=operators,
            vectors=draws.vectors,
            num_tasks=np.array(draws.tasks, np.int64),
            devices=np.ascontiguousarray(draws.devices),
            exponentials=np.array(draws.exponentials, np.float64),
            ratios=np.zeros(len(operators), np.float64),
            tied=tied,
        )
        self._new = np.zeros(len(operators), np.float64)
        where = np.flatnonzero(tied)
        if len(where):
            self._new[where] = self._proposals.log_probabilities(draws, where)
        self._candidates = Candidates(rows=rows, degrees=self._proposals.tables)
        self._block = draws
        return self._candidates
