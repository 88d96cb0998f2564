"""Families: operators that are alike in all that candidates cost, such as the layers of a deep model.

Two operators are of one family if they have equal factors, accesses (to tensors of equal sizes and roles),
costs and candidates. What is computed for one holds for all.
"""

from dataclasses import replace

from soaprl.graph.operators import Access, Operator, OperatorGraph
from soaprl.strategy.strategy import OpConfig


def families(graph: OperatorGraph, configs: tuple[tuple[OpConfig, ...], ...]) -> tuple[int, ...]:
    """The family of each operator, numbered in order of appearance."""
    numbers: dict[object, int] = {}
    return tuple(
        numbers.setdefault((_signature(graph, operator), candidates), len(numbers))
        for operator, candidates in zip(graph.operators, configs, strict=True)
    )


def _signature(graph: OperatorGraph, operator: Operator) -> object:
    """Equal for operators of one family."""
    roles = (operator.inputs, operator.parameters, operator.outputs, operator.buffers)
    accesses = tuple(tuple(_access_signature(graph, access) for access in role) for role in roles)
    plain = replace(
        operator, name="", inputs=(), parameters=(), outputs=(), buffers=(), body=(), body_outputs=()
    )
    return plain, accesses


def _access_signature(graph: OperatorGraph, access: Access) -> object:
    tensor = graph.tensors[access.tensor]
    return (
        access.spans,
        access.gradient,
        access.saved,
        tensor.refined,
        tensor.itemsize,
        tensor.role,
        tensor.requires_grad,
    )
