"""When parameters that are sharded are gathered, and how long they stay, in terms of operators alone.

Under ``zero3`` each device that holds a cell of parameters keeps a piece of it. The cell is gathered for the
forward pass of the operators that read it, and again for their backward pass; with micro-batches, for each of
them. Gathers are prefetched, so that they overlap computation but do not fill the memory: of the
passes that read parameters, in the order in which a stage does them,

- the forward gather of what operator o is the first to read waits for the tasks of the pass that is
  `prefetch` passes before the forward pass of o, or for nothing if there is none;
- the backward gather of what operator o is the last to read waits for the pass that is `prefetch` passes
  before the backward pass of o. If that does not come after the last forward pass that reads the cell, there
  is no such gather: what would be given up and have its memory again at once is kept (`gathered_again`).

The gathered cell lives on each holder, in program order (see `soaprl.simulator.assemble`), from the step
after the one it waits for to the last step that reads it, of the forward pass or, if it is kept, of both. Its
whole gradient lives, where gradients are sharded, from the backward of the last operator that reads it to
that of the first.
"""

from collections.abc import Sequence

import numpy as np

from soaprl.cluster.tables import IntArray
from soaprl.simulator.order import ProgramOrder

# Columns of `GraphTables.group_pace`. A pace is -1 for nothing to wait for, o for the forward tasks of
# operator o, n + o for its backward tasks. Steps are both included; -1: the group has no such pass, or is
# kept. What is kept has its last backward step as `FORWARD_LAST`.
FORWARD_PACE, FORWARD_FIRST, FORWARD_LAST = 0, 1, 2
BACK_PACE, BACK_FIRST, BACK_LAST, GRADIENT_FIRST = 3, 4, 5, 6
_NUM_COLUMNS = 7


def gathered_again(paced_by: int, last_read: int) -> bool:
    """Whether parameters are given up after their forward passes and gathered again for the backward passes.

    Args:
        paced_by: The step after which they would be gathered; -1 for the beginning.
        last_read: The step of the last forward pass that reads them.
    """
    return paced_by > last_read


def pace_groups(
    readers: Sequence[Sequence[int]], has_backward: IntArray, prefetch: int, order: ProgramOrder
) -> tuple[IntArray, IntArray]:
    """What gathers wait for, and steps.

    Args:
        readers: The operators that read each group of parameters, ascending; of one micro-batch.
        has_backward: Shape [operators]; 1 where the operator has backward tasks.
        prefetch: How many passes ahead parameters are gathered.
        order: The passes.

    Returns:
        By group the columns above, shape [groups, 7]; 1 where gathers wait for the tasks of an operator,
        shape [2, operators]: forward, backward.
    """
    n = len(has_backward)
    step = np.concatenate((order.forward_step, order.backward_step)).tolist()
    ahead = _passes_ahead(readers, has_backward, prefetch, order, step)
    rows = np.full((len(readers), _NUM_COLUMNS), -1, np.int64)
    paces = np.zeros((2, n), np.int64)
    for row, group in zip(rows, readers, strict=True):
        pace = ahead[group[0]]
        row[FORWARD_PACE], row[FORWARD_FIRST] = pace, 0 if pace < 0 else step[pace] + 1
        row[FORWARD_LAST] = max(step[o] for o in group)
        back_steps = [step[n + o] for o in group if has_backward[o]]
        if back_steps:
            last = max(o for o in group if has_backward[o])
            pace = ahead[n + last]
            row[GRADIENT_FIRST], row[BACK_LAST] = min(back_steps), max(back_steps)
            if gathered_again(-1 if pace < 0 else step[pace], int(row[FORWARD_LAST])):
                row[BACK_PACE], row[BACK_FIRST] = pace, step[pace] + 1
            else:
                row[FORWARD_LAST] = row[BACK_LAST]
        for pace in row[[FORWARD_PACE, BACK_PACE]].tolist():
            if pace >= 0:
                paces[pace // n, pace % n] = 1
    return rows, paces


def _passes_ahead(
    readers: Sequence[Sequence[int]],
    has_backward: IntArray,
    prefetch: int,
    order: ProgramOrder,
    step: Sequence[int],
) -> dict[int, int]:
    """For each pass that reads parameters the one `prefetch` such passes before it in its stage, or -1."""
    n = len(has_backward)
    reading = sorted({o for group in readers for o in group})
    passes = [*reading, *(n + o for o in reading if has_backward[o])]
    queues: dict[int, list[int]] = {}
    for each in sorted(passes, key=lambda one: step[one]):
        queues.setdefault(int(order.stages[each % n]), []).append(each)
    return {
        each: queue[at - prefetch] if at >= prefetch else -1
        for queue in queues.values()
        for at, each in enumerate(queue)
    }
