"""Operators, tensors and the operator graph: what every other part of soaprl reads.

A tensor is stored with some shape, and *refined*: a stored dimension may be a row-major product of finer
ones (a fused query-key-value projection of extent ``3 * heads * width`` has the refined dimensions
``3, heads, width``). What a task reads, writes or holds is always a box in refined coordinates, one `Span`
for each refined dimension. Views are not operators: an `Access` says how the dimensions that an operator
works on are made of the refined dimensions of the stored tensor (its `layout`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import prod
from typing import TypeAlias

from soaprl.graph.factors import Factor, Span


class TensorRole(StrEnum):
    """Where the content of a tensor comes from."""

    INPUT = "input"
    PARAMETER = "parameter"
    BUFFER = "buffer"
    CONSTANT = "constant"
    ACTIVATION = "activation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor that exists in memory (never a view).

    Attributes:
        name: Unique in its graph; for parameters and buffers the name in the model's state dict.
        role: Where its content comes from.
        dtype: As PyTorch spells it, without the prefix: ``float32``, ``int64``.
        itemsize: Bytes of an element.
        refined: For each stored dimension, the extents of its refined dimensions, outermost first.
        requires_grad: Whether gradients flow to it.
        aliases: Further state-dict names of the same storage (tied parameters).
        sample_dims: The refined dimensions that run over the samples of the batch.
    """

    name: str
    role: TensorRole
    dtype: str
    itemsize: int
    refined: tuple[tuple[int, ...], ...]
    requires_grad: bool
    aliases: tuple[str, ...] = ()
    sample_dims: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored shape."""
        return tuple(prod(dims) for dims in self.refined)

    @property
    def refined_shape(self) -> tuple[int, ...]:
        """All refined dimensions in order; dimensions of extent 1 have none."""
        return tuple(extent for dims in self.refined for extent in dims)

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.num_elements * self.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Broadcast:
    """A piece of an operand dimension that the stored tensor does not have (``expand``).

    Attributes:
        factor: The factor along which the content repeats, or -1 for a fixed extent.
        extent: The whole extent of the piece.
    """

    factor: int
    extent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What the tasks of one operator touch of one tensor.

    Attributes:
        tensor: Index of the tensor in the graph.
        spans: One for each refined dimension of the tensor.
        layout: For each dimension of the operand as the operator sees it, the pieces that it is a row-major
            product of: an index of a refined dimension of the tensor, or a `Broadcast`. Refined dimensions
            in no piece are selected: their span has one index.
        gradient: Whether a gradient flows through this access.
        saved: Whether what was read (or written) is kept until the backward pass.
        combine: For an output that tasks write in part (see `Operator.outputs`), how readers combine the
            parts: ``sum``, ``max``, ``min`` or ``logaddexp``.
    """

    tensor: int
    spans: tuple[Span, ...]
    layout: tuple[tuple[int | Broadcast, ...], ...]
    gradient: bool
    saved: bool
    combine: str = "sum"


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """``coefficient`` times the extents of `factors`: a summand of a work formula.

    Attributes:
        coefficient: Unit of the formula (FLOPs or bytes).
        factors: Indices of the operator's factors, each at most once.
    """

    coefficient: float
    factors: tuple[int, ...]


def evaluate_terms(terms: Iterable[Term], extents: tuple[int, ...]) -> float:
    """The sum of `terms` for a shard with these factor extents."""
    return sum(t.coefficient * prod(extents[f] for f in t.factors) for t in terms)


