"""Strategies that experts designed by hand, for convolutional and for recurrent networks.

`one_weird_trick`: Krizhevsky, *One weird trick for parallelizing convolutional neural networks* (arXiv
1404.5997). Convolutions hold few weights and do most of the work: cut by sample. Fully connected layers hold
most of the weights and do little work: cut by output channel. Everything else by sample.

`gnmt_expert`: Wu et al., *Google's Neural Machine Translation System* (arXiv 1609.08144), and what the SOAP
paper (Jia, Zaharia, Aiken, MLSys 2019) says of its recurrent experts: every node has a replica of the model
(data parallelism across nodes), and inside of a node each recurrent layer, with all of its steps, has devices
of its own; the softmax layer is cut by vocabulary over all devices of the node. Where a node has more devices
than the model has recurrent layers, layers have several devices and are cut by sample; where it has fewer,
neighbouring layers share one. A table is looked up where the layer is that reads it; everything else is
computed where the layer before it is.

For transformers see `soaprl.strategy.experts_megatron`.
"""

from itertools import pairwise
from math import prod

from soaprl.cluster.cluster import Cluster
from soaprl.graph.factors import FactorKind
from soaprl.graph.operators import Operator, OperatorGraph
from soaprl.strategy.placing import Cut, Inapplicable, by_sample, nodes_of, placed, sample_cuts
from soaprl.strategy.strategy import OpConfig, Strategy
from soaprl.strategy.tensor_groups import GroupKind, find_groups

_RECURRENT = frozenset(f"{cell}{form}" for cell in ("lstm", "gru", "rnn") for form in ("", "_cell"))
_CONVOLUTION = ("conv1d", "conv2d", "conv3d")


def one_weird_trick(graph: OperatorGraph, cluster: Cluster) -> Strategy | Inapplicable:
    """Convolutions by sample, fully connected layers by channel; see the module."""
    dense = {i: factor for i, op in enumerate(graph.operators) if (factor := _dense_channel(op)) >= 0}
    if not dense or not any(operator.kind in _CONVOLUTION for operator in graph.operators):
        return Inapplicable(
            reason=f"{graph.name!r} is no convolutional network with fully connected layers: expected both"
            " convolutions and linear layers whose output has nothing but samples and channels"
        )
    too_small = _batch_too_small(graph, cluster.num_devices, "device")
    if too_small is not None:
        return too_small
    devices = range(cluster.num_devices)
    return Strategy(
        tuple(
            _by_channel(operator, dense[index], cluster.num_devices)
            if index in dense
            else by_sample(operator, devices)
            for index, operator in enumerate(graph.operators)
        )
    )


def gnmt_expert(graph: OperatorGraph, cluster: Cluster) -> Strategy | Inapplicable:
    """A replica on each node, recurrent layers on devices of their own inside; see the module."""
    layers = _recurrent_layers(graph)
    if not layers:
        kinds = ", ".join(sorted(_RECURRENT))
        return Inapplicable(reason=f"{graph.name!r} is no recurrent network: expected operators of {kinds}")
    nodes = nodes_of(cluster)
    if len({len(node) for node in nodes}) > 1:
        return Inapplicable(
            reason=f"expected nodes with equal numbers of devices in {cluster.name!r}, found"
            f" {', '.join(str(len(node)) for node in nodes)}"
        )
    too_small = _batch_too_small(graph, len(nodes), "node")
    if too_small is not None:
        return too_small
    size, order = len(nodes[0]), [device for node in nodes for device in node]
    shares = layer_shares(max(layers.values()) + 1, size)
    vocabulary = _vocabulary_factors(graph, size)
    configs = []
    for index, operator in enumerate(graph.operators):
        if index in vocabulary:
            cuts = sample_cuts(operator, len(nodes), stride=size)
            cuts[vocabulary[index]] = Cut(degree=size, stride=1)
            configs.append(placed(operator, cuts, order))
        else:
            share = shares[_layer_of(graph, layers, index)]
            configs.append(_replicated(operator, tuple(tuple(node[k] for k in share) for node in nodes)))
    return Strategy(tuple(configs))


