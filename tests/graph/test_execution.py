"""Rules executed: every task computed from exactly the regions its rule names gives the unsplit operator."""

import random
import zlib

import pytest

from tests.runtime import cases
from tests.runtime.checking import Case, check

ALL = [
    case
    for group in (
        cases.dense_cases,
        cases.convolution_cases,
        cases.pooling_cases,
        cases.embedding_cases,
        cases.recurrent_cases,
        cases.normalization_cases,
        cases.attention_cases,
        cases.pointwise_cases,
        cases.dropout_cases,
        cases.joining_cases,
        cases.view_cases,
        cases.reduction_cases,
        cases.indexing_cases,
        cases.loss_cases,
    )
    for case in group()
]


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_any_split_computes_what_the_whole_operator_does(case: Case) -> None:
    check(case, random.Random(zlib.crc32(case.name.encode())))
