"""Runs a split graph in one process: what every distributed run must agree with.

Each part of each operator gets exactly the regions that its rule names, cut from whole tensors, and what the
parts write is put together again; parts that write the same region in part are combined. All of it is
differentiable, so that ``loss.backward()`` gives the gradients of every parameter.
"""

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from soaprl.errors import GraphError
from soaprl.graph.factors import num_parts, part_box
from soaprl.graph.operators import Access, Broadcast, DimUse, Operator, OperatorGraph, Ref
from soaprl.graph.operators import Tensor as StoredTensor
from soaprl.runtime.calls import Kernel
from soaprl.runtime.literals import literal_tensors
from soaprl.runtime.local import kernels, run_part
from soaprl.runtime.plans import CallPlan, Operand, arranging
from soaprl.runtime.shards import Box, LocalDim, region

Region = tuple[tuple[int, int], ...]


def run_graph(
    graph: OperatorGraph,
    degrees: Sequence[tuple[int, ...]],
    sources: Mapping[int, Tensor],
    *,
    seed: int = 0,
) -> dict[int, Tensor]:
    """All tensors of one forward pass, whole and in their stored shapes.

    Args:
        graph: What to run.
        degrees: For each operator, the number of parts of each factor.
        sources: The whole graph inputs, parameters, buffers and constants, by tensor index; constants that
            the model's code spells out come with the graph.
        seed: Of the random numbers of the iteration (dropout).

    Raises:
        GraphError: A tensor that an operator reads is neither given nor computed.
    """
    table = kernels()
    sources = {**literal_tensors(graph), **sources}
    tensors = {**sources, **run_constants(graph, sources, seed=seed, table=table)}
    for operator, split in zip(graph.operators, degrees, strict=True):
        for access in (*operator.inputs, *operator.parameters, *operator.buffers):
            if access.tensor not in tensors:
                name = graph.tensors[access.tensor].name
                raise GraphError(
                    f"operator {operator.name!r} reads tensor {name!r}, which no earlier operator computes; "
                    "give its content in `sources`"
                )
        tensors.update(run_operator(graph, operator, split, tensors, seed=seed, table=table))
    return tensors


def run_constants(
    graph: OperatorGraph,
    sources: Mapping[int, Tensor],
    *,
    seed: int = 0,
    device: torch.device | None = None,
    table: Mapping[str, Kernel] | None = None,
    calls: Sequence[int] | None = None,
) -> dict[int, Tensor]:
    """The tensors that depend on no input, by index; whole on every device.

    Args:
        graph: Its constants are computed in order.
        sources: The whole buffers, by tensor index.
        seed: Of the random numbers of the iteration, for what is random but depends on no input (noise).
        device: Where they are made; that of the sources if None.
        table: Kernels, built anew if None.
        calls: Which of the graph's constant calls to run, in order; all if None.
    """
    table = kernels() if table is None else table
    calls = range(len(graph.constants)) if calls is None else calls
    device = device or next((t.device for t in sources.values()), torch.get_default_device())
    made: dict[int, Tensor] = {}
    known = dict(sources)

    def whole_dims(uses: tuple[DimUse, ...]) -> tuple[LocalDim, ...]:
        return tuple(LocalDim(extent=use.extent, label=(), factors=(), span=None) for use in uses)

    def describe(ref: Ref) -> Operand:
        extents, layout = graph.tensors[ref.index].refined_shape, ref.layout or ()
        sizes = [[p.extent if isinstance(p, Broadcast) else extents[p] for p in dim] for dim in layout]
        pieces = tuple(tuple((size, 0, size) for size in dim) for dim in sizes)
        steps = (lambda tensor: tensor.reshape(extents), *arranging(extents, layout, pieces))
        return Operand(steps=steps, pieces=pieces)

    for number in calls:
        plan = CallPlan(graph.constants[number], whole_dims, describe, lambda ref: ref.index, table)
        results = plan.run(ChainMap(made, known), seed, device)
        plan.check(results)
        made.update(zip(graph.constant_results[number], results, strict=True))
    return made


def run_operator(
    graph: OperatorGraph,
    operator: Operator,
    degrees: tuple[int, ...],
    tensors: Mapping[int, Tensor],
    *,
    seed: int = 0,
    table: Mapping[str, Kernel] | None = None,
) -> dict[int, Tensor]:
    """The whole outputs of one operator, by tensor index, computed part by part from whole `tensors`."""
    table = kernels() if table is None else table
    written: list[dict[Region, list[Tensor]]] = [{} for _ in operator.outputs]
    for part in range(num_parts(degrees)):
        box = part_box(operator.extents, degrees, part)
        regions = [
            [cut(graph.tensors[a.tensor], tensors[a.tensor], a, box) for a in accesses]
            for accesses in (operator.inputs, operator.parameters, operator.buffers)
        ]
        outputs = run_part(operator, degrees, part, *regions, seed=seed, table=table)
        for pieces, access, output in zip(written, operator.outputs, outputs, strict=True):
            pieces.setdefault(region(access, box), []).append(output)
    return {
        access.tensor: assemble(graph.tensors[access.tensor], access, pieces)
        for access, pieces in zip(operator.outputs, written, strict=True)
    }


def cut(stored: StoredTensor, whole: Tensor, access: Access, box: Box) -> Tensor:
    """The region of `whole` that the part `box` reads, in refined coordinates."""
    refined = whole.reshape(stored.refined_shape)
    index = tuple(slice(start, stop) for start, stop in region(access, box))
    piece = refined[index]
    return piece if access.gradient else piece.detach()


def assemble(stored: StoredTensor, access: Access, written: Mapping[Region, list[Tensor]]) -> Tensor:
    """The whole tensor, in its stored shape, from the regions that parts wrote.

    Regions are disjoint and together the whole tensor; one that several parts wrote is combined.
    """
    if len(written) == 1:
        (whole,) = (combined(parts, access.combine) for parts in written.values())
        assert whole.numel() == stored.num_elements, f"parts of {stored.name} do not cover it"
        return whole.reshape(stored.shape)
    first = next(iter(written.values()))[0]
    whole = first.new_zeros(stored.refined_shape)
    times = torch.zeros(stored.refined_shape, dtype=torch.int64)
    for box, parts in written.items():
        index = tuple(slice(start, stop) for start, stop in box)
        whole[index] = combined(parts, access.combine)
        times[index] += 1
    assert bool((times == 1).all()), f"parts of {stored.name} overlap or do not cover it"
    return whole.reshape(stored.shape)


def combined(parts: Sequence[Tensor], how: str) -> Tensor:
    """Partial results of the same region as one; `how` as in `Access.combine`."""
    if len(parts) == 1:
        return parts[0]
    combine = _COMBINE[how]
    total = parts[0]
    for part in parts[1:]:
        total = combine(total, part)
    return total


_COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
    "logaddexp": torch.logaddexp,
}
