"""Searches that make one evaluation at a time, run under a budget, with progress and a state file.

A `Procedure` says which strategy to evaluate where it stands, and where it stands after that. Both answers
depend on nothing but where it stands: random numbers are functions of (seed, step). So a search that is
interrupted and goes on from its file makes the steps of one that was not. `run_procedure` does the rest:
counting, the best strategy so far, the budget, reports, the file.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from soaprl.errors import SearchError
from soaprl.graph.files import graph_fingerprint
from soaprl.search.position import replayed, resume_path
from soaprl.search.state import (
    Signature,
    SteppedState,
    StrategyState,
    load_stepped,
    pack,
    save_state,
)
from soaprl.search.task import (
    Best,
    Evaluation,
    ProgressReport,
    SearchResult,
    SearchTask,
    improved,
    score_within,
    search_result,
)
from soaprl.strategy.strategy import OpConfig, Strategy

S = TypeVar("S")

_REPORT_EVERY_S = 0.1
_SAVE_EVERY_S = 10.0


class Scored(NamedTuple):
    """A strategy and what the simulator says of it."""

    strategy: Strategy
    evaluation: Evaluation

    @property
    def limit_s(self) -> float:
        """The longest time of a strategy that may be better; infinite if this one does not fit in memory."""
        return self.evaluation.iteration_time_s if self.evaluation.feasible else inf


class Trial(NamedTuple):
    """A strategy to evaluate, as far as its iteration takes no longer than `limit_s`."""

    strategy: Strategy
    limit_s: float = inf


# Evaluates a packed strategy again; raises `SearchError` if it takes another time than it took then.
Replay: TypeAlias = Callable[[dict[str, Any]], Scored]


class Preparation(NamedTuple):
    """A piece of the work that comes before the next trial is done: of what, for people. There is more."""

    stage: str


class View(NamedTuple):
    """Where a procedure stands, for people: what it does, its strategy's time, accepted proposals."""

    stage: str
    current_time_s: float
    num_accepted: int


