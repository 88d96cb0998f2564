from dataclasses import replace

import pytest

from soaprl.errors import StrategyError
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import OpConfig, Strategy
from soaprl.strategy.validation import check_config, check_strategy
from tests.toys import chain, on_one_device


def test_uneven_parts_and_repeated_devices_are_legal() -> None:
    operator = chain(sample=7, channel=5).operators[0]
    check_config(operator, OpConfig((3, 2, 1), (0, 0, 1, 1, 0, 1)), 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (OpConfig((1, 1), (0,)), r"'op0': expected 3 degrees.*\(sample, channel, in_channel\), found 2"),
        (OpConfig((5, 1, 1), (0,) * 5), r"'op0', factor 'sample': expected a degree from 1 to 4, found 5"),
        (OpConfig((1, 0, 1), ()), r"'op0', factor 'channel': expected a degree from 1 to 4, found 0"),
        (OpConfig((2, 2, 1), (0, 1)), r"one device for each of its 4 tasks \(2 x 2 x 1\), found 2 devices"),
        (OpConfig((2, 1, 1), (0, 2)), r"expected device ids from 0 to 1, found 2 for task 1"),
        (OpConfig((2, 1, 1), (-1, 0)), r"expected device ids from 0 to 1, found -1 for task 0"),
    ],
)
def test_an_illegal_configuration_is_an_error_that_names_what_is_wrong(
    config: OpConfig, message: str
) -> None:
    with pytest.raises(StrategyError, match=message):
        check_config(chain().operators[0], config, 2)


def test_a_strategy_of_another_length_is_an_error() -> None:
    graph = chain(num_operators=3)
    check_strategy(graph, 1, on_one_device(graph))
    with pytest.raises(StrategyError, match=r"'chain': expected 3 configurations, .* found 2"):
        check_strategy(graph, 1, Strategy(on_one_device(graph).configs[:2]))


def test_the_operator_in_which_a_strategy_is_wrong_is_named() -> None:
    graph = chain(num_operators=3)
    with pytest.raises(StrategyError, match="'op1'"):
        check_strategy(graph, 2, on_one_device(graph).replaced(1, OpConfig((1, 1, 1), (9,))))


@pytest.mark.parametrize(
    ("micro_batches", "schedule", "stages", "message"),
    [
        (3, Schedule.NONE, (), "micro-batches that divides the batch of 4, found 3"),
        (0, Schedule.NONE, (), "micro-batches that divides the batch of 4, found 0"),
        (2, Schedule.NONE, (0, 1), "expected a schedule, 'gpipe' or '1f1b', for its 2 stages, found none"),
        (2, Schedule.GPIPE, (0, 1, 2), "expected 2 stages, one for each operator, found 3"),
        (2, Schedule.GPIPE, (0, 2), "'op1': expected stage 0 or 1, found 2"),
        (2, Schedule.GPIPE, (1, 1), "'op0': expected stage 0 or 1, found 1"),
        (2, Schedule.GPIPE, (0, -1), "'op1': expected stage 0 or 1, found -1"),
        (1, Schedule.NONE, (0, 1), "expected a schedule"),
    ],
)
def test_micro_batches_and_stages_that_are_none_are_errors(
    micro_batches: int, schedule: Schedule, stages: tuple[int, ...], message: str
) -> None:
    graph = chain(num_operators=2)
    strategy = replace(on_one_device(graph), micro_batches=micro_batches, schedule=schedule, stages=stages)
    with pytest.raises(StrategyError, match=message):
        check_strategy(graph, 2, strategy)


@pytest.mark.parametrize("stages", [(), (0, 0), (0, 1)])
def test_stages_that_follow_one_another_are_legal(stages: tuple[int, ...]) -> None:
    graph = chain(num_operators=2)
    strategy = replace(on_one_device(graph), micro_batches=2, schedule=Schedule.ONE_F_ONE_B, stages=stages)
    check_strategy(graph, 2, strategy)
    assert strategy.num_stages == len(set(stages)) or not stages
