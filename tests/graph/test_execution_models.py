"""Whole models executed part by part: views, ties, folded operators and losses together."""

import random
import zlib

import pytest

from tests.runtime.checking import Case, check
from tests.runtime.models import own_cases, zoo_case, zoo_names

# Alone, each of these takes longer than ten of the others.
_LONG = ("inception-v3", "resnet-101")


@pytest.mark.parametrize("case", own_cases(), ids=lambda case: case.name)
def test_any_split_of_a_small_model_trains_as_the_whole_one(case: Case) -> None:
    check(case, random.Random(zlib.crc32(case.name.encode())))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in _LONG else n for n in zoo_names()]
)
def test_any_split_of_a_zoo_model_trains_as_the_whole_one(name: str) -> None:
    check(zoo_case(name), random.Random(zlib.crc32(name.encode())), num_random=1)
