import os
from pathlib import Path

import pytest

from soaprl.cluster.presets import cluster_from_name
from soaprl.graph.capture import capture_model
from soaprl.runtime import compile_program
from soaprl.runtime.distributed import Groups
from soaprl.runtime.program import CompileOptions
from soaprl.strategy.baselines import data_parallel
from tests.runtime.processes import run_processes


def policies() -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for thread in Path("/proc/self/task").iterdir():
        kind = "gloo" if (thread / "comm").read_text() == "gloo_tcp_loop\n" else "other"
        found.setdefault(kind, []).append(os.sched_getscheduler(int(thread.name)))
    return found


def check_policies(rank: int) -> None:
    groups = Groups()
    first = policies()
    assert set(first["gloo"]) == {os.SCHED_BATCH}
    assert set(first["other"]) == {os.SCHED_OTHER}
    # A reduction over two of three ranks needs a group of its own, and with it more threads.
    graph = capture_model("lenet", 6)
    strategy = data_parallel(graph, cluster_from_name("cpu-1x2"))
    groups.prepare(compile_program(graph, strategy, num_ranks=3, options=CompileOptions(bucket_bytes=2**20)))
    if rank < 2:
        assert len(policies()["gloo"]) > len(first["gloo"])
    assert set(policies()["gloo"]) == {os.SCHED_BATCH}


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="needs Linux' scheduling policies")
def test_threads_of_gloo_never_interrupt_others() -> None:
    run_processes(check_policies, 3)
