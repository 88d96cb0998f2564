"""The minimum of a sum of tables by node and edge elimination.

Variables have a few values each; a table gives a cost for each combination of the values of its *scope*. The
sum of all tables is minimized (Jia, Lin, Qi, Aiken: Exploring Hidden Dimensions in Parallelizing CNNs, 2018,
section 5):

- *edge elimination*: two tables of one scope become their sum;
- *node elimination*: a variable v with the neighbours N becomes one table over N, the minimum over v of the
  sum of v's tables. With one or two neighbours the result is a table of one or two variables again, so that
  every series-parallel graph reduces to a point.

Where every variable left has three or more neighbours, the same step enumerates all combinations of a
variable and its neighbours; the variable with the smallest result goes first. All of this is exact. When even
the smallest result has more than `max_cells` cells, the most connected variable is *fixed* to the value of
least cost, each of its tables at its minimum over the other variables; then elimination goes on. The outcome
is then improved one variable at a time until no change of one helps, and is not exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from soaprl.cluster.tables import FloatArray

MAX_CELLS = 4_000_000

Scope: TypeAlias = tuple[int, ...]
Tables: TypeAlias = Mapping[Scope, FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Minimum:
    """Where the sum of the tables is least.

    Attributes:
        values: The value of each variable.
        cost: The sum of all tables there.
        fixed: Variables that were fixed because elimination was stuck; none if the minimum is exact.
        largest_core: Most neighbours of an eliminated variable; at most 2 for a series-parallel graph.
    """

    values: tuple[int, ...]
    cost: float
    fixed: tuple[int, ...]
    largest_core: int

    @property
    def exact(self) -> bool:
        """Whether no combination of values costs less."""
        return not self.fixed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """An eliminated variable: its best value by the values of its neighbours."""

    variable: int
    neighbours: Scope
    best: NDArray[np.int32]


def add_table(tables: dict[Scope, FloatArray], scope: Scope, table: FloatArray) -> None:
    """Adds `table`, whose axes are the variables of `scope` in this order, to the table of the same scope."""
    order = sorted(range(len(scope)), key=scope.__getitem__)
    key, turned = tuple(scope[axis] for axis in order), np.transpose(table, order)
    tables[key] = tables[key] + turned if key in tables else turned


def total(tables: Tables, values: Sequence[int]) -> float:
    """The sum of all tables at these values."""
    return float(sum(table[tuple(values[v] for v in scope)] for scope, table in tables.items()))


def minimize(sizes: Sequence[int], tables: Tables, *, max_cells: int = MAX_CELLS) -> Minimum:
    """Values of all variables at which the sum of the tables is least; see the module.

    Args:
        sizes: Number of values of each variable.
        tables: By scope, ascending; axes in the order of the scope.
        max_cells: Largest table that a step may make.
    """
    left: dict[Scope, FloatArray] = dict(tables)
    steps: list[_Step] = []
    fixed: list[int] = []
    remaining = set(range(len(sizes)))
    while remaining:
        around = _neighbours(remaining, left)
        cells = {v: prod(sizes[n] for n in around[v]) for v in remaining}
        variable = min(remaining, key=lambda v: (cells[v] > max_cells, len(around[v]) > 2, cells[v], v))
        if cells[variable] <= max_cells:
            steps.append(_eliminate(variable, tuple(sorted(around[variable])), sizes, left))
        else:
            variable = max(remaining, key=lambda v: (len(around[v]), sizes[v], -v))
            steps.append(_fix(variable, sizes, left))
            fixed.append(variable)
        remaining.remove(variable)
    values = [0] * len(sizes)
    for step in reversed(steps):
        values[step.variable] = int(step.best[tuple(values[n] for n in step.neighbours)])
    if fixed:
        values = _improved(values, sizes, tables)
    return Minimum(
        values=tuple(values),
        cost=total(tables, values),
        fixed=tuple(fixed),
        largest_core=max((len(step.neighbours) for step in steps), default=0),
    )


def _neighbours(remaining: set[int], tables: Tables) -> dict[int, set[int]]:
    around: dict[int, set[int]] = {v: set() for v in remaining}
    for scope in tables:
        for v in scope:
            around[v].update(scope)
    return {v: others - {v} for v, others in around.items()}


def _taken(variable: int, tables: dict[Scope, FloatArray]) -> list[tuple[Scope, FloatArray]]:
    """The tables with `variable` in their scope, taken out of `tables`; its axis is the first."""
    taken = []
    for scope in [scope for scope in tables if variable in scope]:
        axis = scope.index(variable)
        table = np.ascontiguousarray(np.moveaxis(tables.pop(scope), axis, 0))
        taken.append((tuple(v for v in scope if v != variable), table))
    return taken


def _eliminate(
    variable: int, neighbours: Scope, sizes: Sequence[int], tables: dict[Scope, FloatArray]
) -> _Step:
    """Replaces the tables of `variable` by their minimum over its values."""
    shape = tuple(sizes[n] for n in neighbours)
    parts = []
    for scope, table in _taken(variable, tables):
        axes = [sizes[n] if n in scope else 1 for n in neighbours]
        parts.append(table.reshape(sizes[variable], *axes))
    least = np.full(shape, np.inf)
    best = np.zeros(shape, np.int32)
    for value in range(sizes[variable]):
        cost = np.zeros(shape)
        for part in parts:
            cost += part[value]
        better = cost < least
        np.copyto(least, cost, where=better)
        np.copyto(best, np.int32(value), where=better)
    add_table(tables, neighbours, least)
    return _Step(variable=variable, neighbours=neighbours, best=best)


def _fix(variable: int, sizes: Sequence[int], tables: dict[Scope, FloatArray]) -> _Step:
    """Fixes `variable` to the value at which its tables could sum to least."""
    taken = _taken(variable, tables)
    hopes = np.zeros(sizes[variable])
    for _, table in taken:
        hopes += table.reshape(sizes[variable], -1).min(axis=1)
    value = int(hopes.argmin())
    for scope, table in taken:
        add_table(tables, scope, table[value])
    return _Step(variable=variable, neighbours=(), best=np.array(value, np.int32))


def _improved(values: list[int], sizes: Sequence[int], tables: Tables) -> list[int]:
    """`values` after changing one variable at a time as long as that lowers the sum."""
    touching: list[list[Scope]] = [[scope for scope in tables if v in scope] for v in range(len(sizes))]
    changed = True
    while changed:
        changed = False
        for v, scopes in enumerate(touching):
            cost = np.zeros(sizes[v])
            for scope in scopes:
                cost += tables[scope][tuple(slice(None) if n == v else values[n] for n in scope)]
            best = int(cost.argmin())
            if cost[best] < cost[values[v]]:
                values[v], changed = best, True
    return values
