"""The steps of a rank's program as its executor goes through them, worked out once."""

from functools import partial
from typing import NamedTuple

from soaprl.runtime.program import (
    Backward,
    Forward,
    MakeConstants,
    ReduceLoss,
    ReduceNorm,
    ReleaseParameters,
    Shared,
    Step,
    Update,
)
from soaprl.runtime.rank import RankState
from soaprl.runtime.rank_tasks import Run


class BoundStep(NamedTuple):
    """A step that something has to be done for.

    Attributes:
        number: Which one of the program it is.
        step: The step.
        waits: Ids that must be complete.
        shared: The step, if others take part.
        run: Carries out a step of this rank alone, but one that loads a batch or updates.
        drops: What is needed for the last time, for `RankState.drop`.
    """

    number: int
    step: Step
    waits: tuple[int, ...]
    shared: Shared | None
    run: Run | None
    drops: tuple[int, ...]


def bound_steps(state: RankState) -> tuple[BoundStep, ...]:
    """The steps of a rank's program in order, less the backward passes that another one takes with it."""
    found = []
    for number, (step, drops) in enumerate(zip(state.program.steps, state.drops(), strict=True)):
        bound = BoundStep(
            number=number,
            step=step,
            waits=awaited(step),
            shared=step if isinstance(step, Shared) else None,
            run=_run(state, step),
            drops=drops,
        )
        if not isinstance(step, Backward) or bound.run is not None or bound.waits or drops:
            found.append(bound)
    return tuple(found)


def _run(state: RankState, step: Step) -> Run | None:
    if isinstance(step, Forward | Backward):
        return state.bound(step)
    if isinstance(step, MakeConstants):
        return partial(state.make_constants, step)
    if isinstance(step, ReleaseParameters):
        return partial(state.release, step)
    return None


def awaited(step: Step) -> tuple[int, ...]:
    """The ids that must be complete before a step."""
    if isinstance(step, Forward | Backward | ReduceLoss | ReduceNorm | ReleaseParameters | Update):
        return step.waits
    return ()
