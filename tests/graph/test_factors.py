"""Parts of factors and spans of dimensions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soaprl.graph.factors import Span, part_bounds, part_box, part_index


@given(extent=st.integers(1, 200), degree=st.integers(1, 40))
def test_parts_are_disjoint_cover_the_factor_and_differ_by_at_most_one(extent: int, degree: int) -> None:
    degree = min(degree, extent)
    bounds = [part_bounds(extent, degree, k) for k in range(degree)]
    assert [lo for lo, _ in bounds] == [0, *(hi for _, hi in bounds[:-1])]
    assert bounds[-1][1] == extent
    sizes = [hi - lo for lo, hi in bounds]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_parts_are_numbered_row_major() -> None:
    assert [part_index(k, (2, 1, 3)) for k in range(6)] == [
        (0, 0, 0), (0, 0, 1), (0, 0, 2), (1, 0, 0), (1, 0, 1), (1, 0, 2)
    ]  # fmt: skip
    assert part_box((5, 4), (2, 2), 1) == ((0, 3), (2, 4))


@given(
    extent=st.integers(1, 30),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 3),
    data=st.data(),
)
def test_a_window_span_is_the_hull_of_the_indices_that_a_convolution_reads(
    extent: int, kernel: int, stride: int, padding: int, dilation: int, data: st.DataObject
) -> None:
    num_outputs = (extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if num_outputs < 1:
        return
    lo = data.draw(st.integers(0, num_outputs - 1))
    hi = data.draw(st.integers(lo + 1, num_outputs))
    span = Span(
        factor=0,
        lower=0,
        upper=extent,
        mul=stride,
        add_first=-padding,
        add_last=-padding + dilation * (kernel - 1),
    )
    read = [i * stride - padding + k * dilation for i in range(lo, hi) for k in range(kernel)]
    first, stop = span.interval(lo, hi)
    assert (first, stop) == (max(min(read), 0), min(max(read) + 1, extent))


@given(start=st.integers(0, 10), length=st.integers(1, 10), lo=st.integers(0, 9), width=st.integers(1, 5))
def test_a_shifted_span_reads_the_same_indices_of_the_larger_dimension(
    start: int, length: int, lo: int, width: int
) -> None:
    plain = Span(factor=0, lower=0, upper=length)
    first, stop = plain.interval(lo, lo + width)
    moved = plain.shifted(start, length).interval(lo, lo + width)
    if first < stop:
        assert moved == (first + start, stop + start)
    else:
        assert moved[0] >= moved[1]


@pytest.mark.parametrize(("lo", "hi", "expected"), [(0, 3, (0, 3)), (0, 5, (0, 4)), (3, 5, (2, 4))])
def test_an_adaptive_pooling_span_covers_the_fractional_windows(
    lo: int, hi: int, expected: tuple[int, int]
) -> None:
    # 4 inputs, 5 outputs: output i reads [floor(4i/5), ceil(4(i+1)/5)).
    span = Span(factor=0, lower=0, upper=4, mul=4, div=5, add_first=0, add_last=3)
    reads = [(4 * i // 5, -(-4 * (i + 1) // 5)) for i in range(lo, hi)]
    assert expected == (reads[0][0], reads[-1][1])
    assert span.interval(lo, hi) == expected
