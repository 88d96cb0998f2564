"""What is measured, of what, and on what."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol, TypeAlias

from soaprl.graph.operators import Operator, OperatorGraph

Extents: TypeAlias = tuple[int, ...]


class UnmeasurableError(Exception):
    """A shard cannot be run on this machine; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Under which circumstances times hold.

    Attributes:
        device_type: Name of the cluster's device type that the device stands for.
        device_name: As the driver or the processor calls it.
        threads: Threads of the process on a CPU; 0 on a GPU.
        torch_version: The library that ran.
        compute_dtype: As in `RooflineCostModel`.
    """

    device_type: str
    device_name: str
    threads: int
    torch_version: str
    compute_dtype: str = "float32"

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else ""
        return f"{self.device_type} = {self.device_name}{threads}, torch {self.torch_version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Times of one shard.

    Attributes:
        forward_s: Median over the repeats, seconds.
        backward_s: The same of the backward pass; 0 without one.
        spread: The larger of both passes' half interquartile range over the median: how far to trust it.
        repeats: How often each pass ran, warm-up aside.
    """

    forward_s: float
    backward_s: float
    spread: float = 0.0
    repeats: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One row of a profile.

    Attributes:
        family: Of the operator, as `family_of` gives it; ``update/NAME`` for an optimizer's update.
        extents: Of the shard; the bytes of parameters for an update.
        kind: Of the operator, for people and statistics.
        times: What was measured, in all rounds together; None where it could not be.
        reason: Why it could not be; empty where it was.
        rounds: How often it was measured, at different times.
    """

    family: str
    extents: Extents
    kind: str
    times: Measurement | None
    reason: str = ""
    rounds: int = 1


def together(rounds: Sequence[Measurement]) -> Measurement:
    """What was measured in several rounds, as one: medians, so that a slow moment of the machine is none.

    The spread is the largest of any round.
    """
    return Measurement(
        forward_s=median(times.forward_s for times in rounds),
        backward_s=median(times.backward_s for times in rounds),
        spread=max(times.spread for times in rounds),
        repeats=sum(times.repeats for times in rounds),
    )


class Measurer(Protocol):
    """Runs shards on a device and times them. Must be picklable, to go to processes that search."""

    @property
    def setting(self) -> Setting:
        """What its times hold for."""
        ...

    def measure_task(self, graph: OperatorGraph, operator: Operator, extents: Extents) -> Measurement:
        """Times of the task of `operator` that has the first `extents` indices of each factor.

        Raises:
            UnmeasurableError: It cannot be run here.
        """
        ...

    def measure_update(self, optimizer: str, num_bytes: int) -> Measurement:
        """Forward time: of the update of parameters of `num_bytes`, beside others in one step.

        Raises:
            UnmeasurableError: It cannot be run here.
        """
        ...
