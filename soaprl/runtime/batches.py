"""Batches as a model takes them, read block by block: what does not change from one to the next is kept."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from soaprl.graph.operators import OperatorGraph, TensorRole
from soaprl.runtime.boxes import inside
from soaprl.runtime.model_state import input_tensors
from soaprl.runtime.program import Block
from soaprl.runtime.stores import Fetch


class Batches:
    """Reads the batches of a model.

    Args:
        graph: The model's operators.
    """

    def __init__(self, graph: OperatorGraph) -> None:
        self._graph = graph
        stored = [(i, tensor) for i, tensor in enumerate(graph.tensors) if tensor.role is TensorRole.INPUT]
        self._wanted = [(i, torch.Size(t.shape), getattr(torch, t.dtype)) for i, t in stored]
        # For each block the shape that a tensor gets, and the index that is taken; None where it has these.
        self._ways: dict[Block, tuple[tuple[int, ...] | None, tuple[slice, ...] | None]] = {}

    def fetch(self, args: Sequence[object], kwargs: Mapping[str, object]) -> Fetch:
        """What gives the blocks of a batch; arguments as for the model.

        Raises:
            ExecutionError: They are not what the graph was captured with.
        """
        flat = not kwargs and all(isinstance(argument, Tensor) for argument in args)
        leaves = args if flat else pytree.tree_leaves((args, kwargs))
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if len(given) == len(self._wanted) and all(
            content.shape == shape and content.dtype is dtype
            for content, (_, shape, dtype) in zip(given, self._wanted, strict=True)
        ):
            tensors = {index: content for content, (index, _, _) in zip(given, self._wanted, strict=True)}
        else:
            # Which says what is wrong.
            tensors = input_tensors(self._graph, given)
        return lambda block: self._read(tensors[block.tensor], block)

    def _read(self, content: Tensor, block: Block) -> Tensor:
        if block not in self._ways:
            self._ways[block] = self._way(block)
        shape, index = self._ways[block]
        content = content if shape is None else content.reshape(shape)
        return content if index is None else content[index]

    def _way(self, block: Block) -> tuple[tuple[int, ...] | None, tuple[slice, ...] | None]:
        stored = self._graph.tensors[block.tensor]
        refined = stored.refined_shape
        whole = tuple((0, extent) for extent in refined)
        shape = None if refined == stored.shape else refined
        return shape, None if block.box == whole else inside(block.box, whole)
