"""What each rank needs besides what tasks write: graph inputs, constants, buffers."""

from collections.abc import Iterator
from dataclasses import dataclass

from soaprl.graph.operators import Argument, Call, OperatorGraph, Ref, TensorRole
from soaprl.runtime.boxes import num_elements
from soaprl.runtime.layout import Tasks
from soaprl.runtime.program import Block, Box
from soaprl.runtime.statistics import channel_groups, normalizations, running_writers


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What one rank needs.

    Attributes:
        inputs: Blocks of graph inputs, each once; they may overlap.
        constants: Calls that make constants, in order.
        buffers: Buffers, whole.
    """

    inputs: tuple[Block, ...]
    constants: tuple[int, ...]
    buffers: tuple[int, ...]


def needed_sources(graph: OperatorGraph, tasks: tuple[Tasks, ...], num_ranks: int) -> list[Sources]:
    """What each rank needs."""
    blocks: list[dict[Block, None]] = [{} for _ in range(num_ranks)]
    whole: list[set[int]] = [set() for _ in range(num_ranks)]
    for operator, layout in zip(graph.operators, tasks, strict=True):
        for access, boxes in zip(operator.inputs, layout.inputs, strict=True):
            role = graph.tensors[access.tensor].role
            for rank, box in zip(layout.ranks, boxes, strict=True):
                if role is TensorRole.INPUT:
                    blocks[rank][Block(tensor=access.tensor, box=box)] = None
                elif role is not TensorRole.ACTIVATION:
                    whole[rank].add(access.tensor)
        for rank in layout.ranks:
            whole[rank].update(access.tensor for access in operator.buffers)
    return [_sources(graph, tuple(b), w) for b, w in zip(blocks, whole, strict=True)]


def _sources(graph: OperatorGraph, inputs: tuple[Block, ...], whole: set[int]) -> Sources:
    maker = {tensor: call for call, made in enumerate(graph.constant_results) for tensor in made}
    pending, calls, buffers = list(whole), set(), set()
    while pending:
        tensor = pending.pop()
        call = maker.get(tensor)
        if call is None:
            buffers.add(tensor)
        elif call not in calls:
            calls.add(call)
            pending.extend(constant_arguments(graph, call))
    return Sources(inputs=inputs, constants=tuple(sorted(calls)), buffers=tuple(sorted(buffers)))


def constant_arguments(graph: OperatorGraph, call: int) -> Iterator[int]:
    """The tensors that a constant's call reads."""
    yield from (ref.index for ref in _references(graph.constants[call]))


def _references(call: Call) -> Iterator[Ref]:
    pending: list[Argument] = [*call.args, *(a for _, a in call.kwargs)]
    while pending:
        argument = pending.pop()
        if isinstance(argument, Ref):
            yield argument
        elif isinstance(argument, tuple):
            pending.extend(argument)


def read_elsewhere(graph: OperatorGraph) -> set[int]:
    """The buffers that something else than a batch normalization in training mode reads."""
    found = {access.tensor for operator in graph.operators for access in operator.inputs}
    found.update(tensor for call in range(len(graph.constants)) for tensor in constant_arguments(graph, call))
    for operator in graph.operators:
        own = {(n.call, position) for n in normalizations(operator) for position in n.running or ()}
        for number, call in enumerate(operator.body):
            read = {ref.index for ref in _references(call) if ref.source == "buffer"}
            found.update(operator.buffers[k].tensor for k in read if (number, k) not in own)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferUpdates:
    """Who updates running statistics.

    Attributes:
        groups: The ranks that recorded statistics of some buffers, and these buffers.
        owned: For each rank, the blocks whose current content it has; each element has one owner.
    """

    groups: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    owned: dict[int, tuple[Block, ...]]


def buffer_updates(graph: OperatorGraph, tasks: tuple[Tasks, ...]) -> BufferUpdates:
    """Who updates the running statistics of `graph`."""
    recorded: dict[int, dict[int, list[Box]]] = {}
    for operator, layout in zip(graph.operators, tasks, strict=True):
        for n in normalizations(operator):
            for position in n.running or ():
                by_rank = recorded.setdefault(operator.buffers[position].tensor, {})
                for parts in channel_groups(layout.boxes, n):
                    box = layout.buffers[position][parts[0]]
                    if num_elements(box):
                        by_rank.setdefault(layout.ranks[parts[0]], []).append(box)
    groups: dict[tuple[int, ...], list[int]] = {}
    owned: dict[int, list[Block]] = {}
    writers = running_writers(graph)
    for tensor, by_rank in sorted(recorded.items()):
        ranks = tuple(sorted(by_rank))
        if len(writers[tensor]) > 1:
            groups.setdefault(ranks, []).append(tensor)
            whole = tuple((0, extent) for extent in graph.tensors[tensor].refined_shape)
            owned.setdefault(ranks[0], []).append(Block(tensor=tensor, box=whole))
            continue
        for rank in ranks:
            groups.setdefault((rank,), []).append(tensor)
            owned.setdefault(rank, []).extend(Block(tensor=tensor, box=box) for box in by_rank[rank])
    return BufferUpdates(
        groups=tuple((ranks, tuple(tensors)) for ranks, tensors in groups.items()),
        owned={rank: tuple(blocks) for rank, blocks in owned.items()},
    )
