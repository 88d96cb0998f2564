"""A Metropolis chain over strategies: the paper's Markov chain Monte Carlo, one start.

One step, implemented in `walk`: a uniformly random operator gets a random configuration, S -> S*; the
proposal is accepted with probability

    min(1, exp(beta (cost(S) - cost(S*))))

against the *current* strategy S. The best strategy is kept apart and never steers the chain. The uniform
number u of a step is drawn before the simulation, so that acceptance reads ``cost(S*) <= cost(S) + e / beta``
with ``e = -log u``, an exponential number; implemented in `accepts`.

Temperature. ``beta = beta_relative / cost(start)``, so that one setting serves a model of milliseconds and
one of seconds: with `beta_relative` = b, a strategy that is slower by a share x of the start's time is
accepted with probability exp(-b x).

What is sampled. The proposal for an operator does not depend on its current configuration. With the uniform
proposal over all legal configurations it is symmetric, and the chain visits strategies with frequencies
proportional to exp(-beta cost(S)), as in the paper. With the mixture, whose probability for configuration c
is q(c), the plain acceptance above satisfies detailed balance for q(S) exp(-beta cost(S)), where q(S) is the
product over the operators: structured placements weigh more, and none is excluded.

Tied moves (`soaprl.search.proposals`) give m operators that share configuration a the configuration c. The
way back is proposed with probability q(a) instead of q(c), so that the Hastings ratio for the same
distribution is (q(c) / q(a)) ** (m - 1); a move after which further operators of the group would have c is
never accepted, as the way back would take them along. Implemented in `_tied`. Without tied moves and with the
uniform proposal (`soaprl.search.metropolis.paper_settings`) the chain is the paper's to the letter. A start
may have configurations that are never proposed, as with more tasks than `ProposalSettings.max_tasks`: the
ratio of a tied move from there is 1.

Memory. A strategy that does not fit in memory has infinite cost: it is never accepted from one that fits.
While the current strategy does not fit, infeasible proposals are compared by peak memory instead of time,
with the same relative temperature, and the first one that fits is accepted.

Threshold first. As the random number comes before the simulation, the longest time that a proposal may have
to matter is known (`longest_of_interest_s`), and the simulator stops once it is certain to be longer. The
chain is the same, draw for draw. An evaluator that can scan (`soaprl.search.scanning`) goes through refused
proposals by itself; then `visit` is called after every few steps.

Every random number is a function of (seed, start, step), so that a chain goes on from any step.
"""

from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import NamedTuple

from soaprl.search.proposals import BLOCK_SIZE, Proposals, log_ratio
from soaprl.search.scanning import Scanner, ScanningEvaluator
from soaprl.search.task import Best, Evaluation, Evaluator, improved, rank, score_within
from soaprl.search.task import accepts as accepts_within
from soaprl.simulator import Scale
from soaprl.strategy.strategy import OpConfig, Strategy


class Chain(NamedTuple):
    """A chain after some step; replaced as a whole when a proposal is accepted.

    Attributes:
        step: Proposals made.
        current: The current strategy.
        evaluation: What the simulator said about it.
        accepted: Proposals accepted.
        start_rank: `rank` of the best strategy of this chain.
        improved_step: Step of the chain's last improvement.
        improved_s: Search time at it.
        time_scale_s: 1 / beta between feasible strategies.
        memory_scale_bytes: 1 / beta between infeasible strategies.
        best: Best strategy of the whole search so far.
    """

    step: int
    current: Strategy
    evaluation: Evaluation
    accepted: int
    start_rank: tuple[bool, float]
    improved_step: int
    improved_s: float
    time_scale_s: float
    memory_scale_bytes: float
    best: Best


class Limits(NamedTuple):
    """When a chain ends: in all, and without improvement; infinite where unlimited.

    Attributes:
        steps: Proposals.
        end_s: Search time at which it ends.
        idle_steps: Proposals since the chain's last improvement.
        idle_s: Search time since the chain's last improvement.
    """

    steps: float
    end_s: float
    idle_steps: float
    idle_s: float


class Walker(NamedTuple):
    """What a chain walks with.

    Attributes:
        evaluator: Scores strategies.
        proposals: Draws configurations.
        seed: Seed of the search.
        stream: Number of the chain's random stream.
        first_number: Evaluations of the search before the chain's first step.
        elapsed: Search time in seconds.
        visit: Called after every step, or every few, with the chain, its steps and the search time; must be
            quick.
    """

    evaluator: Evaluator
    proposals: Proposals
    seed: int
    stream: int
    first_number: int
    elapsed: Callable[[], float]
    visit: Callable[[Chain, int, float], None]


def begin(
    strategy: Strategy, evaluation: Evaluation, *, beta_relative: float, best: Best, elapsed_s: float
) -> Chain:
    """The chain that begins at `strategy`."""
    return Chain(
        step=0,
        current=strategy,
        evaluation=evaluation,
        accepted=0,
        start_rank=rank(evaluation),
        improved_step=0,
        improved_s=elapsed_s,
        time_scale_s=evaluation.iteration_time_s / beta_relative,
        memory_scale_bytes=evaluation.peak_memory_bytes / beta_relative,
        best=best,
    )


