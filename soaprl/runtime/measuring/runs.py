"""Times iterations of many strategies of one model, in one job of local processes.

Repeats are interleaved: every strategy runs once before any runs again, so that a machine that is slower for
a while is slower for all of them. A run of which a hypervisor took processor time is run again, a few times
at most. Every run is written down when it is done, and what is written down is not run again: the job may be
interrupted, and goes on; further repeats and other strategies add their runs to those that are there.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from pydantic import TypeAdapter

import soaprl
from soaprl.atomic import write_text_atomic
from soaprl.errors import ExecutionError
from soaprl.graph.files import graph_fingerprint
from soaprl.graph.operators import OperatorGraph
from soaprl.runtime.compile import compile_program
from soaprl.runtime.distributed.groups import Groups
from soaprl.runtime.distributed.rank import DistributedRank
from soaprl.runtime.distributed.runtime import DistributedRuntime
from soaprl.runtime.freed_memory import keep_freed_memory
from soaprl.runtime.launch_job import (
    Job,
    Model,
    draw_batch,
    load_job,
    make_model,
    optimizer_maker,
    save_job,
)
from soaprl.runtime.measuring.processors import bind, stolen_s
from soaprl.runtime.model_state import module_tensors
from soaprl.runtime.optimization import RankOptimizer
from soaprl.runtime.program import Program
from soaprl.runtime.stores import blocks_of
from soaprl.strategy.strategy import Strategy

# Looking takes processor time from what is measured.
_POLL_S = 0.5
_WARM_UP = 2
# The system counts stolen time in hundredths of a second: a run of half a second on two processors with one
# of these is not run again.
_STOLEN_LIMIT = 0.015
_ATTEMPTS = 4
_MISSING = TypeAdapter(list[tuple[Strategy, int]])
_MISSING_FILE = "missing.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a run shows.

    Attributes:
        times_s: Seconds of each iteration, of the rank that took longest.
        busy_s: For each rank, the median over iterations of the seconds that its thread ran; not what it
            waited, and not what gloo's own threads did.
        helped_s: For each rank, the median of the seconds that all other threads of its process ran.
        stolen: Share of the processors' time that the hypervisor took meanwhile.
    """

    times_s: tuple[float, ...]
    busy_s: tuple[float, ...]
    helped_s: tuple[float, ...]
    stolen: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Measured):
    """One strategy, run once.

    Attributes:
        strategy: Its fingerprint.
        repeat: Which of its runs this is.
    """

    strategy: str
    repeat: int


_RUNS = TypeAdapter(Run)


def read_runs(path: Path) -> list[Run]:
    """The runs that are written down; a line that was cut off is none."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [_RUNS.validate_json(line) for line in text.splitlines(keepends=True) if line.endswith("}\n")]


def run_strategies(
    job: Job,
    graph: OperatorGraph,
    strategies: Sequence[Strategy],
    path: Path,
    *,
    repeats: int,
    listen: Callable[[int, int], None],
    prefix: str = "",
) -> list[Run]:
    """Runs what is not written down yet at `path`; the runs of these strategies, as often as asked for.

    Args:
        job: How to train: its strategy is replaced, and its steps are those of a run that count.
        graph: The captured model.
        strategies: Which to run; equal ones are run once.
        path: Where runs of this job, under any strategies, are written down.
        repeats: How often each is run.
        listen: Called with the number of runs done, and of all.
        prefix: Words before the command of each process, with ``{rank}`` for its number.

    Raises:
        ExecutionError: A process failed.
    """
    named = {strategy.fingerprint: strategy for strategy in strategies}
    wanted = [(name, repeat) for repeat in range(repeats) for name in named]
    done = {(run.strategy, run.repeat) for run in read_runs(path)}
    missing = [(named[name], repeat) for name, repeat in wanted if (name, repeat) not in done]
    if missing:
        _forget_cut_line(path)
        before = _num_lines(path) - (len(wanted) - len(missing))
        with tempfile.TemporaryDirectory(prefix="soaprl-runs-") as name:
            folder = Path(name)
            save_job(folder, job, graph)
            (folder / _MISSING_FILE).write_bytes(_MISSING.dump_json(missing))
            task = _Task(folder=name, path=str(path.absolute()), ranks=job.num_ranks)
            _spawn(task, prefix, lambda: listen(_num_lines(path) - before, len(wanted)))
    listen(len(wanted), len(wanted))
    # Two commands at once may have made the same ones.
    found = {(run.strategy, run.repeat): run for run in reversed(read_runs(path))}
    return [found[one] for one in wanted]


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _forget_cut_line(path: Path) -> None:
    """What a process that was killed wrote last may end anywhere: lines are added after whole ones."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if not text.endswith("\n"):
        write_text_atomic(path, text[: text.rfind("\n") + 1])


