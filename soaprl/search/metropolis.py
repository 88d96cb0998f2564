"""Metropolis search: chains (`soaprl.search.chain`) from several starts under one budget.

Starts. Data parallelism (unless the batch is smaller than the devices), experts where given, and random ones.
Each start has an equal share of what is left of the budget. It ends when its share is spent, or when half of
its share (`patience`) passed without a better strategy than the start's best; what it did not use goes to the
starts after it. The paper's "half of the search time without improvement" is read as half of the *allotted*
time: half of the time elapsed would end a chain after its first two steps.

Several chains. With `num_chains` above 1 the chains walk side by side instead (`soaprl.search.rounds`), one
from each start, and again from the first start when there are more chains than starts. All have equal shares
of the whole budget, and `patience` has no meaning: a chain without improvement restarts from the best of all.

State. An interrupted search that is resumed with the same budget of evaluations makes exactly the steps of an
uninterrupted one; with a larger budget, it goes on from where it ended.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import NamedTuple

import numpy as np

from soaprl.errors import SearchError, StrategyError
from soaprl.graph.files import graph_fingerprint
from soaprl.search.chain import Chain, Limits, Walker, begin, walk
from soaprl.search.chains import SeveralChains, search_side_by_side
from soaprl.search.position import Position, position_state, resumed
from soaprl.search.proposals import Proposals, ProposalSettings
from soaprl.search.rounds import ChainSettings
from soaprl.search.state import Signature, save_state
from soaprl.search.task import (
    Evaluator,
    ProgressReport,
    SearchResult,
    SearchTask,
    improved,
    search_result,
)
from soaprl.simulator.problem import Problem
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.strategy import Strategy

METHOD = "mcmc"
_REPORT_EVERY_S = 0.1

Expert = Callable[[Problem], Strategy | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetropolisSettings:
    """How the chains move.

    Attributes:
        beta_relative: beta times the iteration time of the start; see `soaprl.search.chain`. Of 200, 1000,
            5000, 20000 and 100000, tried on AlexNet and the paper's recurrent models on ``p100-4x4`` with
            4,000 to 15,000 evaluations and two seeds, those from 5000 on did best: colder chains differ
            little, hotter ones drift away from data parallelism and do not return.
        proposal: How configurations are drawn.
        num_random_starts: Random strategies to start from, after data parallelism and experts.
        patience: Share of a start's budget that may pass without improvement, with one chain.
        num_chains: Chains that walk side by side; 1: one after the other, from each start.
        sharing: How several chains share what they find.
        save_every_s: Seconds between writes of the state file.
    """

    beta_relative: float = 5000.0
    proposal: ProposalSettings = field(default_factory=ProposalSettings)
    num_random_starts: int = 1
    patience: float = 0.5
    num_chains: int = 1
    sharing: ChainSettings = field(default_factory=ChainSettings)
    save_every_s: float = 10.0

    def __post_init__(self) -> None:
        if not self.beta_relative > 0:
            raise SearchError(f"expected a beta_relative above 0, found {self.beta_relative}.")
        if not 0 < self.patience <= 1:
            raise SearchError(f"expected a patience above 0 and at most 1, found {self.patience}.")
        if self.num_random_starts < 0:
            raise SearchError(f"expected 0 or more random starts, found {self.num_random_starts}.")
        if self.num_chains < 1:
            raise SearchError(f"expected 1 or more chains, found {self.num_chains}.")


def paper_settings() -> MetropolisSettings:
    """The paper's chain to the letter: single operators, uniform over all legal configurations."""
    proposal = ProposalSettings(kind="uniform", reductions=False, tied_moves=0.0)
    return MetropolisSettings(proposal=proposal)


class Start(NamedTuple):
    """Where a chain begins: what to call it, and the strategy."""

    name: str
    strategy: Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What does not change during a search; `origin_s` is the clock's reading at search time 0."""

    task: SearchTask
    settings: MetropolisSettings
    proposals: Proposals
    starts: tuple[Start, ...]
    signature: Signature
    origin_s: float

    def elapsed(self) -> float:
        """Search time, over all sessions of a resumed search."""
        return self.task.clock() - self.origin_s


