"""How much of a result stands on measurements."""

from collections import Counter
from dataclasses import dataclass

from soaprl.cluster.cluster import Cluster
from soaprl.cost.model import CostModel, Shard
from soaprl.cost.profiled.model import ProfiledCostModel, Source
from soaprl.graph.factors import part_box
from soaprl.graph.operators import Access, Operator, OperatorGraph
from soaprl.strategy.strategy import OpConfig, Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the times of a strategy's tasks come from.

    Attributes:
        time_s: By source, forward and backward seconds of all tasks.
        tasks: By source, how many tasks.
        roofline_kinds: Kinds of operators with times that are the roofline's.
    """

    time_s: dict[Source, float]
    tasks: dict[Source, int]
    roofline_kinds: tuple[str, ...]

    def share(self, source: Source) -> float:
        """Which part of all compute time is from `source`."""
        total = sum(self.time_s.values())
        return self.time_s[source] / total if total > 0 else 0.0

    @property
    def text(self) -> str:
        """For people, in one line."""
        words = [f"{self.share(s):.0%} {s}" for s in ("measured", "interpolated", "roofline")]
        kinds = f" ({', '.join(self.roofline_kinds)})" if self.roofline_kinds else ""
        return f"compute time: {', '.join(words)}{kinds}"


def sources_of(graph: OperatorGraph, cluster: Cluster, cost: CostModel, strategy: Strategy) -> Sources:
    """Where the times of all tasks of `strategy` come from; from the roofline, if costs are no profile's."""
    times: dict[Source, float] = {"measured": 0.0, "interpolated": 0.0, "roofline": 0.0}
    tasks: dict[Source, int] = {"measured": 0, "interpolated": 0, "roofline": 0}
    kinds: dict[str, None] = {}
    for operator, config in zip(graph.operators, strategy.configs, strict=True):
        for (shard, kind), count in _shards(graph, cluster, operator, config).items():
            device_type = cluster.device_types[kind]
            time = cost.task_time(graph, operator, shard, device_type)
            source: Source = "roofline"
            if isinstance(cost, ProfiledCostModel):
                source = cost.source(graph, operator, shard, device_type)
            times[source] += count * (time.forward_s + time.backward_s)
            tasks[source] += count
            if source == "roofline":
                kinds[operator.kind] = None
    return Sources(time_s=times, tasks=tasks, roofline_kinds=tuple(kinds))


def _shards(
    graph: OperatorGraph, cluster: Cluster, operator: Operator, config: OpConfig
) -> Counter[tuple[Shard, int]]:
    """The shards of an operator with the types of device that run them, and how many of each there are."""
    found: Counter[tuple[Shard, int]] = Counter()
    for part, device in enumerate(config.devices):
        box = part_box(operator.extents, config.degrees, part)

        def sizes(accesses: tuple[Access, ...], box: tuple[tuple[int, int], ...] = box) -> tuple[int, ...]:
            return tuple(_num_bytes(graph, access, box) for access in accesses)

        shard = Shard(
            extents=tuple(hi - lo for lo, hi in box),
            input_bytes=sizes(operator.inputs),
            parameter_bytes=sizes(operator.parameters),
            output_bytes=sizes(operator.outputs),
        )
        found[shard, cluster.devices[device].type] += 1
    return found


def _num_bytes(graph: OperatorGraph, access: Access, box: tuple[tuple[int, int], ...]) -> int:
    found = graph.tensors[access.tensor].itemsize
    for span in access.spans:
        start, stop = span.interval(*(box[span.factor] if span.factor >= 0 else (0, 1)))
        found *= max(0, stop - start)
    return found
