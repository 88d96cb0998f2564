"""How functions over flat arrays are compiled, and how their compiled forms are kept.

Numba keeps what it compiled beside the source and compiles anew when that file changes, but not when a file
changes whose functions were inlined. `drop_stale_kernels` closes that gap: it runs when this module is
imported, before any kernel is.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba
from numba.core.dispatcher import Dispatcher
from numba.core.types import unliteral

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """`function` compiled on its first call, kept on disk, and run without the interpreter lock.

    Floating-point arithmetic stays in the written order (no fast math), so results are the same everywhere;
    a division by zero gives what numpy gives.
    """
    return cast("Callable[P, R]", numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def filling_kernel(function: Callable[P, R]) -> Callable[P, R]:
    """A `kernel` that makes no arrays and only fills those it is given.

    It needs no reference counts, which Numba otherwise keeps for each array that a call passes on: an
    all-reduce over two devices takes 0.15 us instead of 1.2 us. One that makes an array does not compile.
    """
    # Numba's type stubs do not list the option.
    without_counts: dict[str, Any] = {"_nrt": False}
    compiled = numba.njit(cache=True, nogil=True, error_model="numpy", **without_counts)(function)
    return cast("Callable[P, R]", _by_type(compiled))


def inner_kernel(function: Callable[P, R]) -> Callable[P, R]:
    """A `filling_kernel` that Python cannot call, only kernels can.

    It is not kept on disk: what calls it is, with all of it.
    """
    options: dict[str, Any] = {"_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    compiled = numba.njit(nogil=True, error_model="numpy", **options)(function)
    return cast("Callable[P, R]", _by_type(compiled))


def inlined_kernel(function: Callable[P, R]) -> Callable[P, R]:
    """An `inner_kernel` that is always made part of those that call it: for what inner loops call.

    A call hands over seven numbers for each array, also of those in tuples: a hundred and more instructions,
    where the compiler does not find a function small enough to spare them by itself.
    """
    options: dict[str, Any] = {"_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    compiled = numba.njit(nogil=True, error_model="numpy", forceinline=True, **options)(function)
    return cast("Callable[P, R]", _by_type(compiled))


def compiled_for(function: Callable[P, R], *arguments: object) -> Callable[P, R]:
    """The compiled form of a kernel for arguments of these types, which it does not look at again.

    Numba finds out the types of all arguments in every call, which takes a tenth of a microsecond for each
    array, also of those in tuples: 21 of the 26 us that it takes to enter the simulator. The types are those
    of the arrays' elements, dimensions and order in memory (C): whoever calls the compiled form keeps them.
    """
    if not isinstance(function, Dispatcher):
        return function
    types = tuple(map(numba.typeof, arguments))
    function.compile(types)
    # Numba's type stubs leave it out.
    entry: Any = function.overloads[types]
    return cast("Callable[P, R]", entry.entry_point)


def _by_type(compiled: Any) -> Any:
    """A kernel that other kernels compile once for an integer argument, not once more for each constant."""
    template = compiled.get_call_template
    by_type: Callable[[Any], Any] = unliteral
    compiled.get_call_template = lambda args, kws: template(
        tuple(map(by_type, args)), {name: by_type(value) for name, value in kws.items()}
    )
    return compiled


def drop_stale_kernels(package: Path) -> int:
    """Deletes what was compiled before the newest change of a source file; returns the number of files.

    What cannot be looked at or deleted stays: another process may be doing the same, and an installation
    that cannot be written to does not change.

    Args:
        package: The folder of the `soaprl` package; its parts with kernels are looked at.
    """
    parts = ("cost", "simulator", "cluster", "search/exhaustive", "search/optcnn")
    folders = [package / part for part in parts]
    newest = max((_changed_at(path) for folder in folders for path in folder.glob("*.py")), default=0.0)
    compiled = [path for folder in folders for path in (folder / "__pycache__").glob("*.nb[ci]")]
    return sum(_deleted(path) for path in compiled if _changed_at(path) < newest)


def _changed_at(path: Path) -> float:
    """When the file was last changed, in seconds since the epoch; 0 for one that is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _deleted(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


drop_stale_kernels(Path(__file__).parents[1])
