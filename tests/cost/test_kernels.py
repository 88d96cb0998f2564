import subprocess
import sys

import numpy as np
import pytest
from numba.core.errors import NumbaError

from soaprl.cost.kernels import compiled_for, filling_kernel, kernel


def test_a_kernel_may_make_arrays() -> None:
    @kernel
    def zeros(count: int) -> float:
        return float(np.zeros(count).sum())

    assert zeros(3) == 0.0


def test_a_filling_kernel_fills_and_refuses_to_make_arrays() -> None:
    @filling_kernel
    def fill(values: np.ndarray) -> None:
        values[:] = 7.0

    @filling_kernel
    def zeros(count: int) -> float:
        return float(np.zeros(count).sum())

    values = np.zeros(3)
    fill(values)
    assert values.tolist() == [7.0] * 3
    with pytest.raises((NumbaError, RuntimeError)):
        zeros(3)


def test_the_compiled_form_of_a_kernel_does_what_the_kernel_does() -> None:
    @kernel
    def add(values: np.ndarray, pair: tuple[np.ndarray, float], times: int) -> float:
        values[:] += times * pair[0]
        return float(pair[1] + times)

    values, one = np.zeros(3), np.ones(3)
    compiled = compiled_for(add, values, (one, 0.5), 2)
    assert compiled(values, (one, 0.5), 2) == 2.5
    # Other arrays of the same types, and numbers that have to be made floats.
    other = np.full(3, 10.0)
    assert compiled(other, (np.arange(3.0), 1), 3) == 4.0
    assert values.tolist() == [2.0, 2.0, 2.0]
    assert other.tolist() == [10.0, 13.0, 16.0]


def test_a_function_that_is_not_compiled_is_its_own_compiled_form() -> None:
    def plain(value: float) -> float:
        return value

    assert compiled_for(plain, 1.0) is plain


def test_division_by_zero_gives_what_numpy_gives() -> None:
    @kernel
    def divide(a: float, b: float) -> float:
        return a / b

    assert divide(1.0, 0.0) == np.inf


def test_collectives_are_the_same_in_another_process() -> None:
    program = (
        "from soaprl.cluster.presets import cluster_from_name as c\n"
        "from soaprl.cluster.tables import cluster_tables as t\n"
        "from soaprl.cost.transfers import all_reduce_time as a\n"
        "print(a(t(c('k80-2x4')), range(8), 123456789))\n"
    )
    runs = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 1
    assert "CollectiveTime(time_s=0.036" in runs.pop()
