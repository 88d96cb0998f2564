"""Data parallelism with sharded state, and searches under a given sharding."""

from dataclasses import replace
from math import inf

from soaprl.errors import SearchError
from soaprl.search.experts import refusal_prefix
from soaprl.search.simple import best_of
from soaprl.search.task import Evaluation, Evaluator, SearchResult, SearchTask, score_within
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.strategy import Sharding, Strategy

FSDP = "fsdp"


def search_fsdp(task: SearchTask) -> SearchResult:
    """Data parallelism under each sharding, the best that fits in memory; of equal times the least sharded.

    Raises:
        StrategyError: The batch is smaller than the number of devices.
        SearchError: There is nothing to shard over, or the paper's assumptions, which know no collectives.
    """
    graph, cluster, options = task.problem.graph, task.problem.cluster, task.problem.options
    reason = ""
    if cluster.num_devices < 2:
        reason = "there is one device, so nothing to shard state over"
    elif options.paper:
        reason = "the paper's assumptions know no collectives, which sharded state needs"
    if reason:
        raise SearchError(f"{refusal_prefix(FSDP)}{reason}.")
    unsharded = data_parallel(graph, cluster)
    shardings = [sharding for sharding in Sharding if sharding is not Sharding.NONE]
    return best_of(task, FSDP, [replace(unsharded, sharding=sharding) for sharding in shardings])


class ShardedEvaluator:
    """Scores every strategy under one sharding, whatever its own: so a search stays within it.

    Args:
        evaluator: What scores.
        sharding: The sharding.
    """

    def __init__(self, evaluator: Evaluator, sharding: Sharding) -> None:
        self._score = score_within(evaluator)
        self._sharding = sharding

    def evaluate(self, strategy: Strategy) -> Evaluation:
        """Simulate one iteration under `strategy` with the sharding."""
        evaluation = self.evaluate_within(strategy, inf)
        assert evaluation is not None, "without a limit every strategy is simulated to its end"
        return evaluation

    def evaluate_within(self, strategy: Strategy, limit_s: float) -> Evaluation | None:
        """Likewise, or None if the iteration certainly takes longer than `limit_s`."""
        return self._score(replace(strategy, sharding=self._sharding), limit_s)


def under_sharding(task: SearchTask, sharding: Sharding) -> SearchTask:
    """`task`, with every strategy scored under `sharding`."""
    return replace(task, evaluator=ShardedEvaluator(task.evaluator, sharding))
