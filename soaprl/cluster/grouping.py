"""Finds the routes of large clusters around a hub; see `soaprl.cluster.hub`.

They are those of `soaprl.cluster.routing`, link by link. What a search finds inside a group does not depend
on other groups, because no way leads back from them but through the hub. The way down from the hub may depend
on where a route came from, but only on how wide the way up was, so it is searched for each such width. Groups
of the same wiring have the same routes on other links: each shape is searched once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from soaprl.cluster.cluster import Device, Link
from soaprl.cluster.hub import DOWN, GROUP, INSIDE, PLACE, UP, WIDTH, HubRoutes, IntArray, Route
from soaprl.cluster.routing import links_by_source, routes_from

MAX_GROUP = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Devices that reach each other without the hub.

    Attributes:
        devices: Their indices, ascending.
        links: The links between them and to and from the hub, ascending.
        wiring: What links join, by number within the group: equal for groups that are wired alike.
    """

    devices: list[int]
    links: list[int]
    wiring: tuple[tuple[int, int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """The routes of a group, each as positions in the group's list of links.

    Attributes:
        widths: For each device the narrowest bandwidth on its route to the hub.
        routes: From each device to each device; then from each to the hub; then from the hub to each, for
            each width.
    """

    widths: list[float]
    routes: list[Route]


def find_hubs(devices: Sequence[Device], links: Sequence[Link]) -> tuple[str, ...]:
    """Vertices that may be a hub: those on the route from the first to the last device, its middle first."""
    names = {device.name for device in devices}
    outgoing = links_by_source(links, range(len(links)))
    route = routes_from(devices[0].name, outgoing, links).get(devices[-1].name, ())
    passed = [(k, links[link].target) for k, link in enumerate(route, start=1)]
    passed.sort(key=lambda step: abs(2 * step[0] - len(route)))
    return tuple(vertex for _, vertex in passed if vertex not in names)


def hub_routes(devices: Sequence[Device], links: Sequence[Link], hub: str) -> HubRoutes | None:
    """All routes around `hub`.

    Returns:
        None if `hub` does not part the devices into groups of at most `MAX_GROUP` devices, or a device does
        not reach all others.
    """
    groups = _groups(devices, links, hub)
    if len(groups) < 2 or max(len(group.devices) for group in groups) > MAX_GROUP:
        return None
    of_kind: dict[tuple[object, ...], int] = {}
    kinds = [of_kind.setdefault((len(g.devices), g.wiring), len(of_kind)) for g in groups]
    samples = [groups[kinds.index(kind)] for kind in range(len(of_kind))]
    upward = [_upward(devices, links, hub, group) for group in samples]
    if any(len(up) < len(group.devices) for up, group in zip(upward, samples, strict=True)):
        return None
    by_route = [[min(links[k].bandwidth_bytes_per_s for k in route) for route in up] for up in upward]
    widths = list(dict.fromkeys(width for row in by_route for width in row))
    shapes: list[_Shape] = []
    for group, up, row in zip(samples, upward, by_route, strict=True):
        routes = _routes(devices, links, hub, group, up, widths)
        if routes is None:
            return None
        shapes.append(_Shape(widths=row, routes=routes))
    return _joined(len(devices), groups, np.array(kinds, np.int64), shapes, widths)


def _groups(devices: Sequence[Device], links: Sequence[Link], hub: str) -> list[_Group]:
    """The groups by their first devices; each has at least one."""
    parents: dict[str, str] = {}

    def root(vertex: str) -> str:
        while (parent := parents.setdefault(vertex, vertex)) != vertex:
            parents[vertex] = parents[parent]
            vertex = parent
        return vertex

    wired = [(k, link) for k, link in enumerate(links) if link.source]
    for _, link in wired:
        if link.source != hub and link.target != hub:
            parents[root(link.target)] = root(link.source)
    members: dict[str, list[int]] = {}
    numbers: dict[str, dict[str, int]] = {}
    for i, device in enumerate(devices):
        at = root(device.name)
        members.setdefault(at, []).append(i)
        # Devices are numbered before other vertices: their numbers are their places.
        numbers.setdefault(at, {hub: -1})[device.name] = len(members[at]) - 1
    chosen: dict[str, list[int]] = {at: [] for at in members}
    wiring: dict[str, list[tuple[int, int, float]]] = {at: [] for at in members}
    for k, link in wired:
        at = root(link.target if link.source == hub else link.source)
        if at in members:
            number = numbers[at]
            first = number.setdefault(link.source, len(number))
            second = number.setdefault(link.target, len(number))
            chosen[at].append(k)
            wiring[at].append((first, second, link.bandwidth_bytes_per_s))
    return [_Group(devices=members[at], links=chosen[at], wiring=tuple(wiring[at])) for at in members]


def _upward(devices: Sequence[Device], links: Sequence[Link], hub: str, group: _Group) -> list[Route]:
    """The routes to the hub of those devices that reach it."""
    outgoing = links_by_source(links, group.links)
    found = [routes_from(devices[i].name, outgoing, links).get(hub) for i in group.devices]
    return [route for route in found if route is not None]


def _routes(
    devices: Sequence[Device],
    links: Sequence[Link],
    hub: str,
    group: _Group,
    up: list[Route],
    widths: list[float],
) -> list[Route] | None:
    """All routes of a group, as `_Shape` has them; None if one is missing."""
    outgoing = links_by_source(links, group.links)
    names = [devices[i].name for i in group.devices]
    rows = [routes_from(name, outgoing, links) for name in names]
    inside = [row.get(name) for row in rows for name in names]
    falls = [routes_from(hub, outgoing, links, width_bytes_per_s=width) for width in widths]
    position = {link: k for k, link in enumerate(group.links)}
    routes: list[Route] = []
    for route in (*inside, *up, *(fall.get(name) for fall in falls for name in names)):
        if route is None:
            return None
        routes.append(tuple(position[link] for link in route))
    return routes


def _joined(
    num_devices: int, groups: list[_Group], kinds: IntArray, shapes: list[_Shape], widths: list[float]
) -> HubRoutes:
    """The routes of all groups as arrays."""
    ends = np.zeros((num_devices, DOWN + len(widths)), np.int64)
    lengths: list[IntArray] = []
    flat: list[IntArray] = []
    num_routes = 0
    for kind, shape in enumerate(shapes):
        chosen = np.flatnonzero(kinds == kind)
        devices = np.array([groups[g].devices for g in chosen], np.int64)
        links = np.array([groups[g].links for g in chosen], np.int64).reshape(len(chosen), -1)
        count, size = devices.shape
        first = num_routes + len(shape.routes) * np.arange(count).reshape(-1, 1)
        place = np.arange(size)
        ends[devices, GROUP] = chosen.reshape(-1, 1)
        ends[devices, PLACE] = place
        ends[devices, INSIDE] = first + size * place
        ends[devices, UP] = first + size * size + place
        ends[devices, WIDTH] = [widths.index(width) for width in shape.widths]
        for w in range(len(widths)):
            ends[devices, DOWN + w] = first + size * (size + 1 + w) + place
        positions = np.array([k for route in shape.routes for k in route], np.int64)
        flat.append(links[:, positions].ravel())
        lengths.append(np.tile(np.array([len(route) for route in shape.routes], np.int64), count))
        num_routes += count * len(shape.routes)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    return HubRoutes(ends=ends, offsets=offsets, links=np.concatenate(flat), shape=kinds)
