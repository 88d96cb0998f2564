"""Runs of an evaluation: every method, problem and seed once for all budgets, each in a file.

A method that looks at its budget (`mcmc` divides it among its starts) runs once for each budget, so that none
is judged by what it does with a larger one. All others run once, with the largest, and are read at the
others. The clock runs while a policy encodes and decodes; compiling and loading are done before.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from soaprl_envs.problems import ProblemGenerator

from soaprl.atomic import make_folder, write_text_atomic
from soaprl.errors import PolicyError
from soaprl.search.method import Method
from soaprl.search.registry import Skipped, attempt
from soaprl.search.task import Budget, SearchResult, SearchTask
from soaprl.simulator.evaluator import Simulator
from soaprl.simulator.problem import Problem

DEPENDS_ON_BUDGET = ("mcmc",)
BUDGETS = (1, 16, 64, 256, 1_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """What is run.

    Attributes:
        problems: The problems.
        methods: The methods by name.
        budgets: Evaluations.
        seeds: Seeds of methods that search.
        folder: Where the runs are kept; those that are there are not run again.
        policy: Names the policy in the files: other policies have other runs.
    """

    problems: ProblemGenerator
    methods: Mapping[str, Method]
    budgets: tuple[int, ...] = BUDGETS
    seeds: tuple[int, ...] = (0, 1, 2)
    folder: Path
    policy: str


class Record(BaseModel):
    """A run, in a file.

    Attributes:
        problem: The problem's name.
        method: The method.
        seed: The seed.
        policy: The policy, whatever the method.
        budget: Evaluations that it was allowed.
        evaluations: Numbers of the evaluations that brought something better.
        seconds: Search time at them.
        best_s: Iteration time after them; nothing in these three lists if nothing fitted in memory.
        search_time_s: In all.
        skipped: Why the method does not apply; empty if it does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    problem: str
    method: str
    seed: int
    policy: str
    budget: int
    evaluations: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    best_s: tuple[float, ...] = ()
    search_time_s: float = 0.0
    skipped: str = ""

    def best_at(self, evaluations: int) -> float:
        """Iteration time of the best strategy after so many evaluations; infinite if none fitted."""
        known = [t for number, t in zip(self.evaluations, self.best_s, strict=True) if number <= evaluations]
        return known[-1] if known else inf

    def found_at(self, evaluations: int) -> float:
        """Search time at which the best strategy after so many evaluations was found; infinite if none."""
        known = [s for number, s in zip(self.evaluations, self.seconds, strict=True) if number <= evaluations]
        return known[-1] if known else inf

    def best_after(self, seconds: float) -> float:
        """Iteration time of the best strategy after so much search time; infinite if none fitted."""
        known = [t for now, t in zip(self.seconds, self.best_s, strict=True) if now <= seconds]
        return known[-1] if known else inf


def run_plan(plan: EvaluationPlan, say: Callable[[int, int, str], None]) -> Iterator[Record]:
    """Every run of the plan, made now or read from its file.

    Args:
        plan: What to run.
        say: Told how many runs are done, of how many, and what is next.

    Raises:
        PolicyError: A file is damaged, or the policy cannot be loaded.
        OutputError: A file cannot be written.
    """
    make_folder(plan.folder)
    names = plan.problems.names
    total = len(names) * sum(1 for _ in _runs(plan))
    done = 0
    for number, name in enumerate(names):
        problem: Problem | None = None
        for method, seed, budget in _runs(plan):
            say(done, total, f"{method.name} on {name}")
            policy = plan.policy if method.name in ("policy", "guided", "finetune") else ""
            label = name.replace("/", "_").replace("@", "-")
            path = plan.folder / f"{label}.{method.name}{policy}.{budget}.{seed}.json"
            if path.is_file():
                yield load_record(path)
            else:
                problem = problem or _compiled(plan.problems.problem(number))
                record = _run(problem, method, seed, budget).model_copy(
                    update={"problem": name, "policy": policy}
                )
                write_text_atomic(path, record.model_dump_json(indent=1) + "\n")
                yield record
            done += 1


def load_record(path: Path) -> Record:
    """The run in the file at `path`; raises `PolicyError` if it is damaged."""
    try:
        return Record.model_validate(json.loads(path.read_text()))
    except (ValueError, ValidationError) as error:
        raise PolicyError(f"{path}: expected a run: {error}. Delete it; it is run again.") from error


def _runs(plan: EvaluationPlan) -> Iterator[tuple[Method, int, int]]:
    for method in plan.methods.values():
        for seed in plan.seeds if method.iterative else plan.seeds[:1]:
            for budget in plan.budgets if method.name in DEPENDS_ON_BUDGET else (max(plan.budgets),):
                yield method, seed, budget


def _compiled(problem: Problem) -> Problem:
    """`problem` after a search has made everything be compiled and loaded."""
    from soaprl.search.registry import find_method

    task = _task(problem, 0, 8)
    attempt(find_method("mcmc"), task)
    return problem


def _task(problem: Problem, seed: int, budget: int) -> SearchTask:
    return SearchTask(
        problem=problem,
        evaluator=Simulator(problem),
        budget=Budget(evaluations=budget),
        clock=time.perf_counter,
        seed=seed,
    )


def _run(problem: Problem, method: Method, seed: int, budget: int) -> Record:
    found = attempt(method, _task(problem, seed, budget))
    known = Record(problem="", method=method.name, seed=seed, policy="", budget=budget)
    if isinstance(found, Skipped):
        return known.model_copy(update={"skipped": found.reason})
    if found.interrupted:
        raise KeyboardInterrupt
    return known.model_copy(update=_history(found))


def _history(found: SearchResult) -> dict[str, object]:
    return {
        "evaluations": tuple(found.history_evaluations.tolist()),
        "seconds": tuple(found.history_s.tolist()),
        "best_s": tuple(found.history_best_s.tolist()),
        "search_time_s": found.search_time_s,
    }
