"""Task times from FLOPs and bytes alone: needs no hardware and never fails for an operator.

For a pass of k kernels with f FLOPs and b bytes of memory traffic, on a device with peak P FLOP/s and memory
bandwidth B, both times the share that large kernels reach,

    time = k * launch + max((f + k * P * half) / P, (b + k * B * half') / B)

Implemented in `RooflineCostModel._pass_time`. Per kernel this is the saturating law
``rate = P * w / (w + P * half)``: a kernel with as much work as the device does in the time `half` runs at
half speed, because it cannot fill all of the device's units. So cutting an operator into many parts is never
free. `half` is an assumption (5 us for arithmetic, 2 us for memory): with it a half-precision product of two
1024 x 1024 matrices reaches about a quarter of an H100's peak.

Traffic of the forward pass: inputs, parameters and outputs once, and the operator's internal bytes.
Traffic of the backward pass: gradients of the outputs, everything saved, and parameters are read; gradients
of inputs and parameters are written; internal bytes move twice. Implemented in `_forward_bytes` and
`_backward_bytes`. Activations keep the element size of the graph, whatever dtype the arithmetic runs in.

Arithmetic on matrix units (`Operator.matmul`) runs in the model's compute dtype, all other in float32.

With ``paper=True`` the assumptions of the paper hold: tasks are predictable from sizes (A1, as always) and
nothing but the task itself takes time (A4), so launches cost nothing. What the paper assumes of transfers
(A2) is `cluster_tables(cluster, paper=True)`; first-in first-out devices (A3) are how the simulator works.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from soaprl.cluster.cluster import DeviceType
from soaprl.cost.model import Shard, TaskTime
from soaprl.cost.optimizers import OptimizerFacts, optimizer_facts
from soaprl.errors import CostError, unknown_name
from soaprl.graph.operators import Access, Operator, OperatorGraph, evaluate_terms

COMPUTE_DTYPES = ("float32", "tf32", "bfloat16", "float16", "float64")

# Assumed; see the module's docstring.
COMPUTE_HALF_S = 5e-6
MEMORY_HALF_S = 2e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineCostModel:
    """The cost model of the module's formulas.

    Attributes:
        compute_dtype: In which dtype matrix units work; one of `COMPUTE_DTYPES`. On a device type without
            ``tf32`` units that dtype means float32, which is how such devices run the same program.
        optimizer: What the update moves.
        paper: Whether the paper's assumptions hold.
    """

    compute_dtype: str = "float32"
    optimizer: OptimizerFacts = field(default_factory=lambda: optimizer_facts("adam"))
    paper: bool = False

    def __post_init__(self) -> None:
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise unknown_name("compute dtype", self.compute_dtype, COMPUTE_DTYPES)

    @property
    def name(self) -> str:
        """Names the model and its settings."""
        settings = [self.compute_dtype, self.optimizer.name, *(["paper"] if self.paper else [])]
        return f"roofline({', '.join(settings)})"

    def task_time(
        self, graph: OperatorGraph, operator: Operator, shard: Shard, device_type: DeviceType
    ) -> TaskTime:
        """Time of one task of `operator` with the size `shard` on a device of `device_type`.

        Raises:
            CostError: The device type has no peak for the compute dtype.
        """
        forward_s = self._pass_time(
            operator,
            device_type,
            flops=evaluate_terms(operator.forward_flops, shard.extents),
            num_bytes=_forward_bytes(operator, shard),
            num_kernels=operator.num_forward_kernels,
        )
        backward_s = 0.0
        if operator.has_backward:
            backward_s = self._pass_time(
                operator,
                device_type,
                flops=evaluate_terms(operator.backward_flops, shard.extents),
                num_bytes=_backward_bytes(operator, shard),
                num_kernels=operator.num_backward_kernels,
            )
        return TaskTime(forward_s=forward_s, backward_s=backward_s, measured=False)

    def update_time(self, num_bytes: int, device_type: DeviceType) -> float:
        """Seconds of the optimizer's update of parameters of `num_bytes`; 0 for nothing."""
        if num_bytes <= 0:
            return 0.0
        traffic = self.optimizer.update_traffic_bytes(num_bytes)
        return self._launch_s(device_type) + MEMORY_HALF_S + traffic / _memory_rate(device_type)

    def _pass_time(
        self, operator: Operator, device_type: DeviceType, *, flops: float, num_bytes: float, num_kernels: int
    ) -> float:
        compute_s = memory_s = 0.0
        if flops > 0:
            compute_s = flops / self._compute_rate(operator, device_type) + num_kernels * COMPUTE_HALF_S
        if num_bytes > 0:
            memory_s = num_bytes / _memory_rate(device_type) + num_kernels * MEMORY_HALF_S
        return num_kernels * self._launch_s(device_type) + max(compute_s, memory_s)

    def _launch_s(self, device_type: DeviceType) -> float:
        return 0.0 if self.paper else device_type.kernel_launch_s

    def _compute_rate(self, operator: Operator, device_type: DeviceType) -> float:
        """FLOP/s that large kernels of `operator` reach."""
        peaks = dict(device_type.peak_flops_per_s)
        dtype = self.compute_dtype if operator.matmul else "float32"
        if dtype == "tf32" and dtype not in peaks:
            dtype = "float32"
        if dtype not in peaks:
            raise CostError(
                f"device type {device_type.name!r} has no peak FLOP/s for {dtype}. Choose one of"
                f" {', '.join(peaks)} as the compute dtype, or another cluster."
            )
        return peaks[dtype] * device_type.matmul_efficiency


def _memory_rate(device_type: DeviceType) -> float:
    """Bytes per second that large kernels reach."""
    return device_type.memory_bandwidth_bytes_per_s * device_type.memory_efficiency


def _forward_bytes(operator: Operator, shard: Shard) -> float:
    moved = sum(shard.input_bytes) + sum(shard.parameter_bytes) + sum(shard.output_bytes)
    return moved + evaluate_terms(operator.internal_bytes, shard.extents)


def _backward_bytes(operator: Operator, shard: Shard) -> float:
    inputs = list(zip(operator.inputs, shard.input_bytes, strict=True))
    parameters = list(zip(operator.parameters, shard.parameter_bytes, strict=True))
    outputs = list(zip(operator.outputs, shard.output_bytes, strict=True))
    read = _with_gradient(outputs) + _saved([*inputs, *outputs]) + sum(shard.parameter_bytes)
    written = _with_gradient([*inputs, *parameters])
    internal = 2 * evaluate_terms(operator.internal_bytes, shard.extents)
    return read + written + internal + evaluate_terms(operator.internal_saved_bytes, shard.extents)


def _with_gradient(accesses: Iterable[tuple[Access, int]]) -> int:
    return sum(num_bytes for access, num_bytes in accesses if access.gradient)


def _saved(accesses: Iterable[tuple[Access, int]]) -> int:
    return sum(num_bytes for access, num_bytes in accesses if access.saved)
