"""The parameters and buffers of a PyTorch module as tensors of its graph, and back."""

from collections.abc import Iterable, Mapping
from math import prod

import torch
from torch import Tensor, nn

from soaprl.errors import ExecutionError
from soaprl.graph.operators import OperatorGraph, TensorRole
from soaprl.runtime.boxes import inside
from soaprl.runtime.literals import literal_tensors
from soaprl.runtime.program import Block
from soaprl.runtime.statistics import running_writers

_COUNTER = "num_batches_tracked"


def module_tensors(graph: OperatorGraph, module: nn.Module) -> dict[int, Tensor]:
    """The module's own parameters, buffers and constants, by tensor index.

    Raises:
        ExecutionError: The module lacks one, or has it in another shape or type.
    """
    known = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    literals = literal_tensors(graph)
    found: dict[int, Tensor] = {}
    for index, stored in enumerate(graph.tensors):
        if stored.role not in (TensorRole.PARAMETER, TensorRole.BUFFER):
            continue
        content = known.get(stored.name, literals.get(index))
        content = _attribute(module, stored.name) if content is None else content
        if content is None:
            raise ExecutionError(
                f"{graph.name!r} has {stored.role} {stored.name!r}, and the {type(module).__name__} to be"
                " trained has none of that name: use the model that the graph was captured from"
            )
        _check_like(f"{stored.role} {stored.name!r}", content, stored.shape, stored.dtype)
        found[index] = content.detach()
    return found


def _attribute(module: nn.Module, name: str) -> Tensor | None:
    """A plain tensor that is an attribute of a module, such as a constant made in ``__init__``."""
    content: object = module
    for part in name.split("."):
        content = getattr(content, part, None)
    return content if isinstance(content, Tensor) else None


def _check_like(what: str, content: Tensor, shape: tuple[int, ...], dtype: str) -> None:
    found = str(content.dtype).removeprefix("torch.")
    if tuple(content.shape) != shape or found != dtype:
        raise ExecutionError(f"{what}: expected {dtype} {shape}, found {found} {tuple(content.shape)}")


def input_tensors(graph: OperatorGraph, inputs: Iterable[object]) -> dict[int, Tensor]:
    """The tensors among the leaves of a model's arguments, by tensor index.

    Raises:
        ExecutionError: They are not what the graph was captured with.
    """
    wanted = [i for i, tensor in enumerate(graph.tensors) if tensor.role is TensorRole.INPUT]
    given = [leaf for leaf in inputs if isinstance(leaf, Tensor)]
    if len(wanted) != len(given):
        raise ExecutionError(
            f"a batch of {graph.name!r} has {len(wanted)} tensors, found {len(given)}: give what its forward"
            " takes"
        )
    for index, content in zip(wanted, given, strict=True):
        stored = graph.tensors[index]
        what = f"input {stored.name!r} of {graph.name!r} (batch {graph.batch_size})"
        _check_like(what, content, stored.shape, stored.dtype)
    return dict(zip(wanted, given, strict=True))


class StateDict:
    """A state dict of the original model, being put together from blocks.

    Args:
        graph: The operators.
        original: The state dict when training began; what the graph does not train stays as it was.
        num_iterations: Iterations since then.
    """

    def __init__(self, graph: OperatorGraph, original: Mapping[str, Tensor], num_iterations: int) -> None:
        self._graph = graph
        self.content = {name: tensor.detach().cpu().clone() for name, tensor in original.items()}
        for tensor, writers in running_writers(graph).items():
            counter = graph.tensors[tensor].name.removesuffix("running_mean") + _COUNTER
            if counter in self.content:
                self.content[counter] += num_iterations * len(writers)

    def enter(self, block: Block, content: Tensor) -> None:
        """Enters a block, under all names of its tensor."""
        stored = self._graph.tensors[block.tensor]
        whole = tuple((0, extent) for extent in stored.refined_shape)
        for name in (stored.name, *stored.aliases):
            # Buffers that are not persistent have no place in a state dict.
            if name in self.content:
                target = self.content[name].view(stored.refined_shape)
                target[inside(block.box, whole)] = content.detach().cpu()


def tensors_of_state_dict(graph: OperatorGraph, state: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """What a state dict says of the graph's parameters and buffers, by tensor index.

    Raises:
        ExecutionError: A parameter is missing, or has another shape.
    """
    found: dict[int, Tensor] = {}
    for index, stored in enumerate(graph.tensors):
        if stored.role not in (TensorRole.PARAMETER, TensorRole.BUFFER):
            continue
        if stored.name in state:
            content = state[stored.name]
            if content.numel() != prod(stored.shape):
                raise ExecutionError(
                    f"state dict: expected {stored.name!r} of shape {stored.shape}, found"
                    f" {tuple(content.shape)}: load the state of the same model"
                )
            found[index] = content.detach().to(getattr(torch, stored.dtype))
        elif stored.role is TensorRole.PARAMETER:
            raise ExecutionError(
                f"state dict: expected {stored.name!r}, which is missing: load the state of the same model"
            )
    return found