def layer_shares(num_layers: int, num_devices: int) -> tuple[range, ...]:
    """Which of a node's devices each layer has: equal shares, or one that it shares with its neighbours."""
    if num_layers >= num_devices:
        return tuple(range(d, d + 1) for d in (i * num_devices // num_layers for i in range(num_layers)))
    bounds = [i * num_devices // num_layers for i in range(num_layers + 1)]
    return tuple(range(first, last) for first, last in pairwise(bounds))


def _replicated(operator: Operator, nodes: tuple[tuple[int, ...], ...]) -> OpConfig:
    """`operator` by sample over all of the nodes' devices, or over one in each if the batch is too small."""
    devices = tuple(device for node in nodes for device in node)
    if prod(cut.degree for cut in sample_cuts(operator, len(devices)).values()) < len(devices):
        devices = tuple(node[0] for node in nodes)
    return by_sample(operator, devices)


def _dense_channel(operator: Operator) -> int:
    """A fully connected layer's output channel, its largest splittable parameter factor; otherwise -1."""
    written = {span.factor for access in operator.outputs for span in access.spans}
    kinds = {operator.factors[factor].kind for factor in written if factor >= 0}
    if operator.kind != "linear" or not kinds <= {FactorKind.SAMPLE, FactorKind.PARAMETER}:
        return -1
    channels = [
        (factor.extent, -index)
        for index, factor in enumerate(operator.factors)
        if factor.kind is FactorKind.PARAMETER and factor.splittable
    ]
    return -max(channels)[1] if channels else -1


def _by_channel(operator: Operator, channel: int, num_devices: int) -> OpConfig:
    """`operator` by channel over all devices; with fewer channels than devices, also by sample."""
    largest = operator.factors[channel].max_degree
    degree = max(d for d in range(1, min(largest, num_devices) + 1) if num_devices % d == 0)
    cuts = sample_cuts(operator, num_devices // degree, stride=degree)
    return placed(operator, {**cuts, channel: Cut(degree=degree, stride=1)}, range(num_devices))


def _batch_too_small(graph: OperatorGraph, num_parts: int, part: str) -> Inapplicable | None:
    if graph.batch_size >= num_parts:
        return None
    return Inapplicable(
        reason=f"batch smaller than the {part}s: expected at least {num_parts} samples, one a {part}, found"
        f" {graph.batch_size} in {graph.name!r}"
    )


def _recurrent_layers(graph: OperatorGraph) -> dict[int, int]:
    """Layer number by operator for recurrent operators; the steps of a layer share their parameters."""
    numbers: dict[frozenset[int], int] = {}
    layers = {}
    for index, operator in enumerate(graph.operators):
        if operator.kind in _RECURRENT:
            weights = frozenset(access.tensor for access in operator.parameters)
            layers[index] = numbers.setdefault(weights, len(numbers))
    return layers


def _vocabulary_factors(graph: OperatorGraph, num_parts: int) -> dict[int, int]:
    """Factors over the classes of softmax layers and their losses that have a part for each device."""
    return {
        index: factor
        for group in find_groups(graph)
        if group.kind is GroupKind.VOCABULARY
        and all(graph.operators[i].factors[f].max_degree >= num_parts for i, f in group.factors.items())
        for index, factor in group.factors.items()
    }


def _layer_of(graph: OperatorGraph, layers: dict[int, int], index: int) -> int:
    """The recurrent layer whose devices an operator uses: its own, the last before, or the first after."""
    before = [layer for i in _reachable(graph, index, forward=False) if (layer := layers.get(i)) is not None]
    if index in layers:
        return layers[index]
    if before:
        return max(before)
    after = [layer for i in _reachable(graph, index, forward=True) if (layer := layers.get(i)) is not None]
    return min(after, default=0)


def _reachable(graph: OperatorGraph, index: int, *, forward: bool) -> set[int]:
    """The operators that depend on operator `index` (or, backward, that it depends on)."""
    found: set[int] = set()
    pending = [index]
    while pending:
        operator = graph.operators[pending.pop()]
        if forward:
            near = {reader for a in operator.outputs for reader, _ in graph.consumers.get(a.tensor, ())}
        else:
            near = {graph.producer[a.tensor] for a in operator.inputs if a.tensor in graph.producer}
        pending += near - found
        found |= near
    return found
