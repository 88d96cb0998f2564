"""What a cost model must answer."""

from dataclasses import dataclass
from typing import Protocol

from soaprl.cluster.cluster import DeviceType
from soaprl.graph.operators import Operator, OperatorGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The size of one task of an operator; tasks with equal shards cost the same.

    Attributes:
        extents: Number of indices of each factor.
        input_bytes: Bytes read through each of the operator's inputs.
        parameter_bytes: Bytes of each parameter region.
        output_bytes: Bytes written through each output.
    """

    extents: tuple[int, ...]
    input_bytes: tuple[int, ...]
    parameter_bytes: tuple[int, ...]
    output_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTime:
    """Time of a task on a device.

    Attributes:
        forward_s: Forward pass, seconds.
        backward_s: Backward pass, seconds; 0 for an operator without one.
        measured: Whether it was measured (or interpolated between measurements), not estimated.
    """

    forward_s: float
    backward_s: float
    measured: bool


class CostModel(Protocol):
    """Times of tasks. Must be a pure function of its arguments: simulators cache what it answers."""

    @property
    def name(self) -> str:
        """Names the model and its settings; a part of result records."""
        ...

    def task_time(
        self, graph: OperatorGraph, operator: Operator, shard: Shard, device_type: DeviceType
    ) -> TaskTime:
        """Time of one task of `operator` with the size `shard` on a device of `device_type`."""
        ...

    def update_time(self, num_bytes: int, device_type: DeviceType) -> float:
        """Seconds of the optimizer's update of parameters of `num_bytes` on a device of `device_type`."""
        ...
