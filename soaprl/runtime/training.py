"""Training a PyTorch model by a strategy: a few lines around a user's own loop.

runtime = initialize(model, strategy, inputs, optimizer=lambda named: torch.optim.Adam(named, lr=1e-3))
for batch in batches:
    loss = runtime.step(*batch)
model.load_state_dict(runtime.state_dict())
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from soaprl.cost.compression import find_compression
from soaprl.errors import ExecutionError, unknown_name
from soaprl.graph.capture import graph_from_factory
from soaprl.graph.files import graph_fingerprint
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.batches import Batches
from soaprl.runtime.check import check_program
from soaprl.runtime.compile import compile_program
from soaprl.runtime.distributed.groups import DEFAULT_TIMEOUT_S, join_process_group
from soaprl.runtime.distributed.runtime import initialize_distributed
from soaprl.runtime.logical import LogicalRanks
from soaprl.runtime.model_state import StateDict, module_tensors, tensors_of_state_dict
from soaprl.runtime.optimization import MakeOptimizer, MakeSchedule, RankOptimizer
from soaprl.runtime.program import BatchNorm, Block, CompileOptions, Precision, Program
from soaprl.runtime.rank import RankState
from soaprl.runtime.stores import blocks_of
from soaprl.strategy.strategy import Strategy

_EXECUTORS = ("logical", "distributed")


class Runtime(Protocol):
    """A model in training.

    Attributes:
        graph: The model's operators.
        program: What the ranks do.
        num_iterations: Iterations so far.
    """

    graph: OperatorGraph
    program: Program
    num_iterations: int

    def step(self, *args: object, **kwargs: object) -> Tensor:
        """Trains on one batch; the loss before the update, float64."""

    def state_dict(self) -> dict[str, Tensor]:
        """The state dict of the original model, as it is now, on the CPU."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes parameters and buffers from a state dict of the original model."""


