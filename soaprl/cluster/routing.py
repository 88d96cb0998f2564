"""The route from one vertex to all others.

Vertices have names: those of devices, and any other name for a switch, a host or the fabric. A route takes
the fewest links; among those the one whose narrowest link is widest; among those the one that arrives over
the link with the lowest index. Devices forward what is not for them (two NVLink hops), as switches do.
Implemented in `routes_from`.
"""

from collections.abc import Iterable, Sequence
from math import inf
from typing import TypeAlias

from soaprl.cluster.cluster import Device, Link
from soaprl.cluster.hub import Route

# For each vertex its outgoing links: index, target, bandwidth.
Outgoing: TypeAlias = dict[str, list[tuple[int, str, float]]]


def search_routes(devices: Sequence[Device], links: Sequence[Link]) -> list[dict[str, Route]]:
    """For each device the routes to all vertices that it reaches; see the module's rule."""
    outgoing = links_by_source(links, range(len(links)))
    return [routes_from(device.name, outgoing, links) for device in devices]


def links_by_source(links: Sequence[Link], chosen: Iterable[int]) -> Outgoing:
    """The outgoing ones of the chosen links by vertex; links without ends are left out."""
    outgoing: Outgoing = {}
    for index in chosen:
        link = links[index]
        if link.source:
            outgoing.setdefault(link.source, []).append((index, link.target, link.bandwidth_bytes_per_s))
    return outgoing


def routes_from(
    start: str, outgoing: Outgoing, links: Sequence[Link], *, width_bytes_per_s: float = inf
) -> dict[str, Route]:
    """The route to every vertex that can be reached from `start`; see the module's rule.

    Args:
        start: Where to begin.
        outgoing: The links to use.
        links: All links.
        width_bytes_per_s: Bandwidth of the narrowest link on the way to `start`.
    """
    routes: dict[str, Route] = {start: ()}
    layer = {start: width_bytes_per_s}
    while layer:
        best: dict[str, tuple[float, int]] = {}
        for vertex, bottleneck in layer.items():
            for index, target, bandwidth in outgoing.get(vertex, ()):
                if target not in routes:
                    offer = (-min(bottleneck, bandwidth), index)
                    if target not in best or offer < best[target]:
                        best[target] = offer
        for target, (_, index) in best.items():
            routes[target] = (*routes[links[index].source], index)
        layer = {target: -negative for target, (negative, _) in best.items()}
    return routes
