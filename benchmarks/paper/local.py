"""Whether what MCMC finds is a local optimum (the paper's section 8.4).

Writes ``local.md``: coordinate descent goes on from MCMC's result on 2, 4 and 8 devices; what it still gains
is what MCMC was short of a strategy that no change of one operator improves.
"""

import time

from benchmarks.paper.cases import HERE, MODELS, Case, machine, run, table, workers
from soaprl.atomic import write_text_atomic
from soaprl.search import Budget, SearchTask, search
from soaprl.simulator import Simulator

EVALUATIONS, SWEEPS = 50_000, 100_000
CLUSTERS = ("p100-1x2", "p100-1x4", "p100-2x4")
_COLUMNS = ("model", "devices", "MCMC ms", "after descent ms", "MCMC is longer by", "search s", "descent s")
_TEXT = """\
# Local optima

{machine}. Written by `python -m benchmarks.paper local`; the paper's assumptions, MCMC with {evaluations:,}
evaluations, seed 0, then coordinate descent until no change of one operator improves, or for {sweeps:,}
evaluations (marked *).

The paper reports that no such change improves what its search found in 30 minutes, for all six models on 2, 4
and 8 devices. {verdict}

{table}
"""


def measure(case: Case) -> tuple[float, tuple[str, ...]]:
    """By how much MCMC falls short, and a line of the table."""
    problem = case.problem()
    found = run(problem, "mcmc", EVALUATIONS)
    assert found is not None
    task = SearchTask(
        problem=problem,
        evaluator=Simulator(problem),
        budget=Budget(evaluations=SWEEPS),
        clock=time.perf_counter,
    )
    descended = search("coordinate-descent", task, start=found.strategy)
    found_s, local_s = found.evaluation.iteration_time_s, descended.evaluation.iteration_time_s
    mark = "*" if descended.num_evaluations >= SWEEPS else ""
    return found_s / local_s - 1, (
        case.model,
        str(problem.cluster.num_devices),
        f"{1e3 * found_s:,.3f}",
        f"{1e3 * local_s:,.3f}{mark}",
        f"{found_s / local_s - 1:.3%}",
        f"{found.search_time_s:,.1f}",
        f"{descended.search_time_s:,.1f}",
    )


def main() -> None:
    """Measures and writes the table."""
    cases = [Case(model=m, cluster=c, paper=True) for m in MODELS for c in CLUSTERS]
    with workers() as pool:
        measured = list(pool.map(measure, cases))
    exact = sum(short <= 1e-9 for short, _ in measured)
    worst = max(short for short, _ in measured)
    verdict = f"Here that holds for {exact} of {len(measured)}; the others are longer by up to {worst:.2%}."
    text = _TEXT.format(
        machine=machine(),
        evaluations=EVALUATIONS,
        sweeps=SWEEPS,
        verdict=verdict,
        table=table(_COLUMNS, (cells for _, cells in measured)),
    )
    write_text_atomic(HERE / "local.md", text)


if __name__ == "__main__":
    main()