def metropolis(
    task: SearchTask,
    settings: MetropolisSettings | None = None,
    *,
    experts: Sequence[tuple[str, Expert]] = (),
    more_evaluators: Sequence[Evaluator] = (),
) -> SearchResult:
    """Search with Metropolis chains from several starts; see the module.

    A KeyboardInterrupt ends the search: the state is saved and the best strategy so far is returned.

    Args:
        task: Problem, budget, seed, state file.
        settings: How the chains move.
        experts: Named functions that make a start for the problem, or None where they do not apply.
        more_evaluators: Answer as the task's evaluator does. With several chains, each of these and the
            task's evaluator has a thread; how many there are changes the speed, never the result.

    Raises:
        SearchError: The budget has no limit, or the state file is missing or belongs to another search.
        OutputError: The state file cannot be written.
    """
    settings = settings or MetropolisSettings()
    task.budget.require_limit(METHOD)
    part = task.part
    proposals = Proposals(part.graph, part.cluster.num_devices, settings.proposal)
    starts = _starts(task, settings, proposals, experts)
    signature = _signature(task, settings, starts)
    if settings.num_chains > 1:
        several = SeveralChains(
            task=task,
            method=METHOD,
            evaluators=(task.evaluator, *more_evaluators)[: settings.num_chains],
            proposals=proposals,
            starts=tuple(starts[number % len(starts)].strategy for number in range(settings.num_chains)),
            signature=signature,
            beta_relative=settings.beta_relative,
            sharing=settings.sharing,
            save_every_s=settings.save_every_s,
        )
        return search_side_by_side(several)
    position, elapsed_s = resumed(task, signature) if task.resume else (Position(), 0.0)
    run = _Run(
        task=task,
        settings=settings,
        proposals=proposals,
        starts=starts,
        signature=signature,
        origin_s=task.clock() - elapsed_s,
    )
    standing = _Standing(position)
    interrupted = _search(run, standing)
    position = standing.position
    _save(run, position)
    best = position.best_so_far
    assert best is not None
    assert position.initial_time_s is not None
    return search_result(
        method=METHOD,
        seed=task.seed,
        best=best,
        initial_time_s=position.initial_time_s,
        num_evaluations=position.num_evaluations,
        num_accepted=position.num_accepted,
        search_time_s=run.elapsed(),
        interrupted=interrupted,
    )


class _Standing:
    """Where a search stands: replaced as a whole, so that an interrupt at any moment finds what holds."""

    def __init__(self, position: Position) -> None:
        self.position = position


def _search(run: _Run, standing: _Standing) -> bool:
    """Run the starts from where the search stands; returns whether it was interrupted."""
    try:
        while True:
            if standing.position.chain is None:
                standing.position = _begun(run, standing.position)
            interrupted = _walk_start(run, standing)
            position = standing.position
            done = run.task.budget.spent(position.num_evaluations, run.elapsed())
            if interrupted or done or position.start == len(run.starts) - 1:
                return interrupted
            standing.position = Position(
                start=position.start + 1,
                used_evaluations=position.num_evaluations,
                used_s=run.elapsed(),
                accepted=position.num_accepted,
                initial_time_s=position.initial_time_s,
                best=position.best_so_far,
            )
    except KeyboardInterrupt:
        if standing.position.best_so_far is None:
            raise
        return True


def _begun(run: _Run, position: Position) -> Position:
    """The position after evaluating its start."""
    strategy = run.starts[position.start].strategy
    evaluation = run.task.evaluator.evaluate(strategy)
    now = run.elapsed()
    number = position.used_evaluations + 1
    best = improved(position.best, strategy, evaluation, number=number, elapsed_s=now)
    beta = run.settings.beta_relative
    chain = begin(strategy, evaluation, beta_relative=beta, best=best, elapsed_s=now)
    initial = evaluation.iteration_time_s if position.initial_time_s is None else position.initial_time_s
    return replace(position, initial_time_s=initial, chain=chain)


