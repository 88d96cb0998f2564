"""Metropolis-Hastings search that proposes what the policy proposes.

The walk begins at the best of the policy's first samples, data parallelism and the experts. A step picks an
operator o uniformly, and with it M, the operators that move: o alone, or in a *tied move*
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

With share 1 this is the plain chain; with a share below 1 it is another proposal for the same distribution,
and the correction is exact (Hastings, 1970). For each o this is a move with a way back through the same o, so
that picking o at random keeps the distribution. A draw of the configuration that is there already is a step
without an evaluation.

Numbers of step t are functions of (seed, t): a search that goes on from its state file walks the same way.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import log
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from soaprl.search.experts import starts_for
from soaprl.search.proposals import BLOCK_SIZE, Draws, Proposals, ProposalSettings
from soaprl.search.state import Signature
from soaprl.search.stepping import Replay, Scored, Trial, View, packed, run_procedure
from soaprl.search.task import Evaluation, SearchResult, SearchTask, rank
from soaprl.strategy.strategy import OpConfig, Strategy
from soaprl_agents.decoding import ProblemPolicy, draw, ready_policy
from soaprl_agents.network import PolicyNetwork
from soaprl_agents.searching.samples import Sampler, SampleSettings

METHOD = "guided"
_STREAM = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedSettings:
    """How the chain moves.

    Attributes:
        share: Share of the plain proposal in the mixture, above 0.
        beta_relative: beta times the iteration time of the start, as in `soaprl.search.metropolis`.
        num_samples: Samples of the policy before the walk.
        proposal: The plain proposal.
    """

    share: float = 0.25
    beta_relative: float = 5000.0
    num_samples: int = 16
    proposal: ProposalSettings = field(default_factory=ProposalSettings)


def search_guided(
    task: SearchTask,
    network: PolicyNetwork,
    settings: GuidedSettings | None = None,
    *,
    start: Strategy | None = None,
) -> SearchResult:
    """Walk until the budget is spent; see the module.

    Args:
        task: What to search.
        network: Proposes.
        settings: How the chain moves.
        start: A strategy to begin with; None: the best of the policy's samples and the experts.

    Raises:
        SearchError: The budget has no limit, or the state file is missing or belongs to another search.
        StrategyError: `start` does not fit the graph or the cluster.
        OutputError: The state file cannot be written.
    """
    chosen = settings or GuidedSettings()
    return run_procedure(task, Guided(task, lambda: ready_policy(network, task.problem), chosen, start))


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


class Proposer:
    """Draws moves and knows their Hastings ratios."""

    def __init__(self, policy: ProblemPolicy, proposals: Proposals, share: float, seed: int) -> None:
        self._policy = policy
        self._proposals = proposals
        self._share = share
        self._seed = seed
        self._contexts = policy.contexts(1)
        self._place: Strategy | None = None
        self._nearest: NDArray[np.int64] = policy.choices.start
        self._known: dict[tuple[int, tuple[int, ...]], NDArray[np.float64]] = {}
        self._block: tuple[int, Draws] | None = None

    def move(self, current: Strategy, step: int) -> Move | None:
        """The move of step `step` from `current`; None if it stays or has no way back."""
        draws, row = self._draws(step), step % BLOCK_SIZE
        operator = draws.operators[row]
        group = self._proposals.tied(operator) if draws.tied[row] else (operator,)
        old = current.configs[operator]
        moved = tuple(member for member in group if current.configs[member] == old)
        log_p = self._policy_without(current, operator, moved)
        config = self._drawn(operator, draws.config(row), log_p, step)
        if any(current.configs[member] == config for member in group):
            return None
        weights = self._log_plain(operator, config) - self._log_plain(operator, old)
        back_and_forth = self._log_mixture(operator, old, log_p) - self._log_mixture(operator, config, log_p)
        log_ratio = len(moved) * weights + back_and_forth
        return Move(operator, _changed(current, moved, config), log_ratio, draws.exponentials[row])

    def _drawn(self, operator: int, plain: OpConfig, log_p: NDArray[np.float64], step: int) -> OpConfig:
        """A configuration from the mixture; `plain` is one from its plain part."""
        rng = np.random.default_rng((self._seed, _STREAM, step))
        if rng.random() < self._share:
            return plain
        return self._policy.choices.configs[operator][int(draw(log_p[None], rng)[0])]

    def _draws(self, step: int) -> Draws:
        index = step // BLOCK_SIZE
        if self._block is None or self._block[0] != index:
            self._block = (index, self._proposals.block(self._seed, _STREAM, index))
        return self._block[1]

    def _log_plain(self, operator: int, config: OpConfig) -> float:
        return self._proposals.log_probability(operator, config)

    def _log_mixture(self, operator: int, config: OpConfig, log_p: NDArray[np.float64]) -> float:
        plain = log(self._share) + self._log_plain(operator, config)
        number = self._policy.choices.number(operator, config)
        if number is None or self._share == 1.0:
            return plain
        return float(np.logaddexp(plain, np.log1p(-self._share) + log_p[number]))

    def _policy_without(
        self, strategy: Strategy, operator: int, moved: tuple[int, ...]
    ) -> NDArray[np.float64]:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a walk stands: before a start, or before the move of `step`.

    Attributes:
        num_starts: Starts evaluated.
        step: The step whose move is evaluated next.
        current: The current strategy; None before the first start.
        scale_s: 1 / beta.
        best_s: Best time so far.
        accepted: Moves accepted.
        move: The move of `step`.
    """

    num_starts: int = 0
    step: int = 0
    current: Scored | None = None
    scale_s: float = 0.0
    accepted: int = 0
    move: Move | None = None


