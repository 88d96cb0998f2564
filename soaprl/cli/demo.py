"""`soaprl demo`: the whole story on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from soaprl.cli.arguments import Json
from soaprl.cli.output import INTERRUPTED, print_json, print_outcomes, say

MODEL, CLUSTER = "nmt", "p100-1x4"
METHODS = ("data-parallel", "model-parallel", "mcmc")
EVALUATIONS = 100_000


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for what it writes.")] = Path("out"),
    budget_evals: Annotated[
        int, typer.Option("--budget-evals", help="Strategies that the search may simulate.")
    ] = EVALUATIONS,
    as_json: Json = False,
) -> None:
    """Capture a translation model, search four GPUs for a strategy, and set it beside the usual ones."""
    from soaprl.atomic import make_folder
    from soaprl.cli.inputs import Execution, ModelChoice, prepare
    from soaprl.cli.records import make_record
    from soaprl.cli.searching import make_budget, run_methods, search_outcome
    from soaprl.simulator.result import simulate
    from soaprl.simulator.trace import write_trace
    from soaprl.strategy.files import save_strategy
    from soaprl.strategy.text import export_text

    make_folder(out)
    strategy_path, trace_path = out / "strategy.json", out / "trace.json"
    say(f"soaprl: capturing {MODEL}, a translation model of LSTMs with attention, for {CLUSTER}: 4 P100 GPUs")
    prepared = prepare(ModelChoice(name=MODEL), CLUSTER, Execution())
    say(f"soaprl: simulating data and model parallelism, then searching {budget_evals} strategies")
    budget = make_budget(budget_evals, None)
    results = run_methods(prepared.problem, METHODS, budget, seed=0)
    best, graph = results[-1], prepared.problem.graph
    save_strategy(strategy_path, make_record(prepared, best, budget))
    simulated = simulate(prepared.problem, best.strategy)
    write_trace(simulated, trace_path)
    outcomes = [search_outcome(result, graph.batch_size) for result in results]
    if as_json:
        print_json(
            {
                **prepared.as_json(),
                "results": [outcome.as_json() for outcome in outcomes],
                "strategy": str(strategy_path),
                "trace": str(trace_path),
            }
        )
        return
    print_outcomes(prepared.title, outcomes)
    print(export_text(graph, prepared.problem.cluster, best.strategy))
    busy = float(simulated.device_busy_s.mean()) / simulated.iteration_time_s
    print(f"With the strategy that {best.method} found, the GPUs compute {100 * busy:.0f} % of the time.\n")
    print(
        f"Wrote {strategy_path}, the strategy, and {trace_path}, its timeline for https://ui.perfetto.dev\n"
        "Try next:\n"
        f"  soaprl compare {MODEL} --cluster p100-4x4 --budget-seconds 30\n"
        f"  soaprl simulate {MODEL} --cluster {CLUSTER} --strategy {strategy_path} --memory\n"
        "  soaprl search path/file.py:factory --cluster a100-1x8 --out strategy.json"
    )
    if best.interrupted:
        raise typer.Exit(INTERRUPTED)