def initialize(
    model: nn.Module,
    strategy: Strategy,
    inputs: tuple[Any, ...],
    *,
    optimizer: MakeOptimizer,
    schedule: MakeSchedule | None = None,
    max_gradient_norm: float | None = None,
    batch_norm: BatchNorm = "local",
    precision: Precision = "stored",
    compression: str = "none",
    seed: int = 0,
    graph: OperatorGraph | None = None,
    executor: str = "logical",
    devices: tuple[torch.device, ...] | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> "Runtime":
    """Prepares to train `model` by `strategy`.

    Args:
        model: The model; its forward returns the loss. It is put into training mode, and otherwise left as it
            is: take what was trained from `LogicalRuntime.state_dict`.
        strategy: How every operator is split and placed.
        inputs: A batch, as the model takes it; the samples are the first dimension of each tensor.
        optimizer: Makes the optimizer of a rank from the names and blocks of the parameters it holds.
        schedule: Makes a learning-rate schedule for an optimizer; it steps once an iteration.
        max_gradient_norm: Clips gradients to this norm of all of them.
        batch_norm: Whether batch normalization takes its statistics from each task's samples alone
            (``local``, as `DistributedDataParallel` does), or from the whole batch (``synchronized``).
        precision: ``stored`` for arithmetic in the types of the model, ``bfloat16`` for what PyTorch's
            autocast does; parameters, gradients and optimizer state stay in the types of the model.
        compression: How gradients travel that ranks sum: ``fp16``, ``bf16``, or, rounded at random so that
            their expectation is exact, ``int8`` or ``ternary``; ``none`` for as they are.
        seed: Of dropout and other random numbers, which do not depend on the strategy.
        graph: The model's graph, where the caller has captured it.
        executor: ``logical``: all ranks in this process. ``distributed``: this process is the rank that
            torch.distributed says, or that the environment says (as `torchrun` sets it); all ranks call this.
        devices: Where each rank's tensors are; all on the CPU by default.
        timeout_s: How long a process waits for others before the job has failed.

    Raises:
        CaptureError: The model cannot be captured.
        StrategyError: The strategy does not fit the model.
        UnknownNameError: There is no such executor, or no such compression.
        ExecutionError: The optimizer, or the number of devices, does not fit the strategy.
    """
    if executor not in _EXECUTORS:
        raise unknown_name("executor", executor, _EXECUTORS)
    find_compression(compression)
    graph = graph or graph_of_model(model, inputs)
    fingerprint = graph_fingerprint(graph)
    options = CompileOptions(
        batch_norm=batch_norm,
        clip_gradients=max_gradient_norm is not None,
        precision=precision,
        compression=compression,
    )
    num_ranks = None if devices is None else len(devices)
    if executor == "distributed":
        join_process_group(devices, timeout_s=timeout_s)
        num_ranks = dist.get_world_size()
    program = compile_program(graph, strategy, num_ranks=num_ranks, options=options, fingerprint=fingerprint)
    check_program(program, graph, fingerprint=fingerprint)
    if executor == "distributed":
        return initialize_distributed(
            model,
            graph,
            program,
            optimizer=optimizer,
            schedule=schedule,
            max_gradient_norm=max_gradient_norm,
            seed=seed,
            device=None if devices is None else devices[dist.get_rank()],
            timeout_s=timeout_s,
        )
    ranks = LogicalRanks(graph, program, blocks_of(graph, module_tensors(graph, model)), devices=devices)
    optimizers = [RankOptimizer(state, optimizer, schedule, max_gradient_norm) for state in ranks.states]
    return LogicalRuntime(graph, program, ranks, optimizers, model.state_dict(), seed)


def graph_of_model(model: nn.Module, inputs: tuple[Any, ...], *, name: str | None = None) -> OperatorGraph:
    """The operator graph of a model that exists, for batches like `inputs`.

    Args:
        model: The model; neither its weights nor its buffers change.
        inputs: A batch, as the model takes it; the samples are the first dimension of each tensor.
        name: Names the model in messages; by default its class.

    Raises:
        CaptureError: The model cannot be captured.
        ExecutionError: No input is a tensor with samples.
    """
    sizes = [x.shape[0] for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim()]
    if not sizes:
        raise ExecutionError("expected a batch with a tensor whose first dimension are the samples")
    batch_size = sizes[0]

    def resized(leaf: object, count: int) -> object:
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == batch_size:
            return leaf[:1].expand(count, *leaf.shape[1:])
        return leaf

    def factory(count: int) -> tuple[nn.Module, tuple[Any, ...]]:
        return model, pytree.tree_map(lambda leaf: resized(leaf, count), inputs)

    # Capture runs the forward pass, and some of what it writes to buffers is no fake.
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        return graph_from_factory(factory, batch_size, name=name or type(model).__name__)
    finally:
        with torch.no_grad():
            for buffer, content in before:
                buffer.copy_(content)


class LogicalRuntime:
    """A model in training, all ranks in this process; made by `initialize`.

    Attributes:
        graph: The model's operators.
        program: What the ranks do.
        ranks: Their states.
        num_iterations: Iterations so far.
    """

    def __init__(
        self,
        graph: OperatorGraph,
        program: Program,
        ranks: LogicalRanks,
        optimizers: list[RankOptimizer],
        original: Mapping[str, Tensor],
        seed: int,
    ) -> None:
        self.graph, self.program, self.ranks = graph, program, ranks
        self.num_iterations = 0
        self._optimizers, self._batches = optimizers, Batches(graph)
        self._original = {name: tensor.detach().clone() for name, tensor in original.items()}
        self._seed = seed

    def step(self, *args: object, **kwargs: object) -> Tensor:
        """Trains on one batch; the loss before the update.

        Raises:
            ExecutionError: The batch is not like the one that the model was captured with.
        """
        batch = self._batches.fetch(args, kwargs)

        def update(state: RankState) -> None:
            self._optimizers[state.program.rank].step()

        loss = self.ranks.iterate(batch, seed=(self._seed << 32) + self.num_iterations, update=update)
        self.num_iterations += 1
        return loss

    def state_dict(self) -> dict[str, Tensor]:
        """The state dict of the original model, as it is now, on the CPU."""
        state = StateDict(self.graph, self._original, self.num_iterations)
        for rank in self.ranks.states:
            for block in rank.program.owned:
                state.enter(block, rank.parameter(block))
            for block in rank.program.owned_buffers:
                state.enter(block, rank.buffer(block))
        return state.content

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes parameters and buffers from a state dict of the original model; optimizers stay as they are.

        Raises:
            ExecutionError: It belongs to another model.
        """
        fetch_from = tensors_of_state_dict(self.graph, state)
        fetch = blocks_of(self.graph, fetch_from)
        for rank in self.ranks.states:
            for block in rank.program.parameters:
                rank.set_parameter(block, fetch(block))
            for tensor in rank.program.buffers:
                if tensor in fetch_from:
                    shape = self.graph.tensors[tensor].refined_shape
                    rank.set_buffer(
                        Block(tensor=tensor, box=tuple((0, e) for e in shape)), fetch_from[tensor]
                    )
        self._original = {name: tensor.detach().clone() for name, tensor in state.items()}
        self.num_iterations = 0