def _spawn(task: "_Task", prefix: str, listen: Callable[[], None]) -> None:
    """Starts the processes, and waits until all have ended well."""
    folder, path = Path(task.folder), Path(task.path)
    package = str(Path(soaprl.__file__).resolve().parent.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment["OMP_NUM_THREADS"] = "1"
    words = [sys.executable, "-m", "soaprl.runtime.measuring.runs", json.dumps(asdict(task))]
    with ExitStack() as stack:
        running = []
        for rank in range(task.ranks):
            errors = stack.enter_context((folder / f"stderr-{rank}").open("wb"))
            process = subprocess.Popen(
                [*prefix.format(rank=rank).split(), *words, str(rank)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=errors,
                stderr=errors,
                # An interrupt from the keyboard is for this process, which ends the others.
                start_new_session=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            running.append(process)
        while any(process.poll() is None for process in running):
            if any(process.poll() not in (None, 0) for process in running):
                break
            listen()
            time.sleep(_POLL_S)
        failed = [rank for rank, process in enumerate(running) if process.poll() not in (None, 0)]
    if failed:
        text = (folder / f"stderr-{failed[0]}").read_text(encoding="utf-8", errors="replace")
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
        raise ExecutionError(
            f"rank {failed[0]} of the runs failed: {last}. What ran is in {path}: the same command goes on."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What the processes are told."""

    folder: str
    path: str
    ranks: int


def _main(task: _Task, rank: int) -> None:
    """One process of the job."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    keep_freed_memory()
    bind(rank, task.ranks)
    folder, path = Path(task.folder), Path(task.path)
    job, graph = load_job(folder)
    timeout = timedelta(seconds=job.timeout_s)
    address = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=task.ranks, timeout=timeout)
    groups, model, fingerprint = Groups(timeout_s=job.timeout_s), make_model(job), graph_fingerprint(graph)
    programs: dict[str, Program] = {}
    for strategy, repeat in _MISSING.validate_json((folder / _MISSING_FILE).read_bytes()):
        name = strategy.fingerprint
        if name not in programs:
            programs[name] = compile_program(
                graph, strategy, num_ranks=job.num_ranks, fingerprint=fingerprint
            )
        measured = _least_stolen(job, model, graph, programs[name], groups)
        if rank == 0:
            line = json.dumps({"strategy": name, "repeat": repeat, **asdict(measured)})
            with path.open("a", encoding="utf-8") as stream:
                stream.write(f"{line}\n")
    dist.barrier()


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone: then its end of the pipe is closed."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def _least_stolen(job: Job, model: Model, graph: OperatorGraph, program: Program, groups: Groups) -> Measured:
    """The first run that a hypervisor left alone, or the one that it disturbed least."""
    best = _run(job, model, graph, program, groups)
    for _ in range(_ATTEMPTS - 1):
        if best.stolen <= _STOLEN_LIMIT:
            break
        best = min(best, _run(job, model, graph, program, groups), key=lambda found: found.stolen)
    return best


def _run(job: Job, model: Model, graph: OperatorGraph, program: Program, groups: Groups) -> Measured:
    """The same on all ranks."""
    runtime = _runtime(job, model, graph, program, groups)
    args, kwargs = draw_batch(model, job.batch_size, seed=job.seed, step=0)
    own, ran, helped = [], [], []
    for number in range(_WARM_UP + job.num_steps):
        dist.barrier()
        if number == _WARM_UP:
            begin_s, begin_stolen_s = time.perf_counter(), stolen_s()
        start_s, start_ran_s, start_all_s = time.perf_counter(), time.thread_time(), time.process_time()
        runtime.step(*args, **kwargs)
        if number >= _WARM_UP:
            own.append(time.perf_counter() - start_s)
            ran.append(time.thread_time() - start_ran_s)
            helped.append(time.process_time() - start_all_s - ran[-1])
    share = (stolen_s() - begin_stolen_s) / (time.perf_counter() - begin_s) / (os.cpu_count() or 1)
    slowest = torch.tensor(own, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    of_ranks: list[tuple[float, float, float]] = [(0.0, 0.0, 0.0)] * job.num_ranks
    dist.all_gather_object(of_ranks, (median(ran), median(helped), share))
    return Measured(
        times_s=tuple(slowest.tolist()),
        busy_s=tuple(ran_s for ran_s, _, _ in of_ranks),
        helped_s=tuple(helped_s for _, helped_s, _ in of_ranks),
        stolen=max(stolen for _, _, stolen in of_ranks),
    )


def _runtime(
    job: Job, model: Model, graph: OperatorGraph, program: Program, groups: Groups
) -> DistributedRuntime:
    """A runtime whose parameters nobody has to send: every process has made the same."""
    fetch = blocks_of(graph, module_tensors(graph, model.module))
    rank = DistributedRank(graph, program, fetch, groups=groups, timeout_s=job.timeout_s)
    optimizer = RankOptimizer(rank.state, optimizer_maker(job.optimizer, job.learning_rate))
    return DistributedRuntime(graph, program, rank, optimizer, groups, {}, job.seed)


if __name__ == "__main__":
    _main(_Task(**json.loads(sys.argv[1])), int(sys.argv[2]))
    sys.stderr.flush()
    # Not through the interpreter's end: threads of the process group need not end.
    os._exit(0)
