"""Runs one part of an operator on exactly the regions that its rule names.

Local tensors come and go in refined coordinates: one dimension for each refined dimension of the stored
tensor, as long as the region. Each is arranged into the operand that a call wants (`Access.layout`), cropped
to what the call needs, and the calls run in order. All of it is differentiable.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import prod
from typing import Any, TypeAlias
from zlib import crc32

import torch
from torch import Tensor

from soaprl.graph.factors import part_box
from soaprl.graph.operators import Access, Argument, Broadcast, Call, DimUse, Operator, Ref
from soaprl.runtime.calls import Kernel, LocalCall, LocalDims, schema, tensor_dims
from soaprl.runtime.kernels_dense import dense_kernels
from soaprl.runtime.kernels_losses import loss_kernels
from soaprl.runtime.kernels_plain import plain_kernels
from soaprl.runtime.kernels_random import random_kernels
from soaprl.runtime.kernels_windows import window_kernels
from soaprl.runtime.shards import (
    Box,
    Layout,
    LocalDim,
    Piece,
    arrange,
    crop,
    local_dim,
    operand_pieces,
    region,
)

_Bound: TypeAlias = tuple[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """A tensor arranged as an operand, and which indices of each dimension it holds.

    Attributes:
        tensor: The local content.
        pieces: For each dimension, the intervals of the finer dimensions that it is the product of.
    """

    tensor: Tensor
    pieces: tuple[tuple[Piece, ...], ...]


def kernels() -> dict[str, Kernel]:
    """The calls that need more than local arguments, by target, with or without its overload."""
    groups = (plain_kernels(), random_kernels(), dense_kernels(), loss_kernels(), window_kernels())
    return {target: kernel for group in groups for target, kernel in group.items()}


def run_part(
    operator: Operator,
    degrees: tuple[int, ...],
    part: int,
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    buffers: Sequence[Tensor],
    *,
    seed: int = 0,
    table: Mapping[str, Kernel] | None = None,
) -> list[Tensor]:
    """The outputs of one part.

    Args:
        operator: What to run.
        degrees: Number of parts of each factor.
        part: Which part, row-major.
        inputs: For each input access, exactly its region in refined coordinates.
        parameters: The same for each parameter access.
        buffers: The same for each buffer access.
        seed: Of the random numbers of the whole iteration (dropout).
        table: Kernels, as `kernels` gives them; built anew if None.

    Returns:
        For each output access, the region that the part writes, in refined coordinates; a summand (see
        `Access.combine`) where the output omits a factor.
    """
    run = PartRun(operator, degrees, part, inputs, parameters, buffers, seed=seed)
    table = kernels() if table is None else table
    for _ in operator.body:
        run.advance(table)
    return run.outputs()


class PartRun:
    """One part of an operator, call by call; the arguments are those of `run_part`.

    Attributes:
        results: Those of the calls so far.
    """

    def __init__(
        self,
        operator: Operator,
        degrees: tuple[int, ...],
        part: int,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        buffers: Sequence[Tensor],
        *,
        seed: int = 0,
    ) -> None:
        self.operator = operator
        self.results: list[list[Tensor]] = []
        self._box = part_box(operator.extents, degrees, part)
        self._seed = seed
        self._device = next((t.device for t in (*inputs, *parameters, *buffers)), torch.get_default_device())
        self._held = {
            "input": _operands(operator.inputs, inputs, self._box),
            "parameter": _operands(operator.parameters, parameters, self._box),
            "buffer": _operands(operator.buffers, buffers, self._box),
        }

    def next_call(self) -> LocalCall:
        """The next call of the body, bound to the part's tensors."""
        call = self.operator.body[len(self.results)]
        return bind_call(call, self._dims_of, self._fetch, seed=self._seed, device=self._device)

    def advance(self, table: Mapping[str, Kernel]) -> None:
        """Runs the next call."""
        local = self.next_call()
        self.results.append(execute(local, table))

    def outputs(self) -> list[Tensor]:
        """What the part writes, once all calls have run."""
        return [
            _stored(access, self.results[call][result], self.operator.body[call].name, self._box)
            for access, (call, result) in zip(self.operator.outputs, self.operator.body_outputs, strict=True)
        ]

    def _dims_of(self, uses: tuple[DimUse, ...]) -> LocalDims:
        return tuple(local_dim(use, self.operator.extents, self._box) for use in uses)

    def _fetch(self, ref: Ref) -> Operand:
        if ref.source != "call":
            return self._held[ref.source][ref.index]
        dims = self._dims_of(self.operator.body[ref.index].result_dims[ref.result])
        return _of_result(self.results[ref.index][ref.result], dims, ref.layout, self._box)


def _operands(accesses: tuple[Access, ...], tensors: Sequence[Tensor], box: Box) -> list[Operand]:
    found: list[Operand] = []
    for access, tensor in zip(accesses, tensors, strict=True):
        shape = tuple(stop - start for start, stop in region(access, box))
        assert tuple(tensor.shape) == shape, f"expected the region {shape}, found {tuple(tensor.shape)}"
        pieces = operand_pieces(access, box)
        found.append(Operand(tensor=arrange(tensor, access.layout, pieces), pieces=pieces))
    return found


def run_call(
    call: Call,
    dims_of: Callable[[tuple[DimUse, ...]], LocalDims],
    fetch: Callable[[Ref], Operand],
    *,
    seed: int,
    device: torch.device,
    table: Mapping[str, Kernel],
) -> list[Tensor]:
    """The results of one call.

    Args:
        call: What to call.
        dims_of: The indices that the part works on, for the dimensions of an argument or result.
        fetch: The operand that a reference stands for; it may hold more than the call needs.
        seed: Of the random numbers of the whole iteration.
        device: Where new tensors are made.
        table: Kernels, as `kernels` gives them.
    """
    return execute(bind_call(call, dims_of, fetch, seed=seed, device=device), table)


