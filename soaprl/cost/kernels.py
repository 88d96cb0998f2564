"""How functions over flat arrays are compiled."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """`function` compiled on its first call, kept on disk, and run without the interpreter lock.

    Floating-point arithmetic stays in the written order (no fast math), so results are the same everywhere.
    """
    return cast("Callable[P, R]", numba.njit(cache=True, nogil=True)(function))
