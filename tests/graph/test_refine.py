"""Refined dimensions: what views demand of the tensors around them."""

from hypothesis import given
from hypothesis import strategies as st

from soaprl.graph.refine import Block, aligned_pieces, inner_pieces, is_chain, reshape_blocks


def test_reshape_blocks_are_the_finest_pairing() -> None:
    assert reshape_blocks((4, 7, 48), (4, 7, 3, 4, 4)) == (
        Block((0,), (0,)),
        Block((1,), (1,)),
        Block((2,), (2, 3, 4)),
    )
    assert reshape_blocks((2, 3, 4), (6, 4)) == (Block((0, 1), (0,)), Block((2,), (1,)))
    assert reshape_blocks((6, 4), (4, 6)) == (Block((0, 1), (0, 1)),)
    assert reshape_blocks((5,), (5, 1, 1)) == (Block((0,), (0,)), Block((), (1,)), Block((), (2,)))
    assert reshape_blocks((), (1,)) == (Block((), (0,)),)


@given(st.lists(st.integers(1, 6), max_size=5), st.randoms())
def test_blocks_cover_all_dimensions_once_and_have_equal_products(shape: list[int], random: object) -> None:
    size = 1
    for extent in shape:
        size *= extent
    for result in ((size,), (1, size), tuple(reversed(shape))):
        blocks = reshape_blocks(tuple(shape), result)
        assert [d for b in blocks for d in b.source_dims] == list(range(len(shape)))
        assert [d for b in blocks for d in b.result_dims] == list(range(len(result)))
        for block in blocks:
            left = right = 1
            for d in block.source_dims:
                left *= shape[d]
            for d in block.result_dims:
                right *= result[d]
            assert left == right


def test_strides_form_a_chain_only_if_each_divides_the_next() -> None:
    assert is_chain((12, 2, 4))
    assert not is_chain((4, 6))


def test_an_aligned_slice_fixes_the_outer_pieces() -> None:
    assert inner_pieces((3, 4, 5), 20) == (4, 5)
    assert inner_pieces((3, 4, 5), 10) is None
    assert aligned_pieces((3, 4, 5), 40, 20) == (2,)
    assert aligned_pieces((3, 4, 5), 35, 5) == (1, 3)
    assert aligned_pieces((3, 4, 5), 30, 20) is None
    assert aligned_pieces((3, 4, 5), 59, 1) == (2, 3, 4)
