"""What running one part of an operator needs and no tensor changes, worked out once.

An iteration runs every part with tensors of the same shapes, so that how regions are arranged into operands,
what each call needs of them, and what its other arguments are is the same each time. A plan knows all of that
as a short list of tensor operations, mostly empty.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from math import prod
from operator import itemgetter
from typing import Any, TypeAlias
from zlib import crc32

import torch
from torch import Tensor

from soaprl.graph.factors import part_box
from soaprl.graph.operators import Access, Argument, Broadcast, Call, DimUse, Operator, Ref
from soaprl.runtime import kernels_dense, kernels_losses, kernels_plain, kernels_windows
from soaprl.runtime.calls import Kernel, LocalCall, LocalDims, quick_operation, schema, tensor_dims
from soaprl.runtime.shards import (
    Box,
    Layout,
    LocalDim,
    Piece,
    flat_indices,
    flat_interval,
    local_dim,
    operand_pieces,
    region,
)

Pieces: TypeAlias = tuple[tuple[Piece, ...], ...]
TensorStep: TypeAlias = Callable[[Tensor], Tensor]
# Tensors by number: what was read, arranged into operands, and what was computed.
Slots: TypeAlias = Sequence[Tensor] | Mapping[int, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """How a tensor becomes an operand.

    Attributes:
        steps: What is done to the tensor.
        pieces: For each operand dimension, the intervals of the finer dimensions that it is the product of.
    """

    steps: tuple[TensorStep, ...]
    pieces: Pieces


def apply(steps: tuple[TensorStep, ...], tensor: Tensor) -> Tensor:
    """The tensor after all steps."""
    for step in steps:
        tensor = step(tensor)
    return tensor


def arranging(shape: tuple[int, ...], layout: Layout, pieces: Pieces) -> tuple[TensorStep, ...]:
    """From a local region in refined dimensions to the operand that `layout` describes.

    Args:
        shape: That of the region: one dimension for each refined dimension.
        layout: For each operand dimension, the refined dimensions or broadcasts it is made of.
        pieces: The same structure, with the interval of each that is there.
    """
    kept = [p for dim in layout for p in dim if not isinstance(p, Broadcast)]
    selected = [d for d in range(len(shape)) if d not in kept]
    assert all(shape[d] == 1 for d in selected), f"selected dimensions hold {shape}"
    order = [*kept, *selected]
    steps: list[TensorStep] = []
    if order != sorted(order):
        steps.append(lambda tensor: tensor.permute(order))
    now = [shape[d] for d in order]
    steps += _reshaping(now, [shape[d] for d in kept])
    sizes = [hi - lo for dim in pieces for _, lo, hi in dim]
    added = [k for k, p in enumerate(p for dim in layout for p in dim) if isinstance(p, Broadcast)]
    if added:

        def broadcast(tensor: Tensor) -> Tensor:
            for position in added:
                tensor = tensor.unsqueeze(position)
            return tensor.expand(sizes)

        steps.append(broadcast)
    steps += _reshaping(sizes, [prod(hi - lo for _, lo, hi in dim) for dim in pieces])
    return tuple(steps)


def _reshaping(shape: list[int], wanted: list[int]) -> list[TensorStep]:
    return [] if shape == wanted else [lambda tensor: tensor.reshape(wanted)]


def cropping(got: Pieces, need: LocalDims) -> tuple[TensorStep, ...]:
    """From an operand that holds the indices `got` of each dimension to the indices `need`."""
    assert len(got) == len(need), f"operand has {len(got)} dimensions, rule {len(need)}"
    steps: list[TensorStep] = []
    for d, (pieces, dim) in enumerate(zip(got, need, strict=True)):
        if dim.span is not None or pieces != dim.label:
            steps += _cropping(d, pieces, dim)
    return tuple(steps)


def _cropping(d: int, pieces: tuple[Piece, ...], dim: LocalDim) -> list[TensorStep]:
    length = prod(hi - lo for _, lo, hi in pieces)
    held, wanted = flat_interval(pieces), (dim.start, dim.stop)
    if dim.span is not None and not dim.label and held is not None:
        # A label of one index: the region was clipped to what its window reads, outermost piece first.
        shift = dim.start - dim.start % prod(extent for extent, _, _ in pieces[1:])
        held = (held[0] + shift, held[1] + shift)
    if held is not None and dim.size == dim.stop - dim.start:
        assert wanted[0] == wanted[1] or held[0] <= wanted[0] <= wanted[1] <= held[1], (
            f"dimension {d}: the region holds {held}, the part needs {wanted}"
        )
        start, size = min(max(wanted[0] - held[0], 0), length), wanted[1] - wanted[0]
        return [] if size == length else [lambda tensor: tensor.narrow(d, start, size)]
    there, indices = flat_indices(pieces), dim.indices()
    if torch.equal(there, indices):
        return []
    positions = torch.searchsorted(there, indices).clamp(max=max(len(there) - 1, 0))
    assert torch.equal(there[positions], indices), f"dimension {d}: the part needs indices outside the region"
    return [lambda tensor: tensor.index_select(d, positions.to(tensor.device))]


# Calls.

_PLAIN_WHERE_WHOLE = frozenset(
    kernel
    for module in (kernels_dense, kernels_losses, kernels_plain, kernels_windows)
    for kernel in module.PLAIN_WHERE_WHOLE
)
_Made: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bound:
    """An argument: what it is, or how it is made of tensors; its local dimensions; which tensor it is."""

    value: Any
    make: _Made | None
    dims: Any
    slot: int | None = None


class CallPlan:
    """One call, bound to everything but tensors.

    Args:
        call: What to call.
        dims_of: The indices that the part works on, for the dimensions of an argument or result.
        describe: The operand that a reference stands for; it may hold more than the call needs.
        slot_of: The number of the tensor that a reference stands for.
        table: Kernels by target, with or without overload, as `soaprl.runtime.local.kernels` gives them.

    Attributes:
        name: Name of the captured node.
        target: As in `LocalCall`.
        shapes: Local shapes of the results.
        lead: As in `LocalCall`.
        results: For each result, the indices that the part computes.
        reads: The numbers of the tensors among its arguments.
        plainly: Those of them that are arguments as they are.
    """

    def __init__(
        self,
        call: Call,
        dims_of: Callable[[tuple[DimUse, ...]], LocalDims],
        describe: Callable[[Ref], Operand],
        slot_of: Callable[[Ref], int],
        table: Mapping[str, Kernel],
    ) -> None:
        self.name, self.target = call.name, call.target
        self.reads: set[int] = set()
        self.plainly: set[int] = set()
        wanted = iter([dims_of(uses) for uses in call.arg_dims])

        def bind(argument: Argument) -> _Bound:
            if isinstance(argument, Ref):
                dims, operand, slot = next(wanted), describe(argument), slot_of(argument)
                self.reads.add(slot)
                steps = (*operand.steps, *cropping(operand.pieces, dims))
                self.plainly.update(() if steps else (slot,))
                return _Bound(value=None, make=_reading(slot, steps), dims=dims, slot=None if steps else slot)
            if isinstance(argument, tuple):
                return _sequence([bind(a) for a in argument])
            return _Bound(value=argument, make=None, dims=None)

        positional = [bind(a) for a in call.args]
        named = {name: bind(a) for name, a in call.kwargs}
        bound = self._by_name(positional, named)
        self._fixed = {name: b.value for name, b in bound.items()}
        self._made = tuple((name, b.make) for name, b in bound.items() if b.make is not None)
        self._dims = {name: b.dims for name, b in bound.items()}
        self._place(bound)
        self.results = tuple(dims_of(uses) for uses in call.result_dims)
        self.shapes = tuple(tuple(d.size for d in dims) for dims in self.results)
        self.lead = leads(self._dims, self.results)
        # An in-place call has the kernel of its out-of-place form; it has a copy of what it would change.
        kernel = table.get(self.target) or table.get(self.target.rsplit(".", 1)[0].rstrip("_"))
        plain = (self.lead and kernel in kernels_dense.PLAIN_WHERE_LEAD) or (
            kernel in _PLAIN_WHERE_WHOLE and self._whole()
        )
        self._kernel = None if plain else kernel
        self._quick = None if self._kernel is not None or self._devices else self._called_with(bound)

    def _whole(self) -> bool:
        return all(d.whole for dims in (*tensor_dims(self._dims.values()), *self.results) for d in dims)

    def _by_name(self, positional: list[_Bound], named: dict[str, _Bound]) -> dict[str, _Bound]:
        """Arguments by the names of the library's schema, defaults filled in."""
        self._devices: tuple[str, ...] = ()
        if self.target.startswith("soaprl."):
            return {**{str(k): b for k, b in enumerate(positional)}, **named}
        bound: dict[str, _Bound] = {}
        for k, argument in enumerate(schema(self.target)):
            default = _Bound(value=argument.default, make=None, dims=None)
            given = positional[k] if k < len(positional) else named.get(argument.name, default)
            if given.make is None:
                if "Device" in argument.kind and given.value is not None:
                    self._devices += (argument.name,)
                given = _Bound(value=_literal(given.value, argument.kind), make=None, dims=given.dims)
            elif argument.written:
                given = _Bound(value=None, make=_copying(given.make), dims=given.dims)
            bound[argument.name] = given
        return bound

    def _place(self, bound: dict[str, _Bound]) -> None:
        """Where each argument goes if the library is called as it is."""
        if self.target.startswith("soaprl."):
            return
        self._operation = quick_operation(self.target)
        positional = [a.name for a in schema(self.target) if not a.keyword_only]
        self._list = [bound[name].value for name in positional]
        self._keywords = {name: b.value for name, b in bound.items() if name not in positional}
        made = [(name, b.make) for name, b in bound.items() if b.make is not None]
        self._list_made = tuple((positional.index(n), make) for n, make in made if n in positional)
        self._keywords_made = tuple((n, make) for n, make in made if n not in positional)

    def _called_with(self, bound: dict[str, _Bound]) -> _Made | None:
        """The library's function as one of the tensors, if these come first and are there as they are."""
        if self.target.startswith("soaprl."):
            return None
        given = [(argument, bound[argument.name]) for argument in schema(self.target)]
        first = [(argument, b) for argument, b in given if not argument.keyword_only]
        slots = [b.slot for _, b in takewhile(lambda pair: pair[1].slot is not None, first)]
        if not slots or self._keywords_made or len(slots) < len(self._list_made):
            return None
        rest = first[len(slots) :]
        while rest and rest[-1][0].means(rest[-1][1].value):
            rest.pop()
        values = tuple(b.value for _, b in rest)
        named = {a.name: b.value for a, b in given if a.keyword_only and not a.means(b.value)}
        function, taken = self._operation, itemgetter(*slots)
        if len(slots) == 1:
            return lambda tensors: function(taken(tensors), *values, **named)
        return lambda tensors: function(*taken(tensors), *values, **named)

    def run(self, slots: Slots, seed: int, device: torch.device | None) -> Sequence[Tensor]:
        """The results of the call.

        Args:
            slots: The tensors by number.
            seed: Of the random numbers of the whole iteration.
            device: Where new tensors are made; None for the default device.
        """
        if self._kernel is not None:
            found = self._kernel(self.bind(slots, seed, device))
        elif self._quick is not None:
            found = self._quick(slots)
        elif self._devices or self._keywords_made:
            found = self.bind(slots, seed, device).run()
        else:
            arguments = self._list.copy()
            for position, make in self._list_made:
                arguments[position] = make(slots)
            found = self._operation(*arguments, **self._keywords)
        return (found,) if isinstance(found, Tensor) else found[: len(self.shapes)]

    def caller(
        self, numbers: Sequence[int], seed: Callable[[], int], device: torch.device
    ) -> Callable[[dict[int, Tensor]], Tensor]:
        """The call as a function of the tensors by number; the first result, the others are entered.

        Args:
            numbers: Those of the results.
            seed: The one of the iteration.
            device: As for `run`.
        """
        if len(numbers) > 1:

            def several(slots: dict[int, Tensor]) -> Tensor:
                found = self.run(slots, seed(), device)
                slots.update(zip(numbers, found, strict=True))
                return found[0]

            return several
        return self._quick or (lambda slots: self.run(slots, seed(), device)[0])

    def check(self, results: Sequence[Tensor]) -> None:
        """Checks the shapes of results, which are the same in each iteration."""
        for shape, found in zip(self.shapes, results, strict=True):
            assert found.shape == shape, f"{self.name}: expected {shape}, found {tuple(found.shape)}"

    def bind(self, slots: Slots, seed: int, device: torch.device | None) -> LocalCall:
        """The call with its tensors; as for `run`."""
        arguments = dict(self._fixed)
        for name, make in self._made:
            arguments[name] = make(slots)
        for name in self._devices:
            arguments[name] = torch.get_default_device() if device is None else device
        return LocalCall(
            name=self.name,
            target=self.target,
            arguments=arguments,
            dims=self._dims,
            results=self.results,
            lead=self.lead,
            seed=crc32(f"{seed}:{self.name}".encode()),
        )


