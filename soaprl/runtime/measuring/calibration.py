"""What the runtime adds to the work of tasks: fitted from runs of a few strategies.

A rank's thread runs for longer in an iteration than its tasks take by themselves: it packs and unpacks
messages, and hands them to the library. With m the messages that a rank sends and receives, b the predicted
seconds of its tasks and updates, and r those that its thread ran,

    r - b = overhead * m

in the least squares of all ranks of all strategies; not below 0. Implemented in `fit_overhead`. What a thread
runs does not depend on what else the machine does, as long as nothing else goes through its caches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from soaprl.runtime.program import Exchange, Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One rank in an iteration.

    Attributes:
        num_messages: That it sends and receives between tasks.
        predicted_s: Seconds that its device computes by the simulator.
        ran_s: Seconds that its thread ran.
    """

    num_messages: int
    predicted_s: float
    ran_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """What a message takes of a rank's thread.

    Attributes:
        message_s: Seconds a message, on either side.
        error_before: Median relative error of the predicted seconds without it.
        error_after: And with it.
    """

    message_s: float
    error_before: float
    error_after: float


def num_messages(program: Program) -> tuple[int, ...]:
    """For each rank, the messages that it sends and receives in an iteration."""
    return tuple(
        sum(len(step.sends) + len(step.receives) for step in rank.steps if isinstance(step, Exchange))
        for rank in program.ranks
    )


def fit_overhead(loads: Sequence[Load]) -> Overhead:
    """The overhead of a message; 0 where none was sent."""
    squares = sum(load.num_messages**2 for load in loads)
    product = sum(load.num_messages * (load.ran_s - load.predicted_s) for load in loads)
    message_s = max(0.0, product / squares) if squares else 0.0
    return Overhead(
        message_s=message_s,
        error_before=_error(loads, 0.0),
        error_after=_error(loads, message_s),
    )


def _error(loads: Sequence[Load], message_s: float) -> float:
    """Median relative error; ranks that compute nothing have none."""
    errors = [
        abs((load.predicted_s + message_s * load.num_messages) / load.ran_s - 1)
        for load in loads
        if load.predicted_s > 0 and load.ran_s > 0
    ]
    return median(errors) if errors else 0.0
