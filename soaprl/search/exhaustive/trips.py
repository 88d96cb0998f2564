"""Round trips: how long an operator that is not chosen yet keeps the backward tasks of its producers waiting.

From the end of the producer's forward task there are at least a transfer, the reader's forward task, the
reader's own round trip, its backward task and a transfer back. The least of this over all configurations of
the reader is computed once for each edge, from the last operator to the first. Each task takes the best for
itself alone, whatever suits the others: a relaxation.
"""

from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import FloatArray, IntArray
from soaprl.cost.kernels import filling_kernel, inner_kernel
from soaprl.search.exhaustive.jobs import pairs_at, transfer_s
from soaprl.search.exhaustive.tables import BoundTables


class Trips(NamedTuple):
    """Round trips of all edges, one after the other.

    Attributes:
        begin: Where those of each edge begin.
        time_s: For each configuration of the producer, for each of T tasks.
    """

    begin: IntArray
    time_s: FloatArray


def make_trips(tables: BoundTables) -> Trips:
    """The round trips of all edges."""
    n, room = len(tables.has_backward), tables.config_devices.shape[1]
    counts = np.diff(tables.config_begin)
    sizes = [int(counts[producer]) * room for producer in tables.edge_producer]
    trips = Trips(np.cumsum([0, *sizes], dtype=np.int64), np.zeros(sum(sizes)))
    rest = [np.zeros((int(counts[o]), room)) for o in range(n)]
    sums, numbers = np.zeros((tables.cluster.num_devices, 6)), np.zeros(tables.cluster.num_devices, np.int64)
    # Consumers come after their producers, so that their own round trips are known when they are needed.
    for edge in sorted(range(len(sizes)), key=lambda e: -int(tables.edge_producer[e])):
        producer = int(tables.edge_producer[edge])
        if tables.edge_gradient[edge]:
            trip = np.zeros((int(counts[producer]), room))
            edge_trips(tables, edge, rest[tables.edge_consumer[edge]], sums, numbers, trip)
            trips.time_s[trips.begin[edge] : trips.begin[edge + 1]] = trip.ravel()
            np.maximum(rest[producer], trip, out=rest[producer])
    return trips


@filling_kernel
def edge_trips(
    t: BoundTables, edge: int, rest_s: FloatArray, sums: FloatArray, counts: IntArray, trips: FloatArray
) -> None:
    """Fills the least round trip of each task of each configuration of the producer over one edge.

    Args:
        t: The tables.
        edge: The edge, with a gradient.
        rest_s: The consumer's own round trips, shape [configurations, T].
        sums: Shape [devices, 6]; working memory.
        counts: Shape [devices]; working memory.
        trips: Shape [configurations, T]; filled.
    """
    o, c = t.edge_producer[edge], t.edge_consumer[edge]
    first, last = t.config_begin[o], t.config_begin[o + 1]
    for row in range(first, last):
        for p in range(t.config_tasks[row]):
            least = np.inf
            for other in range(t.config_begin[c], t.config_begin[c + 1]):
                trip = _trip(t, edge, row, p, other, rest_s[other - t.config_begin[c]], sums, counts)
                least = min(least, trip)
            trips[row - first, p] = least


@inner_kernel
def _trip(
    t: BoundTables,
    edge: int,
    row: int,
    p: int,
    other: int,
    rest_s: FloatArray,
    sums: FloatArray,
    counts: IntArray,
) -> float:
    """Least round trip of task p of configuration `row` if the consumer has the configuration `other`."""
    c, num_types = t.edge_consumer[edge], t.forward_s.shape[2]
    source = t.config_devices[row, p]
    degrees = t.degrees_begin[c] + t.config_degrees[other]
    pairs = pairs_at(t, edge, row, other) + p * t.config_devices.shape[1]
    trip = 0.0
    counts[:] = 0
    for r in range(t.config_tasks[other]):
        size = t.pair_bytes[pairs + r]
        if size == 0:
            continue
        target = t.config_devices[other, r]
        kind = t.cluster.device_type[target] if num_types > 1 else 0
        forward, backward = t.forward_s[degrees, r, kind], t.backward_s[degrees, r, kind]
        there, back = transfer_s(t, source, target, size), transfer_s(t, target, source, size)
        trip = max(trip, there + forward + rest_s[r] + backward + back)
        own = sums[target]
        if counts[target] == 0:
            own[0], own[1] = 0.0, 0.0
            own[2], own[3], own[4], own[5] = np.inf, np.inf, np.inf, np.inf
        counts[target] += 1
        own[0] += forward
        own[1] += backward
        own[2] = min(own[2], forward + rest_s[r])
        own[3] = min(own[3], rest_s[r] + backward)
        own[4] = min(own[4], there)
        own[5] = min(own[5], back)
        if counts[target] > 1:
            # One device runs all forward tasks before the last backward one: at least one waits a whole rest.
            inside = max(own[0] + own[1], own[0] + own[3], own[2] + own[1])
            trip = max(trip, own[4] + inside + own[5])
    return trip
