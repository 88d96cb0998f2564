"""Factors: the iteration dimensions of an operator, and how tensor dimensions follow from them.

A task of an operator is a box in the operator's factor space: for each factor an interval ``[lo, hi)``.
A `Span` maps the interval of one factor to the interval of one tensor dimension that the task touches:

    first = (lo * mul + add_first) // div
    last  = ((hi - 1) * mul + add_last) // div
    span  = [first, last + 1) clipped to [lower, upper)

which covers a plain dimension (mul = div = 1, add = 0), slices and concatenations (add), convolution and
pooling windows with stride, padding, dilation and so their halos (mul = stride), transposed convolutions
(div = stride), adaptive pooling (mul = in, div = out) and interpolation. Implemented in `Span.interval`.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import prod


class FactorKind(StrEnum):
    """The SOAP kind of a factor; reduction is an extension of SOAP (partial sums)."""

    SAMPLE = "sample"
    ATTRIBUTE = "attribute"
    PARAMETER = "parameter"
    REDUCTION = "reduction"


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """One iteration dimension of an operator.

    Attributes:
        name: Unique within the operator, in the field's terms (``sample``, ``channel``, ``height``, ...).
        extent: Number of indices; at least 1.
        kind: What splitting it means.
        max_degree: Largest number of parts; 1 for a factor that cannot be split.
    """

    name: str
    extent: int
    kind: FactorKind
    max_degree: int

    @property
    def splittable(self) -> bool:
        """Whether any degree above 1 is legal."""
        return self.max_degree > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Which interval of one tensor dimension a task touches; see the module's formula.

    Attributes:
        factor: Index of the operator's factor, or -1: every task touches ``[lower, upper)``.
        mul: Numerator of the affine map; at least 1.
        div: Denominator of the affine map; at least 1.
        add_first: Added for the first index, before the division.
        add_last: Added for the last index, before the division.
        lower: Start of the range that indices are clipped to.
        upper: End of that range, exclusive.
    """

    factor: int
    lower: int
    upper: int
    mul: int = 1
    div: int = 1
    add_first: int = 0
    add_last: int = 0

    @property
    def plain(self) -> bool:
        """Whether indices of the dimension and of the factor are the same numbers."""
        return self.factor >= 0 and (self.mul, self.div, self.add_first, self.add_last) == (1, 1, 0, 0)

    def interval(self, lo: int, hi: int) -> tuple[int, int]:
        """The touched ``[start, stop)`` for the factor interval ``[lo, hi)``; empty if start >= stop."""
        if self.factor < 0:
            return self.lower, self.upper
        first = (lo * self.mul + self.add_first) // self.div
        last = ((hi - 1) * self.mul + self.add_last) // self.div
        return max(first, self.lower), min(last + 1, self.upper)

    def shifted(self, start: int, length: int) -> "Span":
        """This span seen through a slice ``[start, start + length)`` of a larger dimension."""
        if self.factor < 0:
            return Span(factor=-1, lower=self.lower + start, upper=self.upper + start)
        return Span(
            factor=self.factor,
            lower=max(self.lower + start, start),
            upper=min(self.upper + start, start + length),
            mul=self.mul,
            div=self.div,
            add_first=self.add_first + start * self.div,
            add_last=self.add_last + start * self.div,
        )


def part_bounds(extent: int, degree: int, index: int) -> tuple[int, int]:
    """Interval ``[lo, hi)`` of part `index` when `extent` indices are cut into `degree` parts.

    Parts are equal where `degree` divides `extent`; otherwise the first parts hold one index more.
    """
    size, remainder = divmod(extent, degree)
    lo = index * size + min(index, remainder)
    return lo, lo + size + (1 if index < remainder else 0)


def part_index(part: int, degrees: tuple[int, ...]) -> tuple[int, ...]:
    """Coordinates of part number `part` in the row-major grid of `degrees`."""
    coordinates = []
    for degree in reversed(degrees):
        part, coordinate = divmod(part, degree)
        coordinates.append(coordinate)
    return tuple(reversed(coordinates))


def part_box(extents: tuple[int, ...], degrees: tuple[int, ...], part: int) -> tuple[tuple[int, int], ...]:
    """The factor intervals of one task: ``[lo, hi)`` for each factor."""
    index = part_index(part, degrees)
    return tuple(part_bounds(e, d, i) for e, d, i in zip(extents, degrees, index, strict=True))


def num_parts(degrees: tuple[int, ...]) -> int:
    """Number of tasks of an operator with these degrees."""
    return prod(degrees)
