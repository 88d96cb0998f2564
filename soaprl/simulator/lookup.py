"""Finding patterns in compiled code: a hash table from whole numbers to rows of numbers.

Keys are exact: what does not fit into 63 bits is broken into steps, each from a number and the next part of
the key to another number (`step_key`), so that no two keys are ever taken for each other.
"""

from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import IntArray
from soaprl.cost.kernels import filling_kernel, inner_kernel

# Bits of each half of a key.
_HALF_BITS = 31
_EMPTY = -1
MISSING = -1


class Table(NamedTuple):
    """An open-addressing hash table whose length is a power of two, at most half full.

    Attributes:
        keys: Shape [length]; -1 where empty.
        rows: Shape [length]; a number for each key.
        used: Shape [1]; the number of keys.
    """

    keys: IntArray
    rows: IntArray
    used: IntArray


def empty_table(length: int) -> Table:
    """A table without keys; `length` is a power of two."""
    return Table(
        keys=np.full(length, _EMPTY, np.int64), rows=np.zeros(length, np.int64), used=np.zeros(1, np.int64)
    )


@inner_kernel
def step_key(number: int, part: int) -> int:
    """The key of `part` after `number`; both are below 2^31."""
    return (number << _HALF_BITS) | part


@inner_kernel
def _slot(keys: IntArray, key: int) -> int:
    """Where `key` is, or would be."""
    mask = len(keys) - 1
    # A multiplicative hash (Fibonacci hashing) spreads keys that differ in few bits.
    at = ((key * np.int64(-7046029254386353131)) >> np.int64(20)) & mask
    while keys[at] != key and keys[at] != _EMPTY:
        at = (at + 1) & mask
    return int(at)


@inner_kernel
def find(table: Table, key: int) -> int:
    """The number of `key`, or `MISSING`."""
    at = _slot(table.keys, key)
    return int(table.rows[at]) if table.keys[at] == key else MISSING


@inner_kernel
def has_room(table: Table, count: int) -> bool:
    """Whether the table stays at most half full with so many more keys."""
    return bool(2 * (table.used[0] + count) <= len(table.keys))


@inner_kernel
def put(table: Table, key: int, row: int) -> None:
    """Adds a key that is not there yet to a table that has room."""
    at = _slot(table.keys, key)
    table.keys[at] = key
    table.rows[at] = row
    table.used[0] += 1


@filling_kernel
def _put(table: Table, key: int, row: int) -> None:
    put(table, key, row)


@filling_kernel
def _put_all(table: Table, larger: Table) -> None:
    for place in range(len(table.keys)):
        if table.keys[place] != _EMPTY:
            put(larger, table.keys[place], table.rows[place])


@filling_kernel
def _find(table: Table, key: int) -> int:
    return find(table, key)


def key_of(number: int, part: int) -> int:
    """`step_key` for Python."""
    return (number << _HALF_BITS) | part


class Lookup:
    """A table that grows.

    Attributes:
        table: What compiled code sees, and may add to; replaced by a larger one when it is half full.
    """

    def __init__(self) -> None:
        self.table = empty_table(1024)

    def get(self, key: int) -> int:
        """The number of `key`, or `MISSING`."""
        return _find(self.table, key)

    def reserve(self, count: int) -> None:
        """Makes room for `count` more keys."""
        old = self.table
        if 2 * (int(old.used[0]) + count) > len(old.keys):
            larger = empty_table(2 * len(old.keys))
            _put_all(old, larger)
            self.table = larger

    def add(self, key: int, row: int) -> None:
        """Adds a key that is not there yet."""
        self.reserve(1)
        _put(self.table, key, row)
