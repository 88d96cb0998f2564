"""What the functions that an exported graph calls are named, write to, and look at."""

from typing import Any

from torch import fx
from torch._ops import OpOverload


def target_name(target: Any) -> str:
    """The name of what a node calls: the same in every process, so that fingerprints are."""
    if isinstance(target, OpOverload):
        return str(_functional(target))
    name = getattr(target, "__qualname__", None)
    return f"{target.__module__}.{name}" if isinstance(name, str) else str(target)


def written_argument(node: fx.Node) -> fx.Node | None:
    """The first argument that a call writes to: of ``add_``, and ``out=`` of its kin."""
    if not isinstance(node.target, OpOverload):
        return None
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            return given if isinstance(given, fx.Node) else None
    return None


def read_keywords(node: fx.Node) -> dict[str, Any]:
    """The keyword arguments of a call without ``out``, which is overwritten and not read."""
    return {name: value for name, value in node.kwargs.items() if name not in _out_arguments(node.target)}


def is_view(node: fx.Node) -> bool:
    """Whether a call only looks at its first argument in another way."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable:
        return False
    return any(r.alias_info is not None for r in schema.returns)


def viewed_node(node: fx.Node) -> fx.Node:
    """What a chain of views looks at; the node itself if it is no view."""
    while node.op == "call_function" and is_view(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _out_arguments(target: Any) -> set[str]:
    if not isinstance(target, OpOverload):
        return set()
    return {argument.name for argument in target._schema.arguments if argument.is_out}


def _functional(target: OpOverload) -> OpOverload:
    """The overload that returns what `target` writes to ``out``; `target` where it has no ``out``."""
    if not _out_arguments(target):
        return target
    wanted = [(a.name, str(a.type)) for a in target._schema.arguments if not a.is_out]
    packet = target._overloadpacket
    for name in packet.overloads():  # type: ignore[no-untyped-call]
        other: OpOverload = getattr(packet, name)
        if [(a.name, str(a.type)) for a in other._schema.arguments] == wanted:
            return other
    return target
