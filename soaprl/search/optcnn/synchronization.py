"""What it takes to synchronize and update the parameters of one group under given layouts.

All collectives of the group start together. With ``busy(l)`` the time that they put on link l in all,

    time = (longest time of a collective beside its busiest link) + (max over links of busy(l)) + update

which is the collective's own time if there is one, with what compressing its gradient takes. Under the
paper's assumptions, all holders send to the root, then the root sends to all holders, each as
`soaprl.search.optcnn.transfers` has it. The update is that of the device with most to update.
"""

from collections.abc import Sequence

import numpy as np

from soaprl.cluster.tables import ClusterTables, FloatArray
from soaprl.cost.transfers import CollectiveScratch, all_reduce_time
from soaprl.simulator.cells import SyncPattern, SyncPools


def synchronization_time(
    tables: ClusterTables,
    scratch: CollectiveScratch,
    pools: SyncPools,
    pattern: SyncPattern,
    *,
    num_types: int,
    paper: bool,
) -> float:
    """Seconds for the cells of `pattern`, part p of every reader on device p.

    Args:
        tables: The cluster.
        scratch: Working memory for its collectives.
        pools: Where the cells are.
        pattern: The cells of the group.
        num_types: Number of device types, by which `pools` lists update times.
        paper: Whether gradients go to the first holder and back, instead of through collectives.
    """
    num_links = max(1, len(tables.link_latency_s))
    up_s, down_s, update_s = np.zeros(num_links), np.zeros(num_links), np.zeros(tables.num_devices)
    beside_s = 0.0
    for cell in range(pattern.cell_begin, pattern.cell_end):
        if not pools.cell_trainable.data[cell]:
            continue
        begin, end = pools.cover_begin.data[cell : cell + 2].tolist()
        parts = pools.cover_part.data[begin:end].tolist()
        holders = sorted(set(parts))
        for device in holders:
            row = cell * num_types + int(tables.device_type[device])
            update_s[device] += pools.cell_update_s.data[row]
        if len(holders) == 1:
            continue
        num_bytes = float(pools.cell_sent_bytes.data[cell])
        if paper:
            contributes = pools.cover_contributes.data[begin:end]
            senders = {part for part, flag in zip(parts, contributes.tolist(), strict=True) if flag}
            _exchange(tables, up_s, down_s, parts[0], holders, senders, num_bytes)
            continue
        collective = all_reduce_time(tables, holders, num_bytes, scratch=scratch)
        codec_s = 0.0
        if num_bytes != pools.cell_bytes.data[cell]:
            codec_s = max(
                pools.cell_codec_s.data[cell * num_types + int(tables.device_type[d])] for d in holders
            )
        busiest_s = max(collective.busy_s.values(), default=0.0)
        beside_s = max(beside_s, codec_s + collective.time_s - busiest_s)
        for link, time_s in collective.busy_s.items():
            up_s[link] += time_s
    return float(beside_s + up_s.max() + down_s.max() + update_s.max())


def _exchange(
    tables: ClusterTables,
    up_s: FloatArray,
    down_s: FloatArray,
    root: int,
    holders: Sequence[int],
    senders: set[int],
    num_bytes: float,
) -> None:
    """Adds transfers from the senders to the root, and back to all other holders."""
    for device in holders:
        if device == root:
            continue
        if device in senders:
            _send(tables, up_s, device, root, num_bytes)
        _send(tables, down_s, root, device, num_bytes)


def _send(tables: ClusterTables, load_s: FloatArray, source: int, target: int, num_bytes: float) -> None:
    route = source * tables.num_devices + target
    links = tables.route_links[tables.route_offsets[route] : tables.route_offsets[route + 1]]
    load_s[links] += num_bytes / tables.link_bandwidth_bytes_per_s[links]