def _reading(slot: int, steps: tuple[TensorStep, ...]) -> _Made:
    if not steps:
        return itemgetter(slot)
    if len(steps) == 1:
        (step,) = steps
        return lambda slots: step(slots[slot])
    return lambda slots: apply(steps, slots[slot])


def _sequence(items: list[_Bound]) -> _Bound:
    dims = [item.dims for item in items]
    if all(item.make is None for item in items):
        return _Bound(value=[item.value for item in items], make=None, dims=dims)
    return _Bound(
        value=None,
        make=lambda slots: [item.value if item.make is None else item.make(slots) for item in items],
        dims=dims,
    )


def _copying(make: _Made) -> _Made:
    def copied(slots: Slots) -> Any:
        made = make(slots)
        return made.clone() if isinstance(made, Tensor) else made

    return copied


def _literal(value: object, kind: str) -> object:
    """A captured literal as the library wants it: data types are names, devices belong to the run."""
    if "ScalarType" in kind and isinstance(value, str):
        return getattr(torch, value.removeprefix("torch."))
    if any(name in kind for name in ("Layout", "MemoryFormat")):
        return None
    return value


def leads(dims: Mapping[str, Any], results: tuple[LocalDims, ...]) -> bool:
    """Whether the part is the first along every factor that the first result does not name."""
    kept = {f for d in results[0] for f in d.factors}
    read = [d for found in tensor_dims(dims.values()) for d in found]
    summed = [piece for d in read for f, piece in zip(d.factors, d.label, strict=True) if f not in kept]
    return all(lo == 0 for _, lo, _ in summed)