def bind_call(
    call: Call,
    dims_of: Callable[[tuple[DimUse, ...]], LocalDims],
    fetch: Callable[[Ref], Operand],
    *,
    seed: int,
    device: torch.device,
) -> LocalCall:
    """A call with its local arguments; see `run_call`."""
    wanted = iter([dims_of(uses) for uses in call.arg_dims])

    def bind(argument: Argument) -> _Bound:
        if isinstance(argument, Ref):
            dims, operand = next(wanted), fetch(argument)
            return crop(operand.tensor, operand.pieces, dims), dims
        if isinstance(argument, tuple):
            pairs = [bind(a) for a in argument]
            return [value for value, _ in pairs], [dims for _, dims in pairs]
        return argument, None

    positional = [bind(a) for a in call.args]
    named = {name: bind(a) for name, a in call.kwargs}
    bound = _by_name(call.target, positional, named, device)
    dims = {name: d for name, (_, d) in bound.items()}
    results = tuple(dims_of(uses) for uses in call.result_dims)
    return LocalCall(
        name=call.name,
        target=call.target,
        arguments={name: value for name, (value, _) in bound.items()},
        dims=dims,
        results=results,
        lead=_leads(dims, results),
        seed=crc32(f"{seed}:{call.name}".encode()),
    )


def execute(local: LocalCall, table: Mapping[str, Kernel]) -> list[Tensor]:
    """The results of a bound call."""
    # An in-place call has the kernel of its out-of-place form; it has a copy of what it would change.
    kernel = table.get(local.target) or table.get(local.target.rsplit(".", 1)[0].rstrip("_"))
    found = kernel(local) if kernel else local.run()
    return _checked(local, list(found) if isinstance(found, tuple | list) else [found])


def _leads(dims: Mapping[str, Any], results: tuple[LocalDims, ...]) -> bool:
    """Whether the part is the first along every factor that the first result does not name."""
    kept = {f for d in results[0] for f in d.factors}
    read = [d for found in tensor_dims(dims.values()) for d in found]
    summed = [piece for d in read for f, piece in zip(d.factors, d.label, strict=True) if f not in kept]
    return all(lo == 0 for _, lo, _ in summed)


def _checked(local: LocalCall, found: list[Tensor]) -> list[Tensor]:
    found = found[: len(local.results)]
    for tensor, dims in zip(found, local.results, strict=True):
        shape = tuple(d.size for d in dims)
        assert tuple(tensor.shape) == shape, f"{local.name}: expected {shape}, found {tuple(tensor.shape)}"
    return found


def _by_name(
    target: str, positional: list[_Bound], named: dict[str, _Bound], device: torch.device
) -> dict[str, _Bound]:
    """Arguments by the names of the library's schema, defaults filled in."""
    if target.startswith("soaprl."):
        return {**{str(k): pair for k, pair in enumerate(positional)}, **named}
    bound: dict[str, _Bound] = {}
    for k, argument in enumerate(schema(target)):
        default = (argument.default, None)
        value, dims = positional[k] if k < len(positional) else named.get(argument.name, default)
        if argument.written and isinstance(value, Tensor):
            value = value.clone()
        bound[argument.name] = (_literal(value, argument.kind, device), dims)
    return bound


def _literal(value: object, kind: str, device: torch.device) -> object:
    """A captured literal as the library wants it: data types are names, devices belong to the run."""
    if "ScalarType" in kind and isinstance(value, str):
        return getattr(torch, value.removeprefix("torch."))
    if "Device" in kind and value is not None:
        return device
    if any(name in kind for name in ("Layout", "MemoryFormat")):
        return None
    return value


def _of_result(tensor: Tensor, dims: LocalDims, layout: Layout | None, box: Box) -> Operand:
    """An earlier call's result as an operand; its finer dimensions are the factors of its dimensions."""
    refined = tuple(_refined(dim) for dim in dims)
    flat = [piece for pieces in refined for piece in pieces]
    counter = count()
    layout = tuple(tuple(next(counter) for _ in pieces) for pieces in refined) if layout is None else layout
    pieces = tuple(tuple(_piece(p, flat, box) for p in dim) for dim in layout)
    tensor = tensor.reshape([hi - lo for _, lo, hi in flat])
    return Operand(tensor=arrange(tensor, layout, pieces), pieces=pieces)


def _refined(dim: LocalDim) -> tuple[Piece, ...]:
    if dim.span is None and dim.label:
        return dim.label
    return ((dim.extent, dim.start, dim.stop),) if dim.extent > 1 else ()


def _piece(p: int | Broadcast, flat: list[Piece], box: Box) -> Piece:
    if isinstance(p, Broadcast):
        return (p.extent, *(box[p.factor] if p.factor >= 0 else (0, p.extent)))
    return flat[p]


def _stored(access: Access, tensor: Tensor, name: str, box: Box) -> Tensor:
    """A call's local result as the region of the tensor that the part writes."""
    pieces = operand_pieces(access, box)
    sizes = [[hi - lo for _, lo, hi in dim] for dim in pieces]
    expected = tuple(prod(dim) for dim in sizes)
    assert tuple(tensor.shape) == expected, f"{name}: the region is {expected}, found {tuple(tensor.shape)}"
    order = [p for dim in access.layout for p in dim]
    inverse = [order.index(d) for d in range(len(order))]
    return tensor.reshape([size for dim in sizes for size in dim]).permute(inverse)
