from dataclasses import replace

import pytest

from soaprl.errors import StrategyError
from soaprl.graph.factors import FactorKind
from soaprl.graph.operators import OperatorGraph
from soaprl.strategy.baselines import data_parallel, single_device
from soaprl.strategy.strategy import OpConfig
from soaprl.strategy.validation import check_strategy
from tests.toys import ToyBuilder, chain, diamond, uniform_cluster, whole_factor


def test_data_parallelism_splits_every_operator_by_sample_over_all_devices() -> None:
    graph = diamond(sample=8)
    strategy = data_parallel(graph, uniform_cluster(4))
    check_strategy(graph, 4, strategy)
    for operator, config in zip(graph.operators, strategy.configs, strict=True):
        assert config.devices == (0, 1, 2, 3)
        assert config.degrees[operator.factor_index("sample")] == config.num_tasks == 4


def test_a_batch_that_the_devices_do_not_divide_is_split_unevenly() -> None:
    graph = chain(sample=5)
    assert data_parallel(graph, uniform_cluster(4)).configs[0].degrees == (4, 1, 1)


def test_a_batch_smaller_than_the_devices_is_an_error_that_says_so() -> None:
    with pytest.raises(StrategyError, match=r"batch smaller than the devices.* at least 8, found 4"):
        data_parallel(chain(sample=4), uniform_cluster(8))


def test_an_operator_without_a_sample_factor_runs_whole_on_device_0() -> None:
    builder = ToyBuilder(sample=4)
    builder.mean("loss", builder.input("x", channel=2))
    graph = builder.build()
    operator = graph.operators[0]
    unsplittable = replace(
        operator, factors=(replace(operator.factors[0], max_degree=1), operator.factors[1])
    )
    graph = replace(graph, operators=(unsplittable,))
    assert data_parallel(graph, uniform_cluster(4)).configs == (OpConfig((1, 1), (0,)),)


def with_two_sample_factors(first: int, second: int) -> OperatorGraph:
    graph = chain(num_operators=1, sample=first * second)
    factors = tuple(
        whole_factor(name, extent, FactorKind.SAMPLE)
        for name, extent in (("outer", first), ("middle", second), ("unit", 1))
    )
    return replace(graph, operators=(replace(graph.operators[0], factors=factors),))


@pytest.mark.parametrize(
    ("extents", "num_devices", "degrees"),
    [
        # 8 devices over 4 x 16: 4 outer parts, 2 inner ones.
        ((4, 16), 8, (4, 2, 1)),
        # 6 devices over 4 x 16: the largest divisor of 6 up to 4 is 3.
        ((4, 16), 6, (3, 2, 1)),
        # 7 devices over 4 x 16: 7 has no divisor up to 4, so the inner factor is cut alone.
        ((4, 16), 7, (1, 7, 1)),
        # 7 devices over 4 x 3 cannot be filled.
        ((4, 3), 7, (1, 3, 1)),
    ],
)
def test_a_refined_batch_is_split_over_its_factors(
    extents: tuple[int, int], num_devices: int, degrees: tuple[int, ...]
) -> None:
    config = data_parallel(with_two_sample_factors(*extents), uniform_cluster(num_devices)).configs[0]
    assert config.degrees == degrees
    assert config.devices == tuple(range(config.num_tasks))


def test_single_device_runs_everything_on_the_device() -> None:
    graph = chain(num_operators=3)
    strategy = single_device(graph, uniform_cluster(2), device=1)
    check_strategy(graph, 2, strategy)
    assert {config.devices for config in strategy.configs} == {(1,)}
    with pytest.raises(StrategyError, match="device id from 0 to 1, found 2"):
        single_device(graph, uniform_cluster(2), device=2)
