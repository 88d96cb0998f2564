"""Which groups of devices, and which links, cannot be told apart by what the all-reduces put on them.

An all-reduce over all groups need not treat them alike: in a tree, some devices are leaves. Two groups are of
one class if each all-reduce keeps link i of both busy for the same time, for every i; then, as they have the
same tasks, everything happens on both at the same times. Two links outside of groups are of one class if each
all-reduce keeps both busy for the same time: nothing else uses them, so both are free at the same times.

Classes are found by hashes of what each group and link sees, and then checked; implemented in `classify`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soaprl.cluster.tables import FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupation:
    """What one all-reduce takes: seconds, its links, and the seconds that each is busy."""

    time_s: float
    links: IntArray
    busy_s: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """Classes of groups and of links outside.

    Attributes:
        kept: The groups to simulate, ascending: one of each class.
        group: Shape [R]; for each group the position in `kept` of the one that stands for it.
        link: Shape [L]; the class of each link outside of groups, -1 for links inside and those never used.
        num_links: Number of classes of links.
    """

    kept: IntArray
    group: IntArray
    link: IntArray
    num_links: int


def classify(inside: IntArray, num_links: int, occupations: Sequence[Occupation]) -> Classes:
    """The classes of groups and links.

    Args:
        inside: Shape [R, I]; link i of each group.
        num_links: L.
        occupations: What each all-reduce takes.
    """
    seen: NDArray[np.uint64] = np.zeros(num_links, np.uint64)
    for number, occupation in enumerate(occupations):
        seen[occupation.links] ^= _mixed(occupation.busy_s.view(np.uint64) + _mixed_number(number))
    outside = np.ones(num_links, np.bool_)
    outside[inside] = False
    link = np.full(num_links, -1, np.int64)
    used = np.flatnonzero(outside & (seen != 0))
    link[used] = np.unique(seen[used], return_inverse=True)[1]
    first: dict[bytes, int] = {}
    alike = [first.setdefault(row.tobytes(), g) for g, row in enumerate(seen[inside])]
    kept, group = np.unique(np.array(alike, np.int64), return_inverse=True)
    classes = Classes(kept=kept, group=group, link=link, num_links=int(link.max(initial=-1)) + 1)
    _check(classes, inside, occupations, num_links)
    return classes


def _check(classes: Classes, inside: IntArray, occupations: Sequence[Occupation], num_links: int) -> None:
    """Asserts that no two different histories have one hash."""
    busy_s = np.zeros(num_links, np.float64)
    standing = classes.kept[classes.group]
    used = np.flatnonzero(classes.link >= 0)
    _, first = np.unique(classes.link[used], return_index=True)
    stands = used[first][classes.link[used]]
    for occupation in occupations:
        busy_s[occupation.links] = occupation.busy_s
        assert (busy_s[inside] == busy_s[inside[standing]]).all(), "groups of one class differ"
        assert (busy_s[used] == busy_s[stands]).all(), "links of one class differ"
        busy_s[occupation.links] = 0.0


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Pseudo-random numbers from numbers (SplitMix64)."""
    z = values * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _mixed_number(number: int) -> np.uint64:
    return np.uint64(_mixed(np.array([number + 1], np.uint64))[0])
