import time
from itertools import product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soaprl.errors import StrategyError
from soaprl.graph.factors import Factor, FactorKind
from soaprl.graph.operators import Operator
from soaprl.strategy.candidates import (
    DegreeLimits,
    candidate_configs,
    count_degrees,
    device_groups,
    legal_degrees,
)
from soaprl.strategy.validation import check_config
from tests.toys import chain, node_cluster, uniform_cluster


def operator_with(*extents: int, kinds: tuple[FactorKind, ...] = ()) -> Operator:
    """An operator that touches nothing, with splittable factors of these extents."""
    kinds = kinds or (FactorKind.ATTRIBUTE,) * len(extents)
    factors = tuple(
        Factor(name=f"f{i}", extent=extent, kind=kind, max_degree=extent)
        for i, (extent, kind) in enumerate(zip(extents, kinds, strict=True))
    )
    return Operator(
        name="op",
        kind="nothing",
        factors=factors,
        inputs=(),
        parameters=(),
        buffers=(),
        outputs=(),
        forward_flops=(),
        backward_flops=(),
        internal_bytes=(),
        internal_saved_bytes=(),
        num_forward_kernels=1,
        num_backward_kernels=1,
        matmul=False,
        body=(),
        body_outputs=(),
    )


@given(st.lists(st.integers(1, 9), max_size=4), st.integers(1, 16), st.booleans())
def test_the_legal_vectors_are_those_of_the_definition_in_order(
    extents: list[int], max_tasks: int, divisors_only: bool
) -> None:
    operator = operator_with(*extents)
    limits = DegreeLimits(max_tasks=max_tasks, divisors_only=divisors_only)
    expected = [
        degrees
        for degrees in product(*(range(1, e + 1) for e in extents))
        if prod(degrees) <= max_tasks
        and (not divisors_only or all(e % d == 0 for e, d in zip(extents, degrees, strict=True)))
    ]
    assert [tuple(row) for row in legal_degrees(operator, limits).tolist()] == expected
    assert count_degrees(operator, limits) == len(expected)


def test_reductions_can_be_forbidden() -> None:
    operator = operator_with(4, 4, kinds=(FactorKind.SAMPLE, FactorKind.REDUCTION))
    assert legal_degrees(operator, DegreeLimits(max_tasks=2)).tolist() == [[1, 1], [1, 2], [2, 1]]
    limits = DegreeLimits(max_tasks=2, reductions=False)
    assert legal_degrees(operator, limits).tolist() == [[1, 1], [2, 1]]


def test_six_factors_on_sixty_four_devices_take_milliseconds_and_are_listed_once() -> None:
    limits = DegreeLimits(max_tasks=64)
    began = time.process_time()
    vectors = legal_degrees(operator_with(100, 101, 102, 103, 104, 105), limits)
    assert time.process_time() - began < 1.0
    # Sum over n = 1 .. 64 of the ordered factorizations of n into 6 factors; the primes p have 6 each.
    assert len(vectors) == count_degrees(operator_with(*range(100, 106)), limits) > 5000
    assert legal_degrees(operator_with(200, 201, 202, 203, 204, 205), limits) is vectors
    assert not vectors.flags.writeable


def test_too_many_vectors_are_an_error_and_not_a_silent_cut() -> None:
    operator = operator_with(*(10_000,) * 6)
    with pytest.raises(StrategyError, match="allow fewer tasks, or only degrees that divide"):
        legal_degrees(operator, DegreeLimits(max_tasks=100_000))


def test_a_limit_below_one_task_is_an_error() -> None:
    with pytest.raises(StrategyError, match="at least 1 task"):
        legal_degrees(operator_with(2), DegreeLimits(max_tasks=0))


def test_device_groups_are_blocks_strides_over_nodes_and_single_devices() -> None:
    groups = device_groups(2, node_cluster(2, 4))
    found = {kind: [g.devices for g in groups if g.kind == kind] for kind in ("block", "strided", "single")}
    assert found == {
        "block": [(0, 1), (2, 3), (4, 5), (6, 7)],
        "strided": [(0, 4), (1, 5), (2, 6), (3, 7)],
        "single": [(device, device) for device in range(8)],
    }


def test_one_task_has_one_group_for_each_device() -> None:
    assert [g.devices for g in device_groups(1, uniform_cluster(3))] == [(0,), (1,), (2,)]


def test_more_tasks_than_devices_are_dealt_out_in_turn() -> None:
    groups = device_groups(5, uniform_cluster(2))
    assert [(g.kind, g.devices) for g in groups] == [
        ("cyclic", (0, 1, 0, 1, 0)),
        ("single", (0,) * 5),
        ("single", (1,) * 5),
    ]


def test_all_devices_as_one_block_come_first() -> None:
    assert device_groups(8, node_cluster(2, 4))[0].devices == tuple(range(8))


@pytest.mark.parametrize("max_candidates", [1, 7, 50, 10_000])
def test_candidates_are_legal_distinct_and_capped(max_candidates: int) -> None:
    cluster = node_cluster(2, 4)
    operator = chain(sample=6, channel=4).operators[0]
    candidates = candidate_configs(
        operator, cluster, DegreeLimits(max_tasks=8), max_candidates=max_candidates
    )
    for config in candidates.configs:
        check_config(operator, config, 8)
    assert len(set(candidates.configs)) == len(candidates.configs)
    assert len(candidates.configs) == min(max_candidates, candidates.num_structured)
    assert ("cap" in candidates.explanation) == (len(candidates.configs) < candidates.num_structured)


def test_a_cap_keeps_equal_parts_that_fill_the_cluster() -> None:
    cluster = uniform_cluster(4)
    operator = operator_with(8, 8)
    configs = candidate_configs(operator, cluster, DegreeLimits(max_tasks=4), max_candidates=3).configs
    # No split at all comes first, then one factor split over all four devices.
    assert [c.degrees for c in configs] == [(1, 1), (1, 4), (4, 1)]


def test_a_small_list_for_a_large_cluster_is_quick() -> None:
    cluster = node_cluster(8, 8)
    operator = operator_with(100, 101, 102, 103, 104, 105)
    began = time.process_time()
    candidates = candidate_configs(operator, cluster, DegreeLimits(max_tasks=64), max_candidates=512)
    assert time.process_time() - began < 2.0
    assert len(candidates.configs) == 512
