"""Routes of large clusters: groups of devices that meet in a hub, without a table of all pairs.

Where every way between two groups of devices passes one vertex (the fabric between nodes), a route has two
halves: from the source up to the hub, and from the hub down to the target. Then the routes inside each group
and the two halves of each device are all there is to keep: D devices in groups of g take about D (g + 2)
routes instead of D * D. `soaprl.cluster.grouping` finds them.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Route: TypeAlias = tuple[int, ...]
IntArray: TypeAlias = NDArray[np.int64]

# Columns of `HubRoutes.ends`; the way down from a device whose way up has width w is in column DOWN + w.
GROUP, PLACE, INSIDE, UP, WIDTH, DOWN = 0, 1, 2, 3, 4, 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HubRoutes:
    """All routes between D devices around a hub; reads like a table of routes.

    The route between devices i and j of one group is number ``ends[i, INSIDE] + ends[j, PLACE]``; any other
    is number ``ends[i, UP]`` followed by number ``ends[j, DOWN + ends[i, WIDTH]]``.

    Attributes:
        ends: Shape [D, 5 + widths]; the group of each device, its place in it, its first route inside, its
            route to the hub, the number of that route's width, and its routes from the hub.
        offsets: Where the links of each numbered route begin, and one entry more.
        links: The links of all numbered routes, one after the other.
        shape: Shape [groups]; groups with the same number are wired alike.
    """

    ends: IntArray
    offsets: IntArray
    links: IntArray
    shape: IntArray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, source: int, /) -> "HubRow":
        return HubRow(routes=self, source=source)

    def __iter__(self) -> Iterator["HubRow"]:
        return (self[source] for source in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HubRoutes):
            return NotImplemented
        mine, theirs = (self.ends, self.offsets, self.links), (other.ends, other.offsets, other.links)
        return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))

    def __hash__(self) -> int:
        return hash((len(self.ends), len(self.offsets), len(self.links)))

    def route(self, source: int, target: int) -> Route:
        """The links from one device to another."""
        return tuple(self.between(np.array([source]), np.array([target]))[1].tolist())

    def between(self, sources: IntArray, targets: IntArray) -> tuple[IntArray, IntArray]:
        """The routes of many pairs: where the links of each begin (one entry more), and the links."""
        begin, end = self.ends[sources], self.ends[targets]
        inside = begin[:, GROUP] == end[:, GROUP]
        first = np.where(inside, begin[:, INSIDE] + end[:, PLACE], begin[:, UP])
        halves = np.stack([first, end[np.arange(len(end)), DOWN + begin[:, WIDTH]]], axis=1)
        begins, counts = self.offsets[halves], self.offsets[halves + 1] - self.offsets[halves]
        counts[inside, 1] = 0
        offsets = np.concatenate([[0], np.cumsum(counts.sum(axis=1))]).astype(np.int64)
        each = counts.ravel()
        positions = np.arange(offsets[-1]) - np.repeat(np.cumsum(each) - each - begins.ravel(), each)
        return offsets, self.links[positions]

    def digest(self) -> str:
        """SHA-256 over all routes."""
        sha = hashlib.sha256()
        for array in (self.ends, self.offsets, self.links):
            sha.update(np.ascontiguousarray(array, "<i8").tobytes())
        return sha.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRow:
    """The routes from one device."""

    routes: HubRoutes
    source: int

    def __len__(self) -> int:
        return len(self.routes)

    def __getitem__(self, target: int, /) -> Route:
        return self.routes.route(self.source, target)

    def __iter__(self) -> Iterator[Route]:
        targets = np.arange(len(self))
        offsets, links = self.routes.between(np.full(len(self), self.source), targets)
        ends, flat = offsets.tolist(), links.tolist()
        return (tuple(flat[begin:end]) for begin, end in pairwise(ends))
