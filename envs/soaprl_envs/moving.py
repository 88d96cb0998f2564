"""What it takes to move a tensor between the tasks of a producing and a consuming candidate.

A consuming task needs what the tasks that write its box on other devices have of it. All transfers of one
direction start together: they take the latency of the slowest route, and as long as the busiest link has to
send. Gradients flow back along the reversed pairs. Implemented in
`soaprl_envs.kernels.moving_time`; the simulator knows better
(transfers wait for tasks, and for those of other edges), but not without simulating.

Times are computed when they are first asked for, and kept for each *kind* of edge: edges whose ends are of
equal families, output and input.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from soaprl.cluster.tables import ClusterTables, FloatArray, IntArray
from soaprl.graph.operators import OperatorGraph
from soaprl.simulator.tables import GraphIndex
from soaprl_envs.variants import Variants


class Moves(NamedTuple):
    """The edges of a graph: E edges of M kinds between candidates, at most K an operator.

    Attributes:
        kind: Shape [E].
        dims: Shape [M]; refined dimensions of the tensor.
        itemsize: Shape [M]; bytes of an element.
        gradient: Shape [M]; 1 where a gradient flows back.
        producer: Shape [M]; the producing family.
        consumer: Shape [M]; the consuming family.
        written_at: Shape [M, K]; where the boxes that a producer's candidate writes begin in `boxes`.
        read_at: Shape [M, K]; where the boxes that a consumer's candidate reads begin.
        boxes: Flat; for each task and dimension of a tensor, start and stop.
        time_s: Shape [M, K, K]; seconds by producer's and consumer's candidate, NaN where not computed yet.
    """

    kind: IntArray
    dims: IntArray
    itemsize: IntArray
    gradient: IntArray
    producer: IntArray
    consumer: IntArray
    written_at: IntArray
    read_at: IntArray
    boxes: IntArray
    time_s: NDArray[np.float32]


class LinkLoads(NamedTuple):
    """Working memory of `moving_time`; one for each thread, all zero between calls.

    Attributes:
        load_s: Shape [2, links]; what each link has to send, there and back.
        used: Shape [2, links]; the links with an entry.
    """

    load_s: FloatArray
    used: IntArray


def link_loads(cluster: ClusterTables) -> LinkLoads:
    """Working memory for a cluster."""
    num_links = max(1, len(cluster.link_latency_s))
    return LinkLoads(load_s=np.zeros((2, num_links), np.float64), used=np.zeros((2, num_links), np.int64))


def edge_moves(
    graph: OperatorGraph,
    index: GraphIndex,
    edge_gradient: IntArray,
    family: IntArray,
    variant: IntArray,
    variants: Variants,
) -> Moves:
    """The edges of `graph`, with no times yet.

    Args:
        graph: The graph.
        index: Its edges.
        edge_gradient: 1 where a gradient flows back.
        family: The family of each operator.
        variant: The variant of each family's candidates, -1 where there is none.
        variants: The variants.
    """
    numbers: dict[tuple[int, ...], int] = {}
    kind = np.zeros(len(index.edges), np.int64)
    itemsize: list[int] = []
    written_at: list[list[int]] = []
    read_at: list[list[int]] = []
    dims: list[int] = []
    for e, edge in enumerate(index.edges):
        ends = int(family[edge.producer]), int(family[edge.consumer])
        key = (*ends, edge.output, edge.position, int(edge_gradient[e]))
        kind[e] = numbers.setdefault(key, len(numbers))
        if kind[e] < len(itemsize):
            continue
        producer = graph.operators[edge.producer]
        tensor = graph.tensors[producer.outputs[edge.output].tensor]
        output = len(producer.inputs) + len(producer.parameters) + edge.output
        itemsize.append(tensor.itemsize)
        dims.append(len(tensor.refined_shape))
        written_at.append(_boxes_at(variants, variant[ends[0]], output))
        read_at.append(_boxes_at(variants, variant[ends[1]], edge.position))
    keys = np.array(list(numbers), np.int64).reshape(-1, 5)
    most = variant.shape[1]
    return Moves(
        kind=kind,
        dims=np.array(dims, np.int64),
        itemsize=np.array(itemsize, np.int64),
        gradient=keys[:, 4].copy(),
        producer=keys[:, 0].copy(),
        consumer=keys[:, 1].copy(),
        written_at=np.array(written_at, np.int64).reshape(-1, most),
        read_at=np.array(read_at, np.int64).reshape(-1, most),
        boxes=variants.boxes(),
        time_s=np.full((len(keys), most, most), np.nan, np.float32),
    )


def _boxes_at(variants: Variants, numbers: IntArray, access: int) -> list[int]:
    return [variants.boxes_at(number, access) if number >= 0 else 0 for number in numbers.tolist()]
