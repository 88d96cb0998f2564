"""The steps of a rank's program as its executor goes through them, worked out once."""

from functools import partial
from typing import NamedTuple

from soaprl.runtime.program import (
    Backward,
    Forward,
    MakeConstants,
    ReleaseParameters,
    Shared,
    Step,
    waits_of,
)
from soaprl.runtime.rank import RankState
from soaprl.runtime.rank_tasks import Run


class BoundStep(NamedTuple):
    """A step that something has to be done for.

    Attributes:
        number: Which one of the program it is.
        step: The step; the first one, if it stands for several.
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


def bound_steps(state: RankState, *, apart: bool) -> tuple[BoundStep, ...]:
    """The steps of a rank's program in order, less the backward passes that another one takes with it.

    Args:
        state: The rank.
        apart: Whether each forward pass is a step; otherwise one may stand for several that follow each other
            and wait for nothing, and drops what they need for the last time itself.
    """
    found: list[BoundStep] = []
    passes: list[BoundStep] = []
    for number, (step, drops) in enumerate(zip(state.program.steps, state.drops(), strict=True)):
        shared = step if isinstance(step, Shared) else None
        bound = BoundStep(number, step, waits_of(step), shared, None, drops)
        if passes and (apart or not _follows(state, passes[-1].step, bound)):
            found.append(_together(state, passes, apart))
            passes = []
        if isinstance(step, Forward):
            passes.append(bound)
        else:
            bound = bound._replace(run=_run(state, step))
            if not isinstance(step, Backward) or bound.run is not None or bound.waits or drops:
                found.append(bound)
    assert not passes, "a program ends with an update"
    return tuple(found)


def _follows(state: RankState, last: Step, bound: BoundStep) -> bool:
    """Whether a step may be on the tape that ends with another one."""
    step = bound.step
    if not isinstance(step, Forward) or not isinstance(last, Forward) or bound.waits:
        return False
    alike = state.tasks.differentiated(step) == state.tasks.differentiated(last)
    return alike and state.tasks.on_a_tape(step) and state.tasks.on_a_tape(last)


def _together(state: RankState, passes: list[BoundStep], apart: bool) -> BoundStep:
    steps = [(b.number, b.step, () if apart else b.drops) for b in passes if isinstance(b.step, Forward)]
    run = state.forward(steps)
    return passes[0]._replace(run=run, drops=passes[0].drops if apart else ())


def _run(state: RankState, step: Step) -> Run | None:
    if isinstance(step, Backward):
        return state.backward(step)
    if isinstance(step, MakeConstants):
        return partial(state.make_constants, step)
    if isinstance(step, ReleaseParameters):
        return partial(state.release, step)
    return None
