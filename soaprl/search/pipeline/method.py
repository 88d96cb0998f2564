"""Pipeline parallelism, with data and tensor parallelism inside of its stages.

GPipe (Huang et al., arXiv 1811.06965), PipeDream-Flush or 1F1B (Narayanan et al., arXiv 2006.09503), and
their combination with Megatron's tensor parallelism (Narayanan et al., arXiv 2104.04473).

Of n devices, p stages have n / p each, inside of which operators run as in
`soaprl.strategy.experts_megatron` with a tensor degree t, or by sample alone (t = 1). All legal p, t and
numbers m of micro-batches are estimated: stages are contiguous in the order of the operators and balanced by
dynamic programming (`soaprl.search.pipeline.balance`), and an iteration takes m + p - 1 times the slowest
one. The best by this estimate are simulated with 1F1B, and the best of them with GPipe.
"""

from collections.abc import Sequence
from dataclasses import replace

from soaprl.errors import GraphError, SearchError
from soaprl.search.experts import refusal_prefix
from soaprl.search.pipeline.making import Pipeline, pipelines
from soaprl.search.simple import best_of
from soaprl.search.task import SearchResult, SearchTask
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import Strategy

PIPELINE, ACCUMULATION = "pipeline", "accumulation"
# How many are simulated, best estimates first, and how many of them with GPipe, too.
_NUM_SIMULATED, _NUM_GPIPE = 12, 2


def search_pipeline(task: SearchTask) -> SearchResult:
    """The best simulated pipeline of two stages or more; see the module.

    Raises:
        SearchError: There is one device, or the batch cannot be cut into micro-batches.
    """
    if task.problem.cluster.num_devices < 2:
        raise SearchError(f"{refusal_prefix(PIPELINE)}there is one device, so nothing to put stages on.")
    strategies = _simulated(task, PIPELINE, [p for p in _legal(task, PIPELINE) if p.num_stages > 1])
    return best_of(task, PIPELINE, strategies)


def search_accumulation(task: SearchTask) -> SearchResult:
    """Data and tensor parallelism on all devices, with micro-batches one after the other.

    Raises:
        SearchError: As for `search_pipeline`.
    """
    found = [p for p in _legal(task, ACCUMULATION) if p.num_stages == 1]
    return best_of(task, ACCUMULATION, _simulated(task, ACCUMULATION, found))


def _legal(task: SearchTask, method: str) -> tuple[Pipeline, ...]:
    try:
        return pipelines(task.problem, task.micro_batches if task.micro_batches > 1 else None)
    except GraphError as error:
        raise SearchError(f"{refusal_prefix(method)}{error}") from error


def _simulated(task: SearchTask, method: str, found: Sequence[Pipeline]) -> list[Strategy]:
    """The strategies to simulate, in this order."""
    if not found:
        graph = task.problem.graph
        raise SearchError(
            f"{refusal_prefix(method)}expected a batch that can be cut into micro-batches of a sample for"
            f" each replica, found one of {graph.batch_size} in {graph.name!r}."
        )
    chosen = [pipeline.strategy for pipeline in found[:_NUM_SIMULATED]]
    if found[0].num_stages > 1:
        chosen += [replace(strategy, schedule=Schedule.GPIPE) for strategy in chosen[:_NUM_GPIPE]]
    # Strategies with as many micro-batches have the same copies of operators, so they come one after another.
    groups = list(dict.fromkeys(strategy.micro_batches for strategy in chosen))
    chosen.sort(key=lambda strategy: groups.index(strategy.micro_batches))
    return [task.completed(strategy) for strategy in chosen]
