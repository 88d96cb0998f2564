"""Configurations and strategies: how each operator is split and where its tasks run."""

from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod


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


@dataclass(frozen=True, slots=True)
class Strategy:
    """One configuration for each operator of a graph, in the graph's order, and how state is sharded.

    Attributes:
        configs: The configurations.
        sharding: What is sharded over the devices that hold the same parameters.
    """

    configs: tuple[OpConfig, ...]
    sharding: Sharding = Sharding.NONE

    def replaced(self, operator: int, config: OpConfig) -> "Strategy":
        """This strategy with another configuration for the operator with index `operator`."""
        return replace(self, configs=(*self.configs[:operator], config, *self.configs[operator + 1 :]))
