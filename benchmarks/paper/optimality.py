"""Proves optima of small problems, and asks which methods find them (paper, section 8.4).

    python -m benchmarks.paper optimality

writes ``benchmarks/paper/optimality.md``: LeNet and the language model unrolled for 2 steps on 4 P100 of one
node, with our assumptions and with the paper's. For each: the space, what `soaprl.search.exhaustive` proves
of it, and the best time of other methods as a multiple of the best strategy known to the proof. The methods
look at all legal configurations, of which the structured space is a part, so they may also find better ones.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console

from benchmarks.paper import cases
from benchmarks.paper.cases import HERE, machine, table
from soaprl.atomic import write_text_atomic
from soaprl.search import Budget, SearchResult, SearchTask, search
from soaprl.search.exhaustive import (
    ExhaustiveOutcome,
    ExhaustiveSettings,
    SpaceSettings,
    full_space,
    prove_optimum,
)
from soaprl.simulator import Problem, Simulator

CLUSTER, EVALUATIONS, SECONDS = "p100-1x4", 30_000, 200.0
METHODS = (("data-parallel", 1), ("optcnn", 1), ("coordinate-descent", 1), ("mcmc", 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is to be proved, and how closely."""

    model: str
    paper: bool
    space: SpaceSettings
    tolerance: float

    @property
    def title(self) -> str:
        """Names the space."""
        placed = "full" if self.space.placements == "all" else self.space.placements
        ties = {"none": "", "parameters": ", tied layers", "steps": ", tied steps"}
        return placed + ties[self.space.tied]


CASES = (
    Case(model="lenet", paper=False, space=SpaceSettings(), tolerance=1e-9),
    Case(model="lenet", paper=True, space=SpaceSettings(), tolerance=1e-9),
    Case(model="lenet", paper=False, space=full_space(), tolerance=1e-9),
    Case(model="lenet", paper=True, space=full_space(), tolerance=1e-9),
    Case(model="rnnlm-2step", paper=False, space=SpaceSettings(), tolerance=0.015),
    Case(model="rnnlm-2step", paper=True, space=SpaceSettings(), tolerance=1e-9),
    Case(model="rnnlm-2step", paper=False, space=SpaceSettings(tied="parameters"), tolerance=0.0045),
)


def problem_of(model: str, *, paper: bool) -> Problem:
    """The model with its usual batch on the cluster."""
    return cases.Case(model=model, cluster=CLUSTER, paper=paper).problem()


def prove(case: Case) -> ExhaustiveOutcome:
    """What the search proves in this time, without the time to compile it."""
    problem = problem_of(case.model, paper=case.paper)
    simulator = Simulator(problem)
    settings = ExhaustiveSettings(space=case.space, tolerance=case.tolerance)

    def run(budget: Budget) -> ExhaustiveOutcome:
        task = SearchTask(problem=problem, evaluator=simulator, budget=budget, clock=time.process_time)
        return prove_optimum(task, settings)

    run(Budget(evaluations=2))
    return run(Budget(seconds=SECONDS))


def proof_row(case: Case, outcome: ExhaustiveOutcome) -> tuple[str, ...]:
    """A line of the table of proofs."""
    proof, result = outcome.proof, outcome.result
    time_s = result.evaluation.iteration_time_s
    exact = proof.proved and case.tolerance <= 1e-9
    close = f"within {case.tolerance:.1%}" if proof.proved else f"gap {proof.gap(time_s):.1%}"
    return (
        case.model,
        "paper" if case.paper else "ours",
        case.title,
        f"{proof.num_strategies:.1e}",
        "yes" if exact else close,
        f"{1e6 * time_s:,.3f}",
        f"{1e6 * proof.lower_bound_s:,.3f}",
        f"{result.num_evaluations:,}",
        f"{proof.num_expanded:,}",
        f"{proof.num_bounded:,}",
        f"{result.search_time_s:,.1f}",
    )


def method_rows(case: Case, outcome: ExhaustiveOutcome) -> Iterator[tuple[str, ...]]:
    """Lines of the table of methods."""
    problem = problem_of(case.model, paper=case.paper)
    simulator = Simulator(problem)
    optimum_s = outcome.result.evaluation.iteration_time_s
    for method, num_seeds in METHODS:
        for seed in range(num_seeds):
            task = SearchTask(
                problem=problem,
                evaluator=simulator,
                budget=Budget(evaluations=EVALUATIONS),
                clock=time.process_time,
                seed=seed,
            )
            yield _method_row(case, search(method, task), optimum_s)


def _method_row(case: Case, result: SearchResult, optimum_s: float) -> tuple[str, ...]:
    time_s = result.evaluation.iteration_time_s
    ratio = time_s / optimum_s
    reached = "yes" if abs(ratio - 1) <= 1e-9 else "better" if ratio < 1 else "no"
    return (
        case.model,
        "paper" if case.paper else "ours",
        result.method,
        str(result.seed),
        f"{1e6 * time_s:,.3f}",
        f"{ratio:.4f}",
        reached,
        f"{int(result.history_evaluations[-1]):,}",
        f"{result.num_evaluations:,}",
        f"{result.search_time_s:,.1f}",
    )


def text(proofs: list[tuple[str, ...]], methods: list[tuple[str, ...]]) -> str:
    """The whole note."""
    proof_columns = (
        "model",
        "assumptions",
        "space",
        "strategies",
        "proved",
        "best us",
        "no less than us",
        "simulated",
        "expanded",
        "bounds",
        "seconds",
    )
    method_columns = (
        "model",
        "assumptions",
        "method",
        "seed",
        "best us",
        "times the space's best",
        "reached",
        "found at",
        "simulated",
        "seconds",
    )
    return f"""# Optima on {CLUSTER}

{machine()}. Written by `python -m benchmarks.paper optimality`. Batch {4 * 64}. Seconds are of
processor time, on one core.

## Proofs

*full*: all degrees with up to 4 tasks, all devices. *structured*: degrees that divide, 1, 2 or 4 tasks, on
different devices in any order or all on one. *tied layers*: both steps of a layer share a configuration.
*proved*: nothing in the space is faster, to 1e-9; *within*: nothing is faster by more; *gap*: what was left
open after {SECONDS:,.0f} s. The paper proves LeNet in 0.8 h, the 2-step RNNLM in 18 h.

{table(proof_columns, proofs)}

## Which methods find them

Budget {EVALUATIONS:,} simulations, in the space of all legal configurations; *times the space's best* is
beside the last proof above for the model and assumptions with nothing tied. *better*: outside of that space.

{table(method_columns, methods)}
"""


def main() -> None:
    """Proves, compares, and writes the note."""
    console = Console(stderr=True)
    proofs, outcomes = [], {}
    for case in CASES:
        outcome = prove(case)
        proofs.append(proof_row(case, outcome))
        console.print(*proofs[-1], highlight=False, soft_wrap=True)
        if case.space.tied == "none":
            outcomes[case.model, case.paper] = (case, outcome)
    methods = []
    for case, outcome in outcomes.values():
        for row in method_rows(case, outcome):
            methods.append(row)
            console.print(*row, highlight=False, soft_wrap=True)
    write_text_atomic(HERE / "optimality.md", text(proofs, methods))


if __name__ == "__main__":
    main()
