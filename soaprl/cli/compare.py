"""`soaprl compare`: methods side by side under equal budgets."""

from pathlib import Path
from typing import Annotated

import typer

from soaprl.cli.arguments import (
    BatchSize,
    BudgetEvaluations,
    BudgetSeconds,
    ClusterName,
    ComputeDtype,
    Cost,
    GradientCompression,
    Json,
    MicroBatches,
    Model,
    ModelOptions,
    NoCoarsen,
    Optimizer,
    Paper,
    PolicyFolder,
    Seed,
    ShardingName,
)
from soaprl.cli.output import INTERRUPTED, print_json


def compare(
    model: Model,
    cluster: ClusterName,
    methods: Annotated[
        str,
        typer.Option(
            "--methods", help="Comma-separated names (see: soaprl methods), or all; the first is 1.00x."
        ),
    ] = "data-parallel,model-parallel,mcmc",
    budget_evals: BudgetEvaluations = None,
    budget_seconds: BudgetSeconds = None,
    seed: Seed = 0,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Seeds for each method that searches, from --seed on.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write all runs with their histories as JSON.")
    ] = None,
    policy: PolicyFolder = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Plot the best time against evaluations and seconds (.png, .svg, .pdf)."),
    ] = None,
    batch_size: BatchSize = None,
    option: ModelOptions = None,
    no_coarsen: NoCoarsen = False,
    optimizer: Optimizer = None,
    compute_dtype: ComputeDtype = None,
    compression: GradientCompression = None,
    sharding: ShardingName = None,
    micro_batches: MicroBatches = 1,
    cost: Cost = None,
    paper: Paper = None,
    as_json: Json = False,
) -> None:
    """Set methods side by side: one table, each method with the whole budget.

    Methods that do not apply to the model are listed with the reason.
    """
    from soaprl.cli import comparing
    from soaprl.cli.inputs import Execution, ModelChoice, parse_options, prepare
    from soaprl.cli.searching import check_fits, make_budget

    comparing.check_files(out, plot)
    chosen = comparing.chosen_methods(methods, policy)
    options, budget = parse_options(option), make_budget(budget_evals, budget_seconds)
    choice = ModelChoice(name=model, options=options, batch_size=batch_size, coarsened=not no_coarsen)
    execution = Execution(
        optimizer=optimizer, compute_dtype=compute_dtype, compression=compression, paper=paper, profiles=cost
    )
    prepared = prepare(choice, cluster, execution, sharding, micro_batches)
    comparison = comparing.run_comparison(prepared, chosen, budget, range(seed, seed + seeds))
    comparing.write_comparison(comparison, out, plot)
    if as_json:
        print_json(comparison.as_json())
    else:
        comparing.print_comparison(comparison)
    check_fits(prepared, comparison.outcomes)
    if comparison.interrupted:
        raise typer.Exit(INTERRUPTED)
