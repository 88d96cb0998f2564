"""What it takes to hand a tensor from one layout to another: a matrix over the layouts of both ends."""

import numpy as np

from soaprl.cluster.tables import ClusterTables, FloatArray, IntArray
from soaprl.cost.kernels import kernel


@kernel
def transfer_matrix(
    tables: ClusterTables,
    written: IntArray,
    written_begin: IntArray,
    read: IntArray,
    read_begin: IntArray,
    itemsize: int,
    gradient: bool,
) -> FloatArray:
    """Seconds to send what each layout's readers lack, task i on device i, and the gradients back.

    All transfers of one direction start together: they take the latency of the slowest route, and as long as
    the busiest link has to send.

    Args:
        tables: The cluster.
        written: Boxes that the tasks of all producer layouts write, shape [tasks, dims, 2].
        written_begin: The boxes of layout i are ``written[written_begin[i]:written_begin[i + 1]]``.
        read: Boxes that the tasks of all consumer layouts read.
        read_begin: Likewise.
        itemsize: Bytes of an element.
        gradient: Whether gradients flow back.

    Returns:
        Shape [producer layouts, consumer layouts].
    """
    num_links = len(tables.link_latency_s)
    matrix = np.zeros((len(written_begin) - 1, len(read_begin) - 1), np.float64)
    load_s = np.zeros((2, max(1, num_links)), np.float64)
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            load_s[:] = 0.0
            latency_s, back_latency_s = 0.0, 0.0
            for w in range(written_begin[i], written_begin[i + 1]):
                source = w - written_begin[i]
                for r in range(read_begin[j], read_begin[j + 1]):
                    target = r - read_begin[j]
                    if source == target:
                        continue
                    size = itemsize * _common(written[w], read[r])
                    if size == 0:
                        continue
                    latency_s = max(latency_s, _send(tables, load_s[0], source, target, size))
                    if gradient:
                        back_latency_s = max(back_latency_s, _send(tables, load_s[1], target, source, size))
            matrix[i, j] = latency_s + load_s[0].max() + back_latency_s + load_s[1].max()
    return matrix


@kernel
def _common(written: IntArray, read: IntArray) -> int:
    """Number of elements in both boxes."""
    elements = 1
    for d in range(len(written)):
        elements *= max(0, min(written[d, 1], read[d, 1]) - max(written[d, 0], read[d, 0]))
    return elements


@kernel
def _send(tables: ClusterTables, load_s: FloatArray, source: int, target: int, num_bytes: int) -> float:
    """Adds a transfer to the loads of its links; returns the route's latency."""
    route = source * tables.num_devices + target
    for position in range(tables.route_offsets[route], tables.route_offsets[route + 1]):
        link = tables.route_links[position]
        load_s[link] += num_bytes / tables.link_bandwidth_bytes_per_s[link]
    latency_s: float = tables.route_latency_s[route]
    return latency_s
