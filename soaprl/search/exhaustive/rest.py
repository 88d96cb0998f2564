"""Operators that are not chosen yet: the least that any of their tasks can have as heads and tails.

Every task of a reader waits for some task of each operator that it reads, so for none earlier than the first;
and likewise for tails. What an operator reads of all sides has to wait for all of them: so the backward pass
of one branch waits for the forward pass of another.
"""

import numpy as np

from soaprl.cost.kernels import inner_kernel
from soaprl.search.exhaustive.jobs import num_tasks, task_times
from soaprl.search.exhaustive.scratch import Scratch
from soaprl.search.exhaustive.tables import BoundTables


@inner_kernel
def enter_rest_end(t: BoundTables, s: Scratch, o: int) -> None:
    """Least end of a forward task of operator o; its producers have theirs."""
    head = 0.0
    for i in range(t.in_begin[o], t.in_begin[o + 1]):
        edge = t.in_edges[i]
        if t.edge_everywhere[edge]:
            q = t.edge_producer[edge]
            least = s.rest_end_s[q] if s.rows[q] < 0 else np.inf
            for w in range(num_tasks(t, s, q)):
                least = min(least, s.forward_end_s[q, w])
            head = max(head, least)
    s.rest_end_s[o] = head + t.least_forward_s[o]


@inner_kernel
def enter_rest_back_end(t: BoundTables, s: Scratch, o: int) -> None:
    """Least end of a backward task of operator o; its readers have theirs."""
    head = s.rest_end_s[o]
    for i in range(t.out_begin[o], t.out_begin[o + 1]):
        edge = t.out_edges[i]
        if t.edge_gradient[edge] and t.edge_wanted[edge]:
            c = t.edge_consumer[edge]
            least = s.rest_back_end_s[c] if s.rows[c] < 0 else np.inf
            for r in range(num_tasks(t, s, c)):
                least = min(least, s.backward_end_s[c, r])
            head = max(head, least)
    s.rest_back_end_s[o] = head + t.least_backward_s[o]


@inner_kernel
def enter_rest_tail(t: BoundTables, s: Scratch, o: int) -> None:
    """Least tail of a backward task of operator o; its producers have theirs."""
    tail = 0.0
    for i in range(t.in_begin[o], t.in_begin[o + 1]):
        edge = t.in_edges[i]
        if t.edge_gradient[edge] and t.edge_everywhere[edge]:
            q = t.edge_producer[edge]
            least = t.least_backward_s[q] + s.rest_tail_s[q] if s.rows[q] < 0 else np.inf
            for w in range(num_tasks(t, s, q)):
                least = min(least, task_times(t, s, q, w)[1] + s.backward_tail_s[q, w])
            tail = max(tail, least)
    s.rest_tail_s[o] = tail


@inner_kernel
def enter_rest_forward_tail(t: BoundTables, s: Scratch, o: int) -> None:
    """Least tail of a forward task of operator o; its backward tasks and its readers have theirs."""
    tail = t.least_backward_s[o] + s.rest_tail_s[o] if t.has_backward[o] else 0.0
    for i in range(t.out_begin[o], t.out_begin[o + 1]):
        edge = t.out_edges[i]
        if t.edge_wanted[edge]:
            c = t.edge_consumer[edge]
            least = t.least_forward_s[c] + s.rest_forward_tail_s[c] if s.rows[c] < 0 else np.inf
            for r in range(num_tasks(t, s, c)):
                least = min(least, task_times(t, s, c, r)[0] + s.forward_tail_s[c, r])
            tail = max(tail, least)
    s.rest_forward_tail_s[o] = tail
