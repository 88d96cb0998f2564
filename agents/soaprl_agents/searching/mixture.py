"""Moves of a Metropolis-Hastings walk that a policy proposes, and their exact Hastings ratios.

A move picks an operator o uniformly, and with it M, the operators that move: o alone, or in a *tied move*
(`soaprl.search.proposals`) all operators of its group that are configured as it is. They all get one
configuration c, drawn from the mixture

    Q(c) = share q(c) + (1 - share) p(c | S without M)

where q is the proposal of plain Metropolis search and p the policy for o with M undecided, given the
configurations of all other operators; where these are no candidates of the policy, it sees the nearest ones.
Neither part depends on the configuration a that M has, so the way back has the probability Q(a) of the same
mixture (a move after which further operators of the group would have c has no way back and is never made).
The distribution that is sampled is that of plain Metropolis search, q(S) exp(-beta cost(S)), with q(S) the
product over the operators. So S -> S*, which moves m operators, is accepted with probability

    min(1, exp(beta (cost(S) - cost(S*))) (q(c) / q(a)) ** m Q(a) / Q(c)).

With share 1 this is the plain chain, and the policy is not asked; with a share below 1 it is another proposal
for the same distribution, and the correction is exact (Hastings, 1970). For each o this is a move with a way
back through the same o, so that picking o at random keeps the distribution. As every share keeps it, a walk
may follow a schedule of shares, as long as the schedule does not look at where the walk stands.

Numbers of step t are functions of (seed, t): a search that goes on from its state file walks the same way.
"""

from dataclasses import replace
from math import log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from soaprl.search.proposals import BLOCK_SIZE, Draws, Proposals, log_ratio
from soaprl.strategy.strategy import OpConfig, Strategy
from soaprl_agents.decoding import ProblemPolicy

FloatArray = NDArray[np.float64]

_STREAM = 1


class Move(NamedTuple):
    """A proposal.

    Attributes:
        operator: The operator that was picked.
        strategy: The strategy after it.
        log_ratio: Logarithm of what multiplies exp(beta (cost(S) - cost(S*))) in the acceptance.
        exponential: Minus the logarithm of the step's uniform number.
    """

    operator: int
    strategy: Strategy
    log_ratio: float
    exponential: float


class _Block(NamedTuple):
    """The random numbers of `BLOCK_SIZE` steps.

    Attributes:
        number: Which steps: the block of them.
        draws: Operators, plain proposals, exponentials.
        part: f64 [BLOCK_SIZE], uniform: which part of the mixture proposes.
        noise: f64 [BLOCK_SIZE, K], of Gumbel's distribution: what the policy's part draws.
    """

    number: int
    draws: Draws
    part: FloatArray
    noise: FloatArray


class Proposer:
    """Draws moves and knows their Hastings ratios.

    Args:
        policy: Proposes.
        proposals: The plain proposal.
        seed: Of all moves.
    """

    def __init__(self, policy: ProblemPolicy, proposals: Proposals, seed: int) -> None:
        self._policy = policy
        self._proposals = proposals
        self._seed = seed
        self._contexts = policy.contexts(1)
        self._place: Strategy | None = None
        self._nearest: NDArray[np.int64] = policy.choices.start
        self._known: dict[tuple[int, tuple[int, ...]], FloatArray] = {}
        self._plain: dict[tuple[int, OpConfig], float] = {}
        self._block: _Block | None = None

    def move(self, current: Strategy, step: int, share: float) -> Move | None:
        """The move of step `step` from `current`; None if it stays or has no way back."""
        block, row = self._numbers(step), step % BLOCK_SIZE
        draws = block.draws
        operator = draws.operators[row]
        group = self._proposals.tied(operator) if draws.tied[row] else (operator,)
        old = current.configs[operator]
        moved = tuple(member for member in group if current.configs[member] == old)
        config, log_p = draws.config(row), None
        if share < 1.0:
            log_p = self._policy_without(current, operator, moved)
            if block.part[row] >= share:
                config = self._policy.choices.configs[operator][int((log_p + block.noise[row]).argmax())]
        if any(current.configs[member] == config for member in group):
            return None
        log_ratio = self._log_ratio(operator, old, config, len(moved), log_p, share)
        return Move(operator, _changed(current, moved, config), log_ratio, draws.exponentials[row])

    def _log_ratio(
        self, operator: int, old: OpConfig, new: OpConfig, count: int, log_p: FloatArray | None, share: float
    ) -> float:
        """Of a move of `count` operators from `old` to `new`."""
        if log_p is None and count == 1:
            return 0.0
        plain_old, plain_new = self._log_plain(operator, old), self._log_plain(operator, new)
        if log_p is None or plain_old == -np.inf:
            return (count - 1) * log_ratio(plain_new, plain_old)
        back = self._log_mixture(operator, old, plain_old, log_p, share)
        forth = self._log_mixture(operator, new, plain_new, log_p, share)
        return count * (plain_new - plain_old) + back - forth

    def _numbers(self, step: int) -> _Block:
        number = step // BLOCK_SIZE
        if self._block is None or self._block.number != number:
            rng = np.random.default_rng((self._seed, _STREAM, number, 1))
            self._block = _Block(
                number=number,
                draws=self._proposals.block(self._seed, _STREAM, number),
                part=rng.random(BLOCK_SIZE),
                noise=rng.gumbel(size=(BLOCK_SIZE, self._policy.choices.num_candidates)),
            )
        return self._block

    def _log_plain(self, operator: int, config: OpConfig) -> float:
        """Log q, remembered."""
        key = operator, config
        if key not in self._plain:
            self._plain[key] = self._proposals.log_probability(operator, config)
        return self._plain[key]

    def _log_mixture(
        self, operator: int, config: OpConfig, plain: float, log_p: FloatArray, share: float
    ) -> float:
        """Log Q of a configuration with log q of `plain`."""
        number = self._policy.choices.number(operator, config)
        mine = log(share) + plain
        return mine if number is None else float(np.logaddexp(mine, np.log1p(-share) + log_p[number]))

    def _policy_without(self, strategy: Strategy, operator: int, moved: tuple[int, ...]) -> FloatArray:
        """The policy for `operator` with `moved` undecided, [K]; remembered until `strategy` changes."""
        if strategy is not self._place:
            self._place = strategy
            self._nearest = self._policy.choices.nearest(strategy)
            self._known.clear()
        key = operator, moved
        if key not in self._known:
            held, decided = self._nearest.copy(), np.ones(len(self._nearest), np.bool_)
            undecided = list(moved)
            held[undecided], decided[undecided] = self._policy.choices.start[undecided], False
            self._contexts.assign(held, decided=decided)
            row = self._contexts.row(operator, current=False)
            self._known[key] = self._policy.log_probabilities(operator, row)[0]
        return self._known[key]


def _changed(strategy: Strategy, operators: tuple[int, ...], config: OpConfig) -> Strategy:
    configs = list(strategy.configs)
    for operator in operators:
        configs[operator] = config
    return replace(strategy, configs=tuple(configs))
