"""The distributed executor: each rank of a program is a process, on torch.distributed."""

from soaprl.runtime.distributed.groups import Groups, join_process_group
from soaprl.runtime.distributed.rank import DistributedRank
from soaprl.runtime.distributed.runtime import DistributedRuntime, initialize_distributed

__all__ = ["DistributedRank", "DistributedRuntime", "Groups", "initialize_distributed", "join_process_group"]
