import subprocess
import sys

import numpy as np
import pytest
from numba.core.errors import NumbaError

from soaprl.cost.kernels import filling_kernel, kernel


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
