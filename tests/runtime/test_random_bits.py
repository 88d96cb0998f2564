import torch

from soaprl.runtime.random_bits import global_index, keep_mask, uniform, uniform_for
from soaprl.runtime.shards import LocalDim


def dim(extent: int, lo: int, hi: int) -> LocalDim:
    return LocalDim(extent=extent, label=((extent, lo, hi),), factors=(0,), span=None)


def test_a_part_draws_the_numbers_that_the_whole_tensor_has_there() -> None:
    whole = uniform_for((dim(6, 0, 6), dim(9, 0, 9)), 5, torch.device("cpu"))
    part = uniform_for((dim(6, 2, 4), dim(9, 3, 8)), 5, torch.device("cpu"))
    assert torch.equal(part, whole[2:4, 3:8])


def test_global_indices_are_row_major() -> None:
    index = global_index((dim(3, 1, 3), dim(4, 2, 4)), torch.device("cpu"))
    assert index.tolist() == [[6, 7], [10, 11]]


def test_numbers_are_uniform_and_unlike_for_other_seeds() -> None:
    index = torch.arange(100_000)
    first, second = uniform(index, 1), uniform(index, 2)
    # Ten equal bins: chi-square with 9 degrees of freedom is below 27.9 with probability 0.999.
    counts = torch.histc(first, 10, 0, 1)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 27.9
    # Correlations of independent numbers have a deviation of 1 / sqrt(100,000) = 0.0032.
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.016
    assert abs(torch.corrcoef(torch.stack([first[1:], first[:-1]]))[0, 1]) < 0.016


def test_indices_beyond_32_bits_have_numbers_of_their_own() -> None:
    index = torch.arange(1000)
    assert not torch.equal(uniform(index, 1), uniform(index + 2**32, 1))


def test_dropout_keeps_the_share_it_should() -> None:
    kept = keep_mask((dim(100_000, 0, 100_000),), 0.3, 7, torch.device("cpu"))
    # The deviation of the share is sqrt(0.3 * 0.7 / 100,000) = 0.0014.
    assert abs(kept.double().mean() - 0.7) < 0.007
