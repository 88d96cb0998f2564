"""What `soaprl compare` does: runs methods under equal budgets, tables, JSON and plot of what they found."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soaprl.atomic import check_writable, write_text_atomic
from soaprl.cli.costs import cost_sources, print_sources, sources_json
from soaprl.cli.inputs import Prepared
from soaprl.cli.known import known_method, known_methods
from soaprl.cli.output import print_table, say
from soaprl.cli.searching import ready_simulator, search_outcome, show_progress
from soaprl.errors import SearchError
from soaprl.report.comparison import COLUMNS, SPREAD_COLUMNS, Outcome, comparison_rows, spread_rows, spreads
from soaprl.search.method import Method
from soaprl.search.registry import Skipped, attempt
from soaprl.search.task import Budget, SearchResult, SearchTask
from soaprl.simulator.evaluator import Simulator
from soaprl.strategy.strategy import Sharding

ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Methods on one problem under one budget.

    Attributes:
        prepared: The problem.
        budget: Of each run.
        results: One for each method and seed, in order.
        skipped: Methods that refused the problem.
    """

    prepared: Prepared
    budget: Budget
    results: tuple[SearchResult, ...]
    skipped: tuple[Skipped, ...]

    @property
    def outcomes(self) -> list[Outcome]:
        """What each result achieves."""
        batch_size = self.prepared.problem.graph.batch_size
        return [search_outcome(result, batch_size) for result in self.results]

    @property
    def interrupted(self) -> bool:
        """Whether it ended before all methods had run."""
        return any(result.interrupted for result in self.results)

    def as_json(self) -> dict[str, Any]:
        """Every run with its history, a summary over seeds, and what was skipped."""
        runs = zip(self.outcomes, self.results, strict=True)
        return {
            **self.prepared.as_json(),
            "budget_evaluations": self.budget.evaluations,
            "budget_s": self.budget.seconds,
            "results": [{**outcome.as_json(), **self._run_json(result)} for outcome, result in runs],
            "summary": [spread.as_json() for spread in spreads(self.outcomes)],
            "skipped": [{"method": skipped.method, "reason": skipped.reason} for skipped in self.skipped],
        }

    def _run_json(self, result: SearchResult) -> dict[str, Any]:
        return {
            "seed": result.seed,
            "interrupted": result.interrupted,
            **sources_json(cost_sources(self.prepared.problem, result.strategy)),
            "history": {
                "evaluations": result.history_evaluations.tolist(),
                "seconds": result.history_s.tolist(),
                "best_iteration_time_s": result.history_best_s.tolist(),
            },
        }


def chosen_methods(names: str, policy: Path | None = None) -> list[Method]:
    """The methods of comma-separated names, each once; ``all`` stands for all methods.

    Args:
        names: The names.
        policy: Folder of a trained policy; None: the one that comes with soaprl.

    Raises:
        UnknownNameError: A name is unknown.
    """
    words = [word.strip() for word in names.split(",")]
    known = known_methods(policy)
    found = [name for word in words for name in (known if word == ALL else [known_method(word).name])]
    return [known[name] for name in dict.fromkeys(found)]


def check_files(out: Path | None, plot: Path | None) -> None:
    """Raise `OutputError` for the first of the files that cannot be written; before the work, not after."""
    for path in (out, plot):
        if path is not None:
            check_writable(path)
    if plot is not None:
        from soaprl.report.anytime import check_format

        check_format(plot)


def run_comparison(
    prepared: Prepared, methods: Sequence[Method], budget: Budget, seeds: Sequence[int]
) -> Comparison:
    """Each method with the whole budget, those that search once for each seed; an interruption ends it.

    Raises:
        SearchError: None of the methods applies.
    """
    ready_simulator(prepared.problem)
    results: list[SearchResult] = []
    skipped: list[Skipped] = []
    for method in methods:
        for seed in seeds if method.iterative else seeds[:1]:
            found = _run(prepared, method, budget, seed)
            if isinstance(found, Skipped):
                skipped.append(found)
                break
            results.append(found)
            if found.interrupted:
                break
        if results and results[-1].interrupted:
            break
    if not results:
        reasons = "\n  ".join(s.reason for s in skipped)
        raise SearchError(f"none of the methods applies:\n  {reasons}")
    return Comparison(prepared=prepared, budget=budget, results=tuple(results), skipped=tuple(skipped))


def print_comparison(comparison: Comparison) -> None:
    """Print the table, by method, and below it what was skipped and why."""
    outcomes, title = comparison.outcomes, comparison.prepared.title
    found = spreads(outcomes)
    if len(found) == len(outcomes):
        print_table(title, COLUMNS, comparison_rows(outcomes))
    else:
        print_table(f"{title}; medians over seeds", SPREAD_COLUMNS, spread_rows(found))
    best = min(comparison.results, key=lambda result: result.evaluation.iteration_time_s)
    print_sources(cost_sources(comparison.prepared.problem, best.strategy))
    if comparison.skipped:
        print_table("Skipped", ("method", "why"), [(s.method, s.reason) for s in comparison.skipped])


def write_comparison(comparison: Comparison, out: Path | None, plot: Path | None) -> None:
    """Write the JSON and the plot where files are named for them, and say so."""
    if out is not None:
        write_text_atomic(out, json.dumps(comparison.as_json(), indent=2, allow_nan=False) + "\n")
        say(f"soaprl: wrote {out}")
    if plot is not None:
        _write_plot(comparison, plot)
        say(f"soaprl: wrote {plot}")


def _run(prepared: Prepared, method: Method, budget: Budget, seed: int) -> SearchResult | Skipped:
    # A simulator of its own for each run: what one has computed about degrees would speed up the next.
    simulator = Simulator(prepared.problem)
    with show_progress(budget) as progress:
        task = SearchTask(
            problem=prepared.problem,
            evaluator=simulator,
            budget=budget,
            clock=time.perf_counter,
            seed=seed,
            progress=progress,
            sharding=prepared.sharding or Sharding.NONE,
            micro_batches=prepared.micro_batches,
        )
        return attempt(method, task)


def _write_plot(comparison: Comparison, path: Path) -> None:
    # A plotting library takes half a second to import: only where a plot is asked for.
    from soaprl.report.anytime import MethodRuns, Run, anytime_figure, write_figure

    by_method: dict[str, list[Run]] = {}
    for result in comparison.results:
        run = Run(
            evaluations=result.history_evaluations,
            seconds=result.history_s,
            best_s=result.history_best_s,
            num_evaluations=result.num_evaluations,
            search_time_s=result.search_time_s,
        )
        by_method.setdefault(result.method, []).append(run)
    drawn = [
        MethodRuns(method=name, iterative=known_method(name).iterative, runs=tuple(runs))
        for name, runs in by_method.items()
    ]
    write_figure(anytime_figure(comparison.prepared.title, drawn), path)
