"""The content of constants that a model's code spells out, as tensors."""

import base64

import torch
from torch import Tensor

from soaprl.errors import GraphError
from soaprl.graph.operators import OperatorGraph


def literal_tensors(graph: OperatorGraph) -> dict[int, Tensor]:
    """The literals of `graph` by tensor index.

    Raises:
        GraphError: The stored content is not that of such a tensor.
    """
    found = {}
    for literal in graph.literals:
        stored = graph.tensors[literal.tensor]
        data = bytearray(base64.b64decode(literal.data))
        if len(data) != stored.num_bytes:
            raise GraphError(
                f"the constant {stored.name!r} of {graph.name!r} should have {stored.num_bytes} bytes, and"
                f" has {len(data)}: the graph is damaged, capture the model again"
            )
        dtype: torch.dtype = getattr(torch, stored.dtype)
        content = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        found[literal.tensor] = content.reshape(stored.shape)
    return found
