"""Small operator graphs, clusters and costs built without torch, for tests.

Times and sizes are small whole numbers, so that simulated times are exact in floating point and can be
written beside an assert as they were computed by hand.

    graph = chain(num_operators=2, sample=4, channel=4)
    cluster = uniform_cluster(2)
    cost = TableCost(forward={"op0": 2.0})
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from soaprl.cluster.cluster import Cluster, Device, DeviceType, Link
from soaprl.cost.model import Shard, TaskTime
from soaprl.graph.factors import Factor, FactorKind, Span
from soaprl.graph.operators import Access, Operator, OperatorGraph, Tensor, TensorRole, Term
from soaprl.strategy.strategy import OpConfig, Strategy


def whole_factor(name: str, extent: int, kind: FactorKind) -> Factor:
    """A factor that may be cut down to single indices."""
    return Factor(name=name, extent=extent, kind=kind, max_degree=extent)


def plain_span(factor: int, extent: int) -> Span:
    """The tensor dimension is the factor."""
    return Span(factor=factor, lower=0, upper=extent)


def plain_access(
    tensor: int, spans: tuple[Span, ...], *, gradient: bool = True, saved: bool = True, combine: str = "sum"
) -> Access:
    """An access through no view."""
    return Access(
        tensor=tensor,
        spans=spans,
        layout=tuple((d,) for d in range(len(spans))),
        gradient=gradient,
        saved=saved,
        combine=combine,
    )


class ToyBuilder:
    """Adds tensors and operators one by one; methods return tensor indices.

    Every activation and graph input has the shape ``[sample, channel]``; elements take 4 bytes.
    """

    def __init__(self, *, sample: int, itemsize: int = 4) -> None:
        self.sample = sample
        self.itemsize = itemsize
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []

    def _tensor(self, name: str, role: TensorRole, shape: tuple[int, ...], *, requires_grad: bool) -> int:
        self.tensors.append(
            Tensor(
                name=name,
                role=role,
                dtype="float32",
                itemsize=self.itemsize,
                refined=tuple((s,) for s in shape),
                requires_grad=requires_grad,
            )
        )
        return len(self.tensors) - 1

    def input(self, name: str, *, channel: int) -> int:
        """A graph input ``[sample, channel]``."""
        return self._tensor(name, TensorRole.INPUT, (self.sample, channel), requires_grad=False)

    def parameter(self, name: str, *shape: int) -> int:
        """A parameter; pass its index to several operators to tie it."""
        return self._tensor(name, TensorRole.PARAMETER, shape, requires_grad=True)

    def _channels(self, tensor: int) -> int:
        return self.tensors[tensor].shape[1]

    def _read(self, tensor: int, spans: tuple[Span, ...], *, saved: bool) -> Access:
        return plain_access(tensor, spans, gradient=self.tensors[tensor].requires_grad, saved=saved)

    def _operator(
        self,
        name: str,
        kind: str,
        factors: tuple[Factor, ...],
        inputs: tuple[Access, ...],
        parameters: tuple[Access, ...],
        output: Access,
        *,
        has_backward: bool = True,
    ) -> int:
        work = Term(coefficient=1.0, factors=tuple(range(len(factors))))
        self.operators.append(
            Operator(
                name=name,
                kind=kind,
                factors=factors,
                inputs=inputs,
                parameters=parameters,
                buffers=(),
                outputs=(output,),
                forward_flops=(work,),
                backward_flops=(work,) if has_backward else (),
                internal_bytes=(),
                internal_saved_bytes=(),
                num_forward_kernels=1,
                num_backward_kernels=1 if has_backward else 0,
                matmul=kind == "linear",
                body=(),
                body_outputs=(),
            )
        )
        return output.tensor

    def linear(self, name: str, x: int, channel: int, *, weight: int | None = None) -> int:
        """``x[sample, in_channel] w[channel, in_channel] -> y[sample, channel]``; `weight` may be tied."""
        in_channel = self._channels(x)
        w = self.parameter(f"{name}.weight", channel, in_channel) if weight is None else weight
        y = self._tensor(f"{name}.out", TensorRole.ACTIVATION, (self.sample, channel), requires_grad=True)
        rows, columns, inner = plain_span(0, self.sample), plain_span(1, channel), plain_span(2, in_channel)
        factors = (
            whole_factor("sample", self.sample, FactorKind.SAMPLE),
            whole_factor("channel", channel, FactorKind.PARAMETER),
            whole_factor("in_channel", in_channel, FactorKind.REDUCTION),
        )
        return self._operator(
            name,
            "linear",
            factors,
            (self._read(x, (rows, inner), saved=True),),
            (plain_access(w, (columns, inner)),),
            plain_access(y, (rows, columns), saved=False),
        )

    def add(self, name: str, *operands: int) -> int:
        """The sum of operands of one shape; saves nothing."""
        channel = self._channels(operands[0])
        y = self._tensor(f"{name}.out", TensorRole.ACTIVATION, (self.sample, channel), requires_grad=True)
        spans = (plain_span(0, self.sample), plain_span(1, channel))
        factors = (
            whole_factor("sample", self.sample, FactorKind.SAMPLE),
            whole_factor("channel", channel, FactorKind.ATTRIBUTE),
        )
        inputs = tuple(self._read(x, spans, saved=False) for x in operands)
        return self._operator(name, "add", factors, inputs, (), plain_access(y, spans, saved=False))

    def window(self, name: str, x: int, *, kernel: int = 3) -> int:
        """A sliding sum along channel with stride 1 and padding ``kernel // 2``: parts read halos."""
        channel = self._channels(x)
        y = self._tensor(f"{name}.out", TensorRole.ACTIVATION, (self.sample, channel), requires_grad=True)
        rows = plain_span(0, self.sample)
        before = kernel // 2
        halo = Span(factor=1, lower=0, upper=channel, add_first=-before, add_last=kernel - 1 - before)
        factors = (
            whole_factor("sample", self.sample, FactorKind.SAMPLE),
            whole_factor("channel", channel, FactorKind.ATTRIBUTE),
        )
        return self._operator(
            name,
            "window",
            factors,
            (self._read(x, (rows, halo), saved=True),),
            (),
            plain_access(y, (rows, plain_span(1, channel)), saved=False),
        )

    def mean(self, name: str, x: int, *, has_backward: bool = True) -> int:
        """A scalar of everything: split along any factor its tasks write partial sums."""
        channel = self._channels(x)
        y = self._tensor(f"{name}.out", TensorRole.ACTIVATION, (), requires_grad=has_backward)
        spans = (plain_span(0, self.sample), plain_span(1, channel))
        factors = (
            whole_factor("sample", self.sample, FactorKind.SAMPLE),
            whole_factor("channel", channel, FactorKind.REDUCTION),
        )
        read = plain_access(x, spans, gradient=has_backward and self.tensors[x].requires_grad, saved=False)
        return self._operator(
            name,
            "mean",
            factors,
            (read,),
            (),
            plain_access(y, (), gradient=has_backward, saved=False),
            has_backward=has_backward,
        )

    def build(self, name: str = "toy") -> OperatorGraph:
        """The graph of everything that was added, in order."""
        return OperatorGraph(
            name=name,
            batch_size=self.sample,
            tensors=tuple(self.tensors),
            operators=tuple(self.operators),
            loss=self.operators[-1].outputs[0].tensor,
        )


