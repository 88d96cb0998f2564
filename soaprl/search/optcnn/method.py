"""OptCNN: the strategy of least total cost, if layers run one after the other.

Jia, Lin, Qi, Aiken: Exploring Hidden Dimensions in Parallelizing Convolutional Neural Networks (ICML 2018).
It does not see operators that run side by side, synchronization that overlaps the backward pass, or memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from soaprl.search.optcnn.costs import CostTables
from soaprl.search.optcnn.elimination import Minimum, minimize
from soaprl.search.optcnn.space import OptcnnSettings, Variable, variables
from soaprl.search.task import ProgressReport, SearchResult, SearchTask, improved, search_result
from soaprl.simulator.problem import Problem
from soaprl.strategy.strategy import OpConfig, Strategy

METHOD = "optcnn"
_REPORT_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class OptcnnPlan:
    """What the dynamic program chose.

    Attributes:
        strategy: The strategy.
        minimum: Its cost in the program's own objective (seconds, layers one after the other), whether that
            is the least of the space, and which variables had to be fixed if not.
        num_variables: Operators after those with one configuration were merged.
    """

    strategy: Strategy
    minimum: Minimum
    num_variables: int

    @property
    def explanation(self) -> str:
        """One sentence for people: how sure it is."""
        if self.minimum.exact:
            return f"exact: {self.num_variables} variables eliminated"
        fixed = len(self.minimum.fixed)
        return f"heuristic: {fixed} of {self.num_variables} variables fixed, the others eliminated"


def plan_optcnn(
    problem: Problem,
    settings: OptcnnSettings | None = None,
    *,
    visit: Callable[[int, int], None] | None = None,
) -> OptcnnPlan:
    """The strategy of least cost; see `soaprl.search.optcnn.space` and `.costs`.

    Args:
        problem: The model, the cluster, the costs.
        settings: The space, and how far elimination may go.
        visit: Called while tables are made, with the number of pieces done and of all.
    """
    settings = settings or OptcnnSettings()
    choices = variables(problem.graph, problem.cluster.num_devices, settings)
    tables = CostTables(problem, choices).tables(visit or (lambda done, of: None))
    sizes = [len(variable.degrees) for variable in choices]
    minimum = minimize(sizes, tables, max_cells=settings.max_cells)
    return OptcnnPlan(
        strategy=as_strategy(choices, minimum.values), minimum=minimum, num_variables=len(choices)
    )


def as_strategy(choices: tuple[Variable, ...], values: tuple[int, ...]) -> Strategy:
    """The strategy in which each variable has the degrees of its value."""
    chosen: dict[int, OpConfig] = {}
    for variable, value in zip(choices, values, strict=True):
        config = OpConfig(variable.degrees[value], ())
        config = OpConfig(config.degrees, tuple(range(config.num_tasks)))
        chosen.update(dict.fromkeys(variable.operators, config))
    return Strategy(tuple(chosen[o] for o in range(len(chosen))))


def search_optcnn(task: SearchTask, settings: OptcnnSettings | None = None) -> SearchResult:
    """The strategy of `plan_optcnn`, simulated once; the last report's stage says whether it is exact.

    Its objective knows no sharding: if the task asks for one, it is of the strategy that is best without.
    """
    origin, report_s = task.clock(), 0.0

    def visit(done: int, of: int) -> None:
        nonlocal report_s
        elapsed_s = task.clock() - origin
        if task.progress is not None and elapsed_s >= report_s:
            report_s = elapsed_s + _REPORT_EVERY_S
            task.progress(_report(f"costs {done} of {of}", elapsed_s))

    plan = plan_optcnn(task.problem, settings, visit=visit)
    strategy = task.completed(plan.strategy)
    evaluation = task.evaluator.evaluate(strategy)
    elapsed_s = task.clock() - origin
    best = improved(None, strategy, evaluation, number=1, elapsed_s=elapsed_s)
    if task.progress is not None:
        task.progress(
            ProgressReport(
                method=METHOD,
                stage=plan.explanation,
                num_evaluations=1,
                elapsed_s=elapsed_s,
                best_time_s=best.time_s,
                current_time_s=evaluation.iteration_time_s,
                num_accepted=0,
            )
        )
    return search_result(
        method=METHOD,
        seed=task.seed,
        best=best,
        initial_time_s=evaluation.iteration_time_s,
        num_evaluations=1,
        search_time_s=elapsed_s,
    )


def _report(stage: str, elapsed_s: float) -> ProgressReport:
    """A report while nothing has been simulated yet."""
    return ProgressReport(
        method=METHOD,
        stage=stage,
        num_evaluations=0,
        elapsed_s=elapsed_s,
        best_time_s=inf,
        current_time_s=inf,
        num_accepted=0,
    )
