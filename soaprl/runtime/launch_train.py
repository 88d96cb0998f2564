"""The training loop of `soaprl run`, in each process that takes part."""

import json
import os
import time
from dataclasses import replace
from math import isfinite
from pathlib import Path

import torch
import torch.distributed as dist
from pydantic import TypeAdapter

from soaprl.atomic import make_folder, write_text_atomic
from soaprl.errors import ExecutionError, SoaprlError
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.checkpoint import (
    checkpoint_facts,
    export_state_dict,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    training_of,
)
from soaprl.runtime.launch_check import Reference, merged_checks
from soaprl.runtime.launch_job import (
    Batch,
    Job,
    Listen,
    Model,
    Progress,
    RunResult,
    append_line,
    draw_batch,
    make_model,
    optimizer_maker,
)
from soaprl.runtime.launch_record import Recorder
from soaprl.runtime.training import Runtime, initialize

LOSSES = "losses.jsonl"
STATE_DICT = "model.pt"


def train(job: Job, graph: OperatorGraph, recorder: Recorder, listen: Listen) -> RunResult:
    """Trains as `job` says; in a distributed run, every process calls this.

    Args:
        job: What to train, and how.
        graph: The captured model.
        recorder: Is told where the training is.
        listen: Called after each iteration, in the first process only.

    Raises:
        SoaprlError: Something does not fit, or fails; what fails otherwise is named with rank and operator.
    """
    process = dist.get_rank() if dist.is_initialized() else 0
    try:
        return _train(job, graph, recorder, listen, process)
    except SoaprlError:
        raise
    except (RuntimeError, AssertionError, ValueError, IndexError, MemoryError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        raise ExecutionError(f"rank {recorder.rank or process} failed at {recorder.place}: {what}") from error


def _train(job: Job, graph: OperatorGraph, recorder: Recorder, listen: Listen, process: int) -> RunResult:
    model = make_model(job)
    runtime = _initialized(job, graph, model)
    reference = Reference(job, graph, model) if job.check else None
    first_step = _resume(job, runtime)
    training = training_of(runtime)
    for state, optimizer in zip(training.states, training.optimizers, strict=True):
        recorder.attach(state, optimizer)
    if process == 0 and job.output is not None:
        _cut_losses(Path(job.output) / LOSSES, first_step)
    progress: list[Progress] = []
    saved: Path | None = None
    for number in range(first_step, job.num_steps):
        batch = draw_batch(model, job.batch_size, seed=job.seed, step=number)
        recorder.begin_step(number + 1)
        progress.append(_step(runtime, batch, number + 1))
        _check_loss(job, progress[-1])
        if reference is not None:
            recorder.at("comparison")
            reference.compare(batch, number + 1, progress[-1].loss, training.states)
        if process == 0:
            if job.output is not None:
                append_line(Path(job.output) / LOSSES, progress[-1])
            listen(progress[-1])
        last = number + 1 == job.num_steps
        if job.checkpoints is not None and (last or (job.save_every and (number + 1) % job.save_every == 0)):
            recorder.at("checkpoint")
            saved = save_checkpoint(runtime, job.checkpoints, settings=job.settings)
    if process == 0 and saved is not None and job.output is not None:
        export_state_dict(saved, Path(job.output) / STATE_DICT)
    return RunResult(
        first_step=first_step,
        losses=tuple(p.loss for p in progress),
        times_s=tuple(p.time_s for p in progress),
        check=None if reference is None or not progress else reference.result(),
        events=recorder.events,
        checkpoint=None if saved is None else str(saved),
    )


def _initialized(job: Job, graph: OperatorGraph, model: Model) -> Runtime:
    args, kwargs = model.args, model.kwargs
    return initialize(
        model.module,
        job.strategy,
        (*args, *kwargs.values()),
        optimizer=optimizer_maker(job.optimizer, job.learning_rate),
        batch_norm=job.batch_norm,
        precision=job.precision,
        compression=job.compression,
        seed=job.seed,
        graph=graph,
        executor=job.executor,
        devices=_devices(job),
        timeout_s=job.timeout_s,
    )


def check_devices(job: Job) -> None:
    """Raises `ExecutionError` unless this machine has what the job runs on."""
    if job.device == "cuda" and not torch.cuda.device_count():
        raise ExecutionError("expected a GPU for --device cuda, found none that PyTorch can use")
    if job.backend == "nccl" and job.device == "cpu":
        raise ExecutionError(
            "expected --backend gloo for --device cpu, found nccl, which sends from GPU to GPU: leave"
            " --backend out, or add --device cuda"
        )


def _devices(job: Job) -> tuple[torch.device, ...]:
    """Where the tensors of each rank are: the machine's GPUs in turn, or its memory."""
    if job.device == "cpu":
        return (torch.device("cpu"),) * job.num_ranks
    count = torch.cuda.device_count()
    if dist.is_initialized():
        # A rank's place in its machine, which `torchrun` says, not its place in the job.
        local = int(os.environ.get("LOCAL_RANK", "0")) % count
        return (torch.device("cuda", local),) * job.num_ranks
    return tuple(torch.device("cuda", rank % count) for rank in range(job.num_ranks))


def _step(runtime: Runtime, batch: Batch, step: int) -> Progress:
    args, kwargs = batch
    start_s = time.perf_counter()
    loss = runtime.step(*args, **kwargs).item()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Progress(step=step, loss=loss, time_s=time.perf_counter() - start_s)


def _check_loss(job: Job, progress: Progress) -> None:
    """Raises `ExecutionError` for a loss that is no number: what follows is none either."""
    if not isfinite(progress.loss):
        raise ExecutionError(
            f"the loss of {job.model} at step {progress.step} is {progress.loss}, expected a finite number:"
            " look for what overflows or divides by zero in the model and the batch of its factory, or lower"
            f" the learning rate (--lr, now {job.learning_rate:g})"
        )


def _resume(job: Job, runtime: Runtime) -> int:
    """Goes on from the latest checkpoint, where that is asked for and there is one; iterations done."""
    if job.checkpoints is None or not job.resume:
        return 0
    found = latest_checkpoint(job.checkpoints)
    if dist.is_initialized():
        # One process decides, because a folder that hosts share may not look the same to all at once.
        decided = [found]
        dist.broadcast_object_list(decided, src=0)
        found = decided[0]
    if found is None:
        return 0
    return load_checkpoint(runtime, found).num_iterations


def check_output(job: Job) -> Path | None:
    """Makes the folder for results, before the work; the checkpoint to resume from, if there is one.

    Raises:
        OutputError: The folder cannot be written.
        ExecutionError: It holds another run.
    """
    if job.checkpoints is None:
        return None
    make_folder(job.checkpoints)
    found = latest_checkpoint(job.checkpoints)
    if found is None:
        return None
    if not job.resume:
        raise ExecutionError(
            f"{job.output} has checkpoints of an earlier run: --resume goes on from {found.name}, or name"
            " another folder"
        )
    facts = checkpoint_facts(found)
    for name, value in job.settings.items():
        if facts.settings.get(name) != value:
            raise ExecutionError(
                f"{found} was saved with {name} = {facts.settings.get(name)!r}, found {value!r}: resume with"
                " the same, or name another folder"
            )
    if facts.num_iterations >= job.num_steps:
        raise ExecutionError(
            f"{found} has {facts.num_iterations} steps already: expected --steps above that, found"
            f" {job.num_steps}"
        )
    return found


def _cut_losses(path: Path, num_steps: int) -> None:
    """Forgets the losses of iterations after the one that is resumed from."""
    kept = []
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= num_steps]
    write_text_atomic(path, "".join(f"{line}\n" for line in kept))


def merged_results(results: list[RunResult]) -> RunResult:
    """The results of all processes as one; losses and times are those of the first."""
    checks = [result.check for result in results if result.check is not None]
    return replace(
        results[0],
        check=merged_checks(checks) if checks else None,
        events=tuple(event for result in results for event in result.events),
    )


def result_text(result: RunResult) -> str:
    """A result as JSON, numbers that are none included."""
    return json.dumps(TypeAdapter(RunResult).dump_python(result))


def parse_result(text: str) -> RunResult:
    """What `result_text` made."""
    return TypeAdapter(RunResult).validate_python(json.loads(text))
