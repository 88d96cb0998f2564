"""`soaprl simulate`: what one training iteration takes under a strategy."""

from pathlib import Path
from typing import Annotated

import typer

from soaprl.cli.arguments import (
    BatchSize,
    ClusterName,
    ComputeDtype,
    Cost,
    GradientCompression,
    Json,
    Model,
    ModelOptions,
    NoCoarsen,
    Optimizer,
    Paper,
    ShardingName,
)
from soaprl.cli.output import print_json, print_outcomes, print_table


def simulate(
    model: Model,
    cluster: ClusterName,
    strategy: Annotated[
        str, typer.Option("--strategy", "-s", help="A strategy file, or a method (see: soaprl methods).")
    ] = "data-parallel",
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Write a timeline for ui.perfetto.dev to this file.")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Also show the memory of each device.")] = False,
    save_graph: Annotated[
        Path | None,
        typer.Option(
            "--save-graph", help="Write the operator graph (.json, .json.gz), a MODEL without torch."
        ),
    ] = None,
    fold: Annotated[
        bool | None,
        typer.Option(
            "--fold/--no-fold",
            help="Simulate few devices for all where replicas do the same. Default: above 256 devices.",
        ),
    ] = None,
    batch_size: BatchSize = None,
    option: ModelOptions = None,
    no_coarsen: NoCoarsen = False,
    optimizer: Optimizer = None,
    compute_dtype: ComputeDtype = None,
    compression: GradientCompression = None,
    sharding: ShardingName = None,
    cost: Cost = None,
    paper: Paper = None,
    as_json: Json = False,
) -> None:
    """Simulate one training iteration: time, memory, traffic, and a timeline.

    A strategy that does not fit in memory is shown, then refused: the exit code is 2.
    """
    from soaprl.cli.costs import cost_sources, print_sources, sources_json
    from soaprl.cli.inputs import Execution, ModelChoice, parse_options, prepare
    from soaprl.cli.searching import check_fits
    from soaprl.cli.simulating import check_files, choose_strategy, simulate_chosen, write_files
    from soaprl.report.devices import DEVICE_COLUMNS, device_rows

    check_files(trace, save_graph)
    chosen, options = choose_strategy(strategy), parse_options(option)
    choice = ModelChoice(name=model, options=options, batch_size=batch_size, coarsened=not no_coarsen)
    execution = Execution(
        optimizer=optimizer, compute_dtype=compute_dtype, compression=compression, paper=paper, profiles=cost
    )
    prepared = prepare(chosen.applied(choice), cluster, chosen.executed(execution), sharding)
    simulated = simulate_chosen(prepared, chosen, fold=fold)
    write_files(simulated, trace, save_graph)
    sources = cost_sources(simulated.simulated.problem, simulated.simulated.strategy)
    if as_json:
        print_json({**prepared.as_json(), **simulated.as_json(), **sources_json(sources)})
    else:
        print_outcomes(prepared.title, [simulated.outcome])
        print_sources(sources)
        if memory:
            print_table("Devices", DEVICE_COLUMNS, device_rows(simulated.simulated))
    check_fits(prepared, [simulated.outcome])