def chain(*, num_operators: int = 3, sample: int = 4, channel: int = 4) -> OperatorGraph:
    """``op0 -> op1 -> ...``, all linear."""
    builder = ToyBuilder(sample=sample)
    x = builder.input("x", channel=channel)
    for i in range(num_operators):
        x = builder.linear(f"op{i}", x, channel)
    return builder.build("chain")


def diamond(*, sample: int = 4, channel: int = 4) -> OperatorGraph:
    """``top -> left, right -> bottom``: two linear branches that are added."""
    builder = ToyBuilder(sample=sample)
    top = builder.linear("top", builder.input("x", channel=channel), channel)
    left = builder.linear("left", top, channel)
    right = builder.linear("right", top, channel)
    builder.add("bottom", left, right)
    return builder.build("diamond")


def crossing(*, sample: int = 4, channel: int = 4) -> OperatorGraph:
    """``a0, b0 -> a1, b1``: both second operators add both first ones; ``end`` adds the second ones."""
    builder = ToyBuilder(sample=sample)
    x = builder.input("x", channel=channel)
    a0 = builder.linear("a0", x, channel)
    b0 = builder.linear("b0", x, channel)
    a1 = builder.add("a1", a0, b0)
    b1 = builder.add("b1", b0, a0)
    builder.add("end", a1, b1)
    return builder.build("crossing")


