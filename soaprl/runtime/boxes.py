"""Boxes: intervals ``[start, stop)`` for each refined dimension of a tensor."""

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from soaprl.runtime.program import Box

IntArray = NDArray[np.int64]


def num_elements(box: Box) -> int:
    """Number of elements; a box without dimensions has one."""
    return prod(max(0, stop - start) for start, stop in box)


def common(first: Box, second: Box) -> Box:
    """The elements in both; empty (a start >= stop) if there are none."""
    return tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(first, second, strict=True))


def inside(box: Box, origin: Box) -> tuple[slice, ...]:
    """The index of `box` in a local tensor that holds `origin`."""
    return tuple(slice(start - o, stop - o) for (start, stop), (o, _) in zip(box, origin, strict=True))


def box_array(boxes: Sequence[Box], num_dims: int) -> IntArray:
    """Boxes as an array of shape [boxes, dims, 2]."""
    return np.array(boxes, np.int64).reshape(len(boxes), num_dims, 2)


def overlaps(written: IntArray, read: IntArray) -> Iterator[tuple[int, int, Box]]:
    """All (writer, reader, common box) whose boxes overlap, by writer and then reader.

    Args:
        written: Shape [writers, dims, 2].
        read: Shape [readers, dims, 2].
    """
    start = np.maximum(written[:, None, :, 0], read[None, :, :, 0])
    stop = np.minimum(written[:, None, :, 1], read[None, :, :, 1])
    pairs = np.argwhere((start < stop).all(axis=-1))
    bounds = np.stack([start, stop], axis=-1)[pairs[:, 0], pairs[:, 1]]
    for (writer, reader), box in zip(pairs.tolist(), bounds.tolist(), strict=True):
        yield writer, reader, tuple((lo, hi) for lo, hi in box)


def merged(labels: NDArray[np.int64], cuts: tuple[tuple[int, ...], ...]) -> Iterator[tuple[int, Box]]:
    """A grid of labelled intervals as few boxes of one label each, row-major by their first corner.

    Boxes grow greedily: along the last dimension as far as the label is the same, then along the one before.

    Args:
        labels: Shape: the number of intervals of each dimension; negative ones are left out.
        cuts: For each dimension, the ends of its intervals, one more than there are intervals.

    Yields:
        Label and box.
    """
    taken = np.array(labels < 0)
    for corner in np.ndindex(labels.shape):
        if taken[corner]:
            continue
        label = labels[corner]
        last = [k + 1 for k in corner]
        for d in reversed(range(labels.ndim)):
            while last[d] < labels.shape[d]:
                slab = _slices(corner, last, d)
                if (labels[slab] != label).any() or taken[slab].any():
                    break
                last[d] += 1
        taken[tuple(slice(a, b) for a, b in zip(corner, last, strict=True))] = True
        yield int(label), tuple((cut[a], cut[b]) for cut, a, b in zip(cuts, corner, last, strict=True))


def _slices(corner: tuple[int, ...], last: list[int], d: int) -> tuple[slice, ...]:
    """The next interval along dimension `d` of the box from `corner` to `last`."""
    return tuple(
        slice(last[d], last[d] + 1) if k == d else slice(a, b)
        for k, (a, b) in enumerate(zip(corner, last, strict=True))
    )
