"""Data parallelism with sharded state."""

from soaprl.errors import SearchError
from soaprl.search.experts import FSDP, refusal_prefix, sharded_data_parallelism
from soaprl.search.simple import best_of
from soaprl.search.task import SearchResult, SearchTask


def search_fsdp(task: SearchTask) -> SearchResult:
    """Data parallelism under each sharding, the best that fits in memory; of equal times the least sharded.

    A task that asks for a sharding gets that one.

    Raises:
        StrategyError: The batch is smaller than the number of devices.
        SearchError: There is nothing to shard over, or the paper's assumptions, which know no collectives.
    """
    reason = ""
    if task.problem.cluster.num_devices < 2:
        reason = "there is one device, so nothing to shard state over"
    elif task.problem.options.paper:
        reason = "the paper's assumptions know no collectives, which sharded state needs"
    if reason:
        raise SearchError(f"{refusal_prefix(FSDP)}{reason}.")
    return best_of(task, FSDP, [strategy for _, strategy in sharded_data_parallelism(task)])
