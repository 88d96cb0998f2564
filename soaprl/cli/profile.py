"""`soaprl profile`: measure what a model's operators take on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from soaprl.cli.arguments import BatchSize, ComputeDtype, Json, ModelOptions, NoCoarsen, Optimizer


def profile(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model of the zoo, path/file.py:factory, or a graph."),
    ],
    cluster: Annotated[
        str, typer.Option("--cluster", "-c", help="For which cluster: shards as small as it makes them.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The profile; what it has already is not measured again.")
    ] = Path("profile.db"),
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda. Default: what the cluster's device type is.")
    ] = None,
    device_type: Annotated[
        str | None, typer.Option("--device-type", help="Which of the cluster's types the device stands for.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of each process, on a CPU.")] = 1,
    show: Annotated[int, typer.Option("--show", min=0, help="How many deviations from the roofline.")] = 10,
    batch_size: BatchSize = None,
    option: ModelOptions = None,
    no_coarsen: NoCoarsen = False,
    optimizer: Optimizer = None,
    compute_dtype: ComputeDtype = "float32",
    as_json: Json = False,
) -> None:
    """Measure what a model's shards take on this machine, for --cost of simulate, search and compare.

    May be interrupted at any moment: what was measured is kept, and the same command goes on. Several
    processes may measure into one file.
    """
    from soaprl.cli.inputs import Execution, ModelChoice, parse_options, prepare
    from soaprl.cli.output import print_json
    from soaprl.cli.profiling import measure, print_profiled

    options = parse_options(option)
    choice = ModelChoice(name=model, options=options, batch_size=batch_size, coarsened=not no_coarsen)
    prepared = prepare(choice, cluster, Execution(optimizer=optimizer, compute_dtype=compute_dtype))
    profiled = measure(prepared, out, device=device, device_type=device_type, threads=threads)
    if as_json:
        print_json({**prepared.as_json(), **profiled.as_json()})
    else:
        print_profiled(prepared.title, profiled, num_shown=show)
