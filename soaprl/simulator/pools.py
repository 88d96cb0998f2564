"""Flat arrays that grow."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Pool:
    """A flat array that is only ever appended to; offsets into it stay valid.

    Attributes:
        data: The array, with room beyond `size`; replaced by a larger one when it is full.
        size: Number of entries in use.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self.data: NDArray[Any] = np.zeros(1024, dtype)
        self.size = 0

    def append(self, values: NDArray[Any]) -> int:
        """Adds `values`; returns the offset of the first."""
        first, self.size = self.size, self.size + len(values)
        if self.size > len(self.data):
            larger = np.zeros(2 * self.size, self.data.dtype)
            larger[:first] = self.data[:first]
            self.data = larger
        self.data[first : self.size] = values
        return first
