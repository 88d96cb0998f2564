"""When parameters that are sharded are gathered, and how long they stay, in terms of operators alone.

Under ``zero3`` each device that holds a cell of parameters keeps a piece of it. The cell is gathered twice:
for the forward pass of the operators that read it, and for their backward pass. Both are prefetched, as far
ahead as `prefetch` operators with parameters, so that they overlap computation but do not fill the memory:

- the forward gather of what operator o is the first to read waits for the forward tasks of the operator
  that is `prefetch` operators with parameters before o, or for nothing if there is none;
- the backward gather of what operator o is the last to read waits for the backward tasks of the operator
  that is `prefetch` operators with parameters after o; if there is none, for the forward tasks of o.

The gathered cell lives on each holder, in program order (see `soaprl.simulator.assemble`), from the step
after the one it waits for to the last step that reads it. Its whole gradient lives, where gradients are
sharded, from the backward of the last operator that reads it to that of the first.
"""

from collections.abc import Sequence

import numpy as np

from soaprl.cluster.tables import IntArray

# Columns of `GraphTables.group_pace`. A pace is -1 for nothing to wait for, o for the forward tasks of
# operator o, n + o for its backward tasks. Steps are both included; -1: the group has no such pass.
FORWARD_PACE, FORWARD_FIRST, FORWARD_LAST = 0, 1, 2
BACK_PACE, BACK_FIRST, BACK_LAST, GRADIENT_FIRST = 3, 4, 5, 6
_NUM_COLUMNS = 7


def pace_groups(
    readers: Sequence[Sequence[int]], has_backward: IntArray, prefetch: int
) -> tuple[IntArray, IntArray]:
    """What gathers wait for, and steps.

    Args:
        readers: The operators that read each group of parameters, ascending.
        has_backward: Shape [operators]; 1 where the operator has backward tasks.
        prefetch: How many operators ahead parameters are gathered.

    Returns:
        By group the columns above, shape [groups, 7]; 1 where gathers wait for the tasks of an operator,
        shape [2, operators]: forward, backward.
    """
    n = len(has_backward)
    last_step = 2 * n - 1
    forward = sorted({o for group in readers for o in group})
    backward = [o for o in forward if has_backward[o]]
    rows = np.full((len(readers), _NUM_COLUMNS), -1, np.int64)
    paces = np.zeros((2, n), np.int64)
    for row, group in zip(rows, readers, strict=True):
        at = forward.index(group[0]) - prefetch
        row[FORWARD_PACE] = forward[at] if at >= 0 else -1
        row[FORWARD_FIRST], row[FORWARD_LAST] = row[FORWARD_PACE] + 1, group[-1]
        trained = [o for o in group if has_backward[o]]
        if trained:
            at = backward.index(trained[-1]) + prefetch
            later = backward[at] if at < len(backward) else -1
            row[BACK_PACE] = n + later if later >= 0 else trained[-1]
            row[BACK_FIRST] = 1 + (last_step - later if later >= 0 else trained[-1])
            row[BACK_LAST], row[GRADIENT_FIRST] = last_step - trained[0], last_step - trained[-1]
        for pace in row[[FORWARD_PACE, BACK_PACE]].tolist():
            if pace >= 0:
                paces[pace // n, pace % n] = 1
    return rows, paces
