"""Which methods find a strategy for large language models that fits, and how good it is.

Writes ``large.md``: GPT-2 XL and a 7-billion-parameter Llama on one node of 8 A100 and on 4 nodes of 8 H100.
Experts' strategies first, then searches that begin with the best of them.
"""

import time

from benchmarks.paper.cases import HERE, Case, machine, run, table, workers
from soaprl.atomic import write_text_atomic
from soaprl.search import Budget, SearchResult, SearchTask, search
from soaprl.simulator import Problem, Simulator

MODELS, CLUSTERS = ("gpt2-xl", "llama-7b"), ("a100-1x8", "h100-4x8")
EXPERTS = ("data-parallel", "model-parallel", "megatron", "fsdp", "pipeline", "optcnn")
SEARCHES = ("coordinate-descent", "mcmc")
SECONDS = 100.0
_COLUMNS = ("method", "fits", "iteration ms", "over megatron", "peak GB", "evaluations", "seconds")
_TEXT = """\
# Large language models

{machine}, two problems at a time. Written by `python -m benchmarks.paper large`; our assumptions, fp32, seed
0. The searches begin with the best strategy of the methods above them and have {seconds:,.0f} s each.

{tables}
"""


def measure(case: Case) -> str:
    """The table of one problem."""
    problem = case.problem()
    results = [result for method in EXPERTS if (result := run(problem, method, 100_000)) is not None]
    fitting = [result for result in results if result.evaluation.feasible]
    if fitting:
        best = min(fitting, key=lambda result: result.evaluation.iteration_time_s)
        results += [_search(problem, method, best) for method in SEARCHES]
    megatron = next((result for result in results if result.method == "megatron"), None)
    results.sort(key=lambda result: (not result.evaluation.feasible, result.evaluation.iteration_time_s))
    rows = (_cells(result, megatron) for result in results)
    return f"## {case.model} on {case.cluster}\n\n{table(_COLUMNS, rows)}\n"


def _search(problem: Problem, method: str, start: SearchResult) -> SearchResult:
    task = SearchTask(
        problem=problem,
        evaluator=Simulator(problem),
        budget=Budget(seconds=SECONDS),
        clock=time.perf_counter,
    )
    return search(method, task, start=start.strategy)


def _cells(result: SearchResult, megatron: SearchResult | None) -> tuple[str, ...]:
    evaluation, fits = result.evaluation, result.evaluation.feasible
    ratio = megatron.evaluation.iteration_time_s / evaluation.iteration_time_s if megatron and fits else None
    return (
        result.method,
        "yes" if fits else "no",
        f"{1e3 * evaluation.iteration_time_s:,.1f}" if fits else "-",
        "-" if ratio is None else f"{ratio:.3f}x",
        f"{evaluation.peak_memory_bytes / 1e9:,.1f}",
        f"{result.num_evaluations:,}",
        f"{result.search_time_s:,.1f}",
    )


def main() -> None:
    """Measures and writes the tables."""
    cases = [Case(model=m, cluster=c, paper=False) for m in MODELS for c in CLUSTERS]
    with workers() as pool:
        tables = "\n".join(pool.map(measure, cases)).rstrip()
    text = _TEXT.format(machine=machine(), seconds=SECONDS, tables=tables)
    write_text_atomic(HERE / "large.md", text)


if __name__ == "__main__":
    main()