def merge_terms(terms: Iterable[Term]) -> tuple[Term, ...]:
    """The same formula with one term for each set of factors, in order of appearance."""
    merged: dict[tuple[int, ...], float] = {}
    for term in terms:
        merged[term.factors] = merged.get(term.factors, 0.0) + term.coefficient
    return tuple(Term(coefficient=c, factors=f) for f, c in merged.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """A tensor argument inside an operator's body.

    Attributes:
        source: ``input``, ``parameter``, ``buffer``, ``call`` (an earlier result of the same body), or
            ``tensor`` (in a constant's call).
        index: Index into the operator's inputs, parameters or buffers, of the call in the body, or of the
            graph's tensor.
        result: Which result of that call; 0 for the others.
        layout: For a call, how the argument's dimensions are made of the refined dimensions of its result
            (the factors of its `DimUse`s in order); for a tensor, of the tensor's; None for the others, whose
            `Access` has it.
    """

    source: str
    index: int
    result: int = 0
    layout: tuple[tuple[int | Broadcast, ...], ...] | None = None


Argument: TypeAlias = "Ref | bool | int | float | str | tuple[Argument, ...] | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class DimUse:
    """Which indices of one dimension of a call's argument or result belong to a task.

    Without a span the dimension is the row-major product of `factors`. With one, the span maps an interval of
    that product's flat index to an interval of the dimension (a window, a slice, a concatenation).

    Attributes:
        extent: The whole extent of the dimension.
        factors: Indices of the operator's factors, outermost first; empty if every task uses all of it.
        span: The map, whose `factor` is 0 (standing for the product), or None.
    """

    extent: int
    factors: tuple[int, ...]
    span: Span | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One library call of an operator's body, enough to execute a shard of it.

    Attributes:
        name: Name of the captured node.
        target: What is called, for example ``aten.linear.default``.
        args: Positional arguments: literals, `Ref`s and tuples of them.
        kwargs: Keyword arguments, in order.
        arg_dims: For each `Ref` in order of appearance (args, then kwargs), one `DimUse` for each dimension.
        result_dims: For each result, one `DimUse` for each dimension.
    """

    name: str
    target: str
    args: tuple[Argument, ...]
    kwargs: tuple[tuple[str, Argument], ...]
    arg_dims: tuple[tuple[DimUse, ...], ...]
    result_dims: tuple[tuple[DimUse, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator: its factors, what its tasks touch, what they cost, and how to execute them.

    Attributes:
        name: Unique in the graph; module path and operation.
        kind: What it is (``linear``, ``conv2d``, ...); the kind of its heaviest call.
        factors: The iteration dimensions; a task is a box over them, tasks are numbered row-major.
        inputs: Activations, graph inputs and constants read.
        parameters: Parameters read, whose gradients are synchronized.
        buffers: Buffers read; never communicated.
        outputs: What tasks write. A factor that no span of an output names makes that output partial: the
            tasks along it write one summand each (or another combination, see `Access.combine`).
        forward_flops: FLOPs of the forward pass of a shard.
        backward_flops: FLOPs of the backward pass of a shard.
        internal_bytes: Memory traffic of a shard's forward pass beyond reading inputs and parameters and
            writing outputs once; the backward pass moves twice as much.
        internal_saved_bytes: Bytes that a shard keeps for the backward pass beyond saved accesses.
        num_forward_kernels: Kernels launched in the forward pass.
        num_backward_kernels: Kernels launched in the backward pass; 0 without a backward pass.
        matmul: Whether its FLOPs run on matrix units.
        body: The calls, in order.
        body_outputs: For each output, the call and result that it is.
    """

    name: str
    kind: str
    factors: tuple[Factor, ...]
    inputs: tuple[Access, ...]
    parameters: tuple[Access, ...]
    buffers: tuple[Access, ...]
    outputs: tuple[Access, ...]
    forward_flops: tuple[Term, ...]
    backward_flops: tuple[Term, ...]
    internal_bytes: tuple[Term, ...]
    internal_saved_bytes: tuple[Term, ...]
    num_forward_kernels: int
    num_backward_kernels: int
    matmul: bool
    body: tuple[Call, ...]
    body_outputs: tuple[tuple[int, int], ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """Extent of each factor."""
        return tuple(f.extent for f in self.factors)

    @property
    def has_backward(self) -> bool:
        """Whether the operator takes part in the backward pass."""
        return self.num_backward_kernels > 0

    def factor_index(self, name: str) -> int:
        """Index of the factor called `name`; raises `KeyError` if there is none."""
        for index, factor in enumerate(self.factors):
            if factor.name == name:
                return index
        raise KeyError(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Literal:
    """The content of a constant that the model's code spells out (``torch.tensor([1.0, 2.0])``).

    Attributes:
        tensor: Index of the tensor in the graph.
        data: Its elements in row-major order, little-endian, in base64.
    """

    tensor: int
    data: str


@dataclass(frozen=True, kw_only=True)
class OperatorGraph:
    """The operators of one training iteration in topological order, and their tensors.

    Attributes:
        name: The model's name.
        batch_size: Global batch size that the shapes belong to.
        tensors: All tensors.
        operators: Topologically sorted: producers before consumers.
        loss: Index of the tensor that is minimized.
        constants: Calls that make constants, in order; every rank runs them. Their references have the source
            ``tensor``, the index of a tensor (a constant or a buffer) and a layout.
        constant_results: For each of these calls, the tensor indices of its results.
        literals: Contents that are in the model's code, and in no state dict.
        notes: What capture and coarsening did and had to assume, for people.
    """

    name: str
    batch_size: int
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    loss: int
    constants: tuple[Call, ...] = ()
    constant_results: tuple[tuple[int, ...], ...] = ()
    literals: tuple[Literal, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def producer(self) -> dict[int, int]:
        """Operator index by the tensor index it writes."""
        return {a.tensor: i for i, op in enumerate(self.operators) for a in op.outputs}

    @cached_property
    def consumers(self) -> dict[int, tuple[tuple[int, int], ...]]:
        """For each activation, the (operator, input position) pairs that read it, in order."""
        found: dict[int, list[tuple[int, int]]] = {t: [] for t in self.producer}
        for i, op in enumerate(self.operators):
            for position, access in enumerate(op.inputs):
                if access.tensor in found:
                    found[access.tensor].append((i, position))
        return {t: tuple(readers) for t, readers in found.items()}

    @cached_property
    def index(self) -> dict[str, int]:
        """Operator index by name."""
        return {op.name: i for i, op in enumerate(self.operators)}

    @property
    def num_parameters(self) -> int:
        """Number of trainable parameters; tied ones count once."""
        return sum(t.num_elements for t in self.tensors if t.role is TensorRole.PARAMETER)
