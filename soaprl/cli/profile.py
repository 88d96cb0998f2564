"""`soaprl profile`: measure what a model's operators take on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from soaprl.cli.arguments import BatchSize, ComputeDtype, Json, ModelOptions, NoCoarsen, Optimizer


def profile(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A model of the zoo, path/file.py:factory, or a graph."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", "-c", help="For which cluster: shards as small as it makes them."),
    ] = None,
    links: Annotated[
        bool,
        typer.Option("--links", help="Measure the links of a job instead, under torchrun: a cluster file."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Profile (default profile.db), or cluster file (cluster.yaml)."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda. Default: what the cluster's device type is.")
    ] = None,
    device_type: Annotated[
        str | None, typer.Option("--device-type", help="Which of the cluster's types the device stands for.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of each process, on a CPU.")] = 1,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Measure all so often; against moments that are slow.")
    ] = 1,
    show: Annotated[int, typer.Option("--show", min=0, help="How many deviations from the roofline.")] = 10,
    batch_size: BatchSize = None,
    option: ModelOptions = None,
    no_coarsen: NoCoarsen = False,
    optimizer: Optimizer = None,
    compute_dtype: ComputeDtype = None,
    as_json: Json = False,
) -> None:
    """Measure what a model's shards take on this machine, for --cost of simulate, search and compare.

    What the profile has already is not measured again: the command may be interrupted at any moment, and
    goes on. Several processes may measure into one file. With --links, under torchrun, the links between the
    job's processes are measured instead, and written as a cluster.
    """
    from soaprl.cli.inputs import Execution, ModelChoice, parse_options, prepare
    from soaprl.cli.output import print_json
    from soaprl.cli.profiling import DEFAULT_FILE, check_words, measure, print_profiled

    check_words(model, cluster, device, rounds=rounds, links=links)
    if links or model is None or cluster is None:
        from soaprl.cli import linking

        path = out or linking.DEFAULT_FILE
        linking.profile_links(path, device=device, device_type=device_type, as_json=as_json)
        return
    choice = ModelChoice(
        name=model, options=parse_options(option), batch_size=batch_size, coarsened=not no_coarsen
    )
    prepared = prepare(choice, cluster, Execution(optimizer=optimizer, compute_dtype=compute_dtype))
    path = out or DEFAULT_FILE
    profiled = measure(prepared, path, device=device, device_type=device_type, threads=threads, rounds=rounds)
    if as_json:
        print_json({**prepared.as_json(), **profiled.as_json()})
    else:
        print_profiled(prepared.title, profiled, num_shown=show)
