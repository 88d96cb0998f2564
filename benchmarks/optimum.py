"""How near to the proved optimum methods come on small problems.

    python benchmarks/optimum.py [--policy DIR]... [--seeds 5] [--seconds 120] [--workers 2] [--out DIR]

writes ``benchmarks/held-out/optimum.md``. For each problem of the suite ``optimum`` the exhaustive search
proves the optimum of the *structured* space (degrees that divide, on different devices in any order or all on
one); methods look at all legal configurations, so they may also be faster. Proofs and runs are kept in the
folder: the same command goes on.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from soaprl_agents.evaluation.command import evaluation_plan
from soaprl_agents.evaluation.records import Record
from soaprl_agents.evaluation.report import counted_policies
from soaprl_agents.evaluation.runs import EvaluationPlan, run_plan
from soaprl_agents.methods import learned_methods
from soaprl_envs.problems import NamedProblems, load_suite

from soaprl.atomic import make_folder, write_text_atomic
from soaprl.search import Budget, SearchTask, methods
from soaprl.search.exhaustive import ExhaustiveSettings, prove_optimum
from soaprl.simulator import Problem, Simulator

SUITE = "optimum"
HERE = Path(__file__).parent
# Method and evaluations of the columns.
COLUMNS = (
    ("data-parallel", 1),
    ("optcnn", 1),
    ("mcmc", 64),
    ("mcmc", 256),
    ("mcmc", 1000),
    ("policy", 16),
    ("guided", 64),
    ("guided", 256),
    ("guided", 1000),
)
BUDGETS = "1,16,64,256,1000"
WITHIN = (0.01, 0.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is proved of a problem.

    Attributes:
        name: The problem's.
        num_operators: Of its graph.
        num_strategies: In the space.
        best_s: The best strategy that the proof knows.
        bound_s: Nothing in the space takes less.
        proved: Whether both are equal, to 1e-9.
        seconds: Of a processor, what the proof took.
    """

    name: str
    num_operators: int
    num_strategies: int
    best_s: float
    bound_s: float
    proved: bool
    seconds: float


def proofs(problems: NamedProblems, folder: Path, seconds: float) -> Iterator[Known]:
    """The proof of each problem, made now or read from its file."""
    make_folder(folder)
    for number, name in enumerate(problems.names):
        path = folder / f"{name.replace('@', '-')}.{seconds:g}s.json"
        if not path.is_file():
            found = _proof(name, problems.problem(number), seconds)
            content = {field: getattr(found, field) for field in Known.__dataclass_fields__}
            write_text_atomic(path, json.dumps(content, indent=1) + "\n")
        yield Known(**json.loads(path.read_text()))


def _proof(name: str, problem: Problem, seconds: float) -> Known:
    def task(budget: Budget) -> SearchTask:
        return SearchTask(
            problem=problem, evaluator=Simulator(problem), budget=budget, clock=time.process_time
        )

    # Compiling is no part of the proof's time.
    prove_optimum(task(Budget(evaluations=2)), ExhaustiveSettings())
    outcome = prove_optimum(task(Budget(seconds=seconds)), ExhaustiveSettings())
    if outcome.result.interrupted:
        raise KeyboardInterrupt
    return Known(
        name=name,
        num_operators=len(problem.graph.operators),
        num_strategies=outcome.proof.num_strategies,
        best_s=outcome.result.evaluation.iteration_time_s,
        bound_s=outcome.proof.lower_bound_s,
        proved=outcome.proof.proved,
        seconds=outcome.result.search_time_s,
    )


def excesses(known: Known, records: Sequence[Record], method: str, evaluations: int) -> np.ndarray:
    """How much longer than the bound each run's best strategy takes, as shares."""
    found = [
        record.best_at(evaluations)
        for record in records
        if record.problem == known.name
        and record.method == method
        and (method != "mcmc" or record.budget == evaluations)
    ]
    return np.array(found) / known.bound_s - 1.0


def note(
    plan: EvaluationPlan, known: Sequence[Known], records: Sequence[Record], seconds: float, command: str
) -> str:
    """The document."""
    tables = [[excesses(one, records, *column) for column in COLUMNS] for one in known]
    proved = sum(one.proved for one in known)
    text = (
        f"# Small problems, beside their optimum\n\n{platform.processor() or platform.machine()}. Written by"
        f" `{command}`: {counted_policies(plan.policies)}, {len(plan.seeds)} search seeds.\n\n"
        "How much longer an iteration takes than the proved lower bound, in percent: median over runs, in"
        " brackets the worst. Methods look at all legal configurations, proofs at structured ones, so that"
        f" a number may be negative. {proved} of {len(known)} optima are proved within {seconds:,.0f} s of a"
        " processor; for the others the bound is below the optimum, by at most *open*.\n\n"
    )
    heads = ["problem", "operators", "strategies", "optimum us", "open", "proof s"]
    heads += [f"{method} {evaluations:,}" if evaluations > 1 else method for method, evaluations in COLUMNS]
    rows = [[*_proof_cells(one), *map(_cell, row)] for one, row in zip(known, tables, strict=True)]
    for share in WITHIN:
        runs = [np.concatenate([row[c] for row in tables]) for c in range(len(COLUMNS))]
        inside = [f"{np.mean(found <= share):.0%}" for found in runs]
        rows.append([f"runs within {share:.0%}", "", "", "", "", "", *inside])
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return text + "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _proof_cells(known: Known) -> list[str]:
    open_share = "-" if known.proved else f"{1 - known.bound_s / known.best_s:.2%}"
    return [
        known.name,
        str(known.num_operators),
        f"{known.num_strategies:.1e}",
        f"{1e6 * known.best_s:,.1f}",
        open_share,
        f"{known.seconds:,.1f}",
    ]


def _cell(found: np.ndarray) -> str:
    if len(found) == 0 or not np.isfinite(found).all():
        return "-"
    median, worst = f"{100 * np.median(found):.2f}", f"{100 * found.max():.2f}"
    return median if median == worst else f"{median} ({worst})"


def main() -> None:
    """Proves, searches, and writes the note."""
    parser = argparse.ArgumentParser(description="Compare methods with proved optima.")
    parser.add_argument("--policy", type=Path, action="append", default=[])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=120.0, help="of a processor, for each proof")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/optimum"))
    arguments = parser.parse_args()
    console = Console(stderr=True)
    everything = {**methods(), **learned_methods()}
    plan = evaluation_plan(
        policies=arguments.policy,
        suite=SUITE,
        only=(),
        methods=[everything[name] for name in dict.fromkeys(method for method, _ in COLUMNS)],
        budgets=BUDGETS,
        num_seeds=arguments.seeds,
        folder=arguments.out / "runs",
    )
    known = []
    with console.status("proofs ...") as status:
        for proof in proofs(load_suite(SUITE).problems, arguments.out / "proofs", arguments.seconds):
            known.append(proof)
            console.print(proof.name, "proved" if proof.proved else "open", highlight=False)
        status.update("runs ...")
        records = list(
            run_plan(
                plan,
                lambda done, of, what: status.update(f"runs {done} of {of}, {what} ..."),
                workers=arguments.workers,
            )
        )
    command = " ".join(["python", "benchmarks/optimum.py", *sys.argv[1:]])
    text = note(plan, known, records, arguments.seconds, command)
    write_text_atomic(HERE / "held-out" / "optimum.md", text)


if __name__ == "__main__":
    main()
