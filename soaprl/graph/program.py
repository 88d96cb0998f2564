"""A captured program: the calls of one forward pass in order, before factors are worked out."""

from dataclasses import dataclass, field

from soaprl.graph.rules.base import Node, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What capture hands to lowering.

    Attributes:
        name: The model's name.
        batch_size: Global batch size of the shapes.
        values: All tensors, views among them.
        nodes: The calls that the loss depends on, in execution order.
        loss: Index of the scalar value that is minimized.
        sample_dims: For each graph input (value index) the dimensions that grow with the batch size.
        aliases: For each parameter (value index) further state-dict names of the same storage.
        literals: For each constant that the model's code spells out (value index), its elements in row-major
            order, little-endian, in base64.
        notes: What capture did and had to assume, for people.
    """

    name: str
    batch_size: int
    values: tuple[Value, ...]
    nodes: tuple[Node, ...]
    loss: int
    sample_dims: dict[int, tuple[int, ...]]
    aliases: dict[int, tuple[str, ...]]
    literals: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
