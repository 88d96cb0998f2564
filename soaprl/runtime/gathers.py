"""When parameters that are sharded are gathered for a pass, and when they are given up again.

A tensor is gathered twice, for the forward and for the backward passes of the operators that read it, where
`soaprl.simulator.pacing` has it: after the pass of the operator that is as many operators with parameters
before the first reader as are prefetched. It is given up after the pass of the last reader. What is gathered
or given up after a pass follows the exchange of what the pass made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from soaprl.runtime.program import Direction

# A pass of all tasks of an operator; None: the beginning of the iteration.
Pass: TypeAlias = tuple[Direction, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What comes after each pass.

    Attributes:
        gathered: The tensors that are gathered after it; after None: at the beginning of the iteration.
        released: The tensors that are given up after it, before others are gathered.
    """

    gathered: dict[Pass | None, list[int]] = field(default_factory=dict)
    released: dict[Pass | None, list[int]] = field(default_factory=dict)


def pace(readers: Mapping[int, Sequence[int]], has_backward: Sequence[bool], prefetch: int) -> Pace:
    """When to gather tensors.

    Args:
        readers: The operators that read each tensor, ascending.
        has_backward: Of each operator.
        prefetch: How many operators ahead tensors are gathered.
    """
    found = Pace()
    forward = sorted({operator for operators in readers.values() for operator in operators})
    backward = [operator for operator in forward if has_backward[operator]]
    for tensor, operators in readers.items():
        at = forward.index(operators[0]) - prefetch
        first: Pass | None = ("forward", forward[at]) if at >= 0 else None
        found.gathered.setdefault(first, []).append(tensor)
        found.released.setdefault(("forward", operators[-1]), []).append(tensor)
        trained = [operator for operator in operators if has_backward[operator]]
        if trained:
            at = backward.index(trained[-1]) + prefetch
            # Not before it is given up, where operators without a backward pass read it later.
            again: Pass = ("backward", backward[at]) if at < len(backward) else ("forward", operators[-1])
            found.gathered.setdefault(again, []).append(tensor)
            found.released.setdefault(("backward", trained[0]), []).append(tensor)
    return found
