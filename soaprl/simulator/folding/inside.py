"""The links inside groups of devices: whether all groups are wired alike, and apart from each other."""

from dataclasses import dataclass

import numpy as np

from soaprl.cluster.cluster import Cluster
from soaprl.cluster.hub import HubRoutes
from soaprl.cluster.tables import IntArray

_MAX_ROUTES = 8_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """The links and routes inside R groups of B devices.

    Attributes:
        links: Shape [R, I]; link i of each group.
        offsets: Shape [B * B + 1]; where the route between each two places begins.
        route_links: Which of the group's links the routes take, one route after the other.
    """

    links: IntArray
    offsets: IntArray
    route_links: IntArray


def inside(cluster: Cluster, devices: IntArray) -> Inside | str:
    """What is inside the groups of `devices` (shape [R, B]), or how they differ."""
    count, size = devices.shape
    if count * size * size > _MAX_ROUTES:
        return f"groups of {size} devices are too large to compare"
    types = np.array([device.type for device in cluster.devices], np.int64)[devices]
    if (types != types[0]).any():
        return f"the {count} groups of {size} devices have devices of different types"
    sources, targets = np.repeat(devices, size, axis=1), np.tile(devices, (1, size))
    offsets, flat = _between(cluster, sources.ravel(), targets.ravel())
    lengths = np.diff(offsets).reshape(count, -1)
    if (lengths != lengths[0]).any():
        return f"the {count} groups of {size} devices are wired differently"
    by_group = flat.reshape(count, -1)
    _, first, number = np.unique(by_group[0], return_index=True, return_inverse=True)
    links = by_group[:, first]
    if (links[:, number] != by_group).any():
        return f"the {count} groups of {size} devices are wired differently"
    if len(np.unique(links)) < links.size:
        return f"the {count} groups of {size} devices share links"
    speeds = np.array([(link.bandwidth_bytes_per_s, link.latency_s) for link in cluster.links], np.float64)
    if (speeds.reshape(-1, 2)[links] != speeds.reshape(-1, 2)[links[0]]).any():
        return f"the {count} groups of {size} devices have links of different speeds"
    begin = np.concatenate([[0], np.cumsum(lengths[0])]).astype(np.int64)
    return Inside(links=links, offsets=begin, route_links=number.astype(np.int64))


def _between(cluster: Cluster, sources: IntArray, targets: IntArray) -> tuple[IntArray, IntArray]:
    """The routes of many pairs: where the links of each begin (one entry more), and the links."""
    if isinstance(cluster.routes, HubRoutes):
        return cluster.routes.between(sources, targets)
    routes = [cluster.routes[i][j] for i, j in zip(sources.tolist(), targets.tolist(), strict=True)]
    offsets = np.cumsum([0, *(len(route) for route in routes)], dtype=np.int64)
    return offsets, np.array([link for route in routes for link in route], np.int64)
