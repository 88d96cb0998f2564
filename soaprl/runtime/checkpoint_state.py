"""What a checkpoint holds of a training in progress: from ranks to shards, and back.

| key | content | written by |
|---|---|---|
| ``model/NAME`` | parameters and running statistics, in refined coordinates | who owns the box |
| ``model/NAME`` | the rest of the model's state dict, in stored shape | process 0 |
| ``optimizer/NAME/STATE`` | state of a parameter's shape | who owns the box of the parameter |
| ``optimizer-whole/NAME/STATE`` | any other tensor (Adam's step) | who owns the first element |
| ``group/NAME`` | the hyperparameters with which the optimizer updates the parameter | the same |
| ``schedule`` | the learning-rate schedule | the first rank that has one |
| ``random/PROCESS`` | PyTorch's generator on the CPU | each process |

Nothing here depends on how the operators are split, so that any strategy can read it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.boxes import common, inside, num_elements
from soaprl.runtime.checkpoint_storage import (
    Shard,
    packed,
    read_shards,
    stored_dtypes,
    stored_sizes,
    unpacked,
    whole_shard,
)
from soaprl.runtime.optimization import RankOptimizer
from soaprl.runtime.program import Block, Program, Update
from soaprl.runtime.rank import RankState
from soaprl.runtime.statistics import running_writers

_COUNTER = "num_batches_tracked"
_NOT_HYPERPARAMETERS = ("params", "param_names")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A training in progress, as far as one process has it.

    Attributes:
        graph: The model's operators.
        program: What all ranks do.
        states: The ranks of this process.
        optimizers: Their optimizers.
        original: The model's state dict when training began; here the rest of it is kept.
        num_iterations: Iterations so far.
        process: Number of this process.
    """

    graph: OperatorGraph
    program: Program
    states: Sequence[RankState]
    optimizers: Sequence[RankOptimizer]
    original: dict[str, Tensor]
    num_iterations: int
    process: int


def names_of(training: Training) -> dict[str, tuple[str, list[int]]]:
    """For each name in the model's state dict, the key in the checkpoint and the stored shape."""
    keys = {name: name for name in training.original}
    for stored in training.graph.tensors:
        keys.update((alias, stored.name) for alias in stored.aliases if alias in keys)
    return {name: (f"model/{keys[name]}", list(training.original[name].shape)) for name in keys}


def shards_to_save(training: Training) -> list[Shard]:
    """What this process writes."""
    shards = [whole_shard(f"random/{training.process}", torch.get_rng_state())]
    for state, optimizer in zip(training.states, training.optimizers, strict=True):
        for block in state.program.owned:
            shards.append(_model_shard(training.graph, block, state.parameter(block)))
            shards += _optimizer_shards(state, optimizer, block)
        for block in state.program.owned_buffers:
            shards.append(_model_shard(training.graph, block, state.buffer(block)))
        if state.program.rank == _first_trained(training) and optimizer._schedule is not None:
            shards.append(whole_shard("schedule", packed(optimizer._schedule.state_dict())))
    if training.process == 0:
        written = _written_by_ranks(training)
        rest = {key: name for name, (key, _) in names_of(training).items() if key not in written}
        shards += [whole_shard(key, _now(training, name)) for key, name in rest.items()]
    return [shard for shard in shards if num_elements(shard.box)]


def load_shards(training: Training, path: Path, num_iterations: int) -> None:
    """Takes everything from the checkpoint at `path`, which was saved after `num_iterations`.

    Raises:
        ExecutionError: It belongs to another model, or is damaged.
    """
    sizes = stored_sizes(path)
    wanted: list[Shard] = []
    for state in training.states:
        wanted += _wanted_of_rank(training.graph, state, sizes)
    written = _written_by_ranks(training)
    for name, (key, _) in names_of(training).items():
        if key not in written:
            wanted.append(whole_shard(key, training.original[name]))
    random = torch.empty_like(torch.get_rng_state())
    own = f"random/{training.process}"
    wanted.append(whole_shard(own if own in sizes else "random/0", random))
    read_shards(path, wanted)
    with torch.no_grad():
        for name, content in training.original.items():
            if name in _counters(training.graph):
                content -= num_iterations * _counters(training.graph)[name]
    torch.set_rng_state(random)
    for state, optimizer in zip(training.states, training.optimizers, strict=True):
        _load_optimizer(path, state, optimizer)


def _first_trained(training: Training) -> int:
    """The first rank that trains anything: it writes what all have alike."""
    return next(
        (
            rank.rank
            for rank in training.program.ranks
            if any(isinstance(step, Update) and step.parameters for step in rank.steps)
        ),
        -1,
    )


def _written_by_ranks(training: Training) -> set[str]:
    """Keys of the parameters and running statistics that some rank owns."""
    ranks = training.program.ranks
    blocks = (block for rank in ranks for block in (*rank.owned, *rank.owned_buffers))
    return {f"model/{training.graph.tensors[block.tensor].name}" for block in blocks}


def _counters(graph: OperatorGraph) -> dict[str, int]:
    """How often each counter of batches counts in one iteration, by name."""
    return {
        graph.tensors[tensor].name.removesuffix("running_mean") + _COUNTER: len(writers)
        for tensor, writers in running_writers(graph).items()
    }


def _now(training: Training, name: str) -> Tensor:
    """What the state dict says now of something that the ranks do not train."""
    content = training.original[name].detach()
    return content + training.num_iterations * _counters(training.graph).get(name, 0)


