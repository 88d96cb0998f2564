"""Configurations and strategies: how each operator is split and where its tasks run."""

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Strategy:
    """One configuration for each operator of a graph, in the graph's order."""

    configs: tuple[OpConfig, ...]

    def replaced(self, operator: int, config: OpConfig) -> "Strategy":
        """This strategy with another configuration for the operator with index `operator`."""
        return Strategy((*self.configs[:operator], config, *self.configs[operator + 1 :]))
