"""Random shapes and options: what a rule says about windows, slices and views holds for all of them."""

import random
from collections.abc import Callable

import pytest

from tests.runtime.checking import Case, check
from tests.runtime.random_cases import GENERATORS


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("generator", GENERATORS, ids=lambda generator: generator.__name__)
def test_random_shapes_split_as_they_should(generator: Callable[[random.Random], Case], seed: int) -> None:
    rng = random.Random(seed)
    check(generator(rng), rng)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 60))
@pytest.mark.parametrize("generator", GENERATORS, ids=lambda generator: generator.__name__)
def test_many_random_shapes_split_as_they_should(
    generator: Callable[[random.Random], Case], seed: int
) -> None:
    rng = random.Random(seed)
    check(generator(rng), rng)
