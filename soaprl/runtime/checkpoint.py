"""Checkpoints of a training: saved whole or not at all, and loaded under any strategy and number of ranks.

saved = save_checkpoint(runtime, "checkpoints")         # by all processes
load_checkpoint(runtime, latest_checkpoint("checkpoints"))
export_state_dict("checkpoints/step-00000100", "model.pt")  # for torch.load(..., weights_only=True)
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from soaprl.atomic import check_writable, write_bytes_atomic
from soaprl.errors import ExecutionError
from soaprl.runtime.checkpoint_folders import (
    begin,
    checkpoint_path,
    complete,
    is_whole,
    keep_latest,
    latest_checkpoint,
    read_training,
)
from soaprl.runtime.checkpoint_state import Training, load_shards, names_of, shards_to_save
from soaprl.runtime.checkpoint_storage import (
    read_shards,
    stored_dtypes,
    stored_files,
    stored_sizes,
    whole_shard,
    write_shards,
)
from soaprl.runtime.distributed import DistributedRuntime
from soaprl.runtime.training import LogicalRuntime, Runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFacts:
    """What a checkpoint says of its training.

    Attributes:
        path: Where it is.
        model: Name of the model.
        num_iterations: Iterations before it.
        seed: Of the training's random numbers.
        num_ranks: How many ranks saved it.
        settings: What the caller of `save_checkpoint` added.
    """

    path: Path
    model: str
    num_iterations: int
    seed: int
    num_ranks: int
    settings: Mapping[str, Any]


def save_checkpoint(
    runtime: Runtime,
    folder: str | Path,
    *,
    num_kept: int = 2,
    settings: Mapping[str, Any] | None = None,
    group: ProcessGroup | None = None,
) -> Path:
    """Saves all of a training to ``folder/step-N``; every process of a distributed one calls this.

    Args:
        runtime: The training.
        folder: Of the training's checkpoints; one that all processes share.
        num_kept: How many of the latest to keep.
        settings: To be found again in `CheckpointFacts.settings`; what JSON can say.
        group: The processes, on a backend that moves tensors of the CPU; by default all.

    Raises:
        ExecutionError: It cannot be written, by any of the processes, or one of them does not answer; an
            earlier one stays.
        OutputError: The folder cannot be written.
    """
    training, distributed = training_of(runtime), isinstance(runtime, DistributedRuntime)
    folder, first = Path(folder), training.process == 0
    target = checkpoint_path(folder, training.num_iterations)
    if is_whole(target):
        return target
    partial = target.with_name(f".{target.name}.partial")
    if first:
        begin(folder, training.num_iterations)
    try:
        write_shards(partial, shards_to_save(training), group=group, distributed=distributed)
    except RuntimeError as error:
        if isinstance(error, ExecutionError) or not isinstance(runtime, DistributedRuntime):
            raise
        raise runtime.rank.lost("the writing of a checkpoint", error) from error
    if first:
        content = {
            "model": training.graph.name,
            "num_iterations": training.num_iterations,
            "seed": _known(runtime)._seed,
            "num_ranks": training.program.num_ranks,
            "names": names_of(training),
            "settings": dict(settings or {}),
        }
        complete(partial, target, content, stored_files(partial))
        keep_latest(folder, num_kept)
    return target


def load_checkpoint(runtime: Runtime, path: str | Path) -> CheckpointFacts:
    """Goes on from a checkpoint: parameters, buffers, optimizer, schedule, iterations, random numbers.

    The strategy, and the number of ranks and processes, may be others than those that saved it.

    Raises:
        ExecutionError: It is not whole, or belongs to another model.
    """
    facts = checkpoint_facts(path)
    training = training_of(runtime)
    names = read_training(facts.path)["names"]
    expected = {name: [key, shape] for name, (key, shape) in names_of(training).items()}
    if names != expected:
        odd = next(name for name in {**names, **expected} if names.get(name) != expected.get(name))
        raise ExecutionError(
            f"checkpoint {path} is of another model than {training.graph.name!r}: they differ in {odd!r}"
            f" ({names.get(odd, ['', 'missing'])[1]} there, {expected.get(odd, ['', 'missing'])[1]} here):"
            " use the model and options that were trained"
        )
    load_shards(training, facts.path, facts.num_iterations)
    known = _known(runtime)
    known.num_iterations, known._seed = facts.num_iterations, facts.seed
    if isinstance(known, DistributedRuntime):
        # What errors say of where a rank was.
        known.rank.num_iterations = facts.num_iterations
    return facts


def checkpoint_facts(path: str | Path) -> CheckpointFacts:
    """What the checkpoint at `path` says of its training.

    Raises:
        ExecutionError: It is not whole.
    """
    path = Path(path)
    content = read_training(path)
    if not is_whole(path):
        raise ExecutionError(f"checkpoint {path} is not whole: use an earlier one, or copy all of its files")
    return CheckpointFacts(
        path=path, **{k: content[k] for k in ("model", "num_iterations", "seed", "num_ranks", "settings")}
    )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The state dict of the original model in the checkpoint at `path`; tied parameters are one tensor.

    Raises:
        ExecutionError: It is not whole.
    """
    facts = checkpoint_facts(path)
    names: dict[str, tuple[str, list[int]]] = read_training(facts.path)["names"]
    sizes, dtypes = stored_sizes(facts.path), stored_dtypes(facts.path)
    content = {key: torch.empty(sizes[key], dtype=dtypes[key]) for key, _ in names.values()}
    read_shards(facts.path, [whole_shard(key, tensor) for key, tensor in content.items()])
    return {name: content[key].reshape(shape) for name, (key, shape) in names.items()}


def export_state_dict(path: str | Path, target: str | Path) -> None:
    """Writes the state dict in a checkpoint to a file that ``torch.load(..., weights_only=True)`` reads.

    Raises:
        ExecutionError: The checkpoint is not whole.
        OutputError: The file cannot be written.
    """
    check_writable(target)
    stream = io.BytesIO()
    torch.save(read_state_dict(path), stream)
    write_bytes_atomic(target, stream.getvalue())


def training_of(runtime: Runtime) -> Training:
    """What this process has of a training."""
    known = _known(runtime)
    distributed = isinstance(known, DistributedRuntime)
    return Training(
        graph=known.graph,
        program=known.program,
        states=(known.rank.state,) if isinstance(known, DistributedRuntime) else known.ranks.states,
        optimizers=(known.optimizer,) if isinstance(known, DistributedRuntime) else known._optimizers,
        original=known._original,
        num_iterations=known.num_iterations,
        process=dist.get_rank() if distributed else 0,
    )


def _known(runtime: Runtime) -> LogicalRuntime | DistributedRuntime:
    if isinstance(runtime, LogicalRuntime | DistributedRuntime):
        return runtime
    raise ExecutionError(
        f"expected what soaprl.runtime.initialize returns, found {type(runtime).__name__}: checkpoints are of"
        " its trainings"
    )


__all__ = [
    "CheckpointFacts",
    "checkpoint_facts",
    "export_state_dict",
    "latest_checkpoint",
    "load_checkpoint",
    "read_state_dict",
    "save_checkpoint",
]
