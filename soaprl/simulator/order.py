"""In which order the program does the passes of operators."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from soaprl.cluster.tables import IntArray
from soaprl.graph.operators import Operator


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOrder:
    """When passes come in the program; see `soaprl.simulator.state.Layout` for what most arrays hold.

    Attributes:
        forward_step: Shape [operators].
        backward_step: Shape [operators].
        turns: The passes that exist, in their order. Empty: devices do tasks as they become ready.
        stages: Shape [operators]; the stage of each: whose passes follow each other on the same devices.
    """

    forward_step: IntArray
    backward_step: IntArray
    turns: IntArray
    stages: IntArray


def plain_order(num_operators: int) -> ProgramOrder:
    """All forward passes, then all backward passes in reverse; devices do tasks as they become ready."""
    n = num_operators
    return ProgramOrder(
        forward_step=np.arange(n, dtype=np.int64),
        backward_step=np.arange(2 * n - 1, n - 1, -1, dtype=np.int64),
        turns=np.zeros(0, np.int64),
        stages=np.zeros(n, np.int64),
    )


def runtime_order(operators: Sequence[Operator]) -> ProgramOrder:
    """The same, but each device does its tasks in this order, whichever is ready first: as a rank does."""
    n, trained = len(operators), np.array([operator.has_backward for operator in operators], np.bool_)
    backward = np.arange(2 * n - 1, n - 1, -1, dtype=np.int64)
    turns = np.concatenate((np.arange(n, dtype=np.int64), backward[trained[::-1]]))
    return replace(plain_order(n), turns=turns)
