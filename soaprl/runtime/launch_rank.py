"""One process of a run that `soaprl.runtime.launch` started: ``python -m soaprl.runtime.launch_rank FOLDER``.

It finds the job in the folder, and leaves there its result, or why there is none.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from soaprl.atomic import write_text_atomic
from soaprl.errors import SoaprlError
from soaprl.runtime.freed_memory import keep_freed_memory
from soaprl.runtime.launch_job import Job, append_line, load_job
from soaprl.runtime.launch_record import Recorder
from soaprl.runtime.launch_train import result_text, train

PROGRESS = "progress.jsonl"
FAILED = 1
# What failures of communication are known by: the cause is then some other process.
_LOST = ("connection", "timed out", "timeout", "gloo", "nccl", "broken pipe", "socket")


def result_path(folder: Path, rank: int) -> Path:
    """Where a rank leaves its result."""
    return folder / f"result-{rank}.json"


def failure_path(folder: Path, rank: int) -> Path:
    """Where a rank leaves why it failed."""
    return folder / f"failure-{rank}.json"


def place_path(folder: Path, rank: int) -> Path:
    """Where a rank keeps what it does."""
    return folder / f"place-{rank}"


def main(folder: Path) -> int:
    """Takes part in the run in `folder`; the exit code."""
    rank = int(os.environ["RANK"])
    # The process that started this one says when to stop, by a signal or by being gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    keep_freed_memory()
    recorder: Recorder | None = None
    try:
        job, graph = load_job(folder)
        recorder = Recorder(graph, place=place_path(folder, rank), events=job.trace)
        recorder.rank = rank
        with_store(job, os.environ["SOAPRL_STORE"])
        progress = folder / PROGRESS
        result = train(job, graph, recorder, lambda p: append_line(progress, p))
        write_text_atomic(result_path(folder, rank), result_text(result))
    except Exception as error:
        _report(folder, rank, error, recorder)
        return FAILED
    return 0


def with_store(job: Job, address: str) -> None:
    """Joins the other processes, which meet at `address`."""
    host, _, port = address.rpartition(":")
    timeout = timedelta(seconds=job.timeout_s)
    store = TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=timeout)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if job.backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(job.backend, store=store, rank=rank, world_size=size, timeout=timeout)


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process could not be reached, rather than that this one failed."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    if any(isinstance(e, dist.DistError) for e in chain):
        return True
    return any(word in str(e).lower() for e in chain for word in _LOST)


def _report(folder: Path, rank: int, error: Exception, recorder: Recorder | None) -> None:
    text = str(error)
    if not isinstance(error, SoaprlError):
        place = recorder.place if recorder is not None else "the beginning"
        text = f"rank {rank} failed at {place}: {type(error).__name__}: {text}"
    content = {
        "message": text,
        "lost": is_lost(error),
        "time_s": time.time(),
        "traceback": "".join(traceback.format_exception(error)),
    }
    write_text_atomic(failure_path(folder, rank), json.dumps(content))


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone: then its end of the pipe is closed."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(FAILED)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through the interpreter's end: threads of a broken process group may wait for ever.
    os._exit(code)