# Parts.

# The numbers of all slots of a part, of which what comes before `numbers` is known.
Numbers: TypeAlias = "Callable[[PartPlan], tuple[int, ...]]"


class PartPlan:
    """One part of an operator.

    Args:
        operator: What to run.
        degrees: Number of parts of each factor.
        part: Which part, row-major.
        table: Kernels, as `soaprl.runtime.local.kernels` gives them.
        numbers: The numbers of its slots, where they are not simply in a row from 0.

    Its slots are its inputs, parameters and buffers, then the results of its calls, in order.

    Attributes:
        operator: The operator.
        box: The part's interval of each factor.
        shapes: The shapes of the regions that the part reads, by slot.
        arranged: Where a region must become an operand first: its slot (counted from 0), and how.
        stored: For each output the shape of its result, and what makes a region of it.
        numbers: The number of each slot; of a region, that of the operand that it becomes.
        calls: One plan for each call of the body.
        freed: For each call, the slots of results that nothing needs after it.
        work: The calls, as `CallPlan.run`, each with these.
        outputs: For each output, its slot, its shape, and what makes a region of it.
        checked: Whether all shapes have been compared with what the library gave; they stay the same.
    """

    def __init__(
        self,
        operator: Operator,
        degrees: tuple[int, ...],
        part: int,
        table: Mapping[str, Kernel],
        numbers: "Numbers | None" = None,
    ) -> None:
        self.operator, self.box = operator, part_box(operator.extents, degrees, part)
        accesses = (*operator.inputs, *operator.parameters, *operator.buffers)
        self.shapes = [tuple(stop - start for start, stop in region(a, self.box)) for a in accesses]
        self._pieces = [operand_pieces(a, self.box) for a in accesses]
        arranged = [
            (slot, arranging(shape, a.layout, found))
            for slot, (shape, a, found) in enumerate(zip(self.shapes, accesses, self._pieces, strict=True))
        ]
        self.arranged = tuple((slot, steps) for slot, steps in arranged if steps)
        self.stored = tuple(
            self._stored(access, operator.body[call].name)
            for access, (call, _) in zip(operator.outputs, operator.body_outputs, strict=True)
        )
        sizes = (len(accesses), *(len(call.result_dims) for call in operator.body))
        self._first_slots = tuple(accumulate(sizes))
        self.numbers = tuple(range(sum(sizes))) if numbers is None else numbers(self)
        self.calls = tuple(
            CallPlan(call, self._dims_of, self._describe, self._slot_of, table) for call in operator.body
        )
        self.outputs = tuple(
            (self.number_of(call, result), *stored)
            for stored, (call, result) in zip(self.stored, operator.body_outputs, strict=True)
        )

        self.freed = self._freed()
        self.work = tuple(zip((call.run for call in self.calls), self.freed, strict=True))
        self.checked = False

    def number_of(self, call: int, result: int) -> int:
        """The number of a result of a call."""
        return self.numbers[self._first_slots[call] + result]

    def _freed(self) -> tuple[tuple[int, ...], ...]:
        """Results die young, so that their memory is used again while it is in the cache."""
        last = {slot: number for number, call in enumerate(self.calls) for slot in call.reads}
        for number, call in enumerate(self.calls):
            results = (self.number_of(number, result) for result in range(len(call.shapes)))
            last.update({slot: number for slot in results if slot not in last})
        kept = {slot for slot, _, _ in self.outputs} | set(self.numbers[: self._first_slots[0]])
        return tuple(
            tuple(slot for slot, when in last.items() if when == number and slot not in kept)
            for number in range(len(self.calls))
        )

    def _slot_of(self, ref: Ref) -> int:
        return self.numbers[self._local_slot(ref)]

    def _local_slot(self, ref: Ref) -> int:
        operator = self.operator
        if ref.source == "call":
            return self._first_slots[ref.index] + ref.result
        before = {
            "input": (),
            "parameter": operator.inputs,
            "buffer": (*operator.inputs, *operator.parameters),
        }
        return len(before[ref.source]) + ref.index

    def _dims_of(self, uses: tuple[DimUse, ...]) -> LocalDims:
        return tuple(local_dim(use, self.operator.extents, self.box) for use in uses)

    def _describe(self, ref: Ref) -> Operand:
        if ref.source != "call":
            # Regions are arranged once, when the part begins.
            return Operand(steps=(), pieces=self._pieces[self._local_slot(ref)])
        dims = self._dims_of(self.operator.body[ref.index].result_dims[ref.result])
        return _of_result(dims, ref.layout, self.box)

    def _stored(self, access: Access, name: str) -> tuple[tuple[int, ...], tuple[TensorStep, ...]]:
        """A call's local result as the region of the tensor that the part writes."""
        pieces = operand_pieces(access, self.box)
        sizes = [[hi - lo for _, lo, hi in dim] for dim in pieces]
        shape = tuple(prod(dim) for dim in sizes)
        order = [p for dim in access.layout for p in dim]
        inverse = [order.index(d) for d in range(len(order))]
        steps = _reshaping(list(shape), [size for dim in sizes for size in dim])
        if inverse != sorted(inverse):
            steps.append(lambda tensor: tensor.permute(inverse))
        return shape, tuple(steps)


