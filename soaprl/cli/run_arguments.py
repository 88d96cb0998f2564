"""Arguments and options of `soaprl run`."""

from pathlib import Path
from typing import Annotated

import typer

RunModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model of the zoo, path/file.py:factory, or a strategy file, which names its model.",
    ),
]
StrategyName = Annotated[
    str | None,
    typer.Option("--strategy", "-s", help="A strategy file, or a method. Default: data-parallel."),
]
Cluster = Annotated[
    str | None,
    typer.Option("--cluster", "-c", help="What to predict for: a process for each device. Default: cpu-1xN."),
]
NumProcesses = Annotated[
    int | None,
    typer.Option("--num-processes", "--nproc", "-n", min=1, help="N. Default: the devices, or 2."),
]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Iterations in all.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only compile and check: print what each rank would do.")
]
Check = Annotated[
    bool, typer.Option("--check", help="Compare loss and gradients with training in one process.")
]
Optimizer = Annotated[
    str | None, typer.Option("--optimizer", help="sgd, momentum or adam. Default: the zoo's, or adam.")
]
LearningRate = Annotated[
    float | None, typer.Option("--lr", min=0.0, help="Default: 0.001 for adam, otherwise 0.01.")
]
BatchNorm = Annotated[
    str,
    typer.Option("--batch-norm", help="local: statistics of each task; synchronized: of the whole batch."),
]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, or float64 to compare exactly.")]
Executor = Annotated[
    str, typer.Option("--executor", help="distributed: a process for each rank; logical: all in one.")
]
Backend = Annotated[str | None, typer.Option("--backend", help="gloo or nccl. Default: gloo.")]
Device = Annotated[
    str, typer.Option("--device", help="cpu or cuda: the machine's GPUs in turn, shared only with gloo.")
]
Timeout = Annotated[float, typer.Option("--timeout", min=1.0, help="Seconds that a rank waits for another.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder for checkpoints, losses and the trained state dict."),
]
SaveEvery = Annotated[
    int, typer.Option("--save-every", min=0, help="Steps between checkpoints; 0: only at the end.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint in --output, if there is one.")
]
Trace = Annotated[
    Path | None,
    typer.Option("--trace", help="Write what ran, and what was simulated, for ui.perfetto.dev."),
]
