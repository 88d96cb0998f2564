"""`soaprl compare`: methods side by side under equal budgets."""

from typing import Annotated

import typer

from soaprl.cli.arguments import (
    BatchSize,
    BudgetEvaluations,
    BudgetSeconds,
    ClusterName,
    ComputeDtype,
    Json,
    Model,
    ModelOptions,
    NoCoarsen,
    Optimizer,
    Paper,
    Seed,
)
from soaprl.cli.output import INTERRUPTED, print_json, print_outcomes


def compare(
    model: Model,
    cluster: ClusterName,
    methods: Annotated[
        str,
        typer.Option("--methods", help="Comma-separated names (see: soaprl methods); the first is 1.00x."),
    ] = "data-parallel,model-parallel,mcmc",
    budget_evals: BudgetEvaluations = None,
    budget_seconds: BudgetSeconds = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    option: ModelOptions = None,
    no_coarsen: NoCoarsen = False,
    optimizer: Optimizer = None,
    compute_dtype: ComputeDtype = "float32",
    paper: Paper = False,
    as_json: Json = False,
) -> None:
    """Set methods side by side: one table, each method with the whole budget."""
    from soaprl.cli.inputs import Execution, ModelChoice, parse_options, prepare
    from soaprl.cli.searching import check_fits, find_all, make_budget, run_methods, search_outcome

    names = find_all(methods)
    options, budget = parse_options(option), make_budget(budget_evals, budget_seconds)
    choice = ModelChoice(name=model, options=options, batch_size=batch_size, coarsened=not no_coarsen)
    prepared = prepare(
        choice, cluster, Execution(optimizer=optimizer, compute_dtype=compute_dtype, paper=paper)
    )
    results = run_methods(prepared.problem, names, budget, seed=seed)
    outcomes = [search_outcome(result, prepared.problem.graph.batch_size) for result in results]
    if as_json:
        print_json({**prepared.as_json(), "results": [outcome.as_json() for outcome in outcomes]})
    else:
        print_outcomes(prepared.title, outcomes)
    check_fits(prepared, outcomes)
    if any(result.interrupted for result in results):
        raise typer.Exit(INTERRUPTED)
