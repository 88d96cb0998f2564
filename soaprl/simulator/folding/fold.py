"""Folds a problem: from all replicas of a strategy to one of each class.

The folded problem is an ordinary one: the graph for as many replicas as are kept, their devices, the links
inside them, one link for each class of links outside, and all-reduces whose times and links come from the
whole cluster. Its schedule is that of the whole, seen on the devices that are kept:

- Tasks of one replica share devices and links with tasks of others only in all-reduces. Their order among
  themselves, where times are equal, depends on operator, phase and part, and is the same in every replica.
- An all-reduce is ready when the last replica is, and occupies links of all replicas. Replicas of one class
  see it alike, so those that are kept have the latest ready time, and all links that it may wait for.

At least two replicas are kept, so that what all of them hold is still held by several devices.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from soaprl.cluster.cluster import Cluster, Device, DeviceType, GivenAllReduce
from soaprl.cluster.tables import IntArray, collective_tables
from soaprl.cost.compression import Compression
from soaprl.cost.model import CostModel, Shard, TaskTime
from soaprl.cost.ticks import all_in_ticks
from soaprl.cost.transfers import all_reduce, collective_scratch
from soaprl.graph.operators import Operator, OperatorGraph
from soaprl.graph.shrink import shrink
from soaprl.simulator.cells import SyncPools
from soaprl.simulator.folding.classes import Classes, Occupation, classify
from soaprl.simulator.folding.inside import Inside, inside
from soaprl.simulator.folding.replicas import Refusal, Replicas, find_replicas, group_config
from soaprl.simulator.patterns import OperatorPattern, OperatorPools
from soaprl.simulator.problem import Problem
from soaprl.simulator.tables import graph_index
from soaprl.strategy.strategy import Sharding, Strategy

_FEWEST_KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedProblem:
    """A problem and a strategy, and the smaller ones that stand for them.

    Attributes:
        problem: The whole problem.
        strategy: Its strategy.
        folded: The problem of the replicas that are kept.
        folded_strategy: Its strategy.
        num_replicas: Number of replicas.
        num_kept: How many of them are kept.
        device: Shape [devices]; for each device the one of the folded cluster that stands for it.
        link: Shape [links]; likewise for links; -1 for links that nothing uses.
        synchronization_bytes: What the whole strategy sends to sum gradients.
        folded_synchronization_bytes: What the folded one does.
    """

    problem: Problem
    strategy: Strategy
    folded: Problem
    folded_strategy: Strategy
    num_replicas: int
    num_kept: int
    device: IntArray
    link: IntArray
    synchronization_bytes: int
    folded_synchronization_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeCost:
    """Costs of tasks of a shrunken graph: those of the same tasks of the whole graph.

    Attributes:
        cost: The cost model.
        graph: The whole graph.
    """

    cost: CostModel
    graph: OperatorGraph

    @property
    def name(self) -> str:
        """That of the cost model."""
        return self.cost.name

    def task_time(
        self, graph: OperatorGraph, operator: Operator, shard: Shard, device_type: DeviceType
    ) -> TaskTime:
        """What the cost model says of the operator of this name of the whole graph."""
        del graph
        whole = self.graph.operators[self.graph.index[operator.name]]
        return self.cost.task_time(self.graph, whole, shard, device_type)

    def update_time(self, num_bytes: int, device_type: DeviceType) -> float:
        """What the cost model says."""
        return self.cost.update_time(num_bytes, device_type)


# Places of a replica that hold a cell of parameters, and the bytes of its gradient on the wire.
_Demand = tuple[tuple[int, ...], int]


def fold(problem: Problem, strategy: Strategy) -> FoldedProblem | Refusal:
    """The smallest problem that has the same simulation as `strategy`, or why there is none.

    Raises:
        StrategyError: The strategy does not fit the graph or the cluster.
    """
    if strategy.sharding is not Sharding.NONE:
        return Refusal(reason=f"state is sharded ({strategy.sharding.value}), so replicas keep pieces of it")
    if problem.overheads.occupy:
        return Refusal(
            reason="all-reduces take processor time of devices, which depends on how many there are"
        )
    if not strategy.is_whole:
        return Refusal(reason=f"the batch is cut into {strategy.micro_batches} micro-batches")
    reasons: list[str] = []
    for found in find_replicas(problem.graph, problem.cluster.num_devices, strategy):
        if isinstance(found, Refusal):
            reasons.append(found.reason)
            continue
        folded = _folded(problem, strategy, found)
        if isinstance(folded, FoldedProblem):
            return folded
        reasons.append(folded)
    return Refusal(reason=reasons[0])


def _folded(problem: Problem, strategy: Strategy, replicas: Replicas) -> FoldedProblem | str:
    """The folded problem for these replicas, or why they cannot be folded."""
    count, size = replicas.devices.shape
    within = inside(problem.cluster, replicas.devices)
    if isinstance(within, str):
        return within
    if count <= _FEWEST_KEPT:
        return f"there are {count} groups of {size} devices that do the same, and two are simulated at least"
    graph, small = _narrowed(problem.graph, replicas, _FEWEST_KEPT)
    cost = WholeCost(cost=problem.cost, graph=problem.graph)
    demands = _demands(graph, small, problem.options.compression, cost, size)
    if problem.options.paper and demands:
        return "gradients are sent to one device and back, as the paper assumes: it differs from all others"
    occupations = _occupations(problem.cluster, replicas.devices, demands)
    classes = classify(within.links, len(problem.cluster.links), list(occupations.values()))
    if len(classes.kept) >= count:
        return f"the all-reduces treat each of the {count} groups of {size} devices differently"
    kept = classes.kept if len(classes.kept) >= _FEWEST_KEPT else np.arange(_FEWEST_KEPT)
    if len(kept) > _FEWEST_KEPT:
        graph, small = _narrowed(problem.graph, replicas, len(kept))
    cluster = _kept_cluster(problem.cluster, replicas.devices, within, classes, kept, occupations)
    device = np.zeros(count * size, np.int64)
    device[replicas.devices] = classes.group.reshape(-1, 1) * size + np.arange(size)
    per_group = within.links.shape[1]
    link = np.where(classes.link >= 0, classes.link + len(kept) * per_group, -1)
    link[within.links] = classes.group.reshape(-1, 1) * per_group + np.arange(per_group)
    return FoldedProblem(
        problem=problem,
        strategy=strategy,
        folded=replace(problem, graph=graph, cluster=cluster, cost=cost),
        folded_strategy=small,
        num_replicas=count,
        num_kept=len(kept),
        device=device,
        link=link,
        synchronization_bytes=_sent_bytes(demands, count),
        folded_synchronization_bytes=_sent_bytes(demands, len(kept)),
    )


def _narrowed(graph: OperatorGraph, replicas: Replicas, kept: int) -> tuple[OperatorGraph, Strategy]:
    """The graph and the strategy of so many replicas."""
    count, size = replicas.devices.shape
    configs = {}
    for factor, places in zip(replicas.factors, replicas.places, strict=True):
        if (id(places), factor) not in configs:
            configs[id(places), factor] = group_config(places, factor, num_groups=kept, size=size)
    strategy = Strategy(
        tuple(configs[id(p), f] for f, p in zip(replicas.factors, replicas.places, strict=True))
    )
    return shrink(graph, replicas.factors, kept=kept, replicas=count), strategy


def _demands(
    graph: OperatorGraph, strategy: Strategy, compression: Compression, cost: CostModel, size: int
) -> Counter[_Demand]:
    """Over which places of every replica how many bytes of gradients are sent to be summed, and how often."""
    # Patterns for no type of device say who holds what, and ask for no times.
    operators = OperatorPools(graph, cost, ())
    sync = SyncPools(graph, cost, (), compression=compression)
    index = graph_index(graph)
    patterns: dict[int, OperatorPattern] = {}
    demands: Counter[_Demand] = Counter()
    for group in index.groups:
        for reader in group.readers:
            if reader not in patterns:
                patterns[reader] = operators.add_operator(
                    graph.operators[reader], strategy.configs[reader].degrees
                )
        cells = sync.add_group(group, tuple(patterns[reader] for reader in group.readers))
        places = [[d % size for d in strategy.configs[reader].devices] for reader in group.readers]
        for cell in range(cells.cell_begin, cells.cell_end):
            if not sync.cell_trainable.data[cell]:
                continue
            begin, end = sync.cover_begin.data[cell : cell + 2]
            readers, parts = sync.cover_reader.data[begin:end], sync.cover_part.data[begin:end]
            held = {places[r][p] for r, p in zip(readers.tolist(), parts.tolist(), strict=True)}
            demands[tuple(sorted(held)), int(sync.cell_sent_bytes.data[cell])] += 1
    return demands


def _occupations(
    cluster: Cluster, devices: IntArray, demands: Mapping[_Demand, int]
) -> dict[_Demand, Occupation]:
    """What each all-reduce over its places in all replicas takes."""
    tables = collective_tables(cluster)
    scratch = collective_scratch(tables)
    links, busy_s = np.zeros(len(cluster.links), np.int64), np.zeros(len(cluster.links), np.float64)
    occupations = {}
    for places, num_bytes in demands:
        members = np.sort(devices[:, list(places)].ravel())
        time_s, count, _ = all_reduce(tables, scratch, members, len(members), float(num_bytes), links, busy_s)
        occupations[places, num_bytes] = Occupation(
            time_s=time_s, links=links[:count].copy(), busy_s=all_in_ticks(busy_s[:count])
        )
    return occupations


def _kept_cluster(
    cluster: Cluster,
    devices: IntArray,
    within: Inside,
    classes: Classes,
    kept: IntArray,
    occupations: Mapping[_Demand, Occupation],
) -> Cluster:
    """The devices of the replicas that are kept, and their links."""
    size, per_group = devices.shape[1], within.links.shape[1]
    used = np.flatnonzero(classes.link >= 0)
    stand = used[np.unique(classes.link[used], return_index=True)[1]]
    links = np.concatenate([within.links[kept].ravel(), stand])
    begin, number = within.offsets.tolist(), within.route_links.tolist()
    routes = tuple(
        tuple(
            tuple(k + group * per_group for k in number[begin[p * size + q] : begin[p * size + q + 1]])
            if other == group
            else ()
            for other in range(len(kept))
            for q in range(size)
        )
        for group in range(len(kept))
        for p in range(size)
    )
    originals = [cluster.devices[d] for d in devices[kept].ravel().tolist()]
    return Cluster(
        name=f"{cluster.name}, {len(originals)} devices for all",
        device_types=cluster.device_types,
        devices=tuple(Device(name=d.name, node=k // size, type=d.type) for k, d in enumerate(originals)),
        links=tuple(cluster.links[link] for link in links.tolist()),
        routes=routes,
        overheads=cluster.overheads,
        all_reduces=_given(links, len(cluster.links), len(kept), size, occupations),
    )


def _given(
    links: IntArray, num_links: int, num_kept: int, size: int, occupations: Mapping[_Demand, Occupation]
) -> tuple[GivenAllReduce, ...]:
    """The all-reduces on the links that are kept."""
    busy_s = np.zeros(num_links, np.float64)
    given = []
    for (places, num_bytes), occupation in occupations.items():
        busy_s[occupation.links] = occupation.busy_s
        seen_s = busy_s[links]
        busy_s[occupation.links] = 0.0
        taken = np.flatnonzero(seen_s)
        given.append(
            GivenAllReduce(
                devices=tuple(size * group + place for group in range(num_kept) for place in places),
                num_bytes=num_bytes,
                time_s=occupation.time_s,
                links=tuple(taken.tolist()),
                busy_s=tuple(seen_s[taken].tolist()),
            )
        )
    return tuple(given)


def _sent_bytes(demands: Mapping[_Demand, int], num_replicas: int) -> int:
    """Bytes of all all-reduces, as `soaprl.simulator.Evaluation` counts them."""
    return sum(
        2 * (num_replicas * len(places) - 1) * num_bytes * times
        for (places, num_bytes), times in demands.items()
    )
