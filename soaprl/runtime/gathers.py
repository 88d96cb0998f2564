"""When parameters that are sharded are gathered for passes, and when they are given up again.

A group is a tensor for one micro-batch. It is gathered for the forward and again for the backward passes of
the operators that read it, or kept between them, where `soaprl.simulator.pacing` has it: after the pass that
is as many passes with parameters before its first one, in the order of its stage, as are prefetched. It is
given up after its last pass. What is gathered or given up after a pass follows the exchange of what the pass
made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from soaprl.runtime.program import Direction
from soaprl.simulator.pacing import gathered_again

# A pass of all tasks of an operator.
Pass: TypeAlias = tuple[Direction, int]
# A tensor, and the number of a micro-batch.
Group: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What comes after each pass, or at the beginning of the iteration (None).

    Attributes:
        gathered: The groups that are gathered after it.
        released: The groups that are given up after it, before others are gathered.
    """

    gathered: dict[Pass | None, list[Group]] = field(default_factory=dict)
    released: dict[Pass | None, list[Group]] = field(default_factory=dict)


def pace(
    readers: Mapping[Group, Sequence[int]],
    has_backward: Sequence[bool],
    prefetch: int,
    order: Sequence[Pass],
    stages: Sequence[int],
) -> Pace:
    """When to gather groups.

    Args:
        readers: The operators that read each group, ascending.
        has_backward: Of each operator.
        prefetch: How many passes ahead groups are gathered.
        order: All passes of the program.
        stages: The stage of each operator.
    """
    found, place = Pace(), {passed: number for number, passed in enumerate(order)}
    reading = {operator for operators in readers.values() for operator in operators}
    passes = [p for p in order if p[1] in reading and (p[0] == "forward" or has_backward[p[1]])]
    ahead = _passes_ahead(passes, prefetch, stages)
    for group, operators in readers.items():
        forward: list[Pass] = [("forward", operator) for operator in operators]
        backward: list[Pass] = [("backward", operator) for operator in operators if has_backward[operator]]
        last = max(forward, key=place.__getitem__)
        found.gathered.setdefault(ahead[forward[0]], []).append(group)
        if backward:
            again = ahead[backward[-1]]
            if again is not None and gathered_again(place[again], place[last]):
                found.released.setdefault(last, []).append(group)
                found.gathered.setdefault(again, []).append(group)
            last = max(backward, key=place.__getitem__)
        found.released.setdefault(last, []).append(group)
    return found


def _passes_ahead(passes: Sequence[Pass], prefetch: int, stages: Sequence[int]) -> dict[Pass, Pass | None]:
    """For each pass the one that is `prefetch` before it in its stage."""
    found: dict[Pass, Pass | None] = {}
    queues: dict[int, list[Pass]] = {}
    for passed in passes:
        queue = queues.setdefault(stages[passed[1]], [])
        found[passed] = queue[-prefetch] if len(queue) >= prefetch else None
        queue.append(passed)
    return found
