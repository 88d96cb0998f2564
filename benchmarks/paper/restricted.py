"""What a search gains from the whole space over parts of it (the paper's figures 10 and 11).

Writes ``restricted.md``: MCMC in all of SOAP against OptCNN (sample, attribute and parameter, no placement of
operators side by side) on 16 P100, and against placement of whole operators, which is what reinforcement
learning had searched, on 4 K80.
"""

from dataclasses import replace

from benchmarks.paper.cases import HERE, MODELS, Case, machine, run, table, workers
from soaprl.atomic import write_text_atomic
from soaprl.simulator import Problem

EVALUATIONS = 50_000
PLACED = ("inception-v3", "nmt")
_TEXT = """\
# Parts of the space against all of it

{machine}. Written by `python -m benchmarks.paper restricted`; MCMC with {evaluations:,} evaluations, seed 0.
Iteration times in ms.

## OptCNN, 16 P100

The paper reports 1.2x to 1.6x for Inception-v3, RNNTC, RNNLM and NMT, and the same for the other two.
OptCNN's own objective adds the times of layers one after the other; both are simulated here with overlap.

{optcnn}

## Placement of whole operators, 4 K80

The paper reports 3.4x to 3.8x over a learned placement, found by a search of hours. Here the placement is
found by the same MCMC, confined to operators that are not split.

{placement}
"""


def unsplittable(problem: Problem) -> Problem:
    """The problem with operators that have nothing to split."""
    operators = tuple(
        replace(o, factors=tuple(replace(f, max_degree=1) for f in o.factors))
        for o in problem.graph.operators
    )
    return replace(problem, graph=replace(problem.graph, operators=operators))


def against_optcnn(case: Case) -> tuple[str, ...]:
    """A line of the first table."""
    problem = case.problem()
    chosen, found = run(problem, "optcnn", EVALUATIONS), run(problem, "mcmc", EVALUATIONS)
    assert found is not None
    found_s = found.evaluation.iteration_time_s
    if chosen is None:
        return case.model, case.assumptions, "-", f"{1e3 * found_s:,.2f}", "-"
    chosen_s = chosen.evaluation.iteration_time_s
    times = f"{1e3 * chosen_s:,.2f}", f"{1e3 * found_s:,.2f}", f"{chosen_s / found_s:.2f}x"
    return case.model, case.assumptions, *times


def against_placement(case: Case) -> tuple[str, ...]:
    """A line of the second table."""
    problem = case.problem()
    placed, found = run(unsplittable(problem), "mcmc", EVALUATIONS), run(problem, "mcmc", EVALUATIONS)
    assert placed is not None
    assert found is not None
    placed_s, found_s = placed.evaluation.iteration_time_s, found.evaluation.iteration_time_s
    times = f"{1e3 * placed_s:,.1f}", f"{1e3 * found_s:,.1f}", f"{placed_s / found_s:.2f}x"
    return case.model, case.assumptions, *times, f"{found.search_time_s:,.1f}"


def main() -> None:
    """Measures and writes the tables."""
    first = [Case(model=m, cluster="p100-4x4", paper=paper) for m in MODELS for paper in (True, False)]
    second = [Case(model=m, cluster="k80-1x4", paper=paper) for m in PLACED for paper in (True, False)]
    with workers() as pool:
        optcnn, placement = pool.map(against_optcnn, first), pool.map(against_placement, second)
        text = _TEXT.format(
            machine=machine(),
            evaluations=EVALUATIONS,
            optcnn=table(("model", "assumptions", "OptCNN", "MCMC", "MCMC / OptCNN"), optcnn),
            placement=table(
                ("model", "assumptions", "placement", "MCMC", "MCMC / placement", "search s"), placement
            ),
        )
    write_text_atomic(HERE / "restricted.md", text)


if __name__ == "__main__":
    main()
