"""`soaprl validate`: simulated times beside those of real runs."""

from pathlib import Path
from typing import Annotated

import typer

from soaprl.cli.arguments import Json, Optimizer, Seed


def validate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Models of the zoo or path/file.py:factory; NAME:N, a batch of N."
        ),
    ],
    cluster: Annotated[
        str, typer.Option("--cluster", "-c", help="A device for each process; see soaprl profile --links.")
    ] = "cpu-1x2",
    cost: Annotated[
        list[Path] | None, typer.Option("--cost", metavar="PROFILE", help="Measured times of tasks.")
    ] = None,
    methods: Annotated[
        str, typer.Option("--methods", help="Comma-separated methods whose strategies are run, or all.")
    ] = "data-parallel,model-parallel,single-device,coordinate-descent,mcmc",
    strategies: Annotated[
        int, typer.Option("--strategies", min=2, help="For each model, those of methods and random ones.")
    ] = 50,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs of each, interleaved.")] = 3,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Iterations that count of each run.")] = 5,
    worst: Annotated[
        int, typer.Option("--worst", min=0, help="Timelines of the strategies of each model farthest off.")
    ] = 1,
    budget_evals: Annotated[int, typer.Option("--budget-evals", min=1, help="Of each search.")] = 2000,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for tables, plot and timelines.")] = Path(
        "validation"
    ),
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate", help="Write the cluster with what the runtime takes for messages, fitted."
        ),
    ] = None,
    prefix: Annotated[
        str,
        typer.Option(
            "--prefix", help="Words before the command of each process, {rank} for its number: a namespace."
        ),
    ] = "",
    compare: Annotated[
        str | None, typer.Option("--compare", help="Another cluster to predict the same runs for.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="Of the zoo models that have such an option."),
    ] = None,
    optimizer: Optimizer = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Run strategies on this machine's processes, simulate the same, and say how far apart they are.

    Strategies are those that methods find and random ones; they run interleaved. May be interrupted: the same
    command goes on from what has run.
    """
    from soaprl.cli.inputs import Execution, parse_options
    from soaprl.cli.validating import Plan, run_validation
    from soaprl.cli.validation_files import print_validation, write_calibrated, write_validation

    plan = Plan(
        models=tuple(models),
        cluster=cluster,
        execution=Execution(optimizer=optimizer, profiles=cost),
        options=parse_options(option),
        methods=methods,
        num_strategies=strategies,
        repeats=repeats,
        num_steps=steps,
        num_worst=worst,
        budget_evaluations=budget_evals,
        folder=out,
        seed=seed,
        calibrated=calibrate,
        prefix=prefix,
        compared=compare,
    )
    validation = run_validation(plan)
    write_validation(validation)
    write_calibrated(validation)
    print_validation(validation, as_json=as_json)