def tied(*, sample: int = 4, channel: int = 4) -> OperatorGraph:
    """Two linear operators in a row that share one square weight."""
    builder = ToyBuilder(sample=sample)
    w = builder.parameter("shared.weight", channel, channel)
    x = builder.linear("first", builder.input("x", channel=channel), channel, weight=w)
    builder.linear("second", x, channel, weight=w)
    return builder.build("tied")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCost:
    """A cost model that looks times up.

    A task takes the seconds per unit of work of its operator, times its work (the product of its factor
    extents: its share of the operator's index space), times the slowness of its device type.

    Attributes:
        forward: Forward seconds per unit of work by operator name.
        backward: Backward seconds per unit of work by operator name.
        default_forward: For operators not in `forward`.
        default_backward: For operators not in `backward`.
        update_s_per_byte: Optimizer's update.
        slowness: Factor by device type name; 1 where missing.
    """

    forward: Mapping[str, float] = field(default_factory=dict)
    backward: Mapping[str, float] = field(default_factory=dict)
    default_forward: float = 1.0
    default_backward: float = 2.0
    update_s_per_byte: float = 0.0
    slowness: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Names the model."""
        return "table"

    def task_time(
        self, graph: OperatorGraph, operator: Operator, shard: Shard, device_type: DeviceType
    ) -> TaskTime:
        """Time of a task: seconds per unit of work x work x slowness."""
        del graph
        # A copy of an operator for a micro-batch takes what the operator takes.
        name = operator.name.split("@")[0]
        work = prod(shard.extents) * self.slowness.get(device_type.name, 1.0)
        backward = self.backward.get(name, self.default_backward) if operator.has_backward else 0.0
        return TaskTime(
            forward_s=self.forward.get(name, self.default_forward) * work,
            backward_s=backward * work,
            measured=False,
        )

    def update_time(self, num_bytes: int, device_type: DeviceType) -> float:
        """Seconds per byte x bytes x slowness."""
        return self.update_s_per_byte * num_bytes * self.slowness.get(device_type.name, 1.0)


def toy_type(name: str = "toy", *, memory_bytes: int = 1 << 30) -> DeviceType:
    """A device type of unit speed."""
    return DeviceType(
        name=name,
        peak_flops_per_s=(("float32", 1.0),),
        memory_bytes=memory_bytes,
        memory_bandwidth_bytes_per_s=1.0,
        kernel_launch_s=0.0,
        matmul_efficiency=1.0,
        memory_efficiency=1.0,
    )


def uniform_cluster(
    num_devices: int,
    *,
    bandwidth: float = 1.0,
    latency: float = 0.0,
    device_types: tuple[DeviceType, ...] = (),
    types: tuple[int, ...] = (),
) -> Cluster:
    """One node; a link of its own for every ordered pair of devices, so pairs never contend."""
    number = {}
    links: list[Link] = []
    for i in range(num_devices):
        for j in range(num_devices):
            if i != j:
                number[i, j] = len(links)
                links.append(Link(name=f"d{i}->d{j}", bandwidth_bytes_per_s=bandwidth, latency_s=latency))
    routes = tuple(
        tuple((number[i, j],) if i != j else () for j in range(num_devices)) for i in range(num_devices)
    )
    return _cluster(f"uniform-{num_devices}", num_devices, device_types, types, links, routes)


def bus_cluster(num_devices: int, *, bandwidth: float = 1.0, latency: float = 0.0) -> Cluster:
    """One node; a single link that every transfer uses, so all of them contend."""
    links = [Link(name="bus", bandwidth_bytes_per_s=bandwidth, latency_s=latency)]
    routes = tuple(tuple((0,) if i != j else () for j in range(num_devices)) for i in range(num_devices))
    return _cluster(f"bus-{num_devices}", num_devices, (), (), links, routes)


def node_cluster(
    num_nodes: int,
    devices_per_node: int,
    *,
    bandwidth: float = 4.0,
    network_bandwidth: float = 1.0,
    latency: float = 0.0,
    device_types: tuple[DeviceType, ...] = (),
    types: tuple[int, ...] = (),
) -> Cluster:
    """Nodes with a link for every pair of devices inside, and one network link out of and into each node.

    A route between nodes takes the sender's outgoing and the receiver's incoming network link.
    """
    num_devices = num_nodes * devices_per_node
    number: dict[tuple[int, int], int] = {}
    links: list[Link] = []
    for i in range(num_devices):
        for j in range(num_devices):
            if i != j and i // devices_per_node == j // devices_per_node:
                number[i, j] = len(links)
                links.append(Link(name=f"d{i}->d{j}", bandwidth_bytes_per_s=bandwidth, latency_s=latency))
    out = len(links)
    for direction in ("out", "in"):
        links += [
            Link(name=f"node{n}.{direction}", bandwidth_bytes_per_s=network_bandwidth, latency_s=latency)
            for n in range(num_nodes)
        ]
    routes = tuple(
        tuple(
            ()
            if i == j
            else (number[i, j],)
            if (i, j) in number
            else (out + i // devices_per_node, out + num_nodes + j // devices_per_node)
            for j in range(num_devices)
        )
        for i in range(num_devices)
    )
    return _cluster(
        f"nodes-{num_nodes}x{devices_per_node}",
        num_devices,
        device_types,
        types,
        links,
        routes,
        devices_per_node,
    )


def _cluster(
    name: str,
    num_devices: int,
    device_types: tuple[DeviceType, ...],
    types: tuple[int, ...],
    links: list[Link],
    routes: tuple[tuple[tuple[int, ...], ...], ...],
    devices_per_node: int = 0,
) -> Cluster:
    kinds = types or (0,) * num_devices
    devices = tuple(
        Device(name=f"d{i}", node=i // devices_per_node if devices_per_node else 0, type=kinds[i])
        for i in range(num_devices)
    )
    return Cluster(
        name=name,
        device_types=device_types or (toy_type(),),
        devices=devices,
        links=tuple(links),
        routes=routes,
    )


def on_one_device(graph: OperatorGraph, device: int = 0) -> Strategy:
    """Nothing split, everything on `device`."""
    return Strategy(tuple(OpConfig((1,) * len(op.factors), (device,)) for op in graph.operators))


def split(graph: OperatorGraph, operator: int, devices: tuple[int, ...], **degrees: int) -> OpConfig:
    """A configuration from degrees by factor name: ``split(graph, 0, (0, 1), sample=2)``."""
    op = graph.operators[operator]
    unknown = set(degrees) - {f.name for f in op.factors}
    assert not unknown, f"{op.name} has no factors {unknown}"
    config = OpConfig(tuple(degrees.get(f.name, 1) for f in op.factors), devices)
    assert len(devices) == config.num_tasks, f"{config.num_tasks} tasks, {len(devices)} devices"
    return config


def data_parallel_toy(graph: OperatorGraph, num_devices: int) -> Strategy:
    """Every operator split along sample, task k on device k."""
    return Strategy(
        tuple(
            split(graph, i, tuple(range(num_devices)), sample=num_devices)
            for i in range(len(graph.operators))
        )
    )