def _model_shard(graph: OperatorGraph, block: Block, content: Tensor) -> Shard:
    stored = graph.tensors[block.tensor]
    return Shard(key=f"model/{stored.name}", size=stored.refined_shape, box=block.box, content=content)


def _optimizer_shards(state: RankState, optimizer: RankOptimizer, owned: Block) -> Iterator[Shard]:
    """The state of an owned block; what is updated of it has it."""
    if optimizer.optimizer is None:
        return
    stored = state.graph.tensors[owned.tensor]
    for block, parameter in _overlapping(state, owned):
        kept = optimizer.optimizer.state.get(parameter)
        group = _group_of(optimizer.optimizer, parameter)
        if group is None:
            continue
        shared = common(block.box, owned.box)
        first = all(start == 0 for start, _ in shared)
        if first:
            yield whole_shard(f"group/{stored.name}", packed(_hyperparameters(group)))
        for name, content in (kept or {}).items():
            if isinstance(content, Tensor) and content.shape == parameter.shape:
                yield Shard(
                    key=f"optimizer/{stored.name}/{name}",
                    size=stored.refined_shape,
                    box=shared,
                    content=content[inside(shared, block.box)],
                )
            elif first and content is not None:
                whole = content if isinstance(content, Tensor) else packed(content)
                kind = "optimizer-whole" if isinstance(content, Tensor) else "optimizer-value"
                yield whole_shard(f"{kind}/{stored.name}/{name}", whole)


def _overlapping(state: RankState, block: Block) -> Iterator[tuple[Block, nn.Parameter]]:
    for held, parameter in state.updated.items():
        if held.tensor == block.tensor and num_elements(common(held.box, block.box)):
            yield held, parameter


def _group_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Any] | None:
    return next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), None)


def _hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in _NOT_HYPERPARAMETERS}


def _wanted_of_rank(graph: OperatorGraph, state: RankState, sizes: Mapping[str, Any]) -> Iterator[Shard]:
    """Where a rank wants its parameters and buffers to be read to."""
    for block, parameter in state.kept.items():
        yield _model_shard(graph, block, parameter.detach())
    for tensor, content in state.buffers.items():
        stored = graph.tensors[tensor]
        box = tuple((0, extent) for extent in stored.refined_shape)
        # Buffers that are not persistent are as the model makes them.
        if f"model/{stored.name}" in sizes:
            yield _model_shard(graph, Block(tensor=tensor, box=box), content.view(stored.refined_shape))


def _load_optimizer(path: Path, state: RankState, optimizer: RankOptimizer) -> None:
    """Gives an optimizer the state of its blocks, and its hyperparameters and schedule."""
    if optimizer.optimizer is None:
        return
    sizes, dtypes = stored_sizes(path), stored_dtypes(path)
    content = optimizer.optimizer.state_dict()
    blocks = {id(parameter): block for block, parameter in state.updated.items()}
    wanted: list[Shard] = []
    raw: dict[tuple[int, str], Shard] = {}
    groups: list[Shard | None] = []
    for group, described in zip(optimizer.optimizer.param_groups, content["param_groups"], strict=True):
        groups.append(None)
        for number, parameter in zip(described["params"], group["params"], strict=True):
            block = blocks[id(parameter)]
            stored = state.graph.tensors[block.tensor]
            key = f"group/{stored.name}"
            if groups[-1] is None and key in sizes:
                groups[-1] = whole_shard(key, torch.empty(sizes[key], dtype=torch.uint8))
            for name, shard in _wanted_state(stored.name, stored.refined_shape, block, sizes, dtypes):
                raw[number, name] = shard
    schedule = None
    if optimizer._schedule is not None and "schedule" in sizes:
        schedule = whole_shard("schedule", torch.empty(sizes["schedule"], dtype=torch.uint8))
    wanted = [*raw.values(), *(g for g in groups if g is not None), *([schedule] if schedule else [])]
    read_shards(path, wanted)
    kept: dict[int, dict[str, Any]] = {}
    for (number, name), shard in raw.items():
        value = unpacked(shard.content) if shard.key.startswith("optimizer-value/") else shard.content
        kept.setdefault(number, {})[name] = value
    for described, found in zip(content["param_groups"], groups, strict=True):
        described.update({} if found is None else unpacked(found.content))
    optimizer.optimizer.load_state_dict({"state": kept, "param_groups": content["param_groups"]})
    if schedule is not None and optimizer._schedule is not None:
        optimizer._schedule.load_state_dict(unpacked(schedule.content))


def _wanted_state(
    name: str,
    size: tuple[int, ...],
    block: Block,
    sizes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
) -> Iterator[tuple[str, Shard]]:
    """The stored state of a parameter: name, and where to read it to."""
    for kind in ("optimizer", "optimizer-whole", "optimizer-value"):
        prefix = f"{kind}/{name}/"
        for key in sizes:
            if not key.startswith(prefix) or "/" in key[len(prefix) :]:
                continue
            if kind == "optimizer":
                shape = [stop - start for start, stop in block.box]
                content = torch.empty(shape, dtype=dtypes[key])
                shard = Shard(key=key, size=size, box=block.box, content=content)
            else:
                shard = whole_shard(key, torch.empty(sizes[key], dtype=dtypes[key]))
            yield key[len(prefix) :], shard
