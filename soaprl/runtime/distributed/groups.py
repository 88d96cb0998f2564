"""Process groups of torch.distributed: joining the job, and the subgroups that programs reduce over.

Every subgroup costs connections (gloo) or over half a gigabyte of GPU memory (NCCL), so that there is one for
each set of ranks, kept for all programs of a job. All ranks make them in the same order.
"""

import os
from contextlib import suppress
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist

from soaprl.errors import ExecutionError
from soaprl.runtime.distributed.health import Health, Store
from soaprl.runtime.distributed.scheduling import let_gloo_wait
from soaprl.runtime.program import Collective, Program

DEFAULT_TIMEOUT_S = 30.0
# No step has this id.
_UNUSED_TAG = 2**30
_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")


def join_process_group(
    devices: tuple[torch.device, ...] | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S
) -> None:
    """Joins the job that the environment describes, as `torchrun` sets it, unless this process is in one.

    Args:
        devices: Where each rank's tensors will be; NCCL if each rank of a machine has a GPU of its own there,
            else gloo.
        timeout_s: How long a rank waits for another.

    Raises:
        ExecutionError: The environment describes no job, or the others do not come.
    """
    if dist.is_initialized():
        return
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise ExecutionError(
            f"expected a process started by torchrun, found no {', '.join(missing)} in the environment: start"
            " with 'torchrun --nproc-per-node=N script.py', or call torch.distributed.init_process_group"
        )
    on_gpus = devices is not None and all(device.type == "cuda" for device in devices)
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    backend = "nccl" if on_gpus and num_local <= torch.cuda.device_count() else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ExecutionError(
            f"rank {os.environ['RANK']} could not join the {os.environ['WORLD_SIZE']} ranks that meet at"
            f" {where} within {timeout_s:g} s: {error}"
        ) from error
    let_gloo_wait()


class Groups:
    """The process groups of a job, by their ranks.

    Args:
        timeout_s: How long a rank waits for another.

    Attributes:
        rank: This process.
        num_ranks: Number of processes.
        backend: ``gloo`` or ``nccl``.
        health: Signs of life of all ranks.
    """

    def __init__(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        if not dist.is_initialized():
            raise ExecutionError(
                "expected torch.distributed to be initialized: call soaprl.runtime.join_process_group first"
            )
        self.rank, self.num_ranks = dist.get_rank(), dist.get_world_size()
        self.timeout_s = timeout_s
        self.backend: str = dist.get_backend()
        world = dist.group.WORLD
        assert world is not None, "torch.distributed is initialized"
        self._known = {tuple(range(self.num_ranks)): world}
        store = cast("Store", dist.distributed_c10d._get_default_store())
        self.health = Health(store, self.rank, self.num_ranks, timeout_s=timeout_s)
        # NCCL connects all ranks at the first collective, which must not be a batch that only some are in.
        device = torch.device("cuda", torch.cuda.current_device()) if self.backend == "nccl" else None
        dist.all_reduce(torch.zeros(1, device=device))
        let_gloo_wait()

    def prepare(self, program: Program) -> None:
        """Makes the groups that a program needs; all ranks call this with the same program."""
        wanted = {
            step.group
            for rank in program.ranks
            for step in rank.steps
            if isinstance(step, Collective) and len(step.group) > 1
        }
        for ranks in sorted(wanted - self._known.keys()):
            self._known[ranks] = dist.new_group(list(ranks), timeout=timedelta(seconds=self.timeout_s))
        let_gloo_wait()

    def close(self) -> None:
        """Ends the signs of life; the process groups stay."""
        self.health.close()

    def sever(self) -> None:
        """Breaks all connections, so that no other rank waits for this one any longer (gloo only).

        A wait that runs out closes every connection of its group; there is no other way to do so from here
        while another thread may be waiting.
        """
        if self.backend != "gloo":
            return
        for ranks, group in self._known.items():
            for peer in ranks:
                if self.rank in ranks and peer != self.rank:
                    with suppress(RuntimeError):
                        work = dist.irecv(torch.empty(1), peer, group=group, tag=_UNUSED_TAG)
                        assert work is not None, "this rank is in the group"
                        work.wait(timedelta(milliseconds=1))

    def __getitem__(self, ranks: tuple[int, ...]) -> dist.ProcessGroup:
        return self._known[ranks]

    @property
    def everyone(self) -> dist.ProcessGroup:
        """All ranks."""
        return self._known[tuple(range(self.num_ranks))]