class Guided:
    """The procedure; see the module."""

    method = METHOD

    def __init__(
        self,
        task: SearchTask,
        make_policy: Callable[[], ProblemPolicy],
        settings: GuidedSettings,
        start: Strategy | None,
    ) -> None:
        self._task = task
        self._make_policy = make_policy
        self._settings = settings
        named = starts_for(task, start)
        self._names = ", ".join(name for name, _ in named)
        self._starts = tuple(strategy for _, strategy in named)
        self._num_starts = len(self._starts) + (settings.num_samples if start is None else 0)
        self._given = start is not None

    @cached_property
    def _policy(self) -> ProblemPolicy:
        # Made when the first strategy is asked for: reading and encoding the problem is search time.
        return self._make_policy()

    @cached_property
    def _sampler(self) -> Sampler:
        sampling = SampleSettings(batch=max(1, self._settings.num_samples), num_batches=1)
        return Sampler(self._task, self._policy, self._starts, sampling)

    @cached_property
    def _proposer(self) -> Proposer:
        problem = self._task.problem
        proposals = Proposals(problem.graph, problem.cluster.num_devices, self._settings.proposal)
        return Proposer(self._policy, proposals, self._settings.share, self._task.seed)

    @property
    def settings(self) -> Signature:
        """The settings and the starts' names."""
        chosen = self._settings
        return {
            "starts": self._names,
            "share": chosen.share,
            "beta_relative": chosen.beta_relative,
            "num_samples": chosen.num_samples,
            "proposal": str(chosen.proposal),
        }

    def begin(self) -> _Place:
        """Before the starts."""
        return _Place()

    def propose(self, state: _Place) -> Trial | None:
        """The next start, or the next move."""
        if state.num_starts < self._num_starts:
            return Trial(self._start(state.num_starts))
        assert state.move is not None
        assert state.current is not None
        return Trial(state.move.strategy, self._longest_s(state, state.move))

    def advance(self, state: _Place, trial: Trial, evaluation: Evaluation | None) -> _Place:
        """After the trial, before the next move that changes something."""
        tried = None if evaluation is None else Scored(trial.strategy, evaluation)
        if state.num_starts < self._num_starts:
            assert tried is not None, "starts are evaluated without a limit"
            return self._settled(_started(state, tried, self._settings.beta_relative))
        if tried is not None and self._accepts(state, tried.evaluation):
            state = replace(state, current=tried, accepted=state.accepted + 1)
        return self._settled(replace(state, step=state.step + 1, move=None))

    def view(self, state: _Place) -> View:
        """The step."""
        if state.current is None:
            return View("starts", 0.0, 0)
        return View(f"step {state.step}", state.current.evaluation.iteration_time_s, state.accepted)

    def pack(self, state: _Place) -> dict[str, Any]:
        """All but the move, which is drawn again."""
        return {
            "num_starts": state.num_starts,
            "step": state.step,
            "current": None if state.current is None else packed(state.current),
            "scale_s": state.scale_s,
            "accepted": state.accepted,
        }

    def unpack(self, content: dict[str, Any], replay: Replay) -> _Place:
        """The place that was packed."""
        place = _Place(
            num_starts=int(content["num_starts"]),
            step=int(content["step"]),
            current=None if content["current"] is None else replay(content["current"]),
            scale_s=float(content["scale_s"]),
            accepted=int(content["accepted"]),
        )
        return self._settled(place)

    def _start(self, number: int) -> Strategy:
        return self._starts[number] if self._given else self._sampler.strategy(number)

    def _settled(self, state: _Place) -> _Place:
        """`state` at the next step whose move changes something."""
        if state.num_starts < self._num_starts:
            return state
        assert state.current is not None
        step = state.step
        while (move := self._proposer.move(state.current.strategy, step)) is None:
            step += 1
        return replace(state, step=step, move=move)

    def _longest_s(self, state: _Place, move: Move) -> float:
        """The longest time with which `move` is accepted, and at least that of the current strategy."""
        assert state.current is not None
        energy = max(move.exponential + move.log_ratio, 0.0)
        return state.current.limit_s + energy * state.scale_s

    def _accepts(self, state: _Place, proposed: Evaluation) -> bool:
        assert state.current is not None
        assert state.move is not None
        current = state.current.evaluation
        if proposed.feasible != current.feasible:
            return proposed.feasible
        energy = state.move.exponential + state.move.log_ratio
        if not proposed.feasible:
            scale = current.peak_memory_bytes / self._settings.beta_relative
            return proposed.peak_memory_bytes <= current.peak_memory_bytes + energy * scale
        return proposed.iteration_time_s <= current.iteration_time_s + energy * state.scale_s


def _started(state: _Place, tried: Scored, beta_relative: float) -> _Place:
    """`state` after a start: the best one becomes the current strategy."""
    current = state.current
    if current is None or rank(tried.evaluation) < rank(current.evaluation):
        current = tried
    scale_s = current.evaluation.iteration_time_s / beta_relative
    return replace(state, num_starts=state.num_starts + 1, current=current, scale_s=scale_s)


def _changed(strategy: Strategy, operators: tuple[int, ...], config: OpConfig) -> Strategy:
    configs = list(strategy.configs)
    for operator in operators:
        configs[operator] = config
    return replace(strategy, configs=tuple(configs))
