"""Starts a run: in this process, as one process of `torchrun`, or in local processes that it looks after.

A local process that fails or dies ends the run: the others are stopped, and the error says which rank it
was, at which step and operator. When this process ends in any way, so do they.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

import soaprl
from soaprl.errors import ExecutionError
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.checkpoint import latest_checkpoint
from soaprl.runtime.freed_memory import keep_freed_memory
from soaprl.runtime.launch_job import Job, Listen, Progress, RunResult, save_job
from soaprl.runtime.launch_rank import PROGRESS, failure_path, place_path, result_path
from soaprl.runtime.launch_record import Recorder, read_place
from soaprl.runtime.launch_train import check_devices, check_output, merged_results, parse_result, train
from soaprl.runtime.threads import one_thread

_POLL_S = 0.02
# How long the other processes have to notice a failure, and then to end, before they are killed.
_NOTICE_S = 2.0
_END_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Elastic:
    """This process's place in a `torchrun`."""

    rank: int
    world_size: int
    local_rank: int
    num_restarts: int


def elastic(environment: Mapping[str, str]) -> Elastic | None:
    """This process's place in a `torchrun`; None outside of one."""
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    return Elastic(
        rank=int(environment["RANK"]),
        world_size=int(environment["WORLD_SIZE"]),
        local_rank=int(environment.get("LOCAL_RANK", "0")),
        num_restarts=int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


def run_job(job: Job, graph: OperatorGraph, listen: Listen, *, place: Elastic | None = None) -> RunResult:
    """Runs a training to its end.

    Args:
        job: What to train, and how.
        graph: The captured model.
        listen: Called after each iteration.
        place: This process's place in a `torchrun`.

    Raises:
        ExecutionError: A rank failed.
        OutputError: The folder for results cannot be written.
    """
    check_devices(job)
    if place is not None:
        return _run_elastic(job, graph, listen, place)
    check_output(job)
    if job.executor == "logical":
        recorder = Recorder(graph, events=job.trace)
        with one_thread():
            return train(job, graph, recorder, listen)
    return _run_processes(job, graph, listen)


def _run_elastic(job: Job, graph: OperatorGraph, listen: Listen, place: Elastic) -> RunResult:
    """This process's part of a run that `torchrun` started; the merged result is that of the first."""
    timeout = timedelta(seconds=job.timeout_s)
    if job.backend == "nccl":
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group(job.backend, timeout=timeout)
    try:
        if place.rank == 0:
            check_output(job)
        torch.set_num_threads(1)
        keep_freed_memory()
        recorder = Recorder(graph, events=job.trace)
        recorder.rank = place.rank
        result = train(job, graph, recorder, listen)
        results: list[RunResult | None] = [None] * place.world_size
        dist.all_gather_object(results, result)
    finally:
        dist.destroy_process_group()
    return merged_results([r for r in results if r is not None])


def _run_processes(job: Job, graph: OperatorGraph, listen: Listen) -> RunResult:
    with tempfile.TemporaryDirectory(prefix="soaprl-run-") as name:
        folder = Path(name)
        save_job(folder, job, graph)
        # Processes meet here, at a port that nothing else can take in the meantime.
        store = TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=job.timeout_s)
        )
        processes = _Processes(folder, job, f"127.0.0.1:{store.port}")
        try:
            processes.watch(listen)
        finally:
            processes.stop()
        results = [parse_result(result_path(folder, rank).read_text()) for rank in range(job.num_ranks)]
    return merged_results(results)


