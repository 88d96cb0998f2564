"""Runs of an evaluation: every method, problem and seed once for all budgets, each in a file.

A method that looks at its budget (`mcmc` divides it among its starts) runs once for each budget, so that none
is judged by what it does with a larger one. All others run once, with the largest, and are read at the
others. A method that uses a policy runs once for each policy and seed, the others once for each seed. The
clock runs while a policy encodes and decodes; compiling and loading are done before. torch has one thread.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from soaprl_envs.problems import ProblemGenerator

from soaprl.atomic import make_folder, write_text_atomic
from soaprl.runtime.threads import one_thread
from soaprl.search.method import Method
from soaprl.search.registry import Skipped, attempt
from soaprl.search.task import Budget, SearchResult, SearchTask
from soaprl.simulator.evaluator import Simulator
from soaprl.simulator.problem import Problem
from soaprl_agents.evaluation.records import Record, load_record
from soaprl_agents.processes import processes, shifts

DEPENDS_ON_BUDGET = ("mcmc",)
BUDGETS = (1, 16, 64, 256, 1_000)

_WARMING_EVALUATIONS = 24
_PROBLEMS_A_SHIFT = 12
_LOOK_EVERY_S = 1.0


class PolicyLabel(NamedTuple):
    """What is said about a policy.

    Attributes:
        digest: Of its weights; names it in files: other policies have other runs.
        name: What its recipe calls it.
        seed: Of its training; None where that is not known, and for an ensemble.
        members: How many networks decide.
    """

    digest: str
    name: str = ""
    seed: int | None = None
    members: int = 1


class Entry(NamedTuple):
    """A method that takes part.

    Attributes:
        method: The method.
        policy: The policy that it uses, or None.
    """

    method: Method
    policy: PolicyLabel | None = None

    @property
    def digest(self) -> str:
        """Of the policy; empty without one."""
        return self.policy.digest if self.policy else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """What is run.

    Attributes:
        problems: The problems.
        entries: The methods, one that uses a policy once for each policy.
        budgets: Evaluations.
        seeds: Seeds of methods that search.
        folder: Where the runs are kept; those that are there are not run again.
    """

    problems: ProblemGenerator
    entries: tuple[Entry, ...]
    budgets: tuple[int, ...] = BUDGETS
    seeds: tuple[int, ...] = (0, 1, 2)
    folder: Path

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, each once."""
        return tuple(dict.fromkeys(entry.method.name for entry in self.entries))

    @property
    def policies(self) -> tuple[PolicyLabel, ...]:
        """The policies that are used, each once."""
        return tuple(dict.fromkeys(entry.policy for entry in self.entries if entry.policy))


class Run(NamedTuple):
    """One search.

    Attributes:
        problem: Number of the problem.
        name: Its name.
        entry: Method and policy.
        seed: Of the search.
        budget: Evaluations.
        path: The file of its record.
    """

    problem: int
    name: str
    entry: Entry
    seed: int
    budget: int
    path: Path


def run_plan(
    plan: EvaluationPlan, say: Callable[[int, int, str], None], *, workers: int = 1
) -> Iterator[Record]:
    """Every run of the plan, made now or read from its file.

    Each of several processes has a problem at a time; but for seconds, results are the same with any number.
    An interrupt waits for the runs that processes are making; the run of a single one is given up.

    Args:
        plan: What to run.
        say: Told how many runs are done, of how many, and what is next.
        workers: Processes; 1: this one.

    Raises:
        PolicyError: A file is damaged, a policy cannot be loaded, or a process was ended.
        OutputError: A file cannot be written.
    """
    make_folder(plan.folder)
    runs = list(planned_runs(plan))
    if workers > 1:
        _run_in_processes(plan.problems, runs, workers, say)
    ready = _Ready(plan.problems, runs)
    for done, run in enumerate(runs):
        say(done, len(runs), f"{run.entry.method.name} on {run.name}")
        if not run.path.is_file():
            with one_thread():
                _write(ready.problem(run), run)
        yield load_record(run.path)


