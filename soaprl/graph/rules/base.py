"""What a rule says about one captured call, and the table of rules.

A rule is a plain function from a `Node` (target, arguments, shapes) to a `Rule`: an einsum-like statement of
how the dimensions of its arguments and results belong together. Nothing here imports torch.

    linear: x[a0, a1, i] w[o, i] b[o] -> y[a0, a1, o]

Each dimension of each tensor argument and result is a `Dim`: a label (plain), a label through an affine
window, or whole. A label that a result does not name is summed over: tasks that differ in it write partial
sums. A label that must stay whole (the normalized dimension of a softmax) has ``splittable=False``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from soaprl.graph.operators import TensorRole


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A tensor of the captured program.

    Attributes:
        name: The captured name.
        role: ``ACTIVATION`` for results of nodes.
        shape: Its shape.
        dtype: Without prefix, for example ``float32``.
        itemsize: Bytes of an element.
        requires_grad: Whether gradients flow to it.
    """

    name: str
    role: TensorRole
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    requires_grad: bool

    @property
    def is_float(self) -> bool:
        """Whether it can carry a gradient."""
        return "float" in self.dtype


@dataclass(frozen=True, slots=True)
class ValueRef:
    """A tensor argument of a node: an index into the program's values."""

    index: int


NodeArgument: TypeAlias = "ValueRef | bool | int | float | str | tuple[NodeArgument, ...] | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One captured call.

    Attributes:
        name: Unique in the program.
        target: For example ``aten.conv2d.default``.
        module: Path of the module that called it, ``""`` at the top.
        args: Positional arguments as captured; lists become tuples.
        kwargs: Keyword arguments, in order.
        results: Indices of the values it defines.
    """

    name: str
    target: str
    module: str
    args: tuple[NodeArgument, ...]
    kwargs: tuple[tuple[str, NodeArgument], ...]
    results: tuple[int, ...]

    def tensor_arguments(self) -> tuple[int, ...]:
        """Value indices of the tensor arguments in order of appearance: args, then kwargs, depth first."""
        return tuple(ref.index for ref in _refs((*self.args, *(v for _, v in self.kwargs))))

    def argument(self, position: int, name: str, default: NodeArgument = None) -> NodeArgument:
        """The argument at `position`, or called `name`, or `default`."""
        if position < len(self.args):
            return self.args[position]
        return dict(self.kwargs).get(name, default)


def _refs(argument: NodeArgument) -> Iterator[ValueRef]:
    if isinstance(argument, ValueRef):
        yield argument
    elif isinstance(argument, tuple):
        for item in argument:
            yield from _refs(item)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """An iteration dimension of a rule.

    Attributes:
        name: In the field's terms; becomes the factor's name.
        extent: Number of indices.
        splittable: Whether tasks may differ in it.
    """

    name: str
    extent: int
    splittable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Dim:
    """How one dimension of an argument or result follows from a label; see `soaprl.graph.factors.Span`.

    Attributes:
        label: The label, or None: every task touches the whole dimension.
        mul: Numerator of the affine map.
        div: Denominator of the affine map.
        add_first: Added for the first index.
        add_last: Added for the last index.
        outer: Labels outside `label`: the dimension is the row-major product of `labels`, and the affine map
            is the identity.
    """

    label: str | None
    mul: int = 1
    div: int = 1
    add_first: int = 0
    add_last: int = 0
    outer: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether indices of the dimension and of the label are the same numbers."""
        return self.affine_identity and self.label is not None and not self.outer

    @property
    def affine_identity(self) -> bool:
        """Whether the affine map does nothing."""
        return (self.mul, self.div, self.add_first, self.add_last) == (1, 1, 0, 0)

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels of the dimension, outermost first; empty if it is whole."""
        return () if self.label is None else (*self.outer, self.label)


WHOLE = Dim(label=None)


def plain(label: str) -> Dim:
    """The dimension is the label."""
    return Dim(label=label)


def product(*labels: str) -> Dim:
    """The dimension is the row-major product of `labels`, outermost first."""
    return Dim(label=labels[-1], outer=labels[:-1])


def window(label: str, *, kernel: int, stride: int, padding: int, dilation: int = 1) -> Dim:
    """Output index ``i`` reads ``i * stride - padding + k * dilation`` for ``k`` in ``[0, kernel)``."""
    return Dim(label=label, mul=stride, add_first=-padding, add_last=-padding + dilation * (kernel - 1))


def offset(label: str, start: int) -> Dim:
    """Label index ``i`` is index ``i + start`` of the dimension; indices outside of it are not touched.

    Label and dimension may have different extents, so even with ``start=0`` this is not `plain`: its map is
    the identity, written as ``(2 * i) // 2``.
    """
    if start == 0:
        return Dim(label=label, mul=2, div=2)
    return Dim(label=label, add_first=start, add_last=start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A summand of a work formula: `coefficient` times the extents of `labels`."""

    coefficient: float
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What one call does, for any shapes and any split.

    Attributes:
        kind: Kind of the operator (``linear``).
        labels: The iteration dimensions; order is the order of factors and of task numbers: the labels of
            the first result from outermost to innermost, then the reductions.
        arguments: For each tensor argument (order of `Node.tensor_arguments`), one `Dim` for each dimension.
        results: For each result of the node, one `Dim` for each dimension.
        forward_flops: FLOPs of the forward pass.
        gradient_flops: For each tensor argument, FLOPs of computing its gradient; empty for none.
        saves_arguments: For each tensor argument, whether the backward pass reads it.
        saves_results: For each result, whether the backward pass reads it.
        internal_bytes: Memory traffic of the forward pass beyond arguments and results (gates of an LSTM).
            Negative where a call touches only some rows of an argument that it names (embedding).
        internal_saved_bytes: Bytes kept for the backward pass beyond arguments and results (masks, gates).
        num_kernels: Kernels launched in the forward pass.
        matmul: Whether the FLOPs run on matrix units.
        pointwise: Every result index depends on the same index of the arguments (with broadcasting) alone.
        additive: The result of a sum of first arguments is the sum of the results (dropout, scaling), so a
            partial sum passes through.
        combine: How results of tasks that differ in a label the result does not name are combined: ``sum``,
            ``max``, ``min`` or ``logaddexp``.
    """

    kind: str
    labels: tuple[Label, ...]
    arguments: tuple[tuple[Dim, ...], ...]
    results: tuple[tuple[Dim, ...], ...]
    forward_flops: tuple[Work, ...]
    gradient_flops: tuple[tuple[Work, ...], ...]
    saves_arguments: tuple[bool, ...]
    saves_results: tuple[bool, ...]
    internal_bytes: tuple[Work, ...] = ()
    internal_saved_bytes: tuple[Work, ...] = ()
    num_kernels: int = 1
    matmul: bool = False
    pointwise: bool = False
    additive: bool = False
    combine: str = "sum"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDim:
    """Where one dimension of a viewed tensor goes in the view.

    Attributes:
        out: The dimension of the view, or None: the view takes only index `start`.
        start: First index taken.
        length: Number of indices taken.
    """

    out: int | None
    start: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reshape:
    """A view with the same elements in the same row-major order (view, reshape, flatten, unflatten)."""

    source: int
    result: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rearrange:
    """A view that permutes, slices, selects, adds or repeats dimensions.

    Attributes:
        source: Value index of the viewed tensor.
        result: Value index of the view.
        dims: One for each dimension of the source. Dimensions of the result that no source dimension goes
            to are broadcast (``unsqueeze``, ``expand``). A source dimension of extent 1 that is expanded has
            ``out=None, start=0, length=1``.
    """

    source: int
    result: int
    dims: tuple[SourceDim, ...]


View: TypeAlias = Reshape | Rearrange
RuleResult: TypeAlias = "Rule | tuple[View, ...] | None"
RuleFunction: TypeAlias = Callable[[Node, tuple[Value, ...]], RuleResult]


class RuleTable:
    """Rules by target; a target without overload name matches every overload of it."""

    def __init__(self) -> None:
        self._rules: dict[str, RuleFunction] = {}

    def register(self, *targets: str) -> Callable[[RuleFunction], RuleFunction]:
        """Decorator: the function is the rule of each of `targets` (``aten.linear``, ``aten.add.Tensor``)."""

        def add(function: RuleFunction) -> RuleFunction:
            for target in targets:
                assert target not in self._rules, f"two rules for {target}"
                self._rules[target] = function
            return function

        return add

    def apply(self, node: Node, values: tuple[Value, ...]) -> RuleResult:
        """The rule of `node`, its views, or None where there is no rule or it does not cover the case."""
        base = node.target.rsplit(".", 1)[0]
        function = self._rules.get(node.target) or self._rules.get(base)
        return function(node, values) if function else None

    def targets(self) -> tuple[str, ...]:
        """All targets that have a rule."""
        return tuple(sorted(self._rules))
