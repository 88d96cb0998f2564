"""What a search is asked for, and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from soaprl.errors import SearchError
from soaprl.graph.micro_batch import micro_batch
from soaprl.simulator.problem import Problem
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import Sharding, Strategy


class Evaluation(Protocol):
    """What a search needs to know about a simulated strategy."""

    @property
    def iteration_time_s(self) -> float:
        """Seconds of one training iteration."""
        ...

    @property
    def peak_memory_bytes(self) -> int:
        """Largest peak memory of any device."""
        ...

    @property
    def feasible(self) -> bool:
        """Whether the strategy fits in memory."""
        ...

    @property
    def communication_bytes(self) -> int:
        """Bytes moved between devices in one iteration."""
        ...


class Evaluator(Protocol):
    """Scores strategies; must answer the same for equal strategies."""

    def evaluate(self, strategy: Strategy) -> Evaluation:
        """Simulate one iteration under `strategy`."""
        ...


@runtime_checkable
class BoundedEvaluator(Evaluator, Protocol):
    """An evaluator that can stop early: it need not finish what takes longer than a limit."""

    def evaluate_within(self, strategy: Strategy, limit_s: float) -> Evaluation | None:
        """What `evaluate` gives, or None if the iteration certainly takes longer than `limit_s`."""
        ...


def score_within(evaluator: Evaluator) -> Callable[[Strategy, float], Evaluation | None]:
    """A function that scores a strategy up to a limit, whether or not `evaluator` can stop early."""
    if isinstance(evaluator, BoundedEvaluator):
        return evaluator.evaluate_within
    return lambda strategy, limit_s: evaluator.evaluate(strategy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When a search must stop: at the first limit reached; None means without that limit.

    Attributes:
        evaluations: Number of simulated strategies.
        seconds: Wall-clock time.
    """

    evaluations: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.evaluations is not None and self.evaluations < 1:
            raise SearchError(f"expected a budget of at least 1 evaluation, found {self.evaluations}.")
        if self.seconds is not None and not self.seconds > 0:
            raise SearchError(f"expected a budget of more than 0 seconds, found {self.seconds}.")

    def require_limit(self, method: str) -> None:
        """Raises `SearchError` if nothing would ever stop `method`."""
        if self.evaluations is None and self.seconds is None:
            raise SearchError(f"method {method!r} needs a budget: a number of evaluations, seconds, or both.")

    def spent(self, num_evaluations: int, elapsed_s: float) -> bool:
        """Whether either limit is reached."""
        out_of_evaluations = self.evaluations is not None and num_evaluations >= self.evaluations
        return out_of_evaluations or (self.seconds is not None and elapsed_s >= self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressReport:
    """Where a search stands.

    Attributes:
        method: The method's name.
        stage: What it is doing (``from data-parallel``).
        num_evaluations: Strategies simulated so far.
        elapsed_s: Search time so far.
        best_time_s: Best iteration time so far; infinite while nothing feasible was found.
        current_time_s: Iteration time of the strategy it stands at.
        num_accepted: Accepted proposals so far; 0 for methods without.
    """

    method: str
    stage: str
    num_evaluations: int
    elapsed_s: float
    best_time_s: float
    current_time_s: float
    num_accepted: int


class Progress(Protocol):
    """Is told now and then where a search stands."""

    def __call__(self, report: ProgressReport, /) -> None:
        """Called a few times a second at most."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchTask:
    """Everything that a method gets.

    Attributes:
        problem: What to find a strategy for.
        evaluator: Scores strategies of that problem.
        budget: When to stop.
        clock: Seconds since some moment.
        seed: Two searches with equal tasks find the same, as long as no time limit cuts them.
        progress: Told where the search stands.
        state_path: Where an iterative method keeps its state; None: nowhere.
        resume: Whether to go on from the state at `state_path`.
        sharding: What the strategies shard that the method begins with; changes of a strategy keep its own.
        micro_batches: Into how many micro-batches the strategies cut the batch that the method begins with:
            by 1F1B in one stage, gradient accumulation. Changes of a strategy keep its own.
    """

    problem: Problem
    evaluator: Evaluator
    budget: Budget
    clock: Callable[[], float]
    seed: int = 0
    progress: Progress | None = None
    state_path: Path | None = None
    resume: bool = False
    sharding: Sharding = Sharding.NONE
    micro_batches: int = 1

    @property
    def part(self) -> Problem:
        """The problem of one micro-batch: the one that configurations are chosen for.

        Raises:
            GraphError: The batch cannot be cut so.
        """
        if self.micro_batches == 1:
            return self.problem
        return replace(self.problem, graph=micro_batch(self.problem.graph, self.micro_batches))

    def completed(self, strategy: Strategy) -> Strategy:
        """`strategy` with the task's sharding and micro-batches, as far as it has none of its own."""
        if self.sharding is not Sharding.NONE and strategy.sharding is Sharding.NONE:
            strategy = replace(strategy, sharding=self.sharding)
        if self.micro_batches == 1 or not strategy.is_whole:
            return strategy
        return replace(strategy, micro_batches=self.micro_batches, schedule=Schedule.ONE_F_ONE_B)

    def named(self, name: str) -> str:
        """The name of a strategy to begin with, which tells it from others of another sharding or number."""
        said = [] if self.sharding is Sharding.NONE else [str(self.sharding)]
        said += [] if self.micro_batches == 1 else [f"{self.micro_batches} micro-batches"]
        return f"{name} ({', '.join(said)})" if said else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best strategy of a search so far.

    Attributes:
        strategy: The strategy.
        evaluation: What the simulator said.
        history: Every improvement among feasible strategies: (evaluation number from 1, seconds since the
            search began, iteration time).
    """

    strategy: Strategy
    evaluation: Evaluation
    history: tuple[tuple[int, float, float], ...]

    @property
    def time_s(self) -> float:
        """Iteration time, infinite if the strategy does not fit in memory."""
        return self.evaluation.iteration_time_s if self.evaluation.feasible else inf


def rank(evaluation: Evaluation) -> tuple[bool, float]:
    """Sort key, best first: feasible ones by time, then infeasible ones by peak memory."""
    if evaluation.feasible:
        return False, evaluation.iteration_time_s
    return True, float(evaluation.peak_memory_bytes)


def accepts(current: Evaluation, proposed: Evaluation, *, longer_s: float, larger_bytes: float) -> bool:
    """Whether a walk goes from one strategy to another.

    One that fits in memory is always accepted from one that does not, and never the other way round.

    Args:
        current: Of the strategy that the walk stands at.
        proposed: Of the one that it may go to.
        longer_s: How much longer an iteration may take, where both fit; below 0: how much shorter it must be.
        larger_bytes: How much larger the peak memory may be, where neither fits.
    """
    if proposed.feasible != current.feasible:
        return proposed.feasible
    if proposed.feasible:
        return proposed.iteration_time_s <= current.iteration_time_s + longer_s
    return proposed.peak_memory_bytes <= current.peak_memory_bytes + larger_bytes


def improved(
    best: Best | None, strategy: Strategy, evaluation: Evaluation, *, number: int, elapsed_s: float
) -> Best:
    """`best`, or what takes its place after evaluation `number` at `elapsed_s`; ties keep the older one."""
    if best is not None and rank(evaluation) >= rank(best.evaluation):
        return best
    history = () if best is None else best.history
    if evaluation.feasible:
        history = (*history, (number, elapsed_s, evaluation.iteration_time_s))
    return Best(strategy=strategy, evaluation=evaluation, history=history)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SearchResult:
    """What a search found.

    Attributes:
        method: The method's name.
        seed: The seed.
        strategy: The best strategy; if nothing feasible was found, the one of least peak memory.
        evaluation: What the simulator says about it.
        initial_time_s: Iteration time of the first strategy evaluated.
        num_evaluations: Strategies simulated.
        num_accepted: Accepted proposals; 0 for methods without.
        search_time_s: Wall-clock time of the search.
        history_evaluations: Evaluation numbers of the improvements, shape (improvements,).
        history_s: Seconds since the search began at the improvements, shape (improvements,).
        history_best_s: Best iteration time after each of them, shape (improvements,).
        interrupted: Whether the search was stopped from outside before it was done.
    """

    method: str
    seed: int
    strategy: Strategy
    evaluation: Evaluation
    initial_time_s: float
    num_evaluations: int
    num_accepted: int
    search_time_s: float
    history_evaluations: NDArray[np.int64]
    history_s: NDArray[np.float64]
    history_best_s: NDArray[np.float64]
    interrupted: bool = False


def search_result(
    *,
    method: str,
    seed: int,
    best: Best,
    initial_time_s: float,
    num_evaluations: int,
    search_time_s: float,
    num_accepted: int = 0,
    interrupted: bool = False,
) -> SearchResult:
    """The result that ends at `best`, its history as arrays."""
    return SearchResult(
        method=method,
        seed=seed,
        strategy=best.strategy,
        evaluation=best.evaluation,
        initial_time_s=initial_time_s,
        num_evaluations=num_evaluations,
        num_accepted=num_accepted,
        search_time_s=search_time_s,
        history_evaluations=np.array([point[0] for point in best.history], dtype=np.int64),
        history_s=np.array([point[1] for point in best.history], dtype=np.float64),
        history_best_s=np.array([point[2] for point in best.history], dtype=np.float64),
        interrupted=interrupted,
    )
