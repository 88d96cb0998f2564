"""The shape of the policy network."""

from dataclasses import dataclass, fields

from soaprl.errors import PolicyError


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Widths of what the network reads, and of itself.

    Attributes:
        operator_width: Features of an operator.
        edge_width: Features of an edge between operators.
        device_width: Features of a device.
        device_edge_width: Features of an edge between devices.
        candidate_width: Features of a candidate that no choice changes.
        context_width: Features of a candidate that depend on the other operators' configurations.
        hidden: Width of every hidden layer.
        rounds: Rounds of message passing over the operators; all share their weights.
        device_rounds: Rounds of message passing over the devices; all share their weights.
        uses_devices: Whether the devices are encoded; otherwise they are left out (an ablation).
        uses_context: Whether the context is read; otherwise all operators are decided independently, in one
            shot (an ablation).
    """

    operator_width: int
    edge_width: int
    device_width: int
    device_edge_width: int
    candidate_width: int
    context_width: int
    hidden: int = 64
    rounds: int = 3
    device_rounds: int = 2
    uses_devices: bool = True
    uses_context: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not field.type:
                raise PolicyError(
                    f"policy configuration, {field.name}: expected {field.type}, found {value!r}."
                )
            if field.type is int and value < 1:
                raise PolicyError(
                    f"policy configuration, {field.name}: expected a number above 0, found {value}."
                )
