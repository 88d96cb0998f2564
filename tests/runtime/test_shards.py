import pytest
import torch

from soaprl.graph.factors import Span
from soaprl.graph.operators import Access, Broadcast, DimUse
from soaprl.runtime.plans import apply, arranging, cropping
from soaprl.runtime.shards import (
    LocalDim,
    flat_indices,
    flat_interval,
    local_dim,
    operand_pieces,
    region,
)


def dim(extent: int, *label: tuple[int, int, int], span: Span | None = None) -> LocalDim:
    return LocalDim(extent=extent, label=label, factors=tuple(range(len(label))), span=span)


def test_pieces_are_one_interval_unless_an_inner_one_is_cut() -> None:
    assert flat_interval([(3, 1, 3), (4, 0, 4)]) == (4, 12)
    assert flat_interval([(3, 2, 3), (4, 1, 3)]) == (9, 11)
    assert flat_interval([(3, 0, 2), (4, 1, 3)]) is None
    assert flat_indices([(3, 0, 2), (4, 1, 3)]).tolist() == [1, 2, 5, 6]


def test_no_pieces_are_the_one_index_of_a_dimension_of_extent_one() -> None:
    assert flat_interval([]) == (0, 1)
    assert flat_indices([]).tolist() == [0]


def test_a_window_reaches_into_the_padding_at_the_true_border_only() -> None:
    # Kernel 3, stride 2, padding 1 over 7 inputs: output i reads 2 i - 1 .. 2 i + 1.
    span = Span(factor=0, lower=0, upper=7, mul=2, add_first=-1, add_last=1)
    first, last = dim(7, (4, 0, 2), span=span), dim(7, (4, 2, 4), span=span)
    assert (first.first, first.start, first.stop, first.end) == (-1, 0, 4, 4)
    assert (last.first, last.start, last.stop, last.end) == (3, 3, 7, 8)


def test_a_shift_of_several_strips_touches_only_what_is_inside() -> None:
    # Indices 1, 2, 5, 6 of the label are 2 less in the dimension, which has 3: only 0 (2 - 2) is in it.
    span = Span(factor=0, lower=0, upper=3, add_first=-2, add_last=-2)
    assert dim(3, (2, 0, 2), (4, 1, 3), span=span).indices().tolist() == [0]


def test_a_part_that_touches_nothing_has_an_empty_interval() -> None:
    span = Span(factor=0, lower=0, upper=3, add_first=-8, add_last=-8)
    nothing = dim(3, (12, 0, 4), span=span)
    assert nothing.start == nothing.stop
    assert nothing.size == 0
    access = Access(tensor=0, spans=(span,), layout=((0,),), gradient=True, saved=False)
    ((start, stop),) = region(access, ((0, 4),))
    assert start == stop


def test_an_operand_counts_from_the_start_of_the_slice_it_sees() -> None:
    span = Span(factor=0, lower=0, upper=10).shifted(5, 4)
    access = Access(tensor=0, spans=(span,), layout=((0,),), gradient=True, saved=False)
    assert region(access, ((1, 3),)) == ((6, 8),)
    assert operand_pieces(access, ((1, 3),)) == (((4, 1, 3),),)


def test_an_operand_permutes_merges_selects_and_repeats_refined_dimensions() -> None:
    stored = torch.arange(2 * 3 * 4).reshape(2, 3, 4)
    layout = ((2, 0), (Broadcast(factor=-1, extent=5),))
    pieces = (((4, 0, 4), (2, 0, 2)), ((5, 0, 5),))
    operand = apply(arranging((2, 1, 4), layout, pieces), stored[:, 1:2])
    expected = stored[:, 1].T.reshape(8)[:, None].expand(8, 5)
    assert torch.equal(operand, expected)


def test_an_operand_is_cropped_to_what_a_call_needs() -> None:
    whole = torch.arange(12)
    span = Span(factor=0, lower=0, upper=12, add_first=1, add_last=2)
    need = dim(12, (9, 2, 4), span=span)
    assert apply(cropping((((12, 0, 12),),), (need,)), whole).tolist() == [3, 4, 5]
    strips = dim(12, (3, 0, 3), (4, 1, 2))
    assert apply(cropping((((12, 0, 12),),), (strips,)), whole).tolist() == [1, 5, 9]


def test_a_region_that_lacks_what_a_call_needs_is_an_error() -> None:
    span = Span(factor=0, lower=0, upper=12, add_last=2)
    with pytest.raises(AssertionError, match="the region holds"):
        cropping((((12, 2, 5),),), (dim(12, (10, 2, 5), span=span),))


def test_a_dimension_use_takes_its_intervals_from_the_part() -> None:
    use = DimUse(extent=12, factors=(1, 0))
    local = local_dim(use, (3, 4), ((1, 2), (0, 2)))
    assert local.indices().tolist() == [1, 4]
    assert not local.whole
