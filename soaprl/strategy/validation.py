"""Checks that a configuration or strategy is legal, with errors that say what is not."""

from soaprl.errors import StrategyError
from soaprl.graph.operators import Operator, OperatorGraph
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import OpConfig, Strategy


def check_config(operator: Operator, config: OpConfig, num_devices: int) -> None:
    """Raises `StrategyError` unless `config` is legal for `operator` on `num_devices` devices.

    Legal: one degree for each factor, each from 1 to the factor's largest degree; one device for each task;
    every device id below `num_devices`.
    """
    _check_degrees(operator, config)
    if len(config.devices) != config.num_tasks:
        product = " x ".join(str(d) for d in config.degrees) or "1"
        raise StrategyError(
            f"operator {operator.name!r}: expected one device for each of its {config.num_tasks} tasks"
            f" ({product}), found {len(config.devices)} devices."
        )
    for task, device in enumerate(config.devices):
        if not 0 <= device < num_devices:
            raise StrategyError(
                f"operator {operator.name!r}: expected device ids from 0 to {num_devices - 1}, found {device}"
                f" for task {task}. The strategy may belong to a larger cluster."
            )


def check_strategy(graph: OperatorGraph, num_devices: int, strategy: Strategy) -> None:
    """Raises `StrategyError` unless `strategy` has a legal configuration for every operator of `graph`."""
    if len(strategy.configs) != len(graph.operators):
        raise StrategyError(
            f"strategy for {graph.name!r}: expected {len(graph.operators)} configurations, one for each"
            f" operator, found {len(strategy.configs)}. The strategy may belong to another model."
        )
    for operator, config in zip(graph.operators, strategy.configs, strict=True):
        check_config(operator, config, num_devices)
    if not strategy.is_whole or strategy.stages:
        _check_micro_batches(graph, strategy)


def _check_micro_batches(graph: OperatorGraph, strategy: Strategy) -> None:
    """Raises `StrategyError` unless the batch can be cut so, and the stages are stages of `graph`."""
    number, stages = strategy.micro_batches, strategy.stages
    if number < 1 or graph.batch_size % number:
        raise StrategyError(
            f"strategy for {graph.name!r}: expected a number of micro-batches that divides the batch of"
            f" {graph.batch_size}, found {number}."
        )
    if stages and strategy.schedule is Schedule.NONE:
        raise StrategyError(
            f"strategy for {graph.name!r}: expected a schedule, {Schedule.GPIPE.value!r} or"
            f" {Schedule.ONE_F_ONE_B.value!r}, for its {strategy.num_stages} stages, found none."
        )
    if stages and len(stages) != len(graph.operators):
        raise StrategyError(
            f"strategy for {graph.name!r}: expected {len(graph.operators)} stages, one for each operator,"
            f" found {len(stages)}."
        )
    last = 0
    for operator, stage in zip(graph.operators, stages, strict=bool(stages)):
        if stage not in (last, last + 1) or (operator is graph.operators[0] and stage != 0):
            raise StrategyError(
                f"operator {operator.name!r}: expected stage {last} or {last + 1}, found {stage}. Stages"
                " begin with 0 and follow one another in the order of the operators."
            )
        last = stage


def _check_degrees(operator: Operator, config: OpConfig) -> None:
    if len(config.degrees) != len(operator.factors):
        names = ", ".join(f.name for f in operator.factors) or "none"
        raise StrategyError(
            f"operator {operator.name!r}: expected {len(operator.factors)} degrees, one for each factor"
            f" ({names}), found {len(config.degrees)}."
        )
    for factor, degree in zip(operator.factors, config.degrees, strict=True):
        if not 1 <= degree <= factor.max_degree:
            expected = (
                f"a degree from 1 to {factor.max_degree}" if factor.splittable else "1 (not splittable)"
            )
            raise StrategyError(
                f"operator {operator.name!r}, factor {factor.name!r}: expected {expected}, found {degree}."
            )
