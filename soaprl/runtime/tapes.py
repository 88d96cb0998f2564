"""Tapes: forward passes of tasks that follow each other on a rank, as one list of library calls.

Whatever a rank has in an iteration has a number, its slot: pieces, parameters, buffers, results of calls. So
a task is a list of calls, each of which reads slots and writes one; tasks between which nothing is awaited
are one list. It is gone through by one loop over few objects: what a small layer costs beside its arithmetic
is the time to find what to call, which the processor's caches decide.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from torch import Tensor

Slots: TypeAlias = dict[int, Tensor]


@dataclass(slots=True)
class Position:
    """Where a rank is.

    Attributes:
        iteration: Which iteration, from 0.
        step: The number of the step in its program.
        waiting: Whether it waits for other ranks there.
        between: Called whenever it comes to a step.
    """

    iteration: int = 0
    step: int = 0
    waiting: bool = False
    between: Callable[[], None] = lambda: None

    def come_to(self, step: int) -> None:
        """The rank begins step number `step`."""
        self.step = step
        self.between()


class TapeCall(NamedTuple):
    """One call.

    Attributes:
        slot: What it writes.
        call: Gives that.
        freed: Slots that nothing needs after it.
    """

    slot: int
    call: Callable[[Slots], Tensor]
    freed: tuple[int, ...]


class TapeTask(NamedTuple):
    """A task.

    Attributes:
        step: The number of its step in the rank's program.
        calls: In order.
        freed: Slots that nothing needs after the task.
    """

    step: int
    calls: tuple[TapeCall, ...]
    freed: tuple[int, ...]


class Tape:
    """Forward passes that follow each other.

    Args:
        slots: The rank's tensors by number.
        position: Is told where the rank is.
        tasks: In order.
        shapes: By slot; what calls give is compared with it the first time.
    """

    def __init__(
        self, slots: Slots, position: Position, tasks: Sequence[TapeTask], shapes: Mapping[int, Sequence[int]]
    ) -> None:
        self._slots, self._position, self._tasks = slots, position, tuple(tasks)
        self._shapes: dict[int, Sequence[int]] | None = dict(shapes)

    def run(self) -> None:
        """Carries out all tasks."""
        if self._shapes is not None:
            self._compare(self._shapes)
            # They stay the same.
            self._shapes = None
            return
        slots, position = self._slots, self._position
        for step, calls, done in self._tasks:
            position.come_to(step)
            for slot, call, freed in calls:
                slots[slot] = call(slots)
                for k in freed:
                    del slots[k]
            for k in done:
                del slots[k]

    def _compare(self, shapes: Mapping[int, Sequence[int]]) -> None:
        """The same, with a look at what each call gives."""
        for step, calls, done in self._tasks:
            self._position.come_to(step)
            for slot, call, freed in calls:
                found = self._slots[slot] = call(self._slots)
                if slot in shapes:
                    assert tuple(found.shape) == tuple(shapes[slot]), (
                        f"expected {tuple(shapes[slot])}, found {tuple(found.shape)}"
                    )
                for k in freed:
                    del self._slots[k]
            for k in done:
                del self._slots[k]