def planned_runs(plan: EvaluationPlan) -> Iterator[Run]:
    """The runs, problem by problem."""
    for number, name in enumerate(plan.problems.names):
        label = name.replace("/", "_").replace("@", "-")
        for entry in plan.entries:
            method = entry.method
            for seed in plan.seeds if method.iterative else plan.seeds[:1]:
                for budget in plan.budgets if method.name in DEPENDS_ON_BUDGET else (max(plan.budgets),):
                    path = plan.folder / f"{label}.{method.name}{entry.digest}.{budget}.{seed}.json"
                    yield Run(number, name, entry, seed, budget, path)


def _run_in_processes(
    problems: ProblemGenerator, runs: Sequence[Run], workers: int, say: Callable[[int, int, str], None]
) -> None:
    """Make the runs that are missing."""
    missing: dict[int, list[Run]] = {}
    for run in runs:
        if not run.path.is_file():
            missing.setdefault(run.problem, []).append(run)
    for shift in shifts(list(missing.values()), workers * _PROBLEMS_A_SHIFT):
        # The folder is gone before the processes are waited for, which tells them to come to an end.
        with processes(min(workers, len(shift))) as pool, TemporaryDirectory() as wanted:
            running = {pool.submit(_run_all, problems, own, Path(wanted)) for own in shift}
            while running:
                finished, running = wait(running, timeout=_LOOK_EVERY_S, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                done = sum(run.path.is_file() for run in runs)
                say(done, len(runs), f"{len(running)} problems left")


def _run_all(problems: ProblemGenerator, runs: Sequence[Run], wanted: Path) -> None:
    """Make runs of one problem, as long as the folder `wanted` is there."""
    ready = _Ready(problems, runs)
    for run in runs:
        if not wanted.is_dir():
            return
        _write(ready.problem(run), run)


class _Ready:
    """The problem at hand, built, and with everything compiled and loaded that its missing runs need."""

    def __init__(self, problems: ProblemGenerator, runs: Sequence[Run]) -> None:
        self._problems = problems
        self._runs = runs
        self._known: tuple[int, Problem] | None = None

    def problem(self, run: Run) -> Problem:
        """The problem of `run`."""
        if self._known is None or self._known[0] != run.problem:
            problem = self._problems.problem(run.problem)
            own = [one for one in self._runs if one.problem == run.problem and not one.path.is_file()]
            _warm_up(problem, {one.entry.method.name: one.entry.method for one in own}.values())
            self._known = run.problem, problem
        return self._known[1]


def _warm_up(problem: Problem, methods: Iterable[Method]) -> None:
    """Search a little with each method, and forget what was found."""
    for method in methods:
        found = attempt(method, _task(problem, 0, _WARMING_EVALUATIONS))
        if isinstance(found, SearchResult) and found.interrupted:
            raise KeyboardInterrupt


def _write(problem: Problem, run: Run) -> None:
    """Make `run` and write its record."""
    write_text_atomic(run.path, _record(problem, run).model_dump_json(indent=1) + "\n")


def _record(problem: Problem, run: Run) -> Record:
    found = attempt(run.entry.method, _task(problem, run.seed, run.budget))
    known = Record(
        problem=run.name,
        method=run.entry.method.name,
        seed=run.seed,
        policy=run.entry.digest,
        budget=run.budget,
    )
    if isinstance(found, Skipped):
        return known.model_copy(update={"skipped": found.reason})
    if found.interrupted:
        raise KeyboardInterrupt
    return known.model_copy(update=_history(found))


def _task(problem: Problem, seed: int, budget: int) -> SearchTask:
    return SearchTask(
        problem=problem,
        evaluator=Simulator(problem),
        budget=Budget(evaluations=budget),
        clock=time.perf_counter,
        seed=seed,
    )


def _history(found: SearchResult) -> dict[str, object]:
    return {
        "evaluations": tuple(found.history_evaluations.tolist()),
        "seconds": tuple(found.history_s.tolist()),
        "best_s": tuple(found.history_best_s.tolist()),
        "search_time_s": found.search_time_s,
    }
