"""`soaprl run`: train a model by a strategy, on local processes or under torchrun."""

from soaprl.cli.arguments import (
    BatchSize,
    ComputeDtype,
    GradientCompression,
    Json,
    ModelOptions,
    NoCoarsen,
    Seed,
    ShardingName,
)
from soaprl.cli.run_arguments import (
    Backend,
    BatchNorm,
    Check,
    Cluster,
    Device,
    DryRun,
    Dtype,
    Executor,
    LearningRate,
    NumProcesses,
    Optimizer,
    Output,
    Resume,
    RunModel,
    SaveEvery,
    Steps,
    StrategyName,
    Timeout,
    Trace,
)


def run(
    model: RunModel,
    strategy: StrategyName = None,
    cluster: Cluster = None,
    num_processes: NumProcesses = None,
    sharding: ShardingName = None,
    steps: Steps = 10,
    dry_run: DryRun = False,
    check: Check = False,
    optimizer: Optimizer = None,
    compute_dtype: ComputeDtype = None,
    compression: GradientCompression = None,
    learning_rate: LearningRate = None,
    batch_norm: BatchNorm = "local",
    dtype: Dtype = "float32",
    executor: Executor = "distributed",
    backend: Backend = None,
    device: Device = "cpu",
    timeout: Timeout = 60.0,
    output: Output = None,
    save_every: SaveEvery = 0,
    resume: Resume = False,
    trace: Trace = None,
    batch_size: BatchSize = None,
    option: ModelOptions = None,
    no_coarsen: NoCoarsen = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train on synthetic batches: time measured and predicted, losses, and --check against one process."""
    from soaprl.cli.inputs import ModelChoice, parse_options
    from soaprl.cli.run_prepare import prepare_run
    from soaprl.cli.run_report import execute, show_program
    from soaprl.cli.run_wishes import Wishes

    options = parse_options(option)
    choice = ModelChoice(name=model, options=options, batch_size=batch_size, coarsened=not no_coarsen)
    wishes = Wishes(
        strategy=strategy,
        cluster=cluster,
        num_processes=num_processes,
        sharding=sharding,
        optimizer=optimizer,
        compute_dtype=compute_dtype,
        compression=compression,
        learning_rate=learning_rate,
        batch_norm=batch_norm,
        dtype=dtype,
        executor=executor,
        backend=backend or "gloo",
        device=device,
        timeout_s=timeout,
        output=output,
        save_every=save_every,
        resume=resume,
        trace=trace,
        check=check,
        num_steps=steps,
        seed=seed,
    )
    prepared = prepare_run(choice, wishes)
    if dry_run:
        show_program(prepared, as_json=as_json)
    else:
        execute(prepared, trace=trace, as_json=as_json)
