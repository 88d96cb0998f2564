import os
from collections import Counter
from pathlib import Path

import pytest

from soaprl.cluster.presets import cluster_from_name
from soaprl.graph.capture import capture_model
from soaprl.runtime import compile_program
from soaprl.runtime.distributed import DistributedRank, Groups, scheduling
from soaprl.runtime.distributed.scheduling import let_gloo_wait, serve_gloo
from soaprl.runtime.program import CompileOptions, Forward
from soaprl.runtime.stores import blocks_of
from soaprl.runtime.training import graph_of_model
from soaprl.strategy.baselines import data_parallel
from tests.runtime.checking import sources
from tests.runtime.models import zoo_case
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


linux = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="needs Linux' scheduling policies")


@linux
def test_threads_of_gloo_never_interrupt_others() -> None:
    run_processes(check_policies, 3)


@linux
def test_the_processor_is_given_away_when_a_thread_of_gloo_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads as the system shows them: one sleeps, the other does so or is ready to run."""
    for name, comm in (("11", "gloo_tcp_loop"), ("12", "gloo_tcp_loop"), ("13", "python")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "comm").write_text(f"{comm}\n")
        (tmp_path / name / "wchan").write_text("0" if name == "13" else "ep_poll")
    done, clock = Counter[str](), [0.0]
    monkeypatch.setattr(scheduling, "_THREADS", tmp_path)
    monkeypatch.setattr(scheduling, "_threads", type(scheduling._threads)())
    monkeypatch.setattr(os, "sched_setscheduler", lambda *_: done.update(["policy"]))
    monkeypatch.setattr(os, "sched_yield", lambda: done.update(["yield"]))
    monkeypatch.setattr(scheduling.time, "perf_counter", lambda: clock[0])
    let_gloo_wait()
    assert done == {"policy": 2}
    serve_gloo()
    assert done == {"policy": 2}
    (tmp_path / "12" / "wchan").write_text("0")
    # A moment later nobody looks; then somebody does, and sees it.
    serve_gloo()
    assert done == {"policy": 2}
    for times in (1, 2):
        clock[0] += 1e-3
        serve_gloo()
        assert done == {"policy": 2, "yield": times}
    let_gloo_wait()
    assert done == {"policy": 4, "yield": 2}

    def ended(*_: object) -> bytes:
        raise ProcessLookupError

    monkeypatch.setattr(os, "pread", ended)
    clock[0] += 1e-3
    serve_gloo()
    assert done == {"policy": 4, "yield": 2}


def check_served(rank: int) -> None:
    """An iteration looks after gloo's threads between tasks."""
    calls = Counter[str]()
    case = zoo_case("lenet")
    module, args = case.factory(case.batch_size)
    graph = graph_of_model(module, args)
    fetch = blocks_of(graph, sources(graph, module, args))
    program = compile_program(graph, data_parallel(graph, cluster_from_name("cpu-1x2")), num_ranks=2)
    one = DistributedRank(graph, program, fetch)
    between = one.state.tasks.position.between
    assert between is serve_gloo

    def counted() -> None:
        calls["between"] += 1
        between()

    one.state.tasks.position.between = counted
    one.iterate(fetch)
    num_passes = sum(isinstance(step, Forward) for step in program.ranks[rank].steps)
    assert calls["between"] > num_passes > 5


def test_ranks_let_gloo_run_between_tasks() -> None:
    run_processes(check_served, 2)
