"""What to train and how: everything that the processes of a run must agree on, and what they bring back."""

import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from soaprl.atomic import write_text_atomic
from soaprl.errors import unknown_name
from soaprl.graph import zoo
from soaprl.graph.capture import load_factory, parse_user_file
from soaprl.graph.files import load_graph, save_graph
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.optimization import MakeOptimizer
from soaprl.runtime.program import BatchNorm, Precision
from soaprl.strategy.strategy import Strategy

# What a model is called with: arguments by position, and by name.
Batch: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
Executor: TypeAlias = Literal["logical", "distributed"]
Dtype: TypeAlias = Literal["float32", "float64"]
EXECUTORS: tuple[Executor, ...] = ("logical", "distributed")
DTYPES: tuple[Dtype, ...] = ("float32", "float64")
BACKENDS = ("gloo", "nccl")
DEVICES = ("cpu", "cuda")
# What models of the zoo are trained with where nothing else is asked for.
LEARNING_RATES = {"sgd": 0.01, "momentum": 0.01, "adam": 1e-3}
_MOMENTUM = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A training run.

    Attributes:
        model: A zoo name or ``path/file.py:factory``.
        options: Of a zoo model.
        batch_size: Samples of the whole batch.
        strategy: How every operator is split and placed.
        num_ranks: Ranks; the strategy may leave some without work.
        optimizer: One of `LEARNING_RATES`.
        learning_rate: Of the optimizer.
        batch_norm: As in `CompileOptions`.
        dtype: Of parameters and floating-point inputs.
        precision: As in `CompileOptions`.
        compression: As in `CompileOptions`.
        seed: Of initial parameters, batches and dropout.
        num_steps: Iterations in all, those before a checkpoint that is resumed from included.
        check: Whether to compare with training of the original model in one process.
        executor: ``logical``: all ranks in one process.
        backend: Of `torch.distributed`.
        device: ``cpu``, or ``cuda``: the GPUs of a machine in turn.
        timeout_s: How long a rank waits for others before it gives up.
        output: Folder for checkpoints, losses and the trained model; None for none.
        save_every: Iterations between checkpoints; 0: only at the end.
        resume: Whether to go on from the latest checkpoint in `output`.
        trace: Whether to record what each rank does.
    """

    model: str
    options: Mapping[str, int | float] = field(default_factory=dict)
    batch_size: int
    strategy: Strategy
    num_ranks: int
    optimizer: str
    learning_rate: float
    batch_norm: BatchNorm = "local"
    dtype: Dtype = "float32"
    precision: Precision = "stored"
    compression: str = "none"
    seed: int = 0
    num_steps: int
    check: bool = False
    executor: Executor = "distributed"
    backend: str = "gloo"
    device: str = "cpu"
    timeout_s: float = 60.0
    output: str | None = None
    save_every: int = 0
    resume: bool = False
    trace: bool = False

    @property
    def checkpoints(self) -> Path | None:
        """The folder of the checkpoints."""
        return None if self.output is None else Path(self.output) / "checkpoints"

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same when a run is resumed; strategy and number of ranks may change."""
        names = (
            "model",
            "batch_size",
            "optimizer",
            "learning_rate",
            "batch_norm",
            "dtype",
            "precision",
            "seed",
        )
        return {**{name: getattr(self, name) for name in names}, "options": dict(self.options)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The largest difference of something from training in one process.

    Attributes:
        what: ``loss``, or the name of a parameter whose gradient it is.
        step: In which iteration, from 1.
        rank: Which rank had it.
        absolute: The difference.
        relative: Divided by the largest absolute value of what it should be.
    """

    what: str
    step: int
    rank: int
    absolute: float
    relative: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How a run compares with training of the original model in one process.

    Attributes:
        loss: The largest difference of the loss.
        gradients: For each parameter, the largest difference of its gradient, the largest first.
        tolerance: Relative difference that rounding explains.
        agrees: Whether all differences are within it.
        against: What was run for comparison.
    """

    loss: Difference
    gradients: tuple[Difference, ...]
    tolerance: float
    agrees: bool
    against: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that a rank did.

    Attributes:
        rank: Which rank.
        step: In which iteration, from 1.
        kind: ``load``, ``forward``, ``backward``, ``exchange``, ``reduce``, ``update``.
        name: Of what.
        start_s: When, from the beginning of the recording.
        duration_s: How long.
        arrival: Whether it takes what other ranks sent, for which it may have waited.
    """

    rank: int
    step: int
    kind: str
    name: str
    start_s: float
    duration_s: float
    arrival: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run brought; of one process, or of all.

    Attributes:
        first_step: Iterations that were done before (from a checkpoint).
        losses: Of each iteration since.
        times_s: How long each took.
        check: The comparison, where one was asked for.
        events: What was recorded, where that was asked for.
        checkpoint: The last checkpoint.
    """

    first_step: int
    losses: tuple[float, ...]
    times_s: tuple[float, ...]
    check: Check | None = None
    events: tuple[Event, ...] = ()
    checkpoint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One iteration that is done.

    Attributes:
        step: Iterations so far.
        loss: Of this one.
        time_s: How long it took.
    """

    step: int
    loss: float
    time_s: float


Listen: TypeAlias = Callable[[Progress], None]


def save_job(folder: Path, job: Job, graph: OperatorGraph) -> None:
    """Writes what a process needs to take part in a run."""
    write_text_atomic(folder / "job.json", TypeAdapter(Job).dump_json(job).decode())
    save_graph(graph, folder / "graph.json")


def load_job(folder: Path) -> tuple[Job, OperatorGraph]:
    """What `save_job` wrote."""
    job = TypeAdapter(Job).validate_json((folder / "job.json").read_bytes())
    return job, load_graph(folder / "graph.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A module, and a batch to call it with."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@contextmanager
def default_dtype(name: Dtype) -> Iterator[None]:
    """New floating-point tensors are of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_model(job: Job) -> Model:
    """The model with its initial parameters, equal in every process.

    Raises:
        CaptureError: The user's file has changed since it was captured, and no longer works.
    """
    random.seed(job.seed)
    np.random.seed(job.seed % 2**32)  # noqa: NPY002 (a user's factory may draw from it)
    torch.manual_seed(job.seed)
    # What the user's code prints is not the command's result.
    made: tuple[Any, ...]
    with default_dtype(job.dtype), redirect_stdout(sys.stderr):
        if ":" in job.model:
            made = load_factory(parse_user_file(job.model))(job.batch_size)
        else:
            made = zoo.build(job.model, job.batch_size, **job.options)
    module = getattr(made[0], "_orig_mod", made[0])
    return Model(module=module.train(), args=made[1], kwargs=made[2] if len(made) == 3 else {})


def draw_batch(
    model: Model, batch_size: int, *, seed: int, step: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch of samples drawn, with replacement, from that which the factory made.

    A tensor's samples are along its first dimension of the batch's size; one without such stays as it is.
    The same samples are drawn from every tensor, so that inputs and labels stay together.
    """
    generator = torch.Generator().manual_seed((seed << 20) + step)
    drawn = torch.randint(batch_size, (batch_size,), generator=generator)

    def resampled(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or batch_size not in leaf.shape:
            return leaf
        return leaf.index_select(list(leaf.shape).index(batch_size), drawn)

    args, kwargs = pytree.tree_map(resampled, (model.args, dict(model.kwargs)))
    return args, kwargs


def optimizer_maker(name: str, learning_rate: float) -> MakeOptimizer:
    """Makes the optimizer called `name`.

    Raises:
        UnknownNameError: There is no such optimizer.
    """
    if name not in LEARNING_RATES:
        raise unknown_name("optimizer", name, LEARNING_RATES)

    def make(named: Sequence[Any]) -> torch.optim.Optimizer:
        if name == "adam":
            return torch.optim.Adam(named, lr=learning_rate)
        return torch.optim.SGD(named, lr=learning_rate, momentum=_MOMENTUM if name == "momentum" else 0.0)

    return make


def append_line(path: Path, progress: Progress) -> None:
    """Adds an iteration to a file of one JSON object a line."""
    with path.open("a", encoding="utf-8") as stream:
        line = {"step": progress.step, "loss": progress.loss, "time_s": progress.time_s}
        stream.write(json.dumps(line) + "\n")
