"""Megatron's strategy for transformers: tensor parallelism inside groups of devices, data parallelism across.

Sources: Shoeybi et al., *Megatron-LM* (arXiv 1909.08053): column and row pairs for attention and feed-forward
layers, tables and logits split by vocabulary. Korthikanti et al., *Reducing Activation Recomputation in Large
Transformer Models* (arXiv 2205.05198): what lies between the pairs (normalizations, residual sums, dropout)
is split along the sequence, so that each all-reduce becomes a reduce-scatter and an all-gather of the same
bytes. In SOAP no two tasks compute the same part, so this is the form that it can express.

With n devices, tensor degree t and data degree d = n / t, part (i, k) of d x t is on device i t + k:
consecutive devices, which clusters have on one node, share layers.

    operators of tensor groups (`soaprl.strategy.tensor_groups`)    sample d, the group's factor t
    look-ups of tables with t rows or more                          sample d, vocabulary t
    others that have positions                                      sample d, positions t
    the rest                                                        sample n, as far as the batch allows

A tensor degree is legal if it divides the devices, leaves a sample for each data part, and is at most every
head count and hidden width of the attention and feed-forward groups. Megatron itself also wants it to divide
them, and pads the vocabulary; here parts may differ by one (25 heads on 4 devices are 7, 6, 6 and 6). A
look-up whose table cannot be cut by rows (GPT-2's, into which its sum with the positions is folded) is cut
along the positions.
"""

from dataclasses import dataclass

from soaprl.cluster.cluster import Cluster
from soaprl.graph.operators import Operator, OperatorGraph
from soaprl.strategy.placing import Cut, Inapplicable, by_sample, placed, sample_cuts
from soaprl.strategy.strategy import OpConfig, Strategy
from soaprl.strategy.tensor_groups import GroupKind, TensorGroup, lookups, position_factors, tensor_groups


def megatron(graph: OperatorGraph, cluster: Cluster, *, tensor_degree: int) -> Strategy | Inapplicable:
    """The strategy with this tensor degree, or why there is none; see the module."""
    degrees = megatron_degrees(graph, cluster)
    if isinstance(degrees, Inapplicable):
        return degrees
    if tensor_degree not in degrees:
        legal = ", ".join(str(degree) for degree in degrees)
        return Inapplicable(
            reason=f"expected a tensor degree of {legal} for {graph.name!r} on the {cluster.num_devices}"
            f" devices of {cluster.name!r}, found {tensor_degree}"
        )
    return TensorParallelism.of(graph).strategy(cluster.num_devices, tensor_degree)


def megatron_degrees(graph: OperatorGraph, cluster: Cluster) -> tuple[int, ...] | Inapplicable:
    """The legal tensor degrees, ascending, or why the graph has none."""
    return TensorParallelism.of(graph).degrees(cluster.num_devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorParallelism:
    """What can be cut in a graph besides samples, found once for any number of devices.

    Attributes:
        graph: The graph.
        groups: Its tensor groups.
        tables: Its look-ups of tables, and the factor that runs over rows.
    """

    graph: OperatorGraph
    groups: tuple[TensorGroup, ...]
    tables: dict[int, int]

    @classmethod
    def of(cls, graph: OperatorGraph) -> "TensorParallelism":
        """That of `graph`."""
        return cls(graph=graph, groups=tensor_groups(graph), tables=lookups(graph))

    def degrees(self, num_devices: int) -> tuple[int, ...] | Inapplicable:
        """The legal tensor degrees on so many devices, ascending, or why the graph has none."""
        return _degrees(self.graph, self.groups, num_devices)

    def strategy(self, num_devices: int, tensor: int) -> Strategy:
        """The strategy with a tensor degree that is legal, on devices 0 to `num_devices` - 1."""
        graph = self.graph
        groups = tuple(group for group in self.groups if _allows(graph, group, tensor))
        cut = {index: factor for group in groups for index, factor in group.factors.items()}
        tables = {
            index: factor
            for index, factor in self.tables.items()
            if index not in cut and graph.operators[index].factors[factor].max_degree >= tensor
        }
        positions = position_factors(graph, groups)
        factors = {**positions, **tables, **cut}
        return Strategy(
            tuple(
                _config(operator, num_devices, tensor, factors.get(index, -1))
                for index, operator in enumerate(graph.operators)
            )
        )


def _degrees(
    graph: OperatorGraph, groups: tuple[TensorGroup, ...], num_devices: int
) -> tuple[int, ...] | Inapplicable:
    if not any(group.kind is GroupKind.ATTENTION for group in groups):
        return Inapplicable(
            reason=f"{graph.name!r} is no transformer: expected attention whose heads can be split, between"
            " linear layers that make queries, keys and values and one that sums over the heads"
        )
    limit = min(
        graph.operators[index].factors[factor].max_degree
        for group in groups
        if group.kind is not GroupKind.VOCABULARY
        for index, factor in group.factors.items()
    )
    n = num_devices
    divisors = [t for t in range(1, min(n, limit) + 1) if n % t == 0]
    legal = tuple(t for t in divisors if n // t <= graph.batch_size)
    if legal:
        return legal
    return Inapplicable(
        reason=f"batch of {graph.batch_size} too small: on {n} devices with tensor degrees"
        f" {', '.join(str(t) for t in divisors)} expected at least {n // divisors[-1]} samples"
    )


def _allows(graph: OperatorGraph, group: TensorGroup, tensor: int) -> bool:
    factors = group.factors.items()
    return all(graph.operators[index].factors[factor].max_degree >= tensor for index, factor in factors)


def _config(operator: Operator, num_devices: int, tensor: int, factor: int) -> OpConfig:
    """`operator` with sample degree n / t and, where it has one, `factor` cut into t parts."""
    devices = range(num_devices)
    if tensor == 1 or factor < 0 or operator.factors[factor].max_degree < tensor:
        return by_sample(operator, devices)
    samples = sample_cuts(operator, num_devices // tensor, stride=tensor)
    return placed(operator, {**samples, factor: Cut(degree=tensor, stride=1)}, devices)
