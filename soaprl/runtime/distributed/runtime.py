"""Training a PyTorch model by a strategy in a job of several processes."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.batches import Batches
from soaprl.runtime.boxes import num_elements
from soaprl.runtime.distributed.groups import DEFAULT_TIMEOUT_S, Groups
from soaprl.runtime.distributed.rank import DistributedRank
from soaprl.runtime.model_state import StateDict, module_tensors, tensors_of_state_dict
from soaprl.runtime.optimization import MakeOptimizer, MakeSchedule, RankOptimizer
from soaprl.runtime.program import Block, Program
from soaprl.runtime.rank import RankState
from soaprl.runtime.stores import blocks_of


def initialize_distributed(
    model: nn.Module,
    graph: OperatorGraph,
    program: Program,
    *,
    optimizer: MakeOptimizer,
    schedule: MakeSchedule | None = None,
    max_gradient_norm: float | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    groups: Groups | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> "DistributedRuntime":
    """Prepares this process to be one rank of a program; see `soaprl.runtime.initialize`.

    All ranks begin with the parameters and buffers of rank 0.

    Args:
        model: The model.
        graph: Its graph.
        program: A program of the graph.
        optimizer: As for `initialize`.
        schedule: As for `initialize`.
        max_gradient_norm: As for `initialize`.
        seed: As for `initialize`.
        device: Where this rank's tensors are; the CPU by default.
        groups: The job's process groups, where there are some already.
        timeout_s: How long to wait for other ranks before the job has failed.

    Raises:
        ExecutionError: There is no job, or it has another number of processes than the program has ranks.
    """
    groups = Groups(timeout_s=timeout_s) if groups is None else groups
    device = device or torch.device("cpu")
    original = _of_rank_0(model.state_dict(), groups, device)
    content = _of_rank_0(module_tensors(graph, model), groups, device)
    rank = DistributedRank(
        graph, program, blocks_of(graph, content), groups=groups, device=device, timeout_s=timeout_s
    )
    stepper = RankOptimizer(rank.state, optimizer, schedule, max_gradient_norm)
    return DistributedRuntime(graph, program, rank, stepper, groups, original, seed)


def _of_rank_0(tensors: Mapping[Any, Tensor], groups: Groups, device: torch.device) -> dict[Any, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        shared = tensor.detach().to(device if groups.backend == "nccl" else "cpu", copy=True).contiguous()
        dist.broadcast(shared, 0)
        found[name] = shared
    return found


class DistributedRuntime:
    """A model in training, this process being one of the ranks; made by `soaprl.runtime.initialize`.

    Attributes:
        graph: The model's operators.
        program: What the ranks do.
        rank: This rank.
        optimizer: Its optimizer.
        num_iterations: Iterations so far.
    """

    def __init__(
        self,
        graph: OperatorGraph,
        program: Program,
        rank: DistributedRank,
        optimizer: RankOptimizer,
        groups: Groups,
        original: Mapping[str, Tensor],
        seed: int,
    ) -> None:
        self.graph, self.program, self.rank, self.optimizer = graph, program, rank, optimizer
        self.num_iterations = 0
        self._groups, self._seed, self._batches = groups, seed, Batches(graph)
        self._original = {name: tensor.detach().cpu().clone() for name, tensor in original.items()}

    def step(self, *args: object, **kwargs: object) -> Tensor:
        """Trains on one batch, of which this rank reads its part; the loss of all before the update.

        Raises:
            ExecutionError: The batch is not like the one that the model was captured with, or a rank failed.
        """
        batch = self._batches.fetch(args, kwargs)

        def update(state: RankState) -> None:
            self.optimizer.step()

        seed = (self._seed << 32) + self.num_iterations
        loss = self.rank.iterate(batch, seed=seed, update=update)
        self.num_iterations += 1
        return loss

    def state_dict(self) -> dict[str, Tensor]:
        """The state dict of the original model, as it is now, on the CPU of every rank; all ranks call it."""
        state = StateDict(self.graph, self._original, self.num_iterations)
        for rank in self.program.ranks:
            for block in rank.owned:
                state.enter(block, self._of_owner(rank.rank, block, parameter=True))
            for block in rank.owned_buffers:
                state.enter(block, self._of_owner(rank.rank, block, parameter=False))
        return state.content

    def _of_owner(self, owner: int, block: Block, *, parameter: bool) -> Tensor:
        wire = self.rank.state.device if self._groups.backend == "nccl" else torch.device("cpu")
        if owner == self.rank.rank:
            held = self.rank.state.parameter(block) if parameter else self.rank.state.buffer(block)
            content = held.detach().to(wire).contiguous()
        else:
            dtype: torch.dtype = getattr(torch, self.graph.tensors[block.tensor].dtype)
            content = torch.empty([stop - start for start, stop in block.box], dtype=dtype, device=wire)
        if num_elements(block.box):
            dist.broadcast(content, owner)
        return content

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes parameters and buffers from a state dict of the original model; optimizers stay as they are.

        Raises:
            ExecutionError: It belongs to another model.
        """
        fetch_from = tensors_of_state_dict(self.graph, state)
        fetch, rank = blocks_of(self.graph, fetch_from), self.rank.state
        for block in rank.program.parameters:
            rank.set_parameter(block, fetch(block))
        for tensor in rank.program.buffers:
            if tensor in fetch_from:
                shape = self.graph.tensors[tensor].refined_shape
                rank.set_buffer(Block(tensor=tensor, box=tuple((0, e) for e in shape)), fetch_from[tensor])
        self._original = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        self.num_iterations = 0