def accepts(chain: Chain, proposed: Evaluation, exponential: float) -> bool:
    """Whether `chain` accepts a proposal, given the step's standard exponential number."""
    return accepts_within(
        chain.evaluation,
        proposed,
        longer_s=exponential * chain.time_scale_s,
        larger_bytes=exponential * chain.memory_scale_bytes,
    )


def longest_of_interest_s(chain: Chain, exponential: float) -> float:
    """The longest iteration time with which a proposal can be accepted or be the best of this chain."""
    if not chain.evaluation.feasible:
        return inf
    accepted_s = chain.evaluation.iteration_time_s + exponential * chain.time_scale_s
    infeasible, best_s = chain.start_rank
    return inf if infeasible else max(accepted_s, best_s)


def _scale(chain: Chain) -> Scale:
    """What the longest time, or the largest memory, of interest of a proposal depends on."""
    fits, best = chain.evaluation.feasible, chain.start_rank[1]
    return Scale(
        current_s=chain.evaluation.iteration_time_s,
        scale_s=chain.time_scale_s,
        best_s=best if fits else 0.0,
        current_bytes=-1.0 if fits else float(chain.evaluation.peak_memory_bytes),
        scale_bytes=chain.memory_scale_bytes,
        best_bytes=0.0 if fits else best,
    )


def walk(walker: Walker, chain: Chain, limits: Limits) -> tuple[Chain, bool]:
    """Make steps until a limit; returns the chain, and whether a KeyboardInterrupt ended it."""
    score, elapsed, visit = score_within(walker.evaluator), walker.elapsed, walker.visit
    evaluator = walker.evaluator
    scanner: Scanner | None = None
    if isinstance(evaluator, ScanningEvaluator):
        scanner = Scanner(evaluator, walker.proposals, chain.current)
    step, block, now = chain.step, -1, elapsed()
    try:
        while (
            step < limits.steps
            and now < limits.end_s
            and step - chain.improved_step < limits.idle_steps
            and now - chain.improved_s < limits.idle_s
        ):
            index, row = divmod(step, BLOCK_SIZE)
            if index != block:
                draws, block = walker.proposals.block(walker.seed, walker.stream, index), index
            evaluation: Evaluation | None = None
            if scanner is not None:
                idle = limits.idle_steps - (step - chain.improved_step)
                end = row + min(limits.steps - step, idle)
                row, evaluation = scanner.next(chain.current, _scale(chain), draws, row, end)
                step, before = index * BLOCK_SIZE + row, now
                now = elapsed()
                scanner.took(now - before)
                if evaluation is None:
                    visit(chain, step, now)
                    continue
            energy = draws.exponentials[row]
            if draws.tied[row]:
                strategy, ratio = _tied(
                    walker.proposals, chain.current, draws.operators[row], draws.config(row)
                )
                energy += ratio
            else:
                strategy = chain.current.replaced(draws.operators[row], draws.config(row))
            if evaluation is None:
                evaluation = score(strategy, longest_of_interest_s(chain, energy))
                now = elapsed()
            accepted = evaluation is not None and accepts(chain, evaluation, energy)
            if evaluation is not None and (accepted or rank(evaluation) < chain.start_rank):
                # One assignment: an interrupt leaves the chain before or after the step, never within it.
                found = Proposal(step + 1, strategy, evaluation, walker.first_number + step + 1, now)
                chain = _moved(chain, found, accepted=accepted)
            step += 1
            visit(chain, step, now)
    except KeyboardInterrupt:
        return chain._replace(step=max(step, chain.step)), True
    return chain._replace(step=step), False


class Proposal(NamedTuple):
    """An evaluated proposal: the step it makes, and the evaluation's number and search time."""

    step: int
    strategy: Strategy
    evaluation: Evaluation
    number: int
    now_s: float


def _moved(chain: Chain, found: Proposal, *, accepted: bool) -> Chain:
    """`chain` after a proposal that is accepted, or that is the best so far (or both).

    Single moves that improve are always accepted; only the Hastings ratio of a tied one can refuse them.
    """
    score = rank(found.evaluation)
    better = score < chain.start_rank
    return Chain(
        step=found.step,
        current=found.strategy if accepted else chain.current,
        evaluation=found.evaluation if accepted else chain.evaluation,
        accepted=chain.accepted + accepted,
        start_rank=score if better else chain.start_rank,
        improved_step=found.step if better else chain.improved_step,
        improved_s=found.now_s if better else chain.improved_s,
        time_scale_s=chain.time_scale_s,
        memory_scale_bytes=chain.memory_scale_bytes,
        best=improved(
            chain.best, found.strategy, found.evaluation, number=found.number, elapsed_s=found.now_s
        ),
    )


def _tied(proposals: Proposals, current: Strategy, operator: int, config: OpConfig) -> tuple[Strategy, float]:
    """The strategy after a tied move to `config`, and the logarithm of its Hastings ratio."""
    old = current.configs[operator]
    group = proposals.tied(operator)
    moved = [member for member in group if current.configs[member] == old]
    configs = list(current.configs)
    for member in moved:
        configs[member] = config
    strategy = replace(current, configs=tuple(configs))
    if len(moved) == 1 and len(group) == 1:
        return strategy, 0.0
    if config != old and any(current.configs[member] == config for member in group):
        return strategy, -inf
    new = proposals.log_probability(operator, config)
    ratio = log_ratio(new, proposals.log_probability(operator, old))
    return strategy, (len(moved) - 1) * ratio
