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
    """

    keys: IntArray
    rows: IntArray


def empty_table(length: int) -> Table:
    """A table without keys; `length` is a power of two."""
    return Table(keys=np.full(length, _EMPTY, np.int64), rows=np.zeros(length, np.int64))


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


@filling_kernel
def _put(table: Table, key: int, row: int) -> None:
    at = _slot(table.keys, key)
    table.keys[at] = key
    table.rows[at] = row


@filling_kernel
def _find(table: Table, key: int) -> int:
    return find(table, key)


def key_of(number: int, part: int) -> int:
    """`step_key` for Python."""
    return (number << _HALF_BITS) | part


class Lookup:
    """A table that grows.

    Attributes:
        table: What compiled code sees; replaced by a larger one when it is half full.
        size: Number of keys.
    """

    def __init__(self) -> None:
        self.table = empty_table(1024)
        self.size = 0

    def get(self, key: int) -> int:
        """The number of `key`, or `MISSING`."""
        return _find(self.table, key)

    def add(self, key: int, row: int) -> None:
        """Adds a key that is not there yet."""
        if 2 * (self.size + 1) > len(self.table.keys):
            old = self.table
            larger = empty_table(2 * len(old.keys))
            for place in np.flatnonzero(old.keys != _EMPTY).tolist():
                _put(larger, int(old.keys[place]), int(old.rows[place]))
            self.table = larger
        self.size += 1
        _put(self.table, key, row)
