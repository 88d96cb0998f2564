"""Runs methods for subcommands: budgets, progress, and what comes out of it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

from soaprl.atomic import check_writable
from soaprl.cli.inputs import Prepared
from soaprl.cli.output import progress_bars, waiting
from soaprl.errors import SearchError, SimulationError
from soaprl.report.comparison import Outcome
from soaprl.report.units import format_bytes, format_seconds
from soaprl.search.method import Method
from soaprl.search.registry import search
from soaprl.search.task import Budget, Evaluation, Progress, ProgressReport, SearchResult, SearchTask
from soaprl.simulator.batch import available_cores
from soaprl.simulator.evaluator import Simulator
from soaprl.simulator.problem import Problem
from soaprl.strategy.baselines import data_parallel, single_device
from soaprl.strategy.strategy import Sharding, Strategy

DEFAULT_EVALUATIONS = 10_000


def make_budget(evaluations: int | None, seconds: float | None) -> Budget:
    """The budget of the command line; without any limit, `DEFAULT_EVALUATIONS`.

    Raises:
        SearchError: A limit is not a positive number.
    """
    if seconds is not None and not isfinite(seconds):
        raise SearchError(f"expected a budget of more than 0 seconds, found {seconds}.")
    if evaluations is None and seconds is None:
        evaluations = DEFAULT_EVALUATIONS
    return Budget(evaluations=evaluations, seconds=seconds)


def state_file(method: Method, out: Path | None, resumed: Path | None) -> Path | None:
    """Where a search keeps its state: in the file it goes on from, or beside `out` if the method keeps one.

    Raises:
        OutputError: `out` cannot be written; better said before the search than after it.
    """
    if out is None:
        return resumed
    check_writable(out)
    return resumed or (out.with_suffix(".state.json") if method.resumable else None)


def ready_simulator(problem: Problem) -> Simulator:
    """A simulator of `problem` that is compiled, so that neither budgets nor search times contain that."""
    simulator = Simulator(problem)
    with waiting("preparing", "compiling the simulator, once on a machine"):
        simulator.evaluate(single_device(problem.graph, problem.cluster))
        if problem.graph.batch_size >= problem.cluster.num_devices:
            # What exchanges gradients is compiled when there are some.
            simulator.evaluate(data_parallel(problem.graph, problem.cluster))
    return simulator


def run_method(
    simulator: Simulator,
    method: Method | str,
    budget: Budget,
    *,
    seed: int = 0,
    state_path: Path | None = None,
    resume: bool = False,
    num_chains: int = 1,
    start: Strategy | None = None,
    sharding: Sharding | None = None,
    micro_batches: int = 1,
) -> SearchResult:
    """What a method, or the one of a name, finds for the simulator's problem, with a bar on standard error.

    Several chains use all cores, with a simulator for each thread. With `start` the method begins there.
    """
    num_threads = min(num_chains, available_cores())
    more = [Simulator(simulator.problem) for _ in range(num_threads - 1)]
    with show_progress(budget) as progress:
        task = SearchTask(
            problem=simulator.problem,
            evaluator=simulator,
            budget=budget,
            clock=time.perf_counter,
            seed=seed,
            progress=progress,
            state_path=state_path,
            resume=resume,
            sharding=sharding or Sharding.NONE,
            micro_batches=micro_batches,
        )
        return search(method, task, num_chains=num_chains, more_evaluators=more, start=start)


def run_beside_baseline(
    prepared: Prepared,
    method: Method,
    budget: Budget,
    *,
    seed: int,
    state_path: Path | None,
    resume: bool,
    num_chains: int = 1,
    start: Strategy | None = None,
) -> tuple[SearchResult, SearchResult]:
    """What `method` finds, and data parallelism to compare it with."""
    simulator = ready_simulator(prepared.problem)
    # Nothing comes after the search that an interrupt could end.
    baseline = run_method(simulator, "data-parallel", budget)
    result = run_method(
        simulator,
        method,
        budget,
        seed=seed,
        state_path=state_path,
        resume=resume,
        num_chains=num_chains,
        start=start,
        sharding=prepared.sharding,
        micro_batches=prepared.micro_batches,
    )
    return result, baseline


def run_methods(problem: Problem, names: Sequence[str], budget: Budget, *, seed: int) -> list[SearchResult]:
    """What each of the methods finds, in order; an interruption ends the one at work and those after it."""
    simulator = ready_simulator(problem)
    results: list[SearchResult] = []
    for name in names:
        results.append(run_method(simulator, name, budget, seed=seed))
        if results[-1].interrupted:
            break
    return results


@contextmanager
def show_progress(budget: Budget) -> Iterator[Progress]:
    """A listener to searches that draws a bar for each method it hears of; a full bar is a spent budget."""
    with progress_bars() as show:

        def listen(report: ProgressReport) -> None:
            best = format_seconds(report.best_time_s) if isfinite(report.best_time_s) else "nothing that fits"
            status = f"{report.stage}  {report.num_evaluations} evaluations, best {best}".strip()
            show(report.method, _share(report, budget), status)

        yield listen


def _share(report: ProgressReport, budget: Budget) -> float:
    """Which part of the budget is spent: of evaluations or seconds, whichever is closer to its end."""
    evaluations = report.num_evaluations / budget.evaluations if budget.evaluations else 0.0
    return max(evaluations, report.elapsed_s / budget.seconds if budget.seconds else 0.0)


def make_outcome(
    name: str, evaluation: Evaluation, batch_size: int, *, num_evaluations: int, search_time_s: float
) -> Outcome:
    """What a strategy achieves, for tables and JSON."""
    return Outcome(
        method=name,
        iteration_time_s=float(evaluation.iteration_time_s),
        throughput_samples_per_s=batch_size / float(evaluation.iteration_time_s),
        peak_memory_bytes=int(evaluation.peak_memory_bytes),
        communication_bytes=int(evaluation.communication_bytes),
        fits=bool(evaluation.feasible),
        num_evaluations=num_evaluations,
        search_time_s=search_time_s,
    )


def check_fits(prepared: Prepared, outcomes: Sequence[Outcome]) -> None:
    """Raise `SimulationError` if none of the strategies fits in memory."""
    if any(outcome.fits for outcome in outcomes):
        return
    graph, cluster = prepared.problem.graph, prepared.problem.cluster
    least = min(outcomes, key=lambda outcome: outcome.peak_memory_bytes)
    largest = max(kind.memory_bytes for kind in cluster.device_types)
    raise SimulationError(
        f"model too big for memory: {graph.name} with batch {graph.batch_size} under {least.method} needs"
        f" {format_bytes(least.peak_memory_bytes)} on one device of {cluster.name}, which has"
        f" {format_bytes(largest)}. Lower --batch-size, choose more or larger devices, or let soaprl search"
        " look for a strategy that fits."
    )


def search_outcome(result: SearchResult, batch_size: int) -> Outcome:
    """What a search's best strategy achieves."""
    return make_outcome(
        result.method,
        result.evaluation,
        batch_size,
        num_evaluations=result.num_evaluations,
        search_time_s=result.search_time_s,
    )
