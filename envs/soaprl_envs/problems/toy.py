"""A generator of one problem whose optimum is known."""

from dataclasses import dataclass
from math import prod

from soaprl.cluster.cluster import Cluster, Device, DeviceType, Link
from soaprl.cost.model import Shard, TaskTime
from soaprl.graph.factors import FactorKind
from soaprl.graph.operators import Operator, OperatorGraph
from soaprl.simulator.problem import Problem
from soaprl_envs.problems.blocks import BlockBuilder

_SAMPLE, _CHANNEL = 2, 64
OPTIMUM_S = 6.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _UnitCost:
    """A whole linear layer takes 1 s forward and 2 s backward, a part its share; all else takes nothing."""

    @property
    def name(self) -> str:
        return "two towers"

    def task_time(
        self, graph: OperatorGraph, operator: Operator, shard: Shard, device_type: DeviceType
    ) -> TaskTime:
        del graph, device_type
        share = prod(shard.extents) / prod(operator.extents) if operator.kind == "linear" else 0.0
        return TaskTime(forward_s=share, backward_s=2 * share, measured=False)

    def update_time(self, num_bytes: int, device_type: DeviceType) -> float:
        del num_bytes, device_type
        return 0.0


class TwoTowers:
    """Two towers of two linear layers each and their sum, on two devices: the optimum is 6.5 s.

    Layers (2 samples, 64 channels in and out) take 1 s forward and 2 s backward and can be split by sample
    only. Weights have 64 x 64 x 4 = 16,384 bytes, activations 2 x 64 x 4 = 512. A link in each direction
    sends 1,024 bytes/s.

    Data parallelism computes 6 s on each device, but sums four weights' gradients, 16 s each. The optimum
    has one tower on each device and the sum split by sample: 2 s forward, 0.25 s to exchange half an
    activation (256 bytes in each direction at once), 0.25 s for the gradients of it, 4 s backward: 6.5 s. The
    sum on one device takes 0.5 s each way, 7 s in all; everything on one device 12 s.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The only problem."""
        return ("two-towers",)

    def problem(self, number: int) -> Problem:
        """The only problem."""
        del number
        return Problem(graph=_graph(), cluster=_cluster(), cost=_UnitCost())

    def spec(self, number: int) -> None:
        """There is none: its costs are made here."""
        return


def _graph() -> OperatorGraph:
    builder = BlockBuilder(sample=_SAMPLE, position=1, split=frozenset({FactorKind.SAMPLE}))
    towers = []
    for _ in range(2):
        x = builder.linear(builder.input(_CHANNEL), _CHANNEL)
        towers.append(builder.linear(x, _CHANNEL))
    builder.add(*towers)
    return builder.build("two-towers")


def _cluster() -> Cluster:
    kind = DeviceType(
        name="toy",
        peak_flops_per_s=(("float32", 1.0),),
        memory_bytes=1 << 30,
        memory_bandwidth_bytes_per_s=1.0,
        kernel_launch_s=0.0,
        matmul_efficiency=1.0,
        memory_efficiency=1.0,
    )
    links = tuple(Link(name=f"{a}->{1 - a}", bandwidth_bytes_per_s=1024.0, latency_s=0.0) for a in range(2))
    return Cluster(
        name="two-devices",
        device_types=(kind,),
        devices=tuple(Device(name=f"d{i}", node=0, type=0) for i in range(2)),
        links=links,
        routes=(((), (0,)), ((1,), ())),
    )
