"""A library call on local tensors: its arguments by name, and which indices of each a part works on."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from soaprl.errors import GraphError
from soaprl.runtime.shards import LocalDim

LocalDims: TypeAlias = tuple[LocalDim, ...]
Results: TypeAlias = Tensor | tuple[Tensor, ...] | list[Tensor]
Kernel: TypeAlias = "Callable[[LocalCall], Results]"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCall:
    """One call of an operator's body, bound to the local tensors of one part.

    Attributes:
        name: Name of the captured node.
        target: For example ``aten.linear.default``.
        arguments: By name in the library's schema, or by position (``"0"``) where there is no schema.
        dims: The same structure with a tuple of `LocalDim` for each tensor and None for everything else.
        results: For each result, the indices that the part computes.
        lead: Whether the part is the first along every factor that it reads but the first result does not
            name: what partial sums must hold once (a bias) belongs to it.
        seed: Stream of random numbers of this call, the same for every part.
    """

    name: str
    target: str
    arguments: Mapping[str, Any]
    dims: Mapping[str, Any]
    results: tuple[LocalDims, ...]
    lead: bool
    seed: int

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def local(self, name: str) -> Tensor:
        """The tensor argument called `name`."""
        tensor = self.arguments[name]
        assert isinstance(tensor, Tensor), f"{name} of {self.target} is {type(tensor).__name__}"
        return tensor

    def get(self, name: str) -> Any:
        """The argument called `name`, or None where the schema has none of that name."""
        return self.arguments.get(name)

    def run(self, /, **changes: object) -> Results:
        """Calls the library with the arguments, some of them changed."""
        results: Results = operation(self.target)(**{**self.arguments, **changes})
        return results

    def tensor(self, /, **changes: object) -> Tensor:
        """Like `run`, for a call with one result."""
        result = self.run(**changes)
        assert isinstance(result, Tensor), f"{self.target} has several results"
        return result

    @property
    def whole(self) -> bool:
        """Whether the part works on all of every argument and result."""
        return all(d.whole for dims in (*tensor_dims(self.dims.values()), *self.results) for d in dims)

    @property
    def result_shape(self) -> list[int]:
        """Local shape of the first result."""
        return [d.size for d in self.results[0]]


def tensor_dims(arguments: Iterable[Any]) -> Iterator[LocalDims]:
    """All tuples of `LocalDim` in a nested structure of them, depth first; an empty tuple is a scalar's."""
    for argument in arguments:
        if isinstance(argument, tuple):
            yield argument
        elif isinstance(argument, list):
            yield from tensor_dims(argument)


@cache
def operation(target: str) -> Any:
    """The library function called `target`.

    Raises:
        GraphError: There is none.
    """
    namespace, _, rest = target.partition(".")
    name, _, overload = rest.partition(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), name), overload or "default")
    except AttributeError as error:
        raise GraphError(
            f"expected a PyTorch operation such as 'aten.linear.default', found {target!r}; the graph was "
            f"captured with another version of PyTorch, so capture it again with {torch.__version__}"
        ) from error


def quick_operation(target: str) -> Any:
    """The same as `operation`, where there is one by a way that takes half a microsecond less."""
    name = target.split(".")[1]
    if target.startswith("aten.") and name in _QUICK:
        return getattr(torch._C._nn, name, None) or getattr(torch, name)
    return operation(target)


# Their arguments have the order and names of the schema in the library's own binding too.
_QUICK = frozenset(
    {
        "add",
        "batch_norm",
        "conv2d",
        "gelu",
        "layer_norm",
        "linear",
        "matmul",
        "max_pool2d",
        "mul",
        "relu",
        "sigmoid",
        "square",
        "tanh",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One argument in the library's schema.

    Attributes:
        name: Its name.
        kind: Its type as the schema spells it.
        default: Its default; None without one.
        written: Whether the call changes it in place.
        keyword_only: Whether it can only be given by name.
        optional: Whether it has a default.
    """

    name: str
    kind: str
    default: Any
    written: bool
    keyword_only: bool
    optional: bool

    def means(self, value: object) -> bool:
        """Whether leaving it out means `value`."""
        return self.optional and type(value) is type(self.default) and value == self.default


@cache
def schema(target: str) -> tuple[Parameter, ...]:
    """The arguments of `target` in order."""
    return tuple(
        Parameter(
            name=a.name,
            kind=str(a.real_type),
            default=a.default_value,
            written=a.alias_info is not None and a.alias_info.is_write,
            keyword_only=a.kwarg_only,
            optional=a.has_default_value(),
        )
        for a in operation(target)._schema.arguments
    )