class _Processes:
    """The local processes of a run."""

    def __init__(self, folder: Path, job: Job, store: str) -> None:
        self._folder, self._job = folder, job
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._stopped: set[int] = set()
        for rank in range(job.num_ranks):
            self._running[rank] = _started(folder, rank, job.num_ranks, store)

    def watch(self, listen: Listen) -> None:
        """Returns when all have ended well.

        Raises:
            ExecutionError: One has not.
        """
        lines = _new_lines(self._folder / PROGRESS)
        codes: dict[int, int | None] = {}
        while True:
            codes = {rank: process.poll() for rank, process in self._running.items()}
            for progress in next(lines):
                listen(progress)
            if any(code not in (None, 0) for code in codes.values()):
                break
            if all(code == 0 for code in codes.values()):
                return
            time.sleep(_POLL_S)
        end_s = time.monotonic() + _NOTICE_S
        while time.monotonic() < end_s and any(p.poll() is None for p in self._running.values()):
            time.sleep(_POLL_S)
        places = {rank: read_place(place_path(self._folder, rank)) for rank in self._running}
        self.stop()
        raise self._error(places)

    def stop(self) -> None:
        """Ends all that still run."""
        for wanted in (signal.SIGTERM, signal.SIGKILL):
            alive = {rank: p for rank, p in self._running.items() if p.poll() is None}
            for rank, process in alive.items():
                self._stopped.add(rank)
                process.send_signal(wanted)
            for process in alive.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_END_S)
        for process in self._running.values():
            if process.stdin is not None:
                process.stdin.close()

    def _error(self, places: Mapping[int, str]) -> ExecutionError:
        """What ended the run: a process that died, else the first that failed by itself, else the first."""
        failures = {}
        for rank in self._running:
            with contextlib.suppress(OSError, ValueError):
                failures[rank] = json.loads(failure_path(self._folder, rank).read_text(encoding="utf-8"))
        died = [rank for rank in self._running if rank not in failures and rank not in self._stopped]
        died = [rank for rank in died if self._running[rank].returncode != 0]
        if died:
            rank = died[0]
            how = _ending(self._running[rank].returncode)
            text = f"rank {rank} {how} at {places[rank] or 'the beginning'}{self._last_words(rank)}"
        else:
            rank = min(failures, key=lambda r: (failures[r]["lost"], failures[r]["time_s"]))
            text = failures[rank]["message"]
            if failures[rank]["lost"]:
                unnamed = [r for r in places if places[r] and f"rank {r} " not in text]
                text = "; ".join([text, *(f"rank {r} was at {places[r]}" for r in unnamed)])
            if os.environ.get("SOAPRL_TRACEBACK"):
                print(failures[rank]["traceback"], file=sys.stderr)
        return ExecutionError(text + advice(self._job))

    def _last_words(self, rank: int) -> str:
        """The last line that a process that died wrote for people."""
        with contextlib.suppress(OSError):
            lines = (self._folder / f"stderr-{rank}").read_text(errors="replace").splitlines()
            found = [line.strip() for line in lines if line.strip()]
            return f" ({found[-1]})" if found else ""
        return ""


def advice(job: Job) -> str:
    """What can be gone on from after a failure; nothing where no checkpoints were asked for."""
    if job.checkpoints is None:
        return ""
    found = latest_checkpoint(job.checkpoints)
    if found is None:
        return ". There is no checkpoint to go on from yet"
    return f". --resume goes on from the last checkpoint, {found}"


def _ending(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _started(folder: Path, rank: int, size: int, store: str) -> subprocess.Popen[bytes]:
    package = str(Path(soaprl.__file__).resolve().parent.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "SOAPRL_STORE": store,
        "OMP_NUM_THREADS": "1",
        # The store is this process's, and outlives the one with rank 0.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    if sys.platform == "linux":
        # All are on this machine: its name need not lead anywhere.
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with (folder / f"stderr-{rank}").open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "soaprl.runtime.launch_rank", str(folder)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            # An interrupt from the keyboard is for this process, which ends the others.
            start_new_session=True,
        )


def _new_lines(path: Path) -> Iterator[list[Progress]]:
    """Each time, the iterations that have been added to the file."""
    position = 0
    while True:
        found = []
        with contextlib.suppress(OSError):
            text = path.read_bytes()[position:]
            whole = text[: text.rfind(b"\n") + 1]
            position += len(whole)
            found = [Progress(**json.loads(line)) for line in whole.splitlines()]
        yield found
