"""Configurations and strategies: how each operator is split and where its tasks run."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from math import prod

from soaprl.strategy.schedules import Schedule


@dataclass(frozen=True, slots=True)
class OpConfig:
    """The configuration of one operator.

    Attributes:
        degrees: For each factor of the operator, into how many parts it is cut.
        devices: For each task, row-major over the factors, the device that runs it; repeats are legal.
    """

    degrees: tuple[int, ...]
    devices: tuple[int, ...]

    @property
    def num_tasks(self) -> int:
        """Number of tasks: the product of the degrees."""
        return prod(self.degrees)


class Sharding(StrEnum):
    """What devices that hold the same parameters keep a piece of each, instead of all of it.

    The stages of ZeRO (Rajbhandari, Rasley, Ruwase, He: Memory Optimizations Toward Training Trillion
    Parameter Models, SC 2020). Each stage shards what the one before does, and more.
    """

    NONE = "none"
    ZERO1 = "zero1"
    ZERO2 = "zero2"
    ZERO3 = "zero3"

    @property
    def level(self) -> int:
        """0: nothing; 1: optimizer state; 2: gradients too; 3: parameters too."""
        return tuple(Sharding).index(self)

    @property
    def synchronizes_each_pass(self) -> bool:
        """Whether gradients are summed after the backward pass of each micro-batch, not after the last one.

        A device that keeps a piece of each gradient has no room to add up whole ones.
        """
        return self.level >= 2


@dataclass(frozen=True, slots=True)
class Strategy:
    """One configuration for each operator of a graph, in the graph's order, and how batch and state are cut.

    With several micro-batches an operator has its configuration for each of them, and sample degrees cut a
    micro-batch.

    Attributes:
        configs: The configurations.
        sharding: What is sharded over the devices that hold the same parameters.
        micro_batches: Into how many equal parts the batch is cut, one after the other.
        schedule: In which order stages do the passes of micro-batches.
        stages: With a schedule, the stage of each operator: from 0 on, never less than that of the operator
            before. Empty: one stage.
    """

    configs: tuple[OpConfig, ...]
    sharding: Sharding = Sharding.NONE
    micro_batches: int = 1
    schedule: Schedule = Schedule.NONE
    stages: tuple[int, ...] = ()

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return self.stages[-1] + 1 if self.stages else 1

    @property
    def is_whole(self) -> bool:
        """Whether the batch is not cut and passes are in no order."""
        return self.micro_batches == 1 and self.schedule is Schedule.NONE

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all of it: equal for equal strategies, in every process."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def replaced(self, operator: int, config: OpConfig) -> "Strategy":
        """This strategy with another configuration for the operator with index `operator`."""
        return replace(self, configs=(*self.configs[:operator], config, *self.configs[operator + 1 :]))
