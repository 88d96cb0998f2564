"""Methods that need no search, and random search."""

from collections.abc import Sequence

import numpy as np

from soaprl.search.proposals import Proposals, ProposalSettings
from soaprl.search.stages import model_parallel
from soaprl.search.task import Best, ProgressReport, SearchResult, SearchTask, improved, search_result
from soaprl.strategy.baselines import data_parallel, single_device
from soaprl.strategy.strategy import Strategy

_REPORT_EVERY_S = 0.1


def search_data_parallel(task: SearchTask) -> SearchResult:
    """Data parallelism; raises `StrategyError` if the batch is smaller than the devices."""
    return best_of(task, "data-parallel", (data_parallel(task.part.graph, task.problem.cluster),))


def search_single_device(task: SearchTask) -> SearchResult:
    """Everything on device 0."""
    return best_of(task, "single-device", (single_device(task.part.graph, task.problem.cluster),))


def search_model_parallel(task: SearchTask) -> SearchResult:
    """Contiguous stages balanced by time, one a device."""
    return best_of(task, "model-parallel", (model_parallel(task.part),))


def search_random(task: SearchTask, settings: ProposalSettings | None = None) -> SearchResult:
    """Independent random strategies, every operator's configuration drawn from the proposal.

    A KeyboardInterrupt ends the search and returns the best strategy so far.

    Raises:
        SearchError: The budget has no limit.
    """
    task.budget.require_limit("random")
    problem = task.part
    proposals = Proposals(problem.graph, problem.cluster.num_devices, settings or ProposalSettings())
    rng = np.random.default_rng(task.seed)
    origin, now, report_s = task.clock(), 0.0, 0.0
    best: Best | None = None
    number, initial_time_s, interrupted = 0, 0.0, False
    try:
        while not task.budget.spent(number, now):
            strategy = task.completed(proposals.strategy(rng))
            evaluation = task.evaluator.evaluate(strategy)
            now = task.clock() - origin
            best = improved(best, strategy, evaluation, number=number + 1, elapsed_s=now)
            initial_time_s = initial_time_s if number else evaluation.iteration_time_s
            number += 1
            if task.progress is not None and now >= report_s:
                report_s = now + _REPORT_EVERY_S
                task.progress(_progress("random", number, now, best, evaluation.iteration_time_s))
    except KeyboardInterrupt:
        if best is None:
            raise
        interrupted = True
    assert best is not None, "a budget allows at least one evaluation"
    return search_result(
        method="random",
        seed=task.seed,
        best=best,
        initial_time_s=initial_time_s,
        num_evaluations=number,
        search_time_s=task.clock() - origin,
        interrupted=interrupted,
    )


def best_of(task: SearchTask, method: str, strategies: Sequence[Strategy]) -> SearchResult:
    """The best of a few strategies, each evaluated once; some of them if the budget ends before.

    They are sharded, and the batch is cut, as the task says.
    """
    origin = task.clock()
    best: Best | None = None
    number, initial_time_s, now = 0, 0.0, 0.0
    for strategy in map(task.completed, strategies):
        if number and task.budget.spent(number, now):
            break
        evaluation = task.evaluator.evaluate(strategy)
        number, now = number + 1, task.clock() - origin
        initial_time_s = initial_time_s if best else evaluation.iteration_time_s
        best = improved(best, strategy, evaluation, number=number, elapsed_s=now)
        if task.progress is not None:
            task.progress(_progress(method, number, now, best, evaluation.iteration_time_s))
    assert best is not None, "there is a strategy, and the first is always evaluated"
    return search_result(
        method=method,
        seed=task.seed,
        best=best,
        initial_time_s=initial_time_s,
        num_evaluations=number,
        search_time_s=now,
    )


def _progress(
    method: str, number: int, elapsed_s: float, best: Best, current_time_s: float
) -> ProgressReport:
    return ProgressReport(
        method=method,
        stage="",
        num_evaluations=number,
        elapsed_s=elapsed_s,
        best_time_s=best.time_s,
        current_time_s=current_time_s,
        num_accepted=0,
    )
