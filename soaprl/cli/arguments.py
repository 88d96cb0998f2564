"""Arguments and options that several subcommands share."""

from pathlib import Path
from typing import Annotated

import typer

from soaprl.cost.compression import compression_names
from soaprl.cost.optimizers import optimizer_names
from soaprl.strategy.strategy import Sharding

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model of the zoo (see: soaprl models), path/file.py:factory, or a saved graph (.json[.gz]).",
    ),
]
ClusterName = Annotated[
    str,
    typer.Option(
        "--cluster", "-c", help="KIND-NODESxGPUS, such as p100-4x4 (see: soaprl clusters), or a YAML file."
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        "-b",
        help="Samples of the whole batch. Default: the zoo's batch per device (64 for files) times devices.",
    ),
]
ModelOptions = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="NAME=VALUE", help="An option of a zoo model; may be repeated."),
]
NoCoarsen = Annotated[
    bool, typer.Option("--no-coarsen", help="Keep pointwise operators apart instead of folding them.")
]
Optimizer = Annotated[
    str | None,
    typer.Option(
        "--optimizer",
        help=f"{', '.join(optimizer_names())}: decides memory and update time. Default: the zoo's, or adam.",
    ),
]
ComputeDtype = Annotated[
    str | None,
    typer.Option(
        "--compute-dtype",
        "--precision",
        help="What matrix units work in: fp32, tf32, bf16 or fp16. Default: the strategy file's, or fp32.",
    ),
]
GradientCompression = Annotated[
    str | None,
    typer.Option(
        "--gradient-compression",
        "--compress",
        help=f"{', '.join(compression_names())}: how gradients are sent that devices sum."
        " Default: the strategy file's, or none.",
    ),
]
ShardingName = Annotated[
    Sharding | None,
    typer.Option(
        "--sharding",
        help="What devices that hold the same parameters keep a piece of (ZeRO): zero1 optimizer state, zero2"
        " gradients too, zero3 parameters too. Default: what the strategy file or the method says.",
    ),
]
MicroBatches = Annotated[
    int,
    typer.Option(
        "--micro-batches",
        min=1,
        help="Cut the batch into so many parts, one after the other: methods begin with gradient accumulation"
        " and stay with the number. A strategy that is given keeps its own.",
    ),
]
MethodName = Annotated[str, typer.Option("--method", "-m", help="How to search (see: soaprl methods).")]
Cost = Annotated[
    list[Path] | None,
    typer.Option(
        "--cost",
        metavar="PROFILE",
        help="Times measured by soaprl profile; may be repeated, one for each machine. Default: a roofline.",
    ),
]
Paper = Annotated[
    bool | None,
    typer.Option("--paper/--no-paper", help="The assumptions of the SOAP paper instead of ours."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
BudgetEvaluations = Annotated[
    int | None,
    typer.Option("--budget-evals", help="Strategies to simulate at most (10000 without any budget)."),
]
BudgetSeconds = Annotated[float | None, typer.Option("--budget-seconds", help="Seconds to search at most.")]
Seed = Annotated[
    int, typer.Option("--seed", min=0, help="Equal seeds and evaluation budgets find equal strategies.")
]
Chains = Annotated[
    int,
    typer.Option(
        "--chains", min=1, help="Chains that search side by side, on all cores, and share the best."
    ),
]
OutFile = Annotated[Path | None, typer.Option("--out", "-o", help="Write the result to this file.")]
State = Annotated[
    Path | None,
    typer.Option("--resume", metavar="STATE", help="Go on from this state of a search, and keep it there."),
]
PolicyFolder = Annotated[
    Path | None,
    typer.Option(
        "--policy", help="Folder of the trained policy, for methods that use one. Default: the one shipped."
    ),
]
StartFile = Annotated[
    Path | None, typer.Option("--start", help="A strategy file to begin with, for methods that improve one.")
]