def _walk_start(run: _Run, standing: _Standing) -> bool:
    """Makes the steps of the chain at hand; returns whether they were interrupted."""
    position = standing.position
    assert position.chain is not None
    report_s = save_s = run.elapsed()
    save_s += run.settings.save_every_s

    def visit(chain: Chain, step: int, now: float) -> None:
        nonlocal report_s, save_s
        standing.position = replace(position, chain=chain._replace(step=step))
        if now >= report_s:
            report_s = now + _REPORT_EVERY_S
            _report(run, standing.position, now)
        if now >= save_s:
            save_s = now + run.settings.save_every_s
            _save(run, standing.position)

    walker = Walker(
        evaluator=run.task.evaluator,
        proposals=run.proposals,
        seed=run.task.seed,
        stream=position.start + 1,
        first_number=position.used_evaluations + 1,
        elapsed=run.elapsed,
        visit=visit,
    )
    chain, interrupted = walk(walker, position.chain, _limits(run, position))
    standing.position = replace(position, chain=chain)
    _report(run, standing.position, run.elapsed())
    return interrupted


def _limits(run: _Run, position: Position) -> Limits:
    """The limits of the start at `position`: an equal share of what the starts before it left."""
    budget, patience = run.task.budget, run.settings.patience
    shares = len(run.starts) - position.start
    steps, idle_steps = inf, inf
    if budget.evaluations is not None:
        share = -(-(budget.evaluations - position.used_evaluations) // shares)
        # The evaluation of the start itself is one of its share.
        steps, idle_steps = share - 1, max(1.0, patience * share)
    end_s, idle_s = inf, inf
    if budget.seconds is not None:
        share_s = (budget.seconds - position.used_s) / shares
        end_s, idle_s = position.used_s + share_s, patience * share_s
    return Limits(steps=steps, end_s=end_s, idle_steps=idle_steps, idle_s=idle_s)


def _starts(
    task: SearchTask,
    settings: MetropolisSettings,
    proposals: Proposals,
    experts: Sequence[tuple[str, Expert]],
) -> tuple[Start, ...]:
    starts = []
    try:
        starts.append(Start("data-parallel", data_parallel(task.part.graph, task.problem.cluster)))
    except StrategyError:
        # The batch is smaller than the devices: there is no data parallelism to start from.
        starts.clear()
    for name, expert in experts:
        strategy = expert(task.part)
        if strategy is not None:
            starts.append(Start(name, strategy))
    for number in range(settings.num_random_starts if starts else max(1, settings.num_random_starts)):
        rng = np.random.default_rng((task.seed, 0, number))
        starts.append(Start(f"random-{number}", proposals.strategy(rng)))
    return tuple(Start(task.named(name), task.completed(strategy)) for name, strategy in starts)


def _signature(task: SearchTask, settings: MetropolisSettings, starts: tuple[Start, ...]) -> Signature:
    """What a search must have in common with the one whose state it goes on from."""
    problem = task.problem
    weights = settings.proposal.weights.as_tuple()
    several = {"num_chains": settings.num_chains, **asdict(settings.sharing)}
    return {
        "model": problem.graph.name,
        "batch_size": problem.graph.batch_size,
        "graph": graph_fingerprint(problem.graph),
        "cluster": problem.cluster.fingerprint,
        "cost": problem.cost.name,
        "options": str(problem.options),
        "seed": task.seed,
        "beta_relative": settings.beta_relative,
        "patience": settings.patience,
        "starts": ", ".join(start.name for start in starts),
        "weights": ", ".join(str(weight) for weight in weights),
        **{name: value for name, value in asdict(settings.proposal).items() if name != "weights"},
        **(several if settings.num_chains > 1 else {}),
    }


def _report(run: _Run, position: Position, now: float) -> None:
    chain = position.chain
    assert chain is not None
    if run.task.progress is not None:
        run.task.progress(
            ProgressReport(
                method=METHOD,
                stage=f"from {run.starts[position.start].name}",
                num_evaluations=position.num_evaluations,
                elapsed_s=now,
                best_time_s=chain.best.time_s,
                current_time_s=chain.evaluation.iteration_time_s,
                num_accepted=position.num_accepted,
            )
        )


def _save(run: _Run, position: Position) -> None:
    if run.task.state_path is not None:
        save_state(run.task.state_path, position_state(position, run.elapsed(), run.signature))
