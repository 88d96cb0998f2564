"""What it takes to sum the gradients of one operator's parameters under each of its candidates.

The times of collectives are linear in their bytes, for one algorithm; `CollectiveLines` asks
`soaprl.cost.transfers` once for each set of devices, at the bytes that come first, and scales. All
collectives of an operator start together: with ``busy(l)`` the time that they put on link l in all,

    time = (longest latency of a collective) + (max over links of busy(l)).

Parameters that other operators read as well (tied ones) count as if this operator alone read them.
"""

from dataclasses import dataclass

import numpy as np

from soaprl.cluster.tables import ClusterTables, FloatArray, IntArray
from soaprl.cost.transfers import all_reduce_time, collective_scratch
from soaprl.simulator.cells import SyncPattern, SyncPools


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Line:
    """An all-reduce over some devices: seconds that do not depend on its bytes, and link seconds a byte."""

    latency_s: float
    links: IntArray
    busy_s_per_byte: FloatArray


class CollectiveLines:
    """Times of all-reduces on one cluster."""

    def __init__(self, tables: ClusterTables) -> None:
        self._tables = tables
        self._scratch = collective_scratch(tables)
        self._known: dict[tuple[int, ...], _Line] = {}
        self._load_s = np.zeros(max(1, len(tables.link_latency_s)), np.float64)

    def time(self, pools: SyncPools, pattern: SyncPattern, devices: IntArray) -> tuple[float, float]:
        """Seconds and bytes of synchronizing the cells of `pattern`, task p on ``devices[p]``.

        The bytes are what devices send: an all-reduce of s bytes over n devices counts 2 (n - 1) s.
        """
        self._load_s[:] = 0.0
        latency_s, total_bytes = 0.0, 0.0
        for cell in range(pattern.cell_begin, pattern.cell_end):
            if not pools.cell_trainable.data[cell]:
                continue
            begin, end = pools.cover_begin.data[cell], pools.cover_begin.data[cell + 1]
            holders = tuple(sorted(set(devices[pools.cover_part.data[begin:end]].tolist())))
            if len(holders) == 1:
                continue
            num_bytes = float(pools.cell_sent_bytes.data[cell])
            line = self._line(holders, num_bytes)
            latency_s = max(latency_s, line.latency_s)
            self._load_s[line.links] += num_bytes * line.busy_s_per_byte
            total_bytes += 2.0 * (len(holders) - 1) * num_bytes
        return latency_s + float(self._load_s.max()), total_bytes

    def _line(self, holders: tuple[int, ...], num_bytes: float) -> _Line:
        if holders not in self._known:
            found = all_reduce_time(self._tables, holders, num_bytes, scratch=self._scratch)
            busy_s = np.array(list(found.busy_s.values()), np.float64)
            self._known[holders] = _Line(
                latency_s=found.time_s - float(busy_s.max(initial=0.0)),
                links=np.array(list(found.busy_s), np.int64),
                busy_s_per_byte=busy_s / num_bytes,
            )
        return self._known[holders]