class Procedure(Protocol[S]):
    """A search as a function of where it stands; see the module. `S` must not change in place."""

    @property
    def method(self) -> str:
        """The method's name."""
        ...

    @property
    def settings(self) -> Signature:
        """What must be equal in a search that goes on from a state file."""
        ...

    def begin(self) -> S:
        """Where it stands before the first evaluation; the first trial has no limit."""
        ...

    def propose(self, state: S) -> Trial | Preparation | None:
        """What to evaluate next, or None if the search is over.

        Long work before it is done in pieces of a second or less, one a call, so that a budget in seconds or
        an interrupt can end the search between two of them.
        """
        ...

    def advance(self, state: S, trial: Trial, evaluation: Evaluation | None) -> S:
        """Where it stands after the trial; the evaluation is None if it passed the trial's limit."""
        ...

    def view(self, state: S) -> View:
        """Where it stands, for people."""
        ...

    def pack(self, state: S) -> dict[str, Any]:
        """What a state file holds of it, as JSON."""
        ...

    def unpack(self, content: dict[str, Any], replay: Replay) -> S:
        """Where it stood when it was packed; strategies are evaluated again by `replay`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Position(Generic[S]):
    """A search between two evaluations; replaced as a whole, so that an interrupt never splits it."""

    state: S
    num_evaluations: int = 0
    initial_time_s: float = 0.0
    best: Best | None = None


def run_procedure(task: SearchTask, procedure: Procedure[S]) -> SearchResult:
    """Run `procedure` until it is over or the budget is spent.

    A KeyboardInterrupt ends it: the state is saved and the best strategy so far is returned.

    Raises:
        SearchError: The budget has no limit, or the state file is missing or belongs to another search.
        OutputError: The state file cannot be written.
    """
    task.budget.require_limit(procedure.method)
    signature = problem_signature(task, procedure)
    position, elapsed_s = _position(task, procedure, signature)
    origin_s = task.clock() - elapsed_s
    score, interrupted = score_within(task.evaluator), False
    now, report_s, save_s = elapsed_s, elapsed_s, elapsed_s + _SAVE_EVERY_S
    try:
        while position.best is None or not task.budget.spent(position.num_evaluations, now):
            trial = procedure.propose(position.state)
            if trial is None:
                break
            if isinstance(trial, Preparation):
                now = task.clock() - origin_s
                if now >= report_s:
                    report_s = now + _REPORT_EVERY_S
                    _report(task, procedure, position, now, trial.stage)
                continue
            evaluation = score(trial.strategy, trial.limit_s)
            now = task.clock() - origin_s
            position = _after(procedure, position, trial, evaluation, now)
            if now >= report_s:
                report_s = now + _REPORT_EVERY_S
                _report(task, procedure, position, now)
            if now >= save_s:
                save_s = now + _SAVE_EVERY_S
                _save(task, procedure, position, now, signature)
    except KeyboardInterrupt:
        if position.best is None:
            raise
        interrupted = True
    elapsed_s = task.clock() - origin_s
    _save(task, procedure, position, elapsed_s, signature)
    with suppress(KeyboardInterrupt):
        # Everything is done and kept: an interrupt by the listener has nothing left to end.
        _report(task, procedure, position, elapsed_s)
    assert position.best is not None, "a budget allows at least one evaluation"
    return search_result(
        method=procedure.method,
        seed=task.seed,
        best=position.best,
        initial_time_s=position.initial_time_s,
        num_evaluations=position.num_evaluations,
        search_time_s=elapsed_s,
        num_accepted=procedure.view(position.state).num_accepted,
        interrupted=interrupted,
    )


def problem_signature(task: SearchTask, procedure: Procedure[S]) -> Signature:
    """What a search must have in common with the one whose state it goes on from."""
    problem = task.problem
    return {
        "method": procedure.method,
        "model": problem.graph.name,
        "batch_size": problem.graph.batch_size,
        "graph": graph_fingerprint(problem.graph),
        "cluster": problem.cluster.fingerprint,
        "cost": problem.cost.name,
        "options": str(problem.options),
        "seed": task.seed,
        **procedure.settings,
    }


def packed(scored: Scored) -> dict[str, Any]:
    """A scored strategy as JSON, for `Replay`."""
    return pack(scored.strategy, scored.evaluation).model_dump(mode="json")


def moved_together(strategy: Strategy, group: tuple[int, ...], operator: int, config: OpConfig) -> Strategy:
    """`strategy` with `config` for the operators of `group` that are configured as `operator` is."""
    if len(group) == 1:
        return strategy.replaced(operator, config)
    old = strategy.configs[operator]
    configs = list(strategy.configs)
    for member in group:
        if configs[member] == old:
            configs[member] = config
    return replace(strategy, configs=tuple(configs))


def _position(task: SearchTask, procedure: Procedure[S], signature: Signature) -> tuple[_Position[S], float]:
    """Where the search begins or goes on, and its search time so far."""
    if not task.resume:
        return _Position(state=procedure.begin()), 0.0
    path = resume_path(task)
    found = load_stepped(path, signature)
    best = None
    if found.best is not None:
        strategy, evaluation = replayed(task, found.best)
        best = Best(strategy=strategy, evaluation=evaluation, history=found.history)

    def replay(content: dict[str, Any]) -> Scored:
        return Scored(*replayed(task, StrategyState.model_validate(content)))

    try:
        state = procedure.unpack(found.procedure, replay)
    except SearchError:
        raise
    except (LookupError, TypeError, ValueError) as error:
        raise SearchError(f"{path}: damaged state of {procedure.method!r}: {error}. Start anew.") from error
    position = _Position(
        state=state,
        num_evaluations=found.num_evaluations,
        initial_time_s=found.initial_time_s,
        best=best,
    )
    return position, found.elapsed_s


def _after(
    procedure: Procedure[S], position: _Position[S], trial: Trial, evaluation: Evaluation | None, now: float
) -> _Position[S]:
    """The position after a trial."""
    number, best = position.num_evaluations + 1, position.best
    first_s = position.initial_time_s
    if evaluation is not None:
        first_s = evaluation.iteration_time_s if best is None else first_s
        best = improved(best, trial.strategy, evaluation, number=number, elapsed_s=now)
    state = procedure.advance(position.state, trial, evaluation)
    return replace(position, state=state, num_evaluations=number, initial_time_s=first_s, best=best)


def _report(
    task: SearchTask, procedure: Procedure[S], position: _Position[S], now: float, stage: str | None = None
) -> None:
    """Tells where the search stands, and what it does if that is not where it stands."""
    if task.progress is None or position.best is None:
        return
    view = procedure.view(position.state)
    task.progress(
        ProgressReport(
            method=procedure.method,
            stage=view.stage if stage is None else stage,
            num_evaluations=position.num_evaluations,
            elapsed_s=now,
            best_time_s=position.best.time_s,
            current_time_s=view.current_time_s,
            num_accepted=view.num_accepted,
        )
    )


def _save(
    task: SearchTask, procedure: Procedure[S], position: _Position[S], now: float, signature: Signature
) -> None:
    if task.state_path is None:
        return
    best = position.best
    state = SteppedState(
        signature=signature,
        elapsed_s=now,
        num_evaluations=position.num_evaluations,
        initial_time_s=position.initial_time_s,
        best=None if best is None else pack(best.strategy, best.evaluation),
        history=() if best is None else best.history,
        procedure=procedure.pack(position.state),
    )
    save_state(task.state_path, state)