def _of_result(dims: LocalDims, layout: Layout | None, box: Box) -> Operand:
    """An earlier call's result as an operand; its finer dimensions are the factors of its dimensions."""
    refined = tuple(_refined(dim) for dim in dims)
    flat = [piece for pieces in refined for piece in pieces]
    if layout is None:
        positions = iter(range(len(flat)))
        layout = tuple(tuple(next(positions) for _ in pieces) for pieces in refined)
    pieces = tuple(tuple(_piece(p, flat, box) for p in dim) for dim in layout)
    shape = [hi - lo for _, lo, hi in flat]
    steps = (*_reshaping([d.size for d in dims], shape), *arranging(tuple(shape), layout, pieces))
    return Operand(steps=_without_detours([d.size for d in dims], steps, pieces, layout), pieces=pieces)


def _without_detours(
    shape: list[int], steps: tuple[TensorStep, ...], pieces: Pieces, layout: Layout
) -> tuple[TensorStep, ...]:
    """Nothing, where a result is split into finer dimensions only to be merged to what it was."""
    order = [p for dim in layout for p in dim]
    merged = [prod(hi - lo for _, lo, hi in dim) for dim in pieces]
    same = order == list(range(len(order))) and merged == shape
    return () if same else steps


def _refined(dim: LocalDim) -> tuple[Piece, ...]:
    if dim.span is None and dim.label:
        return dim.label
    return ((dim.extent, dim.start, dim.stop),) if dim.extent > 1 else ()


def _piece(p: int | Broadcast, flat: Sequence[Piece], box: Box) -> Piece:
    if isinstance(p, Broadcast):
        return (p.extent, *(box[p.factor] if p.factor >= 0 else (0, p.extent)))
    return flat[p]
